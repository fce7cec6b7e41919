"""Emergent behaviours as numbers: working memory, perception before action, self-correction, multi-path.

"Demystifying Video Reasoning" (arXiv 2603.16870) reports the four from looking at pictures (its experiments E1 and E5).
Here each is a definition with a number, an n and an interval. The definitions and thresholds stand in the modules'
docstrings; those of `correction` and `order` say which rules were changed after figures had been looked at, and why.
"Not shown" is a possible result of each.
"""

from dit_lens.analysis.behaviours.chain import Chain, decoded_chain, distinct
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.analysis.behaviours.correction import Correction, self_correction
from dit_lens.analysis.behaviours.memory import WorkingMemory, working_memory
from dit_lens.analysis.behaviours.order import PerceptionOrder, perception_before_action
from dit_lens.analysis.behaviours.paths import MultiPath, multi_path
from dit_lens.analysis.behaviours.surveys import Survey, survey

__all__ = [
    "BehaviourConfig",
    "Chain",
    "Correction",
    "MultiPath",
    "PerceptionOrder",
    "Survey",
    "WorkingMemory",
    "decoded_chain",
    "distinct",
    "multi_path",
    "perception_before_action",
    "self_correction",
    "survey",
    "working_memory",
]
