"""Tiny random pipelines of every family that dit_lens supports, for checks and tests."""
