"""dit_lens: look inside video diffusion transformers.

A site is an address. An intervention is a function applied at sites. A run is a generation with a list of
interventions. An analysis is a loop over runs that returns a tidy table.
"""

from dit_lens import errors, organisms, tasks
from dit_lens.analysis import LocalizeConfig, localize, patching_sweep
from dit_lens.architectures import Architecture, register
from dit_lens.checks import CheckReport
from dit_lens.errors import DitLensError
from dit_lens.geometry import Geometry
from dit_lens.gradients import Gradients
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
from dit_lens.lens import depth_lens, step_lens
from dit_lens.model import VideoDiT
from dit_lens.organisms import load_organism
from dit_lens.run import Call, Ledger, Replay, Resume, Row, Run
from dit_lens.schedule import Schedule
from dit_lens.sites import Site, Sites
from dit_lens.tokens import Tokens
from dit_lens.tracing import apply

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
    "LocalizeConfig",
    "Merge",
    "Noise",
    "Patch",
    "Replay",
    "Resume",
    "Row",
    "Run",
    "Schedule",
    "Site",
    "Sites",
    "Steer",
    "Tokens",
    "VideoDiT",
    "apply",
    "depth_lens",
    "errors",
    "intervention",
    "load_organism",
    "localize",
    "organisms",
    "patching_sweep",
    "reduce",
    "register",
    "step_lens",
    "tasks",
]
