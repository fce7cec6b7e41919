"""What dit_lens costs: whole generations, compared in pairs. ``python -m tests.benchmarks --help``."""
