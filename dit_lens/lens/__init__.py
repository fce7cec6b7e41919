"""Lenses: reading a run without changing it.

Each is a function that gives a small object with the tensors, ``.frame()`` (a tidy table) and ``.plot()`` (an Axes).
"""

from dit_lens.lens.attention import Attention, attention
from dit_lens.lens.contributions import Contributions, contributions
from dit_lens.lens.depth import DepthLens, depth_lens
from dit_lens.lens.preview import Preview
from dit_lens.lens.representation.cka import CKA, Features, cka, cka_features
from dit_lens.lens.representation.energy import Energy, energy
from dit_lens.lens.representation.hsic import linear_cka
from dit_lens.lens.representation.pca import PCABasis, PCAMap, pca_map
from dit_lens.lens.steps import StepLens, step_lens
from dit_lens.lens.tuned import LensComparison, TunedLens, compare_lenses, fit_tuned_lens, train_tuned_lens

__all__ = [
    "CKA",
    "Attention",
    "Contributions",
    "DepthLens",
    "Energy",
    "Features",
    "LensComparison",
    "PCABasis",
    "PCAMap",
    "Preview",
    "StepLens",
    "TunedLens",
    "attention",
    "cka",
    "cka_features",
    "compare_lenses",
    "contributions",
    "depth_lens",
    "energy",
    "fit_tuned_lens",
    "linear_cka",
    "pca_map",
    "step_lens",
    "train_tuned_lens",
]
