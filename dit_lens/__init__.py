"""dit_lens: look inside video diffusion transformers."""

from dit_lens import errors, tasks
from dit_lens.errors import DitLensError
from dit_lens.interventions import At, Capture, Intervention, Merge, Patch
from dit_lens.model import VideoDiT
from dit_lens.run import Call, Ledger, Replay, Row, Run
from dit_lens.sites import Geometry, Site, Sites, Tokens

__all__ = [
    "At",
    "Call",
    "Capture",
    "DitLensError",
    "Geometry",
    "Intervention",
    "Ledger",
    "Merge",
    "Patch",
    "Replay",
    "Row",
    "Run",
    "Site",
    "Sites",
    "Tokens",
    "VideoDiT",
    "errors",
    "tasks",
]
