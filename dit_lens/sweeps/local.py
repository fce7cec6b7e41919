"""Carry out cells on this machine: one run without any, then every cell from where it begins to differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dit_lens.engine.plan import acting
from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.interventions.base import Intervention
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.patch import Patch
from dit_lens.results.arrays import Floats
from dit_lens.runs.ledger import Ledger
from dit_lens.runs.replay import Replay, Resume
from dit_lens.runs.rows import selected
from dit_lens.runs.run import Run
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites, selection
from dit_lens.sites.tokens import Tokens
from dit_lens.sweeps.axes import Cell
from dit_lens.sweeps.batches import Batch
from dit_lens.sweeps.metrics import Moved, Sides
from dit_lens.sweeps.plan import Start, SweepPlan
from dit_lens.sweeps.rows import FromPartners, on_rows

_ESTIMATE, _LENS = "sweep x0hat", "sweep lens"


@dataclass(frozen=True)
class Outcome:
    """What a cell came to on the rows of a batch.

    Attributes
    ----------
    cell, batch : int
    values : dict from metric to R numbers; empty where the cell failed
    error : str or None
        Why it failed.
    sigma, expert : of the cell's step
    blocks : int
        Block forwards, each of one row of one branch, that were computed for it.
    """

    cell: int
    batch: int
    values: dict[str, tuple[float, ...]]
    error: str | None
    sigma: float
    expert: str | None
    blocks: int


@dataclass(frozen=True)
class Job:
    """A batch, and what is to be measured on it: what another machine needs besides the plan's model and task."""

    batch: Batch
    cells: tuple[Cell, ...]


#: Carries out jobs, in any order and anywhere, and gives what each cell came to as soon as it is known.
Executor = Callable[[SweepPlan, Sequence[Job]], Iterator[Outcome]]


def run_here(plan: SweepPlan, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """The executor of this machine: one job after the other.

    Raises
    ------
    DitLensError
        A run without a cell, or a metric of it, fails. Of a cell that fails the error is its outcome.
    """
    for job in jobs:
        with torch.no_grad():
            yield from _Lab(plan, job).outcomes()


@dataclass(frozen=True)
class _Lab:
    """One job at work."""

    plan: SweepPlan
    job: Job

    @property
    def batch(self) -> Batch:
        return self.job.batch

    def outcomes(self) -> Iterator[Outcome]:
        for cell in self.job.cells:
            if cell.intervention is None:
                yield self._reference(cell)
        for group in self.plan.groups(self.job.cells, len(self.batch)):
            yield from self._group(group)

    def _group(self, group: list[Cell]) -> Iterator[Outcome]:
        """Several cells at once; each alone where that fails, so that only those fail that must."""
        try:
            found = list(self._measured(group))
        except Exception as error:
            if len(group) == 1:
                yield self._outcome(group[0], {}, 0, f"{type(error).__name__}: {error}")
                return
            for cell in group:
                yield from self._group([cell])
        else:
            yield from found

    # -- the run without any cell

    @cached_property
    def _clean(self) -> Run:
        """The record that all cells start from, with what they share."""
        plan = self.plan
        captures = [
            Capture(Sites("resid", steps=start.step, layers=start.layer - 1, stream="all"))
            for start in plan.starts(self.job.cells)
        ]
        for number, (tokens, sites) in enumerate(self._donors):
            captures += [Capture(selection([site], tokens), name=f"donor {number}") for site in sites]
        steps = {cell.step for cell in self.job.cells} if plan.reads_estimate else set[int]()
        return self._run(
            [*plan.until(plan.last_step), *captures, *self._estimates(steps)],
            record=True,
            decode=plan.makes_frames,
            stop_after=None if plan.last_step == plan.geometry.steps - 1 else plan.last_step,
        )

    def _run(self, interventions: Sequence[Intervention], copies: int = 1, **options: Any) -> Run:
        rows, seeds = list(self.batch.instances) * copies, list(self.batch.seeds) * copies
        return self.plan.model.run(rows, seeds, interventions=interventions, **options, **self.plan.arguments)

    def _estimates(self, steps: set[int]) -> list[Capture]:
        """What the clean estimate of a step is made of."""
        return [Capture(Sites(("latents", "guided"), steps=sorted(steps)), name=_ESTIMATE)] if steps else []

    @cached_property
    def _sides(self) -> Sides | None:
        pairs, plan = self.batch.pairs, self.plan
        return None if pairs is None else Sides(plan.model, plan.task, pairs, plan.geometry)

    @cached_property
    def _donors(self) -> list[tuple[Tokens, list[Site]]]:
        return self.plan.donors(self.job.cells)

    @cached_property
    def _still(self) -> dict[tuple[int, int | None], Tensor]:
        """The clean estimates of the run without any cell, by step and by the layer that the lens reads."""
        return {}

    def _untouched(self, step: int, layer: int | None) -> Tensor:
        """Clean estimate (R, C, F, H, W) of the run without any cell."""
        if (step, layer) not in self._still:
            run = self._clean
            if layer is None:
                self._still[step, layer] = _estimate(run, run.captures[_ESTIMATE], step)
            else:
                found = self._lens(run, self._replayed(run, step, [], Start(step, 0), 1), step)
                self._still.update({(step, of): estimate for of, estimate in found.items()})
        return self._still[step, layer]

    def _reference(self, cell: Cell) -> Outcome:
        """Nothing done, or the other side of each pair."""
        run, plan = self._clean, self.plan
        blocks = run.ledger.block_forwards if cell.number == 0 else 0
        if cell.kind == "baseline" and plan.layers_read:
            blocks += len(run.rows) * len(plan.geometry.branches) * plan.geometry.layers
        chosen = self._sides.partners if cell.kind == "donor" and self._sides else list(range(len(self.batch)))
        layers = [*plan.layers_read, *([None] if plan.reads_estimate else [])]
        estimates = {layer: self._untouched(cell.step, layer)[chosen] for layer in layers}
        frames = run.decoded[chosen] if plan.makes_frames else None
        return self._outcome(cell, self._values(cell, estimates, frames), blocks)

    # -- a cell

    def _measured(self, group: Sequence[Cell]) -> Iterator[Outcome]:
        """Cells that start at one place, computed at once."""
        plan, start, step, count = self.plan, self.plan.start(group[0]), group[0].step, len(self.batch)
        record, ledger = self._tiled(len(group)), Ledger()
        acts = [
            on_rows(self._bound(cell), place * count, count, count * len(group)) for place, cell in enumerate(group)
        ]
        estimates: dict[int | None, Tensor] = {}
        frames = None
        if not plan.is_replay(group[0]):
            run = self._resumed(record, acts, start, group[0], len(group))
            ledger.add(run.ledger)
            frames = run.frames
            if plan.reads_estimate:
                estimates[None] = _estimate(run, run.captures[_ESTIMATE], step)
        if plan.is_replay(group[0]) or plan.layers_read:
            replay = self._replayed(record, step, acts, start, len(group))
            ledger.add(replay.ledger)
            estimates |= self._lens(record, replay, step)
            for layer in (k for k in plan.layers_read if k < start.layer):  # nothing has been done there yet
                estimates[layer] = torch.cat([self._untouched(step, layer)] * len(group))
            estimates.setdefault(None, replay.x0hat)
        for place, cell in enumerate(group):
            rows = slice(place * count, (place + 1) * count)
            own = None if frames is None else frames[rows]
            values = self._values(cell, {layer: x[rows] for layer, x in estimates.items()}, own)
            yield self._outcome(cell, values, ledger.block_forwards // len(group))

    def _tiled(self, copies: int) -> Run:
        """The record with its rows so many times over."""
        return self._clean if copies == 1 else selected(self._clean, list(range(len(self.batch))) * copies)

    def _bound(self, cell: Cell) -> Intervention:
        """The intervention of a cell with the donors that it names."""
        patch: Any = cell.intervention
        if not isinstance(patch, Patch) or not patch.of_pairs:
            return patch  # type: ignore[no-any-return]
        assert self._sides is not None
        number = [tokens for tokens, _ in self._donors].index(patch.sites.tokens)
        kept = self._clean.captures[f"donor {number}"]
        own = {site: kept[site] for site in self.plan.sites(cell)}  # an id is hashed of all that a donor holds
        return FromPartners(patch, own, tuple(self._sides.partners))

    def _others(self, interventions: Sequence[Intervention], copies: int) -> list[Intervention]:
        """Interventions of every run, for so many copies of its rows."""
        count = len(self.batch)
        return [on_rows(i, copy * count, count, copies * count) for copy in range(copies) for i in interventions]

    def _resumed(self, record: Run, acts: Sequence[Intervention], start: Start, cell: Cell, copies: int) -> Run:
        """The videos of cells that are made as this one is, or their states, from where they begin to differ."""
        plan = self.plan
        last = plan.end(cell)
        others = [i for i in plan.until(last) if plan.is_behind(start, i) is not False]
        keep = self._estimates({cell.step}) if plan.reads_estimate else []
        return self._run(
            [*self._others(others, copies), *acts, *keep],
            copies,
            # From its very beginning the record spares the encoding of pictures, unless a state is yet to be edited.
            resume=Resume(record, start.step, start.layer) if start > Start(0, 0) or not others else None,
            decode=plan.makes_frames,
            stop_after=None if last == plan.geometry.steps - 1 else last,
        )

    def _replayed(self, record: Run, step: int, acts: Sequence[Intervention], start: Start, copies: int) -> Replay:
        """One step of cells alone."""
        plan = self.plan
        others = [i for i in acting(plan.interventions, record.geometry, step) if plan.is_behind(start, i) is not False]
        reads = [
            Capture(Sites("resid", steps=step, layers=k, branches="cond"), name=_LENS)
            for k in plan.layers_read
            if k >= start.layer
        ]
        return plan.model.replay(record, step, [*self._others(others, copies), *acts, *reads], from_layer=start.layer)

    def _lens(self, record: Run, replay: Replay, step: int) -> dict[int | None, Tensor]:
        """Clean estimates as the depth lens reads them, by layer."""
        found: dict[int | None, Tensor] = {}
        for site, residual in replay.captures.get(_LENS, {}).items():
            call = next(c for c in record.recorded(step) if "cond" in c.branches)
            velocity = self.plan.model.read_out(call, residual, replay.conditioning["cond"])
            found[site.layer] = record.clean(step, record.states[step], velocity)
        return found

    # -- numbers

    def _values(self, cell: Cell, estimates: dict[int | None, Tensor], frames: Video | None) -> dict[str, Floats]:
        found, partners = {}, None if self._sides is None else self._sides.partners
        for metric in self.plan.metrics:
            if metric.of == "frames":
                assert frames is not None
                found[metric.name] = metric(frames.copy(), list(self.batch.instances), rows=len(self.batch))
                continue
            clean = self._untouched(cell.step, metric.layer)
            donor = None if partners is None else clean[partners]
            moved = Moved(estimates[metric.layer], clean, self.batch.instances, donor, self._sides)
            found[metric.name] = metric(moved, rows=len(self.batch))
        return found

    def _outcome(self, cell: Cell, values: dict[str, Floats], blocks: int, error: str | None = None) -> Outcome:
        run = self._clean
        kept = {name: tuple(map(float, found)) for name, found in values.items()}
        return Outcome(
            cell.number, self.batch.number, kept, error, run.sigmas[cell.step], run.experts[cell.step], blocks
        )


def _estimate(run: Run, kept: dict[Site, Tensor], step: int) -> Tensor:
    """The clean estimate of a step from the state before it and the combined prediction."""
    found = {site.component: tensor for site, tensor in kept.items() if site.step == step}
    return run.clean(step, found["latents"], found["guided"])


def require_outcome(plan: SweepPlan, outcome: Outcome) -> None:
    """Refuse what is no outcome of a plan's cell: numbers of one that there is not, or of other metrics or rows.

    Raises
    ------
    EvidenceError
    """
    if not (0 <= outcome.cell < len(plan.cells) and 0 <= outcome.batch < len(plan.batches)):
        raise EvidenceError(f"an outcome of cell {outcome.cell}, batch {outcome.batch}: the plan has no such cell")
    wanted, rows = {metric.name for metric in plan.metrics}, len(plan.batches[outcome.batch])
    fits = outcome.values.keys() == wanted and all(len(found) == rows for found in outcome.values.values())
    if outcome.error is None and not fits:
        raise EvidenceError(
            f"the outcome of {plan.cells[outcome.cell]}, batch {outcome.batch}, must have {rows} numbers of each of "
            f"{', '.join(sorted(wanted))}"
        )


def require_identity(plan: SweepPlan, outcome: Outcome, baseline: Outcome) -> float:
    """The largest difference that putting every activation back makes.

    Raises
    ------
    EvidenceError
        One that is more than rounding: then no cell of this sweep can be believed.
    """
    worst = 0.0
    for name, values in outcome.values.items():
        for value, still in zip(values, baseline.values[name], strict=True):
            worst = max(worst, abs(value - still))
            if abs(value - still) > 1e-3 * max(1.0, abs(still)):
                raise EvidenceError(
                    f"putting every activation at {plan.cells[outcome.cell].intervention.sites} back as it was changed "
                    f"{name} from {still:.6g} to {value:.6g}: this model does not repeat itself, and no cell could be "
                    "told from that"
                )
    return worst
