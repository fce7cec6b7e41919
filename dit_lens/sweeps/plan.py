"""What a sweep is going to do, planned as one: which rows, which cells, from where each starts, what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.engine.loop import require_batch
from dit_lens.engine.plan import listed, make_plan
from dit_lens.errors import InputError
from dit_lens.files.digest import short_hash
from dit_lens.interventions.base import Intervention
from dit_lens.interventions.merge import Merge
from dit_lens.interventions.shapes import part_shape
from dit_lens.model import VideoDiT
from dit_lens.runs.describe import describe
from dit_lens.runs.identity import versions
from dit_lens.runs.inputs import gather
from dit_lens.runs.per_row import entries
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
from dit_lens.sweeps.axes import Cell, swept
from dit_lens.sweeps.batches import (
    Batch,
    batches_of,
    of_batch,
    of_kept,
    require_rows_anywhere,
    rows_of_kept,
    seeds_of,
    telling,
    units_of,
)
from dit_lens.sweeps.metrics import Metric, metrics_of
from dit_lens.sweeps.rows import Identity, needs_of
from dit_lens.tasks.base import Pair, Task

_WHO = "sweep"
#: Components that are met in every call, however many blocks are taken from a record.
_OF_THE_END = ("head_modulation", "velocity", "guided")


@dataclass(frozen=True, order=True)
class Start:
    """Where a cell begins to differ from the run without it: a step, and a block within it."""

    step: int
    layer: int


@dataclass(frozen=True)
class Forecast:
    """What a sweep costs.

    Attributes
    ----------
    forwards : float
        Denoiser forwards, each of one row; a forward that starts at a block counts for the share that it computes.
    naive_forwards : int
        The same of a loop that generates the whole video of every cell, with the donors captured once.
    seconds : float or None
        None where it was not timed.
    bytes : int
        What is kept of a batch so that cells can share it, text streams not counted.
    """

    forwards: float
    naive_forwards: int
    seconds: float | None
    bytes: int


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """A sweep that has not run yet; made by `plan_sweep`.

    Attributes
    ----------
    model, task
    metrics : tuple of Metric
    cells : tuple of Cell
        References first, then the grid.
    batches : tuple of Batch
    rows_at_once : int
    interventions : tuple
        Applied in every run, that without a cell's own too.
    arguments : dict
        Of `VideoDiT.run`.
    geometry : Geometry
    dropped : int
        Pairs that were left out, because their answers differ nowhere.
    of_condition : bool
        Both sides of a pair go on from the original's state at the step of the cells, so that nothing but their
        conditions (prompts, pictures) differs, and the other side's text is patched in wherever its words stand. At
        step 0 the two have one state anyway.
    """

    model: VideoDiT
    task: Task
    metrics: tuple[Metric, ...]
    cells: tuple[Cell, ...]
    batches: tuple[Batch, ...]
    rows_at_once: int
    interventions: tuple[Intervention, ...]
    arguments: Mapping[str, Any]
    geometry: Geometry
    dropped: int = 0
    of_condition: bool = False

    __repr__ = short_repr

    def __str__(self) -> str:
        return self.describe()

    @property
    def id(self) -> str:
        """Hash of all that its values depend on: model, task, rows, cells, metrics, settings and versions, as they are.

        Of the task and its instances counts what makes them, not what they have drawn and kept.
        """
        rows = [gather(list(b.instances), list(b.seeds)) for b in self.batches]
        of = ["of condition"] if self.of_condition else []
        parts = [
            self.model.id,
            describe(self.model.setup),
            describe([(r.rows, r.content) for r in rows]),
            describe([[cell.number, cell.kind, cell.step, cell.intervention, cell.labels] for cell in self.cells]),
            describe([(metric.name, metric.of, metric.reads, metric.function) for metric in self.metrics]),
            describe([self.interventions, dict(self.arguments), self.rows_at_once, dict(self.model.defaults), *of]),
            describe([_essence(self.task), [_essence(row) for batch in self.batches for row in batch.instances]]),
            describe(versions()),
        ]
        return short_hash([part.encode() for part in parts])

    @property
    def makes_frames(self) -> bool:
        return any(metric.of == "frames" for metric in self.metrics)

    @property
    def layers_read(self) -> list[int]:
        """Layers at which a metric reads the depth lens."""
        return sorted({metric.layer for metric in self.metrics if metric.layer is not None})

    @property
    def estimates_read(self) -> list[str | None]:
        """Branches whose own clean estimate a metric reads; None is the model's own."""
        read = [metric.branch for metric in self.metrics if metric.of == "x0hat" and metric.layer is None]
        return list(dict.fromkeys(read))

    def sites(self, cell: Cell) -> tuple[Site, ...]:
        return tuple(site for part in cell.parts for site in part.sites.resolve(self.geometry))

    def is_replay(self, cell: Cell) -> bool:
        """Whether one denoising step, done again alone, says all."""
        return not self.makes_frames and self._within_one_step(cell)

    def _within_one_step(self, cell: Cell) -> bool:
        return all(site.step == cell.step and site.branch is not None for site in self.sites(cell))

    def start(self, cell: Cell) -> Start:
        """From where a cell is computed; everything before is taken from the record of the run without it."""
        sites = self.sites(cell)
        step = min(site.step for site in sites)
        layer = min(self._layer(site) for site in sites if site.step == step)
        if any(block.carried for _, block in self.model.architecture.stacks):
            layer = 0  # such a stream is in no record
        return self._before_all(Start(step, layer))

    def _layer(self, site: Site) -> int:
        if site.layer is not None:
            return site.layer
        return self.geometry.layers - 1 if site.component in _OF_THE_END else 0

    def _before_all(self, start: Start) -> Start:
        """The same, or the beginning where an intervention of all runs stands on both sides of it."""
        behind = [self.is_behind(start, intervention) for intervention in self.interventions]
        return Start(0, 0) if None in behind else start

    def until(self, step: int) -> list[Intervention]:
        """The interventions of all runs that one which stops after a step meets."""
        return [i for i in self.interventions if any(s.step <= step for s in i.sites.resolve(self.geometry))]

    def is_behind(self, start: Start, intervention: Intervention) -> bool | None:
        """Whether an intervention is met from a start on; False where it is in the record; None where both."""
        met = {self._is_met_from(start, site) for site in intervention.sites.resolve(self.geometry)}
        return met.pop() if len(met) == 1 else None

    def _is_met_from(self, start: Start, site: Site) -> bool:
        if start == Start(0, 0) or site.step != start.step:
            return site.step >= start.step
        if site.component == "latents":
            return False  # the record has the state as it was edited
        return site.component in _OF_THE_END or (site.layer or 0) >= start.layer

    def groups(self, cells: Sequence[Cell], rows: int) -> list[list[Cell]]:
        """Cells that are computed at once, as many as rows are: those that start at the same place.

        A reference stays alone, so that it is what it would be without the grid, and so does what leaves blocks out: a
        block is left out for all rows or for none.
        """
        skips = any(getattr(i, "skips", False) for i in self.interventions)
        at_once, groups = 1 if skips else max(1, self.rows_at_once // rows), list[list[Cell]]()
        open_groups: dict[tuple[Start, int], list[Cell]] = {}
        for cell in (c for c in cells if c.intervention is not None):
            key = (self.start(cell), cell.step)
            group = open_groups.get(key)
            alone = cell.kind != "swept" or any(getattr(part, "skips", False) for part in cell.parts)
            if alone or group is None or len(group) == at_once:
                group = []
                groups.append(group)
                if not alone:
                    open_groups[key] = group
            group.append(cell)
        return groups

    @property
    def last_step(self) -> int:
        """The last step that the run without any cell must make."""
        return max(map(self.end, self.cells))

    def end(self, cell: Cell) -> int:
        """The last step that a cell must make: the one whose estimate is measured, or where frames are, the last."""
        return self.geometry.steps - 1 if self.makes_frames else cell.step

    def donors(self, cells: Iterable[Cell]) -> list[tuple[Tokens, list[Site]]]:
        """What partners give: sites by the tokens that are needed of them (tokens that hold a list have no hash)."""
        found: list[tuple[Tokens, dict[Site, None]]] = []
        for needed in (needs for cell in cells for part in cell.parts if (needs := needs_of(part)) is not None):
            if needed.tokens not in [known for known, _ in found]:
                found.append((needed.tokens, {}))
            sites = next(sites for known, sites in found if known == needed.tokens)
            sites.update(dict.fromkeys(needed.resolve(self.geometry)))
        return [(tokens, list(sites)) for tokens, sites in found]

    def starts(self, cells: Iterable[Cell]) -> list[Start]:
        """Places whose residual streams must be kept for the cells that start there."""
        return sorted({start for c in cells if c.intervention is not None if (start := self.start(c)).layer})

    def blocks(self, cell: Cell) -> int:
        """Blocks that a cell computes for one row of one branch."""
        depth = self.geometry.layers
        if cell.intervention is None:
            run = depth * (self.last_step + 1) if cell.number == 0 else 0
            return run + (depth if self.layers_read and cell.kind == "baseline" else 0)
        start, count = self.start(cell), 0
        if not self.is_replay(cell):
            count += depth - start.layer + depth * (self.end(cell) - start.step)
        if self.is_replay(cell) or self.layers_read:
            count += depth - start.layer
        return count

    def forecast(self, *, timed: bool = True) -> Forecast:
        """What it costs, beside a loop that generates every cell from noise.

        Parameters
        ----------
        timed : bool
            Also say seconds, for which one step of the first batch is computed.
        """
        rows, branches = sum(map(len, self.batches)), len(self.geometry.branches)
        computed = sum(self.blocks(cell) for cell in self.cells)
        runs = 1 + sum(cell.kind == "swept" for cell in self.cells)
        return Forecast(
            forwards=rows * branches * computed / self.geometry.layers,
            naive_forwards=rows * branches * runs * self.geometry.steps,
            seconds=self._seconds(computed) if timed else None,
            bytes=self._bytes(max(map(len, self.batches))),
        )

    def _seconds(self, blocks: int) -> float:
        """From the times of one step, and of what a run does besides, on the first batch."""
        batch = self.batches[0]
        rows, seeds = list(batch.instances), list(batch.seeds)
        started = time.perf_counter()
        run = self.model.run(rows, seeds, record=True, stop_after=0, decode=False, **self.arguments)
        whole = time.perf_counter() - started
        started = time.perf_counter()
        self.model.replay(run, 0)
        step = time.perf_counter() - started
        total = sum(map(len, self.batches)) / len(batch)
        runs = 1 + sum(c.intervention is not None and not self.is_replay(c) for c in self.cells)
        around = max(whole - step, 0.0)
        if self.makes_frames:
            started = time.perf_counter()
            self.model.decode(run.latents)
            around += time.perf_counter() - started
        return total * (step * blocks / self.geometry.layers + runs * around)

    def _bytes(self, rows: int) -> int:
        """Streams and donors, states and calls of the record, and what clean estimates are made of."""
        shapes, branches, last = self.geometry.shapes, self.geometry.branches, self.last_step + 1
        size = int(next(iter(self.model.experts.values())).dtype.itemsize)
        kept = [
            (Sites(), Site(start.step, branch, start.layer - 1, "resid"))
            for start in self.starts(self.cells)
            for branch in branches
        ]
        kept += [(Sites(tokens=t), site) for t, sites in self.donors(self.cells) for site in sites]
        shared = sum(prod(part_shape(sites, site, self.geometry) or (0,)) for sites, site in kept) * size
        calls = last * len(branches) * (prod(shapes["model_input"]) + prod(shapes["velocity"])) * size
        estimates = (1 + len(self.estimates_read)) * len({c.step for c in self.cells}) if self.estimates_read else 0
        states = last + (last < self.geometry.steps) + estimates
        return rows * (shared + calls + states * prod(shapes["latents"]) * 4)

    def describe(self, cost: Forecast | None = None) -> str:
        """What it is going to do, with forwards, seconds and memory beside the naive cost.

        Parameters
        ----------
        cost : Forecast, optional
            A timed one that was made before.
        """
        cost = self.forecast() if cost is None or cost.seconds is None else cost
        grid = sum(cell.kind == "swept" for cell in self.cells)
        units = len({unit for batch in self.batches for unit in batch.units})
        of = "pairs, both directions" if self.batches[0].pairs is not None else "instances"
        assert cost.seconds is not None
        of += f" ({self.dropped} left out: their answers differ nowhere)" if self.dropped else ""
        measured = ", ".join(metric.name for metric in self.metrics)
        times = cost.naive_forwards / cost.forwards
        return (
            f"{grid} cells of {self.task.title}, {units} {of}, measuring {measured}\n"
            f"forwards {cost.forwards:,.0f}; every cell from noise {cost.naive_forwards:,}, {times:.1f} times as many\n"
            f"about {cost.seconds:,.0f} s, every cell from noise {cost.seconds * times:,.0f} s; "
            f"{cost.bytes / 2**20:,.1f} MiB kept to be shared"
        )


def _essence(value: Any) -> Any:
    """What makes a task or an instance: the fields of a dataclass, so not what it has worked out since; else itself."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return [type(value), {field.name: _essence(getattr(value, field.name)) for field in fields(value)}]


def plan_sweep(
    model: VideoDiT,
    task: Task,
    intervention: Intervention,
    over: Mapping[str, Any],
    metrics: Any = ("share",),
    *,
    instances: int | Sequence[Any] = 24,
    seed: int | Sequence[int] = 0,
    **run_arguments: Any,
) -> SweepPlan:
    """Plan a sweep without running it; the arguments are those of `sweep`."""
    measured = metrics_of(metrics, task)
    others, rows_at_once = dict(run_arguments), run_arguments.get("batch", 32)
    base = listed(others.pop("interventions", ()))
    others.pop("batch", None)
    if wrong := [name for name in ("record", "decode", "stop_after", "resume", "body", "progress") if name in others]:
        raise InputError(f"{wrong[0]}= is set by a sweep itself: omit it")
    require_batch(rows_at_once)
    if by_row := [name for name, value in others.items() if entries(name, value) is not None]:
        raise InputError(f"{by_row[0]}= has an entry for each row, and a sweep makes its own rows: give one for all")
    if isinstance(seed, np.integer | np.ndarray | Tensor):
        seed = seed.tolist()
    drawn = units_of(task, intervention, measured, instances, seed)
    dealt = seeds_of(drawn, seed, intervention)
    kept = telling(task, drawn, measured)
    given = [drawn[i] for i in kept]
    first = given[0].original if isinstance(given[0], Pair) else given[0]
    geometry = model.geometry(first, **others)
    counted = rows_of_kept(drawn, kept, intervention)
    grid = [(labels, of_kept(made, *counted)) for labels, made in swept(intervention, over, geometry)]
    cells = _cells(grid, geometry, pairs=isinstance(given[0], Pair))
    if isinstance(intervention, Merge) and (rows := {"group", "receiver"}.intersection(over)):
        raise InputError(f"over {min(rows)}: it says which rows there are; make a sweep for each value")
    batches = batches_of(given, [dealt[i] for i in kept], rows_at_once, intervention)
    plan = SweepPlan(
        model,
        task,
        measured,
        tuple(cells),
        tuple(batches),
        rows_at_once,
        base,
        others,
        geometry,
        len(drawn) - len(given),
    )
    _require(plan)
    return plan


def _cells(grid: Sequence[tuple[Any, Any]], geometry: Geometry, *, pairs: bool) -> list[Cell]:
    """References and grid: with nothing done, with the other side of each pair, with all put back, and each cell."""
    last = [max(site.step for site in made.sites.resolve(geometry)) for _, made in grid]
    kinds = ["baseline", "donor"] if pairs else ["baseline"]
    plain: list[tuple[Any, ...]] = [(kind, step, None, {}) for kind in kinds for step in sorted(set(last))]
    identity: tuple[Any, ...] = ("identity", last[0], Identity(grid[0][1].sites), {})
    rest = [("swept", step, made, labels) for step, (labels, made) in zip(last, grid, strict=True)]
    return [Cell(number, *cell) for number, cell in enumerate([*plain, identity, *rest])]


def _require(plan: SweepPlan) -> None:
    """Refuse, before anything runs, cells that no run could take."""
    batch = plan.batches[0]
    rows = gather(list(batch.instances), list(batch.seeds)).rows
    for intervention in plan.interventions:
        require_rows_anywhere(intervention, plan.batches)
    for branch in (branch for branch in plan.estimates_read if branch not in (None, *plan.geometry.branches)):
        known = ", ".join(plan.geometry.branches)
        raise InputError(f"a metric reads branch {branch!r}; this run has {known}")
    for cell in plan.cells:
        for part in cell.parts:
            require_rows_anywhere(part, plan.batches)
        if plan.layers_read and cell.intervention is not None and not plan._within_one_step(cell):
            where = cell.intervention.sites
            raise InputError(f"{cell}: a metric at a layer is of one step, inside the denoiser; it is at {where}")
        for part in (part for part in cell.parts if needs_of(part) is None):
            make_plan([of_batch(part, batch)], plan.geometry, rows)
