"""Puzzles drawn with glyphs: one base, one file each."""
