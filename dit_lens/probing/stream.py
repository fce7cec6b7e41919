"""Probes fitted and scored while the model runs: no activation is kept, and memory does not grow with the instances.

Two passes. In the first, every activation of the training instances is added to the sufficient statistics of its place
(`Moments`) on the device where it was made; then all probes are solved. In the second, activations of the test
instances are answered inside the run, and only each instance's sums of scores are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.probing.evaluate import check_held_out, scored
from dit_lens.probing.fit.discriminant import discriminant
from dit_lens.probing.fit.moments import Linear, Moments
from dit_lens.probing.fit.questions import Asked, Question, ask, targets
from dit_lens.probing.probe_card import SCHEMA, card_of_task
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.probing.probe_set import ProbeSet
from dit_lens.probing.rows.data import Place, group_numbers, require_disjoint
from dit_lens.probing.rows.readers import Visit
from dit_lens.probing.rows.readout import Readout
from dit_lens.probing.rows.targets import targets_of
from dit_lens.results.result import Result
from dit_lens.runs.identity import versions
from dit_lens.runs.run import Run
from dit_lens.runs.seeds import derive
from dit_lens.sites.site import Site
from dit_lens.tasks.base import Label, Task
from dit_lens.tasks.draw import draw_instances

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Streamed(Result):
    """Trained probes and how well they do on instances that they have not seen.

    Attributes
    ----------
    probes : ProbeSet
    grid : ProbeGrid
        Scores of the test instances, with every control.
    """

    probes: ProbeSet
    grid: ProbeGrid

    @cached_property
    def table(self) -> pd.DataFrame:
        """All scores; see `ProbeGrid.table`."""
        return self.grid.table

    def plot(self, axis: Axes | None = None, **options: Any) -> Axes:
        """Skill of one label over steps and sites, with the controls; see `ProbeGrid.plot`."""
        return self.grid.plot(axis, **options)


def stream_probes(
    model: VideoDiT,
    task: Task,
    readout: Readout | None = None,
    *,
    train: int | Sequence[Any] = 192,
    test: int | Sequence[Any] = 96,
    labels: Sequence[str] | None = None,
    alpha: float = 1e-3,
    seed: int = 0,
    **run_arguments: Any,
) -> Streamed:
    """Fit ridge probes to the runs of training instances and score them on test instances, without keeping activations.

    The answers are those of `collect` and the ridge of `probe_grid` on the same split. The runs of the training and of
    the test instances have seeds of their own, derived from ``seed``.

    Parameters
    ----------
    readout : Readout, optional
        By default cells of the last latent frame, in embed and resid at all steps and layers.
    train, test : int or sequence of instances
        A number draws so many of the task's split of that name.
    labels : sequence of str, optional
        By default all labels of that level.
    alpha : float
        Penalty in units of the number of training rows, on standardised features.
    seed : int
        Draws the instances, and the shuffled labels.
    **run_arguments
        As in `VideoDiT.runs`: ``interventions``, ``batch``, ``num_inference_steps`` ...

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
    sides = {
        "train": draw_instances(task, train, seed, "train", who="stream_probes"),
        "test": draw_instances(task, test, seed, "test", who="stream_probes"),
    }
    require_disjoint(*([instance.id for instance in side] for side in sides.values()))
    changes = listed(run_arguments.pop("interventions", ()))
    visit = Visit(model, task, readout or Readout(), sides["train"][0], changes, run_arguments)
    found = targets_of(task, [*sides["train"], *sides["test"]], visit.rows, labels)
    count = len(sides["train"])
    known = {name: _only(label, slice(count)) for name, label in found.items()}
    held_out = {name: _only(label, slice(count, None)) for name, label in found.items()}
    questions = ask(known, group_numbers([instance.id for instance in sides["train"]]), seed)
    asked = _asked(questions, known)
    check_held_out(asked, held_out, sides["test"])
    moments, last = _accumulated(visit, sides["train"], questions, derive(seed, "train"))
    fitted = _solved(questions, moments, alpha)
    card = _card(visit, last, asked, alpha, seed, sides)
    probes = ProbeSet(card, *fitted)
    grid = scored(probes, visit, sides["test"], held_out, derive(seed, "test"))
    return Streamed(replace(probes, card={**card, "scores": _records(grid)}), grid)


# -- the first pass


def _accumulated(
    visit: Visit, instances: Sequence[Any], questions: Sequence[Question], seed: int
) -> tuple[dict[Place, Moments], Run]:
    """Moments of every place over the training instances, and the last run."""
    moments: dict[Place, Moments] = {}

    def add(rows: slice, place: Place, features: Tensor) -> None:
        y, flat = targets(questions, rows).flatten(0, 1), features.flatten(0, 1)[None]
        if place not in moments:
            moments[place] = Moments.zeros(1, flat.shape[-1], y.shape[-1], flat.device)
        try:
            moments[place].add(flat, y)
        except EvidenceError as error:
            raise EvidenceError(f"{place}: {error}") from error

    for run in visit.runs(instances, seed, add, title="training runs"):
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
    questions: Sequence[Question], moments: Mapping[Place, Moments], alpha: float
) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
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


# -- records


def _only(label: Label, rows: slice) -> Label:
    return Label(label.name, label.role, label.values[rows], label.level, label.names)


def _card(
    visit: Visit, run: Run, asked: Sequence[Asked], alpha: float, seed: int, sides: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    readout, pool = visit.readout, visit.readout.pool
    told = {"alpha": alpha, "kind": "ridge, classes by discriminant analysis"}
    return {
        "schema": SCHEMA,
        "model_id": visit.model.id,
        "family": visit.model.architecture.family,
        "task": card_of_task(visit.task),
        "level": readout.level,
        "branch": readout.branch,
        "sites": [str(site) for site in visit.sites],
        "tokens": visit.tokens.to_json(),
        "pool": pool if isinstance(pool, str) else getattr(pool, "__qualname__", repr(pool)),
        "source": readout.source,
        "controls": list(visit.controls),
        "random_seed": readout.random_seed,
        "settings": {name: repr(value) for name, value in visit.settings.items()},
        "interventions": [f"{type(i).__name__} at {i.sites}" for i in visit.interventions],
        "estimator": told,
        "asked": [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(a).items()} for a in asked],
        "sigmas": {str(step): run.schedule.sigma(step) for step in visit.steps},
        "experts": {str(step): run.experts[step] for step in visit.steps},
        "seed": seed,
        **{
            name: {"instances": len(side), "ids": [i.id for i in side], "seed": derive(seed, name)}
            for name, side in sides.items()
        },
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "scores": [],
    }


def _records(grid: ProbeGrid) -> list[dict[str, Any]]:
    """What the card tells of the table, rounded, as JSON types."""
    table = grid.table.round(4)
    sites = [str(Site(*where)) for where in zip(*(_column(table, name) for name in _SITE), strict=True)]
    told = table[["label", "control", "measure", "value", "low", "high"]].assign(site=sites)
    rows = told.astype(object).where(told.notna(), None).to_dict(orient="records")
    return [{str(name): value for name, value in row.items()} for row in rows]


#: The fields of a site in a table.
_SITE = ("step", "branch", "layer", "component", "stream", "head")


def _column(table: pd.DataFrame, name: str) -> list[Any]:
    """Values of a column, None where there are none."""
    if name not in table:
        return [None] * len(table)
    return [None if pd.isna(value) else value for value in table[name]]
