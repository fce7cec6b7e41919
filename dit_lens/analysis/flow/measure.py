"""Cells of a flow carried out as a sweep, and the effects that they come to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dit_lens.analysis.flow.cells import EMBED, Cells, Made, name_of
from dit_lens.analysis.flow.looks import Door, Pairs
from dit_lens.analysis.flow.ways import Along, Ways
from dit_lens.display.short import short_repr
from dit_lens.errors import EvidenceError
from dit_lens.results.arrays import Floats
from dit_lens.sweeps.batches import batches_of
from dit_lens.sweeps.metrics import Metric
from dit_lens.sweeps.plan import Forecast, SweepPlan
from dit_lens.sweeps.sweep import Sweep, carry_out
from dit_lens.tasks.base import Task

#: Models with more blocks are measured in windows first.
DEEP = 16
#: Windows that a deep model is cut into.
WINDOWS = 8
#: A window in which something changes by more is cut in two.
CHANGES = 0.02


@dataclass(frozen=True, eq=False)
class Effects:
    """What cells came to, by set and layer, as shares of the whole donor's movement: float (n,) over pairs.

    Attributes
    ----------
    sweep : Sweep
    """

    sweep: Sweep

    __repr__ = short_repr

    @cached_property
    def moved(self) -> Floats:
        """How far the whole donor moves each pair."""
        return self._of_pairs(self._number("donor"))

    @cached_property
    def _by_cell(self) -> dict[tuple[str, int], int]:
        points = enumerate(self.sweep.points)
        return {(str(p.columns["set"]), int(str(p.columns["layer"]))): i for i, p in points if p.cell == "swept"}

    def get(self, name: str, layer: int) -> Floats | None:
        """None where there was nothing to exchange."""
        return self[name, layer] if (name, layer) in self._by_cell else None

    def __getitem__(self, key: tuple[str, int]) -> Floats:
        return self._of_pairs(self._by_cell[key]) / self.moved

    def doors(self, names: Iterable[Door | str]) -> dict[str, Floats]:
        """The effects of doors that were exchanged by themselves."""
        called = [name if isinstance(name, str) else name_of(name) for name in names]
        found = {name: self.get(name, EMBED) for name in called}
        return {name: values for name, values in found.items() if values is not None}

    def _number(self, kind: str) -> int:
        return next(i for i, point in enumerate(self.sweep.points) if point.cell == kind)

    def _of_pairs(self, cell: int) -> Floats:
        return np.asarray(self.sweep.values[cell, 0].reshape(-1, 2).mean(axis=1))


def plan_of(task: Task, pairs: Pairs, ways: Ways, cells: Cells, made: Made) -> SweepPlan:
    """The sweep of some cells over pairs."""
    branch = None if cells.branches == "all" else cells.branches
    return SweepPlan(
        model=pairs.model,
        task=task,
        metrics=(Metric("along", "x0hat", Along(ways), pairs=True, branch=branch),),
        cells=cells.numbered(list(made)),
        batches=tuple(batches_of(pairs.pairs, [[seed] for seed in pairs.seeds], pairs.rows_at_once, None)),
        rows_at_once=pairs.rows_at_once,
        interventions=pairs.interventions,
        arguments=pairs.arguments,
        geometry=cells.geometry,
        of_condition=True,
    )


def carried_out(plan: SweepPlan, folder: Path | None, title: str) -> Effects:
    """The effects of a plan's cells.

    Raises
    ------
    EvidenceError
        A cell failed, with its error.
    """
    found = carry_out(plan, folder=folder, progress=title)
    for number, error in found.errors.items():
        raise EvidenceError(f"information_flow at {found.points[number].site}: {error}")
    return Effects(found)


def levels_of(layers: int) -> list[int]:
    """After which layers to exchange first: all of a shallow model, the ends of windows of a deep one."""
    if layers <= DEEP:
        return list(range(EMBED, layers))
    return sorted({EMBED, *(round(end * layers / WINDOWS) - 1 for end in range(1, WINDOWS + 1))})


def halves(levels: Sequence[int], curves: Mapping[str, Floats]) -> list[int]:
    """Layers in the middle of the windows in which a curve (K,) changes."""
    found = []
    for i, (low, high) in enumerate(itertools.pairwise(levels)):
        changes = max(abs(float(np.nan_to_num(curve[i + 1] - curve[i]))) for curve in curves.values())
        if high - low > 1 and changes > CHANGES:
            found.append((low + high) // 2)
    return found


def curves_at(levels: Sequence[int], found: Mapping[int, Effects], pairs: int) -> dict[str, Floats]:
    """The curves at some levels, float (K, n): M and all from what the opposite direction exchanges."""

    def of(name: str, default: float) -> Floats:
        rows = [found[level].get(name, level) for level in levels]
        return np.stack([np.full(pairs, default) if row is None else row for row in rows])

    curves = {"A": of("A", np.nan), "B": of("B", np.nan), "M": 1 - of("A+B", np.nan), "all": 1 - of("doors", 0.0)}
    return curves | {"shared": curves["all"] - np.nan_to_num(curves["A"]) - curves["B"] - curves["M"]}


def total(forecasts: Sequence[Forecast]) -> Forecast:
    """Several plans as one; what one keeps is given back before the next."""
    return Forecast(
        sum(f.forwards for f in forecasts),
        sum(f.naive_forwards for f in forecasts),
        None,
        max(f.bytes for f in forecasts),
    )
