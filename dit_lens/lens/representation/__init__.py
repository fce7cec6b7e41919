"""What the activations themselves look like: energy, principal components, similarity."""
