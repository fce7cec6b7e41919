"""How much is looked at, and what counts. No size and no threshold was changed after a figure had been looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dit_lens.errors import EvidenceError


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
        Skill above the best control from which on a thing counts as decodable. Memory asks it of the lower end of the
        interval, perception before action of the value.
    folds, replicates, batch, seed : int

    Raises
    ------
    EvidenceError
        A number out of its range.
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

    def __post_init__(self) -> None:
        # With fewer replicates nothing lies outside of a 95 % interval.
        least = {"replicates": 20, "folds": 2, "batch": 1, "seed": 0, "threshold": 0}
        least |= dict.fromkeys(("memory_instances", "order_instances", "chain_instances"), 2)
        for name, bound in least.items():
            # Written so that NaN is refused too.
            if not getattr(self, name) >= bound:
                raise EvidenceError(f"{name} is {getattr(self, name)}; need at least {bound}")
        if not self.threshold < 1:
            raise EvidenceError(f"threshold is {self.threshold}; a skill is 1 at most, so that it must be below 1")

    @classmethod
    def quick(cls, **changes: Any) -> BehaviourConfig:
        """A smaller run of the same work, for checks."""
        small = cls(memory_instances=36, order_instances=18, chain_instances=10, probe_steps=[0, 4, 8], replicates=100)
        return replace(small, **changes)
