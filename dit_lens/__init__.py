"""dit_lens: look inside video diffusion transformers.

A site is an address. An intervention is a function applied at sites. A run is a generation with a list of
interventions. An analysis is a loop over runs that returns a tidy table.
"""

from dit_lens import errors, organisms, tasks
from dit_lens.analysis import LocalizeConfig, localize, patching_sweep
from dit_lens.checks import CheckReport
from dit_lens.engine.apply import apply
from dit_lens.engine.gradients import Gradients
from dit_lens.errors import DitLensError
from dit_lens.families import Architecture, register
from dit_lens.interventions import (
    Ablate,
    At,
    Bypass,
    Capture,
    Intervention,
    Merge,
    Noise,
    Patch,
    Steer,
    intervention,
    reduce,
)
from dit_lens.lens import Preview, TunedLens, attention, cka_features, contributions, depth_lens, pca_map, step_lens
from dit_lens.lens.representation import cka, energy
from dit_lens.model import VideoDiT
from dit_lens.organisms import load_organism
from dit_lens.probing import LinearProbe, RidgeProbe, causal_check, collect, load_probes, probe_grid, stream_probes
from dit_lens.runs.call import Call
from dit_lens.runs.inputs import Row
from dit_lens.runs.ledger import Ledger
from dit_lens.runs.replay import Replay, Resume
from dit_lens.runs.run import Run
from dit_lens.runs.schedule import Schedule
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
from dit_lens.store import Store

__version__ = "0.1.0"

__all__ = [
    "Ablate",
    "Architecture",
    "At",
    "Bypass",
    "Call",
    "Capture",
    "CheckReport",
    "DitLensError",
    "Geometry",
    "Gradients",
    "Intervention",
    "Ledger",
    "LinearProbe",
    "LocalizeConfig",
    "Merge",
    "Noise",
    "Patch",
    "Preview",
    "Replay",
    "Resume",
    "RidgeProbe",
    "Row",
    "Run",
    "Schedule",
    "Site",
    "Sites",
    "Steer",
    "Store",
    "Tokens",
    "TunedLens",
    "VideoDiT",
    "apply",
    "attention",
    "causal_check",
    "cka",
    "cka_features",
    "collect",
    "contributions",
    "depth_lens",
    "energy",
    "errors",
    "intervention",
    "load_organism",
    "load_probes",
    "localize",
    "organisms",
    "patching_sweep",
    "pca_map",
    "probe_grid",
    "reduce",
    "register",
    "step_lens",
    "stream_probes",
    "tasks",
]
