"""Instances and pairs of a task by number or by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from dit_lens.errors import EvidenceError
from dit_lens.tasks.base import Pair, Split, Task
from dit_lens.tasks.evidence import require, require_task


def listed_tasks(tasks: Task | Sequence[Task], *, who: str) -> list[Task]:
    """One task or several as a list.

    Raises
    ------
    EvidenceError
        None, or what is no task.
    """
    given: list[Any] = [*tasks] if isinstance(tasks, list | tuple) else [tasks]
    if not given:
        raise EvidenceError(f"{who} needs a task, or a list with at least one; got none")
    for task in given:
        require_task(task, who=who)
    return given


def draw_instances(
    task: Task, instances: int | Sequence[Any], seed: int | Sequence[int] = 0, split: Split = "test", *, who: str
) -> list[Any]:
    """Instances by number, drawn from a split of the task by the seed, or those that are given.

    Raises
    ------
    EvidenceError
        What is no task, no instances, or a number of them with a seed for each row, which draws nothing.
    """
    require_task(task, who=who)
    if not _is_count(instances):
        found = _listed(instances, "instances", who)
    elif isinstance(seed, Sequence):
        raise EvidenceError(f"{who} got instances={instances} with a seed for each row: give the instances themselves")
    else:
        found = task.sample(int(instances), seed=seed, split=split) if instances > 0 else []
    return _some(found, "instances", task, who)


def draw_pairs(
    task: Task, pairs: int | Sequence[Pair], seed: int = 0, kind: str | None = None, *, who: str
) -> list[Pair]:
    """Pairs of the task's test split by their number, or those that are given.

    Raises
    ------
    EvidenceError
        What is no task, no pairs, or a task that makes none.
    """
    require_task(task, who=who)
    if not _is_count(pairs):
        found = [Pair(*pair) for pair in _listed(pairs, "pairs", who)]
    else:
        known = require(task, "pairs", who=who)
        found = known.pairs(int(pairs), seed, kind) if pairs > 0 else []
    return _some(found, "pairs", task, who)


def _is_count(given: Any) -> TypeGuard[int]:
    return isinstance(given, int | np.integer) and not isinstance(given, bool)


def _listed(given: Any, what: str, who: str) -> list[Any]:
    if not isinstance(given, Iterable) or isinstance(given, str | Mapping):
        raise EvidenceError(f"{who} got {what}={given!r:.80}: give a number of them, or a list")
    return list(given)


def _some(found: Sequence[Any], what: str, task: Task, who: str) -> list[Any]:
    if not len(found):
        raise EvidenceError(f"{who} needs {what} of task {task.name!r}: a number of at least 1, or a list; got none")
    return list(found)
