"""Linear probes with their controls."""

from dit_lens.probing.causal import CausalCheck, causal_check
from dit_lens.probing.cross_validate import ProbeData, ProbeGrid, probe_grid
from dit_lens.probing.evaluate import evaluate_probes
from dit_lens.probing.fit.estimators import LinearProbe, RidgeProbe
from dit_lens.probing.fit.moments import Linear, Moments
from dit_lens.probing.logistic import logistic_from_store
from dit_lens.probing.probe_set import ProbeSet, load_probes, probe_names
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.data import require_disjoint
from dit_lens.probing.rows.random_weights import random_twin
from dit_lens.probing.rows.sources import Inversion, invert
from dit_lens.probing.stream import Streamed, stream_probes

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
