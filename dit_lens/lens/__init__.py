"""Lenses: reading a run without changing it."""

from dit_lens.lens.depth import DepthLens, depth_lens
from dit_lens.lens.steps import StepLens, step_lens

__all__ = ["DepthLens", "StepLens", "depth_lens", "step_lens"]
