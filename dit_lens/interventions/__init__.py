"""Interventions: functions applied at sites."""

from dit_lens.interventions import reduce
from dit_lens.interventions.ablate import Ablate
from dit_lens.interventions.base import At, Intervention, intervention
from dit_lens.interventions.bypass import Bypass
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.merge import Merge
from dit_lens.interventions.noise import Noise
from dit_lens.interventions.patch import Patch
from dit_lens.interventions.steer import Steer

__all__ = [
    "Ablate",
    "At",
    "Bypass",
    "Capture",
    "Intervention",
    "Merge",
    "Noise",
    "Patch",
    "Steer",
    "intervention",
    "reduce",
]
