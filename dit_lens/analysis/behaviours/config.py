"""How much is looked at, and what counts: fixed before any figure was looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class BehaviourConfig:
    """Sizes and thresholds of the behaviours.

    Attributes
    ----------
    memory_instances, order_instances, chain_instances : int
        Task instances for the probes of hidden frames, for the probes of start, goal and path, and for decoded chains
        of steps.
    probe_steps : Select
        Denoising steps at which probes are fitted.
    threshold : float
        Skill above the best control from which on a thing counts as decodable, by the lower end of its interval.
    folds, replicates, batch, seed : int
    """

    memory_instances: int = 144
    order_instances: int = 96
    chain_instances: int = 80
    probe_steps: Any = "all"
    threshold: float = 0.1
    folds: int = 3
    replicates: int = 300
    batch: int = 24
    seed: int = 0

    @classmethod
    def quick(cls, **changes: Any) -> BehaviourConfig:
        """A smaller run of the same work, for checks."""
        small = cls(memory_instances=36, order_instances=18, chain_instances=10, probe_steps=[0, 4, 8], replicates=100)
        return replace(small, **changes)
