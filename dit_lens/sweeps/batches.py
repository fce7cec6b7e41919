"""The rows of a sweep: instances, seeds of one instance or sides of pairs, some at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import EvidenceError, InputError
from dit_lens.interventions.ablate import Ablate
from dit_lens.interventions.merge import Merge
from dit_lens.interventions.patch import Patch
from dit_lens.runs.donor import Donor
from dit_lens.runs.inputs import gather
from dit_lens.runs.seeds import row_seeds
from dit_lens.sweeps.metrics import Metric
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.draw import draw_instances, draw_pairs
from dit_lens.tasks.evidence import declares, pairs_that_differ

_WHO = "sweep"


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that are run at once: data that can be pickled.

    Attributes
    ----------
    number : int
    instances, seeds : tuple, one of each row
    units : tuple of str
        What each row counts for: its instance, or its pair.
    pairs : tuple of Pair, or None
        Where the rows are the sides of pairs, each original before its counterfactual, both from the same noise.
    counted : tuple of bool
        Rows whose values count: of merged seeds only those that are merged into.
    first : int
        Rows in the batches before it.
    """

    number: int
    instances: tuple[Any, ...]
    seeds: tuple[int, ...]
    units: tuple[str, ...]
    pairs: tuple[Pair, ...] | None
    counted: tuple[bool, ...]
    first: int = 0

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.instances)


def units_of(
    task: Task, intervention: Any, metrics: Sequence[Metric], instances: Any, seed: int | Sequence[int]
) -> list[Any]:
    """Pairs where something needs them or they were given, else instances."""
    patches = isinstance(intervention, Patch) and intervention.of_pairs
    if patches and intervention.rows is not None:
        raise InputError("Patch('pair', rows=...): the other side of its pair is given to each row; omit rows=")
    counted = isinstance(instances, int | np.integer)
    if counted and (patches or any(metric.pairs for metric in metrics)):
        if not isinstance(seed, int):
            raise EvidenceError(f"instances={instances} with a seed for each: give the pairs themselves")
        return draw_pairs(task, instances, seed, who=_WHO)
    given = draw_instances(task, instances, seed, who=_WHO)
    are_pairs = [isinstance(unit, tuple) and len(unit) == 2 for unit in given]
    if any(are_pairs) != all(are_pairs):
        raise EvidenceError("a sweep is of instances or of pairs, not of both")
    needs = [m.name for m in metrics if m.pairs] + (["Patch('pair', ...)"] if patches else [])
    if not all(are_pairs) and needs:
        raise EvidenceError(f"{needs[0]} needs pairs: give a number, or instances=task.pairs(n), not instances")
    return [Pair(*unit) for unit in given] if all(are_pairs) else given


def telling(task: Task, given: Sequence[Any], metrics: Sequence[Metric]) -> list[int]:
    """The units that can be measured: of pairs, where a metric reads the place at which right answers differ, those
    whose answers differ somewhere.

    Raises
    ------
    EvidenceError
        There is none.
    """
    reads = any(metric.pairs and metric.of == "x0hat" for metric in metrics)
    if not reads or not isinstance(given[0], Pair) or not declares(task, "answer_mask"):
        return list(range(len(given)))
    kept = pairs_that_differ(task, given, who=_WHO)
    if not kept:
        raise EvidenceError(f"none of {len(given)} pairs has answers that differ anywhere; nothing can be measured")
    return kept


def seeds_of(given: Sequence[Any], seed: int | Sequence[int], intervention: Any) -> list[list[int]]:
    """The seeds of each unit: one, or as many as are merged.

    Raises
    ------
    InputError
        Another number of seeds, or seeds to be merged that are sides of pairs.
    """
    group, _ = _merged(intervention)
    if group > 1 and isinstance(given[0], Pair):
        raise InputError("Merge merges seeds of one instance; the two sides of a pair are two")
    seeds = row_seeds(seed, len(given) * group) if isinstance(seed, int) else [int(one) for one in seed]
    if len(seeds) != len(given) * group:
        raise InputError(f"{len(seeds)} seeds for {len(given)} units of {group} seeds each")
    return [seeds[start : start + group] for start in range(0, len(seeds), group)]


def batches_of(
    given: Sequence[Any], seeds: Sequence[Sequence[int]], rows_at_once: int, intervention: Any
) -> list[Batch]:
    """Units in batches of about one size, none of more rows than are run at once if a unit has no more."""
    group, receiver = _merged(intervention)
    paired = isinstance(given[0], Pair)
    width = 2 if paired else group
    count, found = ceil(len(given) / max(1, rows_at_once // width)), list[Batch]()
    for number, part in enumerate(np.array_split(np.arange(len(given)), count)):
        rows = [row for i in part for row in (given[i] if paired else [given[i]] * group)]
        names = [name for i in part for name in [_name(given[i])] * width]
        noise = [seed for i in part for one in seeds[i] for seed in [one] * (width // group)]
        counted = [receiver is None or row % group == receiver for row in range(len(rows))]
        pairs = tuple(given[i] for i in part) if paired else None
        first = sum(map(len, found))
        found.append(Batch(number, tuple(rows), tuple(noise), tuple(names), pairs, tuple(counted), first))
    return found


def _merged(intervention: Any) -> tuple[int, int | None]:
    """How many seeds of an instance are merged, and the row of them that counts; None where all do."""
    if not isinstance(intervention, Merge):
        return 1, None
    return intervention.group, None if intervention.receiver == "all" else int(intervention.receiver)


def _name(unit: Any) -> str:
    sides = unit if isinstance(unit, Pair) else (unit,)
    return " | ".join(gather(side, 0).rows[0].instance for side in sides)


def rows_of_kept(given: Sequence[Any], kept: Sequence[int], intervention: Any) -> tuple[int, list[int]]:
    """How many rows all units have, and the numbers of those of the units that are kept."""
    width = 2 if isinstance(given[0], Pair) else _merged(intervention)[0]
    return width * len(given), [row for unit in kept for row in range(width * unit, width * (unit + 1))]


def of_kept(intervention: Any, count: int, rows: Sequence[int]) -> Any:
    """An intervention with the tokens of the rows that are kept, where its tokens are those of each of ``count`` rows.

    Raises
    ------
    InputError
        Tokens of another number of rows.
    """
    named = intervention.sites.tokens.rows_named
    if named is None:
        return intervention
    if named != count:
        raise InputError(
            f"tokens of {named} rows, and this sweep has {count}: every instance is a row, of pairs the original and "
            "then the counterfactual"
        )
    return replace(intervention, sites=intervention.sites.at(tokens=intervention.sites.tokens.of_rows(rows)))


def of_batch(intervention: Any, batch: Batch) -> Any:
    """An intervention with the tokens of a batch's rows, where its tokens are those of each row of the whole sweep.

    Raises
    ------
    SiteError
        No row of the batch has any.
    """
    tokens = intervention.sites.tokens
    if tokens.rows_named is None:
        return intervention
    rows = range(batch.first, batch.first + len(batch))
    return replace(intervention, sites=intervention.sites.at(tokens=tokens.of_rows(rows)))


def require_rows_anywhere(intervention: Any, batches: Sequence[Batch]) -> None:
    """Refuse what names rows of its run, or of a donor, where there are several runs with the same numbers.

    Raises
    ------
    InputError
    """
    given = getattr(intervention, "donor", getattr(intervention, "reference", None))
    many = isinstance(given, Donor | Tensor) and len(given.rows if isinstance(given, Donor) else given) > 1
    others = isinstance(intervention, Ablate) and intervention.mode == "resample"
    averages = isinstance(intervention, Ablate) and intervention.mode == "mean"
    named = not isinstance(getattr(intervention, "rows", None), int | None)
    if len(batches) > 1 and not averages and (many or others or named):
        rows = sum(map(len, batches))
        raise InputError(
            f"{type(intervention).__name__} goes by the numbers of rows, and each of {len(batches)} batches counts its "
            f"own from 0: give batch={rows}, or fewer instances"
        )
