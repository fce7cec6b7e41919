"""Linear probes with their controls."""

from dit_lens.probing.data import require_disjoint
from dit_lens.probing.estimators import LinearProbe, RidgeProbe
from dit_lens.probing.features import collect
from dit_lens.probing.grid import ProbeData, ProbeGrid, probe_grid
from dit_lens.probing.moments import Linear, Moments

__all__ = [
    "Linear",
    "LinearProbe",
    "Moments",
    "ProbeData",
    "ProbeGrid",
    "RidgeProbe",
    "collect",
    "probe_grid",
    "require_disjoint",
]
