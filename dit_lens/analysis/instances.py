"""What analyses share: instances and pairs by number or by hand, and interventions as far as a run goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.sites.geometry import Geometry
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.evidence import require


def drawn_instances(task: Task, instances: int | Sequence[Any], seed: int, *, who: str) -> list[Any]:
    """Instances of the task's test split by their number, or those that are given.

    Raises
    ------
    EvidenceError
        There are none.
    """
    found = task.sample(instances, seed=seed) if isinstance(instances, int) and instances > 0 else instances
    if isinstance(found, int) or not len(found):
        raise EvidenceError(f"{who} needs instances of task {task.name!r}: a number of at least 1, or a list; got none")
    return list(found)


def drawn_pairs(task: Task, pairs: int | Sequence[Pair], seed: int, kind: str | None = None, *, who: str) -> list[Pair]:
    """Pairs of the task's test split by their number, or those that are given.

    Raises
    ------
    EvidenceError
        There are none, or the task makes no pairs.
    """
    if isinstance(pairs, int) and pairs > 0:
        pairs = require(task, "pairs", who=who).pairs(pairs, seed, kind)
    if isinstance(pairs, int) or not len(pairs):
        raise EvidenceError(f"{who} needs pairs of task {task.name!r}: a number of at least 1, or a list; got none")
    return [Pair(*pair) for pair in pairs]


def until(interventions: Iterable[Intervention], geometry: Geometry, step: int) -> list[Intervention]:
    """The interventions that a run which stops after ``step`` meets."""
    return [i for i in interventions if any(site.step <= step for site in i.sites.resolve(geometry))]
