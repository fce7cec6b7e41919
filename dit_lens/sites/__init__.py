"""The address of every place in a generation."""
