"""Probes fitted and scored while the model runs: no activation is kept, and memory does not grow with the instances.

Two passes. In the first, every activation of the training instances is added to the sufficient statistics of its place
(`Moments`) on the device where it was made; then all probes are solved. In the second, activations of the test
instances are answered inside the run, and only each instance's sums of scores are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.probing.evaluate import check_held_out, scored, visited
from dit_lens.probing.fit.discriminant import discriminant
from dit_lens.probing.fit.moments import Linear, Moments
from dit_lens.probing.fit.questions import Asked, Question, ask, targets
from dit_lens.probing.probe_card import SCHEMA, card_of_task
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.probing.probe_set import ProbeSet
from dit_lens.probing.rows.collect import plan_visit
from dit_lens.probing.rows.data import Source, group_numbers, require_disjoint
from dit_lens.probing.rows.readers import CONTROLS, Sink, Visit, layer_name, site_of
from dit_lens.probing.rows.rows import Pool
from dit_lens.probing.rows.targets import targets_of
from dit_lens.runs.identity import versions
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select, indices
from dit_lens.tasks.base import Label, Level

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Step and name of a readout.
StepReadout = tuple[int, str]


@dataclass(frozen=True)
class Streamed:
    """Trained probes and how well they do on instances that they have not seen.

    Attributes
    ----------
    probes : ProbeSet
    grid : ProbeGrid
        Scores of the test instances, with every control.
    """

    probes: ProbeSet
    grid: ProbeGrid

    def frame(self, **options: Any) -> pd.DataFrame:
        """Tidy table of all scores; see `ProbeGrid.frame`."""
        return self.grid.frame(**options)

    def table(self, **options: Any) -> pd.DataFrame:
        """One row for each step, label and layer, all controls side by side; see `ProbeGrid.table`."""
        return self.grid.table(**options)

    def plot(self, label: str, axis: Axes | None = None, **options: Any) -> Axes:
        """Skill of one label over steps and layers, with the controls; see `ProbeGrid.plot`."""
        return self.grid.plot(label, axis, **options)


def stream_probes(
    model: VideoDiT,
    task: Any,
    *,
    train: int | Sequence[Any] = 192,
    test: int | Sequence[Any] = 96,
    steps: Select = "all",
    layers: Select = "all",
    frames: Select | None = None,
    level: Level = "cell",
    labels: Sequence[str] | None = None,
    pool: str | Pool = "mean",
    source: Source = "sample",
    controls: Sequence[str] = CONTROLS,
    alpha: float = 1e-3,
    seed: int = 0,
    batch: int = 32,
    random_seed: int = 0,
) -> Streamed:
    """Fit ridge probes to the runs of training instances and score them on test instances, without keeping activations.

    The answers are those of `collect` and the ridge of `probe_grid` on the same split. Training instance i runs with
    seed ``seed + i``, test instance j with ``seed + len(train) + j``.

    Parameters
    ----------
    train, test : int or sequence of instances
        A number draws so many of the task's split of that name.
    alpha : float
        Penalty in units of the number of training rows, on standardised features.
    steps, layers, frames, level, labels, pool, source, controls, seed, batch, random_seed
        As in `collect`.

    Raises
    ------
    EvidenceError
        Training and test share instances, or one of them has a single instance, or a label with one value only.
    MadeForAnother
        A class that test instances have and no training instance.
    InputError
        A task whose settings cannot be saved with the probes.
    """
    card_of_task(task)
    sides = [
        task.sample(int(x), seed=seed, split=s) if isinstance(x, int | np.integer) else list(x)
        for x, s in ((train, "train"), (test, "test"))
    ]
    require_disjoint(*([instance.id for instance in side] for side in sides))
    visit = plan_visit(
        model,
        task,
        sides[0],
        steps=steps,
        layers=layers,
        frames=frames,
        level=level,
        pool=pool,
        source=source,
        controls=controls,
        seed=seed,
        batch=batch,
        random_seed=random_seed,
    )
    found = targets_of(task, [*sides[0], *sides[1]], visit.rows, labels)
    count = len(sides[0])
    known = {name: _only(label, slice(count)) for name, label in found.items()}
    held_out = {name: _only(label, slice(count, None)) for name, label in found.items()}
    questions = ask(known, group_numbers([instance.id for instance in sides[0]]), seed)
    asked = _asked(questions, known)
    check_held_out(asked, held_out, sides[1])
    moments, last = _accumulated(model, task, sides[0], visit, questions)
    fitted = _solved(questions, moments, alpha)
    card = _card(model, task, visit, last, asked, alpha, pool, seed, {"train": sides[0], "test": sides[1]})
    probes = ProbeSet(card, *fitted)
    grid = scored(probes, model, task, sides[1], visit, held_out, seed + count)
    card["scores"] = _records(grid)
    return Streamed(probes, grid)


# -- the first pass


def _accumulated(
    model: VideoDiT, task: Any, instances: Sequence[Any], visit: Visit, questions: Sequence[Question]
) -> tuple[dict[StepReadout, Moments], Run]:
    """Moments of every place over the training instances, and the last run."""
    moments: dict[StepReadout, Moments] = {}

    def adding(rows: slice) -> Sink:
        y = targets(questions, rows).flatten(0, 1)

        def add(step: int, readout: str, features: Tensor) -> None:
            place, flat = (step, readout), features.flatten(0, 1)[None]
            if place not in moments:
                moments[place] = Moments.zeros(1, flat.shape[-1], y.shape[-1], flat.device)
            try:
                moments[place].add(flat, y)
            except EvidenceError as error:
                raise EvidenceError(f"step {step}, {readout}: {error}") from error

        return add

    for run in visited(model, task, instances, visit, adding, "training"):
        last = run
    return moments, last


def _asked(questions: Sequence[Question], labels: Mapping[str, Label]) -> list[Asked]:
    """What is asked, as it is saved."""
    asked, start = [], 0
    for question in questions:
        label, width = labels[question.name], question.columns.stop - question.columns.start
        classes = tuple(c.item() for c in question.classes)
        names = tuple(label.names[int(c)] if label.names else str(c) for c in classes)
        given = question.name, label.role, question.control, question.kind
        asked.append(Asked(*given, classes, names, start, start + width))
        start += width
    return asked


def _solved(
    questions: Sequence[Question], moments: Mapping[StepReadout, Moments], alpha: float
) -> tuple[dict[StepReadout, Tensor], dict[StepReadout, Tensor]]:
    """At each place coefficients (K, D) and intercepts (K,) whose outputs answer the questions."""
    coef, intercept = {}, {}
    for place, train in moments.items():
        linear = train.solve(alpha)
        middle = train.midpoints(linear)
        parts = [_decision(question, train, linear, middle) for question in questions]
        coef[place] = torch.cat([part.coef[0] for part in parts]).cpu()
        intercept[place] = torch.cat([part.intercept[0] for part in parts]).cpu()
    return coef, intercept


def _decision(question: Question, train: Moments, linear: Linear, middle: Tensor) -> Linear:
    """The linear map whose outputs answer a question, as `Asked` says."""
    columns = question.columns
    if question.kind == "classes":
        return discriminant(train, linear, columns)
    offset = linear.intercept[:, columns]
    return Linear(linear.coef[:, columns], offset - middle[:, columns] if question.kind == "binary" else offset)


# -- the second pass


# -- records


def _only(label: Label, rows: slice) -> Label:
    return Label(label.name, label.role, label.values[rows], label.level, label.names)


def _card(
    model: VideoDiT,
    task: Any,
    visit: Visit,
    run: Run,
    asked: Sequence[Asked],
    alpha: float,
    pool: str | Pool,
    seed: int,
    sides: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    layers = indices(visit.layers, model.layers, "layer")
    readouts = ["embed", *map(layer_name, layers)]
    return {
        "schema": SCHEMA,
        "model_id": model.id,
        "family": model.architecture.family,
        "task": card_of_task(task),
        "level": visit.rows.level,
        "frames": list(visit.rows.frames),
        "pool": pool if isinstance(pool, str) else getattr(pool, "__qualname__", repr(pool)),
        "source": visit.source,
        "controls": list(visit.controls),
        "random_seed": visit.random_seed,
        "layers": layers,
        "estimator": {"kind": "ridge, classes by discriminant analysis", "alpha": alpha},
        "asked": [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(a).items()} for a in asked],
        "sites": [str(site_of(step, readout)) for step in visit.steps for readout in readouts],
        "sigmas": {str(step): run.schedule.sigma(step) for step in visit.steps},
        "experts": {str(step): run.experts[step] for step in visit.steps},
        "seed": seed,
        **{name: {"instances": len(side), "ids": [i.id for i in side]} for name, side in sides.items()},
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _records(grid: ProbeGrid) -> list[dict[str, Any]]:
    """The table with all controls, rounded, as JSON types."""
    table = grid.table().round(4)
    rows = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    return [{str(name): value for name, value in row.items()} for row in rows]
