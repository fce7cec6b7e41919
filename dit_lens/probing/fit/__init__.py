"""The algebra of probes: questions, moments, their solution, scores."""
