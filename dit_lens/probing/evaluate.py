"""Scores of trained probes on held-out instances, made while the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.probing.fit.questions import Asked, donors
from dit_lens.probing.fit.scores import GroupedScores, scores_by_group
from dit_lens.probing.probe_grid import Probe, ProbeGrid, probes_of
from dit_lens.probing.probe_set import ProbeSet
from dit_lens.probing.rows.data import Place, group_numbers, require_disjoint
from dit_lens.probing.rows.readers import Visit
from dit_lens.probing.rows.rows import Pool
from dit_lens.probing.rows.targets import targets_of
from dit_lens.tasks.base import Label, Task
from dit_lens.tasks.draw import draw_instances


def evaluate_probes(
    model: VideoDiT,
    task: Task,
    probes: ProbeSet,
    instances: int | Sequence[Any] = 96,
    *,
    seed: int | Sequence[int] = 1,
    pool: str | Pool | None = None,
    interventions: Iterable[Intervention] = (),
    **run_arguments: Any,
) -> ProbeGrid:
    """Score trained probes, and those of their controls, on instances.

    Parameters
    ----------
    task : Task
        `ProbeSet.task` is the one that the probes were trained on.
    instances : int or sequence of instances
        A number draws so many of the task's test split.
    seed : int or one per instance
        As in `VideoDiT.runs`; an int also draws the instances.
    pool : optional
        As in `Readout`; needed where the probes were trained with a function, which is not saved.
    interventions, **run_arguments
        As in `VideoDiT.runs`.

    Raises
    ------
    MadeForAnother
        Probes of another model, noise level, expert, site or width, or classes that they do not know.
    EvidenceError
        Instances that the probes were trained on or the seed of their runs, or a label of which they have one value
        only.
    """
    probes.require(model)
    problems = draw_instances(task, instances, seed, who="evaluate_probes")
    require_held_out(probes, problems, seed)
    visit = Visit(model, task, probes.readout(pool), problems[0], interventions, run_arguments)
    found = targets_of(task, problems, visit.rows, probes.labels)
    check_held_out(probes.asked, found, problems)
    return scored(probes, visit, problems, found, seed)


def require_held_out(probes: ProbeSet, instances: Sequence[Any], seed: int | Sequence[int]) -> None:
    """Refuse instances that the probes were trained on, and runs from the noise of the training runs.

    Raises
    ------
    EvidenceError
    """
    train = probes.card["train"]
    require_disjoint(train["ids"], [instance.id for instance in instances])
    if seed == train["seed"]:
        raise EvidenceError(f"seed={seed} is that of the training runs: they had the same noise; give another")


def check_held_out(asked: Sequence[Asked], labels: Mapping[str, Label], instances: Sequence[Any]) -> None:
    """Refuse test instances on which a probe or its control cannot be measured, before anything runs."""
    if len({instance.id for instance in instances}) < 2:
        raise EvidenceError("probes cannot be tested on one task instance: a control has the labels of another one")
    for a in (a for a in asked if a.control == "none"):
        codes = a.codes(labels[a.name].values)
        if len(np.unique(codes[codes >= 0] if a.kind != "regression" else codes)) < 2:
            raise EvidenceError(f"label {a.name!r} has one value only in the test instances; give more of them")


def scored(
    probes: ProbeSet, visit: Visit, instances: Sequence[Any], labels: Mapping[str, Label], seed: int | Sequence[int]
) -> ProbeGrid:
    """Scores of every instance, made while the model runs."""
    asked, groups = probes.asked, group_numbers([instance.id for instance in instances])
    donor = donors(groups, 0)
    codes = [a.codes(labels[a.name].values) for a in asked]
    codes = [c if a.control == "none" else c[donor] for a, c in zip(asked, codes, strict=True)]
    sums: dict[tuple[Place, Asked], list[NDArray[np.float64]]] = {}

    def score(rows: slice, place: Place, features: Tensor) -> None:
        outputs = probes.scores(place, features)
        for a, of_all in zip(asked, codes, strict=True):
            answers = a.answers(outputs).double().cpu().numpy()[None]
            size = answers.shape[1]
            each = scores_by_group(of_all[rows], answers, np.arange(size), a.kind == "regression", size, len(a.classes))
            sums.setdefault((place, a), []).append(each[0].sums)

    for run in visit.runs(instances, seed, score, title="test runs"):
        probes.require_run(run)
        last = run
    return ProbeGrid(
        groups=int(groups.max()) + 1,
        labels={a.name: a.role for a in asked},
        scores=_of_probes(sums, visit, groups),
        kinds={a.name: a.kind for a in asked},
        classes={a.name: a.names for a in asked},
        source=visit.readout.source,
        level=visit.readout.level,
        sigmas={step: last.schedule.sigma(step) for step in visit.steps},
        experts={step: last.experts[step] for step in visit.steps},
    )


def _of_probes(
    sums: Mapping[tuple[Place, Asked], Sequence[NDArray[np.float64]]], visit: Visit, groups: NDArray[np.int64]
) -> dict[Probe, GroupedScores]:
    """Sums of the runs at every place as the scores of the probes that they stand for."""
    scores: dict[Probe, GroupedScores] = {}
    for (place, a), parts in sums.items():
        sites = [str(site) for site in visit.sites if site.step == place.step]
        of_instances = _by_instance(parts, groups, a.kind == "regression")
        scores |= dict.fromkeys(probes_of(place, a.name, a.control, sites), of_instances)
    return scores


def _by_instance(parts: Sequence[NDArray[np.float64]], groups: NDArray[np.int64], regression: bool) -> GroupedScores:
    """Sums of runs, those of one instance taken together."""
    of_runs = np.concatenate(parts)
    sums = np.zeros((int(groups.max()) + 1, of_runs.shape[1]))
    np.add.at(sums, groups, of_runs)
    return GroupedScores(sums, regression)
