"""`sweep`: any intervention over any grid, and what every cell of it came to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools, Floats
from dit_lens.results.intervals import over_instances
from dit_lens.results.plots import curves, heatmap
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result
from dit_lens.sites.select import show
from dit_lens.sites.sites import Sites
from dit_lens.sweeps.axes import Cell, Label, column
from dit_lens.sweeps.journal import Journal
from dit_lens.sweeps.local import Executor, Job, Outcome, require_identity, require_outcome, run_here
from dit_lens.sweeps.plan import Forecast, SweepPlan, plan_sweep
from dit_lens.tasks.base import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Columns after the address: what kind of cell it is, and its address in one string.
_OWN = ("cell", "site")


@dataclass(frozen=True)
class Point:
    """What a cell was, in words and numbers.

    Attributes
    ----------
    cell : "baseline", "donor", "identity" or "swept"
    site : str
        The canonical string of its one site, or its selection in words; empty where nothing is done.
    columns : dict from column to label
        Its address and its values of the axes.
    error : str or None
        Why it failed.
    """

    cell: str
    site: str
    columns: Mapping[str, Label | None]
    error: str | None = None


@dataclass(frozen=True, repr=False)
class Sweep(Result):
    """What every cell of a sweep came to.

    Attributes
    ----------
    model, task : str
    axes : tuple of str
        Columns of the table that say where in the grid a cell is.
    measures : tuple of str
        M metrics.
    points : tuple of Point
        N cells, references first.
    values : float array of shape (N, M, R)
        Of every row, NaN where a cell failed.
    units, seeds : tuple, one of each of the R rows
        What a row counts for (its instance, or its pair), and its noise.
    counted : bool array of shape (R,)
        Rows that count; see `Batch`.
    dropped : int
        Pairs that were left out, because their answers differ nowhere.
    identity : float
        The largest difference that putting every activation back made to any metric of any row.
    planned : Forecast
    forwards : float
        What was computed, in the unit of ``planned``; of what an earlier start had finished too.
    seconds : float
        Of this start.
    """

    model: str
    task: str
    axes: tuple[str, ...]
    measures: tuple[str, ...]
    points: tuple[Point, ...]
    values: Floats
    units: tuple[str, ...]
    seeds: tuple[int, ...]
    counted: Bools
    dropped: int
    identity: float
    planned: Forecast
    forwards: float
    seconds: float

    @property
    def errors(self) -> dict[int, str]:
        """Why cells failed, by their place in ``points``."""
        return {i: point.error for i, point in enumerate(self.points) if point.error}

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row for each cell, row and measure: the cell's columns, instance, seed, measure, value."""
        parts = [self._samples(i, m) for i in range(len(self.points)) for m in range(len(self.measures))]
        return pd.concat(parts, ignore_index=True)

    def _samples(self, i: int, m: int) -> pd.DataFrame:
        point, rows = self.points[i], np.flatnonzero(self.counted)
        own = {"cell": point.cell, "site": point.site, **{n: point.columns.get(n) for n in self._columns}}
        return pd.DataFrame(
            {
                "number": i,
                **own,
                "instance": [self.units[r] for r in rows],
                "seed": [self.seeds[r] for r in rows],
                "measure": self.measures[m],
                "value": self.values[i, m, rows],
            }
        )

    @cached_property
    def _columns(self) -> list[str]:
        """Columns of the address that apply, then the axes that are none of them."""
        known = [n for n in SITE_COLUMNS if any(p.columns.get(n) is not None for p in self.points)]
        own = [n for p in self.points for n in p.columns if n not in SITE_COLUMNS]
        return [*known, *dict.fromkeys(own)]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Means over units, with 95 % bootstrap intervals; rows of one unit are averaged first.

        Columns: those of the address that apply, cell, site, the other axes, measure, value, low, high, n (units). A
        cell that failed has no value.
        """
        found = over_instances(self.samples.astype({n: object for n in self._columns}))
        known = [name for name in self._columns if name in SITE_COLUMNS]
        own = [name for name in self._columns if name not in SITE_COLUMNS]
        return found[[*known, *_OWN, *own, *VALUE_COLUMNS]]

    def __str__(self) -> str:
        shown = self.table.drop(columns="site").round(3)
        text = shown.where(shown.notna(), "").to_string(index=False)
        left_out = f" ({self.dropped} pairs left out: their answers differ nowhere)" if self.dropped else ""
        lines = [
            f"{self.task} on {self.model}, {len(set(self.units))} units{left_out}",
            text,
            f"{self.forwards:,.0f} forwards, one by one from noise {self.planned.naive_forwards:,}; identity exact to "
            f"{self.identity:.2g}",
        ]
        if self.errors:
            number, error = next(iter(self.errors.items()))
            lines.append(
                f"{len(self.errors)} of {len(self.points)} cells failed, first {self.points[number].site}: {error}"
            )
        return "\n".join(lines)

    def plot(self, axis: Axes | None = None, *, measure: str | None = None) -> Axes:
        """One axis as curves of every measure; two as a map of one measure, the first by default.

        Raises
        ------
        EvidenceError
            More axes, or a measure that there is not.
        """
        table = self.table[(self.table["cell"] == "swept") & self.table["value"].notna()]
        if measure is not None and measure not in self.measures:
            raise EvidenceError(f"unknown measure {measure!r}; one of {', '.join(self.measures)}")
        if len(self.axes) > 2:
            raise EvidenceError(
                f"this sweep has {len(self.axes)} axes, {', '.join(self.axes)}; select from .table and plot that"
            )
        for name in self.axes:  # words stand in their own order
            if any(isinstance(label, str) for label in table[name]):
                words = table[name].astype(str)
                table = table.assign(**{name: pd.Categorical(words, words.unique(), ordered=True)})
        if len(self.axes) == 1:
            chosen = table if measure is None else table[table["measure"] == measure]
            return curves(chosen, self.axes[0], "value", hue="measure", axis=axis)
        rows, columns = self.axes
        chosen = table[table["measure"] == (measure or self.measures[0])]
        bar = {"label": measure or self.measures[0]}
        return heatmap(chosen, rows, columns, "value", axis, cbar_kws=bar)

    def _repr_html_(self) -> str:
        """As of every result; without a picture where there are too many axes for one."""
        few = len(self.axes) <= 2
        return super()._repr_html_() if few else self.table.to_html(index=False, float_format="{:.3g}".format)

    def to_json(self) -> dict[str, Any]:
        """As of every result, with ``cells`` (the rows of the table), ``plan`` and ``errors``."""
        data = super().to_json()
        plan = {
            "forwards": self.planned.forwards,
            "naive_forwards": self.planned.naive_forwards,
            "seconds": self.planned.seconds,
            "bytes": self.planned.bytes,
        }
        errors = [{"site": self.points[i].site, "error": error} for i, error in self.errors.items()]
        return data | {"cells": data["table"], "plan": plan, "errors": errors}


def sweep(
    model: VideoDiT,
    task: Task,
    intervention: Intervention,
    over: Mapping[str, Any],
    metrics: Any = ("share",),
    *,
    instances: int | Sequence[Any] = 24,
    seed: int | Sequence[int] = 0,
    folder: str | Path | None = None,
    **run_arguments: Any,
) -> Sweep:
    """Do one intervention at every point of a grid, and measure what each does.

    Nothing is computed twice: every cell starts from the record of the same rows without it, at the first block that it
    touches; where only the clean estimate of one step is measured, no later step is computed; cells that start at one
    place stand side by side as rows. A cell that is computed alone is what a run of its own would be, bit for bit; side
    by side, to the rounding of the model's dtype. Beside the grid there is always a cell with nothing done, one in
    which every activation is put back as it was, and of pairs one with the other side.

    Parameters
    ----------
    intervention : Intervention
        What is done, with its sites; the axes of ``over`` are replaced in it. ``Patch("pair", sites)`` patches the
        other side of each pair in, in both directions.
    over : mapping from axis to values
        An axis is a field of the intervention's sites ("layers", "steps", "heads", "tokens", "component", "branches",
        "stream") or of the intervention ("dose", "scale", "weight" ...). Its values are a list, a mapping from labels
        to values, "each" (layers, steps or heads one by one) or `windows`.
    metrics : str, Metric, callable, or a list of them
        Of the clean estimate of the last step that is touched: "share" (of the way to the donor's, where the right
        answers differ), "projection" (on the way between the two truths), "distance" (as a share of its norm). Of the
        finished video: "strict", "score", "donor_answer", or any function of frames and instances.
    instances : int, or list of instances or pairs
        A number draws pairs where the intervention or a metric needs them, else instances, of the task's test split.
    seed : int, or one for each instance or pair
        Of the noise, which the two sides of a pair share; an int also draws them.
    folder : path, optional
        Every cell is written there when it is finished, and the same call finishes only what is missing.
    **run_arguments
        As in `VideoDiT.runs`: ``batch`` (rows at once), ``interventions`` (in every run), ``guidance_scale`` ...

    Raises
    ------
    InputError, SiteError, EvidenceError
        Before anything runs: a grid of nothing, an axis or value that there is not, metrics without what they need. A
        metric that fails without any cell. A cell that fails is kept with its error, and the others go on.
    StoreError
        A folder of another plan, or one that cannot be written.

    Examples
    --------
    ``dl.sweep(model, task, dl.Patch("pair", dl.Sites("delta", steps=0)), over={"layers": "each"})``
    """
    plan = plan_sweep(model, task, intervention, over, metrics, instances=instances, seed=seed, **run_arguments)
    return carry_out(plan, folder=folder)


def carry_out(
    plan: SweepPlan, *, folder: str | Path | None = None, executor: Executor = run_here, progress: str | None = "cells"
) -> Sweep:
    """Run a plan.

    Parameters
    ----------
    folder
        As in `sweep`.
    executor : callable (plan, jobs) -> iterator of Outcome
        Who computes; by default this machine.
    progress : str or None
        Title of the progress bar, None for none.

    Raises
    ------
    StoreError, DitLensError
        As in `sweep`.
    """
    started = time.perf_counter()
    journal = None if folder is None else Journal(folder, plan)
    done = dict(journal.found) if journal is not None else {}
    total = len(plan.batches) * len(plan.cells)
    try:
        with tqdm(total=total, initial=len(done), desc=progress, unit="cell", disable=progress is None) as bar:
            for outcome in executor(plan, _missing(plan, done)):
                require_outcome(plan, outcome)
                if (outcome.batch, outcome.cell) in done:
                    continue  # it stood beside one that was missing
                if journal is not None:
                    journal.add(outcome)
                done[outcome.batch, outcome.cell] = outcome
                bar.update()
            if len(done) < total:
                raise EvidenceError(
                    f"the executor gave {len(done)} of {total} cells; those that are missing have no value"
                )
    except KeyboardInterrupt as stop:
        kept = f"kept in {folder}: the same call goes on from there" if folder else "lost: give folder= to keep them"
        stop.add_note(f"{len(done)} of {total} cells were finished, {kept}")
        raise
    finally:
        if journal is not None:
            journal.close()
    return _result(plan, done, time.perf_counter() - started)


def _missing(plan: SweepPlan, done: Mapping[tuple[int, int], Outcome]) -> list[Job]:
    """Jobs of all cells that are not done, and of those that stand beside one: then each is what it would have been."""
    jobs = []
    for batch in plan.batches:
        groups = plan.groups(plan.cells, len(batch)) + [[c] for c in plan.cells if c.intervention is None]
        left = [group for group in groups if any((batch.number, cell.number) not in done for cell in group)]
        cells = sorted((cell for group in left for cell in group), key=lambda cell: cell.number)
        if cells:
            jobs.append(Job(batch, tuple(cells)))
    return jobs


def _result(plan: SweepPlan, done: Mapping[tuple[int, int], Outcome], seconds: float) -> Sweep:
    names = tuple(metric.name for metric in plan.metrics)
    rows = np.cumsum([0, *map(len, plan.batches)])
    values = np.full((len(plan.cells), len(names), rows[-1]), np.nan)
    errors: dict[int, str] = {}
    for (batch, cell), outcome in done.items():
        if outcome.error:
            errors[cell] = outcome.error
        for m, name in enumerate(names if not outcome.error else ()):
            values[cell, m, rows[batch] : rows[batch + 1]] = outcome.values[name]
    values[list(errors)] = np.nan  # on some batches alone it would be compared with others on all
    of_step = {plan.cells[c].step: o for (_, c), o in done.items()}
    return Sweep(
        model=plan.model.id,
        task=plan.task.title,
        axes=_axes(plan),
        measures=names,
        points=tuple(_point(plan, cell, of_step[cell.step], errors.get(cell.number)) for cell in plan.cells),
        values=values,
        units=tuple(unit for batch in plan.batches for unit in batch.units),
        seeds=tuple(seed for batch in plan.batches for seed in batch.seeds),
        counted=np.array([counts for batch in plan.batches for counts in batch.counted]),
        dropped=plan.dropped,
        identity=_identity(plan, done),
        planned=plan.forecast(timed=False),
        forwards=sum(o.blocks for o in done.values()) / plan.geometry.layers,
        seconds=seconds,
    )


def _identity(plan: SweepPlan, done: Mapping[tuple[int, int], Outcome]) -> float:
    cell = next(cell for cell in plan.cells if cell.kind == "identity")
    still = next(c for c in plan.cells if c.kind == "baseline" and c.step == cell.step)
    of_batches = [(done[b.number, cell.number], done[b.number, still.number]) for b in plan.batches]
    for outcome, _ in of_batches:
        if outcome.error:
            raise EvidenceError(f"putting every activation back as it was failed: {outcome.error}")
    return max(require_identity(plan, *pair) for pair in of_batches)


def _axes(plan: SweepPlan) -> tuple[str, ...]:
    swept = next(cell for cell in plan.cells if cell.kind == "swept")
    return tuple(map(column, swept.labels))


def _point(plan: SweepPlan, cell: Cell, outcome: Outcome, error: str | None) -> Point:
    along: dict[str, Label | None] = {"step": cell.step, "sigma": outcome.sigma, "expert": outcome.expert}
    if cell.intervention is None:
        return Point(cell.kind, "", along)
    sites, found = cell.intervention.sites, plan.sites(cell)
    columns = along | _address(sites) | {column(name): label for name, label in cell.labels.items()}
    return Point(cell.kind, str(found[0]) if len(found) == 1 else str(sites), columns, error)


def _address(sites: Sites) -> dict[str, Label | None]:
    """The parts of an address that apply to a selection."""
    found: dict[str, Label | None] = {"component": "+".join(sites.components), "stream": _joined(sites.stream)}
    if sites.branches != "all":
        found["branch"] = _joined(sites.branches)
    if sites.layers != "all":
        found["layer"] = sites.layers if isinstance(sites.layers, int) else show(sites.layers)
    if not sites.tokens.is_all:
        found["tokens"] = str(sites.tokens)
    return found


def _joined(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else "+".join(names)
