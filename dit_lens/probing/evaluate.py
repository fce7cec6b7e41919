"""Scores of trained probes on held-out instances, made while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.probing.fit.questions import Asked, donors
from dit_lens.probing.fit.scores import GroupedScores, scores_by_group
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.probing.probe_set import ProbeSet
from dit_lens.probing.rows.collect import plan_visit
from dit_lens.probing.rows.data import group_numbers, require_disjoint
from dit_lens.probing.rows.readers import Sink, Visit
from dit_lens.probing.rows.rows import Pool
from dit_lens.probing.rows.targets import targets_of
from dit_lens.tasks.base import Label


def evaluate_probes(
    probes: ProbeSet,
    model: VideoDiT,
    task: Any = None,
    test: int | Sequence[Any] = 96,
    *,
    seed: int = 1,
    batch: int = 32,
    first_run_seed: int | None = None,
    pool: str | Pool | None = None,
) -> ProbeGrid:
    """Score trained probes, and those of their controls, on instances.

    Parameters
    ----------
    task : Task, optional
        By default the one that the probes were trained on.
    test : int or sequence of instances
        A number draws so many of the task's test split with ``seed``.
    first_run_seed : int, optional
        Instance i runs with this plus i. By default past the seeds of the training runs.
    pool : optional
        As in `collect`; needed where the probes were trained with a function, which is not saved.

    Raises
    ------
    MadeForAnother
        Probes of another model, noise level, expert, site or width, or classes that they do not know.
    EvidenceError
        Instances that the probes were trained on, or a label of which they have one value only.
    """
    probes.require(model)
    task, card = probes.task if task is None else task, probes.card
    instances = task.sample(int(test), seed=seed, split="test") if isinstance(test, int | np.integer) else list(test)
    require_disjoint(card["train"]["ids"], [instance.id for instance in instances])
    if first_run_seed is None:
        first_run_seed = card["seed"] + card["train"]["instances"] + card["test"]["instances"]
    visit = plan_visit(
        model,
        task,
        instances,
        steps=probes.steps,
        layers=card["layers"],
        frames=card["frames"],
        level=card["level"],
        pool=card["pool"] if pool is None else pool,
        source=card["source"],
        controls=card["controls"],
        seed=first_run_seed,
        batch=batch,
        random_seed=card["random_seed"],
    )
    found = targets_of(task, instances, visit.rows, probes.labels)
    check_held_out(probes.asked, found, instances)
    return scored(probes, model, task, instances, visit, found, first_run_seed)


def check_held_out(asked: Sequence[Asked], labels: Mapping[str, Label], instances: Sequence[Any]) -> None:
    """Refuse test instances on which a probe or its control cannot be measured, before anything runs."""
    if len({instance.id for instance in instances}) < 2:
        raise EvidenceError("probes cannot be tested on one task instance: a control has the labels of another one")
    for a in (a for a in asked if a.control == "none"):
        codes = a.codes(labels[a.name].values)
        if len(np.unique(codes[codes >= 0] if a.kind != "regression" else codes)) < 2:
            raise EvidenceError(f"label {a.name!r} has one value only in the test instances; give more of them")


def visited(
    model: VideoDiT, task: Any, instances: Sequence[Any], visit: Visit, sink: Callable[[slice], Sink], title: str
) -> Any:
    """The visit's runs, each followed by the rows' positions, which no run has."""
    positions, start = torch.from_numpy(visit.rows.positions()), 0
    for run in visit.runs(model, task, instances, sink, title=title):
        rows = slice(start, start + len(run.rows))
        if "position" in visit.controls:
            take = sink(rows)
            for step in visit.steps:
                take(step, "position", positions.expand(len(run.rows), -1, -1))
        start = rows.stop
        yield run


def scored(
    probes: ProbeSet,
    model: VideoDiT,
    task: Any,
    instances: Sequence[Any],
    visit: Visit,
    labels: Mapping[str, Label],
    first_seed: int,
) -> ProbeGrid:
    """Scores of every instance, made while the model runs."""
    asked, groups = probes.asked, group_numbers([instance.id for instance in instances])
    count = int(groups.max()) + 1
    donor = donors(groups, 0)
    codes = [a.codes(labels[a.name].values) for a in asked]
    codes = [c if a.control == "none" else c[donor] for a, c in zip(asked, codes, strict=True)]
    sums: dict[tuple[int, str, str, str], list[NDArray[np.float64]]] = {}

    def scoring(rows: slice) -> Sink:
        def score(step: int, readout: str, features: Tensor) -> None:
            outputs = probes.scores(step, readout, features)
            for a, of_all in zip(asked, codes, strict=True):
                answers = a.answers(outputs).to(torch.float64).cpu().numpy()[None]
                size = answers.shape[1]
                each = scores_by_group(
                    of_all[rows], answers, np.arange(size), a.kind == "regression", size, len(a.classes)
                )
                sums.setdefault((step, readout, a.name, a.control), []).append(each[0].sums)

        return score

    for run in visited(model, task, instances, replace(visit, seed=first_seed), scoring, "test"):
        probes.require_run(run)
        last = run
    kinds = {a.name: a.kind for a in asked}
    return ProbeGrid(
        groups=count,
        labels={a.name: a.role for a in asked},
        scores={key: _by_instance(parts, groups, kinds[key[2]] == "regression") for key, parts in sums.items()},
        kinds=kinds,
        classes={a.name: a.names for a in asked},
        source=visit.source,
        level=visit.rows.level,
        sigmas={step: last.schedule.sigma(step) for step in visit.steps},
        experts={step: last.experts[step] for step in visit.steps},
    )


def _by_instance(parts: Sequence[NDArray[np.float64]], groups: NDArray[np.int64], regression: bool) -> GroupedScores:
    """Sums of runs, those of one instance taken together."""
    of_runs = np.concatenate(parts)
    sums = np.zeros((int(groups.max()) + 1, of_runs.shape[1]))
    np.add.at(sums, groups, of_runs)
    return GroupedScores(sums, regression)
