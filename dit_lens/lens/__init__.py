"""Lenses: reading a run without changing it.

Each is a function ``lens(model, source, *, sites=..., branch=..., **run_arguments)`` of inputs or a recorded run.
It gives a `Result`: the tensors, ``table``, ``plot`` and ``save``.
"""
