"""Whether a model does what its family's file says."""
