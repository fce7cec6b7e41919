"""How anything shows itself: short ``repr``."""
