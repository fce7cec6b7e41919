"""Interventions: functions applied at sites."""

from dit_lens.interventions.base import At, Intervention
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.merge import Merge
from dit_lens.interventions.patch import Patch

__all__ = ["At", "Capture", "Intervention", "Merge", "Patch"]
