"""Linear probes with their controls."""

from dit_lens.probing.causal import CausalCheck, causal_check
from dit_lens.probing.data import require_disjoint
from dit_lens.probing.estimators import LinearProbe, RidgeProbe
from dit_lens.probing.features import collect
from dit_lens.probing.grid import ProbeData, ProbeGrid, probe_grid
from dit_lens.probing.logistic import logistic_from_store
from dit_lens.probing.moments import Linear, Moments
from dit_lens.probing.sources import Inversion, invert
from dit_lens.probing.stream import Streamed, evaluate_probes, stream_probes
from dit_lens.probing.trained import ProbeSet, load_probes, probe_names
from dit_lens.probing.twin import random_twin

__all__ = [
    "CausalCheck",
    "Inversion",
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
    "invert",
    "load_probes",
    "logistic_from_store",
    "probe_grid",
    "probe_names",
    "random_twin",
    "require_disjoint",
    "stream_probes",
]
