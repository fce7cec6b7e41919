"""Linear probes with their controls."""

from dit_lens.probing.causal import CausalCheck, causal_check
from dit_lens.probing.data import require_disjoint
from dit_lens.probing.estimators import LinearProbe, RidgeProbe
from dit_lens.probing.features import collect
from dit_lens.probing.grid import ProbeData, ProbeGrid, probe_grid
from dit_lens.probing.moments import Linear, Moments
from dit_lens.probing.stream import Streamed, evaluate_probes, stream_probes
from dit_lens.probing.trained import ProbeSet, load_probes, probe_names

__all__ = [
    "CausalCheck",
    "Linear",
    "LinearProbe",
    "Moments",
    "ProbeData",
    "ProbeGrid",
    "ProbeSet",
    "RidgeProbe",
    "Streamed",
    "causal_check",
    "collect",
    "evaluate_probes",
    "load_probes",
    "probe_grid",
    "probe_names",
    "require_disjoint",
    "stream_probes",
]
