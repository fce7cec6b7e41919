"""Logistic probes from activations on disk: they need all rows at once, one site at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.probing.fit.estimators import LinearProbe
from dit_lens.probing.fit.questions import Question, ask, check_folds
from dit_lens.probing.fit.scores import scores_by_group
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.probing.rows.data import Source, fold_of_runs, group_numbers
from dit_lens.probing.rows.readers import readout_name
from dit_lens.probing.rows.rows import Pool, Rows, frames_of
from dit_lens.probing.rows.targets import targets_of
from dit_lens.sites.select import Select
from dit_lens.sites.site import Site
from dit_lens.store.store import Store
from dit_lens.tasks.base import Level

_READ = ("model_input", "embed", "resid")


def logistic_from_store(
    store: Store,
    model: VideoDiT,
    task: Any,
    instances: Sequence[Any],
    *,
    labels: Sequence[str] | None = None,
    level: Level = "cell",
    frames: Select | None = None,
    pool: str | Pool = "mean",
    source: Source = "sample",
    folds: int | Sequence[int] = 3,
    alpha: float = 1e-3,
    seed: int = 0,
) -> ProbeGrid:
    """Fit and score `LinearProbe` at every stored site, on instances that it has not seen.

    A site is in memory only while its probes are fitted. Controls: shuffled labels, position, and the input where
    ``model_input`` was stored. The control of random weights needs the recorded calls, which a store does not have, and
    the table names it as missing.

    Parameters
    ----------
    store : Store
        Whole activations of conditional ``resid``, ``embed`` and ``model_input`` sites, from runs of ``instances``.
    labels : sequence of str, optional
        Classes or booleans; by default all of that level.
    source : "sample", "forward-noise" or "invert"
        Where the stored states came from, for the record.

    Raises
    ------
    MadeForAnother
        A store of another model.
    EvidenceError
        A stored row of an instance that is not given, a regression label, or what `probe_grid` refuses.
    """
    store.require(model)
    rows, problems = _rows(store, model, task, instances, level, frames, pool)
    found = targets_of(task, problems, rows, labels)
    if labels is None:
        found = {name: label for name, label in found.items() if not label.is_regression}
    if numbers := [name for name, label in found.items() if label.is_regression]:
        raise EvidenceError(f"{', '.join(numbers)}: a logistic probe tells classes apart; use ridge for numbers")
    groups, fold = group_numbers(store.groups.tolist()), fold_of_runs(store.groups.tolist(), folds)
    questions = ask(found, groups, seed)
    check_folds(questions, fold)
    sites = [s for s in map(Site.parse, map(str, store.sites())) if s.component in _READ and s.branch == "cond"]
    grid = ProbeGrid(
        int(groups.max()) + 1,
        {name: label.role for name, label in found.items()},
        kinds={q.name: q.kind for q in questions},
        source=source,
        level=level,
        classes={
            q.name: tuple(found[q.name].names[int(c)] if found[q.name].names else str(c) for c in q.classes)
            for q in questions
        },
        sigmas=dict.fromkeys(s.step for s in sites),
        experts=dict.fromkeys(s.step for s in sites),
    )
    positions = rows.positions()
    position = np.broadcast_to(positions, (len(problems), *positions.shape))
    for step in dict.fromkeys(site.step for site in sites):
        _score(grid, step, "position", position, questions, fold, groups, alpha)
    for site in tqdm(sites, desc="logistic probes", unit="site"):
        view = store[site]
        grid.sigmas[site.step], grid.experts[site.step] = view.site.sigma, view.site.expert
        make = rows.inputs if site.component == "model_input" else rows.features
        features = torch.cat([make(view.tensor(slice(i, i + 32))) for i in range(0, len(view), 32)])
        _score(grid, site.step, readout_name(site), features.numpy(), questions, fold, groups, alpha)
    return grid


def _rows(
    store: Store,
    model: VideoDiT,
    task: Any,
    instances: Sequence[Any],
    level: Level,
    frames: Select | None,
    pool: str | Pool,
) -> tuple[Rows, list[Any]]:
    """How stored activations become rows, and the instance of each stored row."""
    known: Mapping[str, Any] = {instance.id: instance for instance in instances}
    if unknown := sorted({row.instance for row in store.rows} - set(known)):
        raise EvidenceError(f"the store has runs of {len(unknown)} instances that were not given: {unknown[0]} ...")
    if not len(store):
        raise EvidenceError(f"{store} is empty: nothing to probe")
    chosen = frames_of(level) if frames is None else frames
    rows = Rows.of(model.geometry(instances[0]), task, level, chosen, pool)
    return rows, [known[row.instance] for row in store.rows]


def _score(
    grid: ProbeGrid,
    step: int,
    readout: str,
    features: NDArray[Any],
    questions: Sequence[Question],
    fold: NDArray[np.int64],
    groups: NDArray[np.int64],
    alpha: float,
) -> None:
    """Fit and score all questions at one place."""
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).sum())
        raise EvidenceError(f"{bad} NaN or infinite features at step {step}, {readout}")
    width, each = features.shape[-1], features.shape[1]
    for question in questions:
        predicted = np.empty(question.codes.shape)
        for number in np.unique(fold):
            here = fold == number
            wanted = question.codes[~here].ravel()
            x = features[~here].reshape(-1, width)[wanted >= 0]
            probe = LinearProbe(alpha).fit(x, wanted[wanted >= 0])
            predicted[here] = probe.predict(features[here].reshape(-1, width)).reshape(-1, each)
        grid.scores[step, readout, question.name, question.control] = scores_by_group(
            question.codes, predicted[None], groups, False, grid.groups, len(question.classes)
        )[0]
