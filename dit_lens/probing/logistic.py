"""Logistic probes from activations on disk: they need all rows at once, one site at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.probing.fit.estimators import LinearProbe
from dit_lens.probing.fit.questions import Question, ask, check_folds
from dit_lens.probing.fit.scores import GroupedScores, scores_by_group
from dit_lens.probing.probe_grid import Probe, ProbeGrid, probes_of
from dit_lens.probing.rows.data import Place, fold_of_runs, group_numbers
from dit_lens.probing.rows.readout import READ, Readout
from dit_lens.probing.rows.rows import Rows
from dit_lens.probing.rows.targets import targets_of
from dit_lens.sites.site import Site
from dit_lens.store.store import Store
from dit_lens.tasks.base import Label, Task


def logistic_from_store(
    model: VideoDiT,
    task: Task,
    store: Store,
    instances: Sequence[Any],
    readout: Readout | None = None,
    *,
    labels: Sequence[str] | None = None,
    folds: int | Sequence[int] = 3,
    seed: int = 0,
    **estimator: Any,
) -> ProbeGrid:
    """Fit and score `LinearProbe` at every stored site, on instances that it has not seen.

    A site is in memory only while its probes are fitted. Controls: shuffled labels, position, and the input where
    ``model_input`` was stored. The control of random weights needs the recorded calls, which a store does not have, and
    the table names it as missing.

    Parameters
    ----------
    store : Store
        Whole activations of the video, from runs of ``instances``.
    readout : Readout, optional
        Its level, branch, pooling, latent frames and source; of its ``sites`` whatever is stored is read.
    labels : sequence of str, optional
        Classes or booleans; by default all of that level.
    seed : int
        Of the order in which shuffled labels are taken from other instances.
    **estimator
        Passed to `LinearProbe`.

    Raises
    ------
    MadeForAnother
        A store of another model.
    EvidenceError
        A stored row of an instance that is not given, a store without such sites, a regression label, or what
        `probe_grid` refuses.
    """
    store.require(model)
    readout = readout or Readout()
    problems = _problems(store, instances)
    rows = Rows.of(model.geometry(instances[0]), task, readout.level, readout.selection.tokens, readout.pooled)
    sites = _sites(store, readout)
    found = _classes(targets_of(task, problems, rows, labels), labels is None)
    groups, fold = group_numbers(store.groups.tolist()), fold_of_runs(store.groups.tolist(), folds)
    questions = ask(found, groups, seed)
    check_folds(questions, fold)
    own = [site for site in sites if site.component != "model_input"]
    scores: dict[Probe, GroupedScores] = {}
    for place, features in _read(store, rows, sites):
        here = [str(site) for site in own if site.step == place.step]
        for question in questions:
            if probes := probes_of(place, question.name, question.control, here):
                scores |= dict.fromkeys(probes, _scored(place, features, question, fold, groups, estimator))
    return ProbeGrid(
        groups=int(groups.max()) + 1,
        labels={name: label.role for name, label in found.items()},
        scores=scores,
        kinds={q.name: q.kind for q in questions},
        classes={q.name: q.named(found[q.name]) for q in questions},
        source=readout.source,
        level=readout.level,
        sigmas={site.step: store[site].site.sigma for site in own},
        experts={site.step: store[site].site.expert for site in own},
    )


def _problems(store: Store, instances: Sequence[Any]) -> list[Any]:
    """The instance of each stored row."""
    known: Mapping[str, Any] = {instance.id: instance for instance in instances}
    if unknown := sorted({row.instance for row in store.rows} - set(known)):
        raise EvidenceError(f"the store has runs of {len(unknown)} instances that were not given: {unknown[0]} ...")
    if not len(store):
        raise EvidenceError(f"{store} is empty: nothing to probe")
    return [known[row.instance] for row in store.rows]


def _sites(store: Store, readout: Readout) -> list[Site]:
    """Stored sites that probes read, and the model's input, of the readout's branch and the video."""
    stored = [Site.parse(str(site)) for site in store.sites()]
    read = [s for s in stored if s.component in (*READ, "model_input") and s.stream == "video"]
    found = [site for site in read if site.branch == readout.branch]
    if not any(site.component in READ for site in found):
        raise EvidenceError(f"{store} has no site of branch {readout.branch!r} that a probe reads: {', '.join(READ)}")
    return found


def _classes(labels: Mapping[str, Label], drop: bool) -> dict[str, Label]:
    """Labels of classes; those of numbers are dropped, or refused."""
    numbers = [name for name, label in labels.items() if label.is_regression]
    if numbers and not drop:
        raise EvidenceError(f"{', '.join(numbers)}: a logistic probe tells classes apart; use ridge for numbers")
    return {name: label for name, label in labels.items() if name not in numbers}


def _read(store: Store, rows: Rows, sites: Sequence[Site]) -> Iterator[tuple[Place, NDArray[Any]]]:
    """Features (R, N, D), one site after the other, before them each step's positions."""
    positions = rows.positions()
    for step in dict.fromkeys(site.step for site in sites):
        yield Place(step, "", "position"), np.broadcast_to(positions, (len(store), *positions.shape))
    for site in tqdm(sites, desc="logistic probes", unit="site"):
        view, is_input = store[site], site.component == "model_input"
        make = rows.inputs if is_input else rows.features
        features = torch.cat([make(view.tensor(slice(i, i + 32))) for i in range(0, len(view), 32)])
        yield Place(site.step, "", "input") if is_input else Place(site.step, str(site)), features.numpy()


def _scored(
    place: Place,
    features: NDArray[Any],
    question: Question,
    fold: NDArray[np.int64],
    groups: NDArray[np.int64],
    estimator: Mapping[str, Any],
) -> GroupedScores:
    """Fit and score one question at one place."""
    if not np.isfinite(features).all():
        raise EvidenceError(f"{int((~np.isfinite(features)).sum())} NaN or infinite features at {place}")
    width, each = features.shape[-1], features.shape[1]
    predicted = np.empty(question.codes.shape)
    for number in np.unique(fold):
        here = fold == number
        wanted = question.codes[~here].ravel()
        x = features[~here].reshape(-1, width)[wanted >= 0]
        probe = LinearProbe(**estimator).fit(x, wanted[wanted >= 0])
        predicted[here] = probe.predict(features[here].reshape(-1, width)).reshape(-1, each)
    count, classes = int(groups.max()) + 1, len(question.classes)
    return scores_by_group(question.codes, predicted[None], groups, False, count, classes)[0]
