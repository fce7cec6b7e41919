"""How one run is made."""
