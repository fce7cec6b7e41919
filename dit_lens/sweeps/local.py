"""Carry out cells on this machine: one run without any, then every cell from where it begins to differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dit_lens.engine.plan import acting, acting_at
from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.interventions.base import Intervention
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.patch import Patch
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.runs.ledger import Ledger
from dit_lens.runs.replay import Replay, Resume
from dit_lens.runs.rows import selected
from dit_lens.runs.run import Run
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites, selection
from dit_lens.sites.tokens import Tokens
from dit_lens.sweeps.axes import Cell
from dit_lens.sweeps.batches import Batch, of_batch
from dit_lens.sweeps.metrics import Moved, Sides
from dit_lens.sweeps.plan import Start, SweepPlan
from dit_lens.sweeps.rows import FromPartners, needs_of, on_rows

_ESTIMATE, _LENS = "sweep x0hat", "sweep lens"

#: Which clean estimate: at a layer, of a branch, or the model's own.
Read = int | str | None


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
        captures += [*self._donating(), *self._estimates({cell.step for cell in self.job.cells})]
        if self._before is not None:
            return from_one_state(
                plan.model, self._before, plan.last_step, plan.interventions, captures, plan.arguments
            )
        return self._run(
            [*plan.until(plan.last_step), *captures],
            record=True,
            decode=plan.makes_frames,
            stop_after=None if plan.last_step == plan.geometry.steps - 1 else plan.last_step,
        )

    @cached_property
    def _before(self) -> Run | None:
        """The steps before the one of the cells, where both sides of a pair go on from one state."""
        plan = self.plan
        if not plan.of_condition or plan.last_step == 0:
            return None
        stop = plan.last_step - 1
        return self._run(plan.until(stop), record=True, decode=False, stop_after=stop)

    def _run(self, interventions: Sequence[Intervention], copies: int = 1, **options: Any) -> Run:
        rows, seeds = list(self.batch.instances) * copies, list(self.batch.seeds) * copies
        return self.plan.model.run(rows, seeds, interventions=interventions, **options, **self.plan.arguments)

    def _estimates(self, steps: set[int]) -> list[Capture]:
        """What the clean estimates of some steps are made of."""
        read, at = self.plan.estimates_read, sorted(steps)
        if not read:
            return []
        around = Sites(("latents", "guided") if None in read else "latents", steps=at)
        branches = [branch for branch in read if branch is not None]
        within = [Sites("velocity", steps=at, branches=tuple(branches))] if branches else []
        return [Capture(sites, name=_ESTIMATE) for sites in (around, *within)]

    @cached_property
    def _partners(self) -> tuple[int, ...]:
        return () if self._sides is None else tuple(self._sides.partners)

    def _donating(self) -> list[Capture]:
        """Keeps of each row what its partner needs."""
        found = []
        for number, (tokens, sites) in enumerate(self._donors):
            theirs = self._tokens(tokens).of_rows(self._partners)
            found += [Capture(selection([site], theirs), name=f"donor {number}") for site in sites]
        return found

    def _tokens(self, tokens: Tokens) -> Tokens:
        """Of the batch's rows, where they are of each row of the sweep."""
        first = self.batch.first
        return tokens if tokens.rows_named is None else tokens.of_rows(range(first, first + len(self.batch)))

    @cached_property
    def _sides(self) -> Sides | None:
        pairs, plan = self.batch.pairs, self.plan
        return None if pairs is None else Sides(plan.model, plan.task, pairs, plan.geometry)

    @cached_property
    def _donors(self) -> list[tuple[Tokens, list[Site]]]:
        return self.plan.donors(self.job.cells)

    @cached_property
    def _still(self) -> dict[tuple[int, Read], Tensor]:
        """The clean estimates of the run without any cell, by step and by what is read."""
        return {}

    def _untouched(self, step: int, read: Read) -> Tensor:
        """Clean estimate (R, C, F, H, W) of the run without any cell."""
        if (step, read) not in self._still:
            run = self._clean
            if isinstance(read, int):
                found = self._lens(run, self._replayed(run, step, [], Start(step, 0), 1), step)
                self._still.update({(step, of): estimate for of, estimate in found.items()})
            else:
                self._still[step, read] = _estimate(run, step, read)
        return self._still[step, read]

    def _donated(self, step: int, read: Read) -> Tensor:
        """The same of each row's donor."""
        return self._untouched(step, read)[list(self._partners)]

    def _reference(self, cell: Cell) -> Outcome:
        """Nothing done, or the other side of each pair."""
        run, plan = self._clean, self.plan
        made = [run] if self._before is None else [self._before, run]
        blocks = sum(one.ledger.block_forwards for one in made) if cell.number == 0 else 0
        if cell.kind == "baseline" and plan.layers_read:
            blocks += len(run.rows) * len(plan.geometry.branches) * plan.geometry.layers
        chosen = list(self._partners) if cell.kind == "donor" else list(range(len(self.batch)))
        of = self._donated if cell.kind == "donor" else self._untouched
        estimates = {read: of(cell.step, read) for read in (*plan.layers_read, *plan.estimates_read)}
        frames = run.decoded[chosen] if plan.makes_frames else None
        return self._outcome(cell, self._values(cell, estimates, frames), blocks)

    # -- a cell

    def _measured(self, group: Sequence[Cell]) -> Iterator[Outcome]:
        """Cells that start at one place, computed at once."""
        plan, start, step, count = self.plan, self.plan.start(group[0]), group[0].step, len(self.batch)
        record, ledger = self._tiled(len(group)), Ledger()
        acts = [
            on_rows(act, place * count, count, count * len(group))
            for place, cell in enumerate(group)
            for act in self._acts(cell)
        ]
        estimates: dict[Read, Tensor] = {}
        frames = None
        if not plan.is_replay(group[0]):
            run = self._resumed(record, acts, start, group[0], len(group))
            ledger.add(run.ledger)
            frames = run.frames
            estimates |= {read: _estimate(run, step, read) for read in plan.estimates_read}
        if plan.is_replay(group[0]) or plan.layers_read:
            replay = self._replayed(record, step, acts, start, len(group))
            ledger.add(replay.ledger)
            estimates |= self._lens(record, replay, step)
            for layer in (k for k in plan.layers_read if k < start.layer):  # nothing has been done there yet
                estimates[layer] = torch.cat([self._untouched(step, layer)] * len(group))
            for read in (read for read in plan.estimates_read if read not in estimates):
                own = replay.x0hat if read is None else record.clean(step, record.states[step], replay.velocities[read])
                estimates[read] = own
        for place, cell in enumerate(group):
            rows = slice(place * count, (place + 1) * count)
            shown = None if frames is None else frames[rows]
            values = self._values(cell, {read: x[rows] for read, x in estimates.items()}, shown)
            yield self._outcome(cell, values, ledger.block_forwards // len(group))

    def _tiled(self, copies: int) -> Run:
        """The record with its rows so many times over."""
        return self._clean if copies == 1 else selected(self._clean, list(range(len(self.batch))) * copies)

    def _acts(self, cell: Cell) -> list[Intervention]:
        """The interventions of a cell, for the rows of the batch, with the donors that they name."""
        return [self._bound(part) for part in cell.parts]

    def _bound(self, part: Any) -> Intervention:
        needs = needs_of(part)
        own: Any = of_batch(part, self.batch)
        if needs is None:
            return own  # type: ignore[no-any-return]
        number = [tokens for tokens, _ in self._donors].index(needs.tokens)
        sites = needs.resolve(self.plan.geometry)  # no more: an id is hashed of all that a donor holds
        kept = self._clean.captures[f"donor {number}"]
        if isinstance(own, Patch):
            return FromPartners(own, {s: kept[s] for s in sites}, self._partners, any_text=self.plan.of_condition)
        theirs = {s: kept[s][list(self._partners)] for s in sites}
        return own.bound_to({s: kept[s] for s in sites}, theirs)  # type: ignore[no-any-return]

    def _others(self, interventions: Sequence[Intervention], copies: int) -> list[Intervention]:
        """Interventions of every run, for so many copies of its rows."""
        count = len(self.batch)
        return [on_rows(i, copy * count, count, copies * count) for copy in range(copies) for i in interventions]

    def _resumed(self, record: Run, acts: Sequence[Intervention], start: Start, cell: Cell, copies: int) -> Run:
        """The videos of cells that are made as this one is, or their states, from where they begin to differ."""
        plan = self.plan
        last = plan.end(cell)
        others = [i for i in plan.until(last) if plan.is_behind(start, i) is not False]
        keep = self._estimates({cell.step})
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

    def _lens(self, record: Run, replay: Replay, step: int) -> dict[Read, Tensor]:
        """Clean estimates as the depth lens reads them, by layer."""
        found: dict[Read, Tensor] = {}
        for site, residual in replay.captures.get(_LENS, {}).items():
            call = next(c for c in record.recorded(step) if "cond" in c.branches)
            velocity = self.plan.model.read_out(call, residual, replay.conditioning["cond"])
            found[site.layer] = record.clean(step, record.states[step], velocity)
        return found

    # -- numbers

    def _values(self, cell: Cell, estimates: dict[Read, Tensor], frames: Video | None) -> dict[str, Floats]:
        found = {}
        for metric in self.plan.metrics:
            if metric.of == "frames":
                assert frames is not None
                found[metric.name] = metric(frames.copy(), list(self.batch.instances), rows=len(self.batch))
                continue
            clean = self._untouched(cell.step, metric.reads)
            donor = self._donated(cell.step, metric.reads) if self._partners else None
            own = estimates[metric.reads]
            moved = Moved(own, clean, self.batch.instances, donor, self._sides, self.batch.first)
            found[metric.name] = metric(moved, rows=len(self.batch))
        return found

    def _outcome(self, cell: Cell, values: dict[str, Floats], blocks: int, error: str | None = None) -> Outcome:
        run = self._clean
        kept = {name: tuple(map(float, found)) for name, found in values.items()}
        return Outcome(
            cell.number, self.batch.number, kept, error, run.sigmas[cell.step], run.experts[cell.step], blocks
        )


def from_one_state(
    model: VideoDiT,
    before: Run,
    step: int,
    interventions: Sequence[Intervention],
    keep: Sequence[Intervention],
    arguments: Mapping[str, Any],
) -> Run:
    """One step of both sides of pairs from the state of the original: only prompts and pictures differ between them.

    Parameters
    ----------
    before : Run made with ``record=True``, that has made the steps before
        Of the two sides of pairs one after the other.
    interventions : of every run
    keep : captures at this step
    arguments : of `VideoDiT.run`
    """
    geometry, originals = before.geometry, [row - row % 2 for row in range(len(before.rows))]
    frames = [f for f in range(geometry.latent_grid[0]) if f not in geometry.fixed_frames]
    tokens = Tokens(frames=frames) if geometry.fixed_frames else Tokens()
    state = tokens.take(before.states[step][originals], "latents")
    return model.run(
        list(before.inputs),
        [row.seed for row in before.rows],
        interventions=[
            Patch(state, Sites("latents", steps=step, tokens=tokens)),
            *acting_at(interventions, geometry, step),
            *keep,
        ],
        resume=Resume(before, step),
        record=True,
        stop_after=step,
        decode=False,
        **arguments,
    )


def _estimate(run: Run, step: int, branch: str | None) -> Tensor:
    """The clean estimate of a step from the state before it and the prediction, of a branch or combined."""
    component, found = ("guided" if branch is None else "velocity"), run.captures[_ESTIMATE]
    (predicted,) = (
        x for site, x in found.items() if (site.step, site.component, site.branch) == (step, component, branch)
    )
    return run.clean(step, found[Site(step, None, None, "latents")], predicted)


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
