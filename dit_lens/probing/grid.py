"""Probes over layers, steps and labels, with the controls that make them mean something.

Every probe is scored on task instances that it was not fitted on (folds grouped by instance), beside

- *shuffled*: the same features, each instance's labels taken from another instance. What remains is what the position
of
  a cell says, and what the probe can memorise;
- *input*: the full model input at the same token (noisy latents, frame mask and condition latents) in the features'
place;
- *position*: which cell it is, and nothing else;
- *majority*: the most frequent answer, whose skill is 0 by the definition of skill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from dit_lens.errors import EvidenceError
from dit_lens.probing.estimators import LinearProbe
from dit_lens.probing.scores import GroupedScores, grouped_scores
from dit_lens.statistics import bootstrap_weights, percentile_interval
from dit_lens.tasks.base import Label

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeData:
    """Features and labels of one step.

    Attributes
    ----------
    features : dict from readout name ("embed", "L00", ..., "input", "position") to float array of shape (G, N, D)
        G task instances, N cells of each.
    labels : dict from label name to Label with values of shape (G, N)
    """

    features: Mapping[str, Floats]
    labels: Mapping[str, Label]


@dataclass
class ProbeGrid:
    """Scores of all probes.

    Attributes
    ----------
    scores : dict from (step, readout, label, control) to GroupedScores
        ``control`` is "none" or "shuffled"; the readouts "input" and "position" are controls themselves.
    labels : dict from label name to role
    """

    groups: int
    labels: dict[str, str]
    scores: dict[tuple[int, str, str, str], GroupedScores] = field(default_factory=dict)

    def skill(self, step: int, readout: str, label: str, control: str, weights: Floats) -> Floats:
        """Skill under group weights (R, G): shape (R,)."""
        return self.scores[step, readout, label, control].skill(weights)

    def excess(self, step: int, readouts: Sequence[str], label: str, weights: Floats) -> Floats:
        """Skill above the best control at each readout: shape (R, readouts)."""
        still = [self.skill(step, name, label, "none", weights) for name in ("input", "position")]
        columns = []
        for readout in readouts:
            shuffled = self.skill(step, readout, label, "shuffled", weights)
            best = np.maximum.reduce([*still, shuffled, np.zeros_like(shuffled)])
            columns.append(self.skill(step, readout, label, "none", weights) - best)
        return np.stack(columns, axis=1)

    def frame(self, replicates: int = 300, seed: int = 0) -> pd.DataFrame:
        """Tidy table: step, readout, label, role, control, skill, low, high, n."""
        weights = bootstrap_weights(self.groups, replicates, seed)
        rows = []
        for (step, readout, label, control), scores in self.scores.items():
            interval = percentile_interval(scores.skill(weights))
            rows.append((step, readout, label, self.labels[label], control, *interval, self.groups))
        return pd.DataFrame(rows, columns=["step", "readout", "label", "role", "control", "skill", "low", "high", "n"])


def probe_grid(data: Mapping[int, ProbeData], *, folds: int = 3, alpha: float = 1e-3, seed: int = 0) -> ProbeGrid:
    """Fit and score probes on every step and readout of ``data`` (step -> ProbeData).

    Raises
    ------
    EvidenceError
        Fewer instances than folds, labels of one class only, or NaN among the features.
    """
    first = next(iter(data.values()))
    count = len(next(iter(first.features.values())))
    if count < 2 * folds:
        raise EvidenceError(f"{count} task instances are too few for {folds} folds; need at least {2 * folds}")
    _check_labels(first.labels)
    grid = ProbeGrid(count, {name: label.role for name, label in first.labels.items()})
    order = np.random.default_rng(seed).permutation(count)
    total = sum(len(step.features) for step in data.values())
    # One thread: the matrices are small, and on a busy machine BLAS threads that wait for each other cost far more.
    with threadpool_limits(1, user_api="blas"), tqdm(total=total, desc="probes", unit="readout") as bar:
        for step, step_data in data.items():
            for readout, features in step_data.features.items():
                _score_readout(grid, step, readout, features, step_data.labels, order, folds, alpha)
                bar.update()
    return grid


def _check_labels(labels: Mapping[str, Label]) -> None:
    if not labels:
        raise EvidenceError("no labels to probe")
    for name, label in labels.items():
        if len(np.unique(label.values)) < 2:
            raise EvidenceError(
                f"label {name!r} has one value only ({label.values.flat[0]}); there is nothing to probe"
            )


def _score_readout(
    grid: ProbeGrid,
    step: int,
    readout: str,
    features: Floats,
    labels: Mapping[str, Label],
    order: NDArray[np.int64],
    folds: int,
    alpha: float,
) -> None:
    """All labels, true and shuffled, of one readout: one solve a fold."""
    count, cells, width = features.shape
    if not np.isfinite(features).all():
        raise EvidenceError(f"NaN or infinite features at step {step}, {readout}")
    true = np.stack([np.asarray(label.values, dtype=np.float64) for label in labels.values()], axis=-1)
    # A cyclic shift along a random order gives every instance the labels of another one.
    shuffled = true[order[np.argsort(order) - 1]]
    targets = np.concatenate([true, shuffled], axis=-1).reshape(count * cells, -1)
    groups = np.repeat(np.arange(count), cells)
    predicted = held_out(features.reshape(-1, width), targets, groups, folds, alpha)
    names = [(name, control) for control in ("none", "shuffled") for name in labels]
    for column, (name, control) in enumerate(names):
        grid.scores[step, readout, name, control] = grouped_scores(
            targets[:, column], predicted[:, column], groups, labels[name].is_regression, count
        )


def held_out(X: Floats, Y: Floats, groups: NDArray[np.int64], folds: int, alpha: float) -> Floats:
    """Predictions of every row by a probe fitted on other groups: shape of Y."""
    predicted = np.empty_like(Y)
    for train, test in GroupKFold(folds).split(X, Y, groups):
        predicted[test] = LinearProbe(alpha).fit(X[train], Y[train]).predict(X[test])
    return predicted
