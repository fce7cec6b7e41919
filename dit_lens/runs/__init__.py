"""What a run is given and leaves behind."""
