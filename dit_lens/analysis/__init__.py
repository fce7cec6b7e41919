"""Analyses: loops over runs that return tidy tables."""

from dit_lens.analysis.bands import Band, Curves, Thresholds, Verdict, find_bands
from dit_lens.analysis.lensing import LensCurves, lens_curves
from dit_lens.analysis.localize import Localization, LocalizeConfig, localize
from dit_lens.analysis.patching import PatchingSweep, patching_sweep

__all__ = [
    "Band",
    "Curves",
    "LensCurves",
    "Localization",
    "LocalizeConfig",
    "PatchingSweep",
    "Thresholds",
    "Verdict",
    "find_bands",
    "lens_curves",
    "localize",
    "patching_sweep",
]
