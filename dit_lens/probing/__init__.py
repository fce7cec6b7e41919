"""Linear probes with their controls."""
