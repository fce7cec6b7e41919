"""Linear probes with their controls."""

from dit_lens.probing.estimators import LinearProbe
from dit_lens.probing.features import collect
from dit_lens.probing.grid import ProbeData, ProbeGrid, probe_grid
from dit_lens.probing.moments import Linear, Moments

__all__ = ["Linear", "LinearProbe", "Moments", "ProbeData", "ProbeGrid", "collect", "probe_grid"]
