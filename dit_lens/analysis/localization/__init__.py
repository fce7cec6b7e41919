"""Bands of perception, reasoning and consolidation, and the report on them."""
