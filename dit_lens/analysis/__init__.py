"""Analyses: loops over runs that return tidy tables."""
