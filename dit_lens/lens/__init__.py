"""Lenses: reading a run without changing it.

Each is a function that gives a small object with the tensors, ``.frame()`` (a tidy table) and ``.plot()`` (an Axes).
"""
