"""Scores of probes as sums over groups, so that bootstrapping over groups needs no second fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.results.arrays import Floats


@dataclass(frozen=True)
class GroupedScores:
    """Held-out sufficient statistics of one target in every group (task instance).

    Attributes
    ----------
    sums : float array of shape (G, 2 k) or (G, 4)
        For k classes: how many rows of each class were answered rightly, then how many rows each class has. For a
        regression target: squared errors, targets, squared targets, count.
    """

    sums: Floats
    is_regression: bool

    def skill(self, weights: Floats) -> Floats:
        """Skill under group weights of shape (R, G): shape (R,), 0 at chance and 1 at perfection.

        Balanced accuracy b of k classes as (b - 1/k) / (1 - 1/k), which is 2 b - 1 for two; for regression R squared
        against the mean. A class that no row of a replicate has is left out there.
        """
        if self.is_regression:
            a, b, c, d = np.moveaxis(weights @ self.sums, -1, 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(1 - a / (c - b * b / d))
        recall, there = self._recall(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(there > 1, (recall - 1) / (there - 1), np.nan)

    def balanced_accuracy(self, weights: Floats) -> Floats:
        """Mean over classes of the share answered rightly, as `skill` counts them: shape (R,); NaN for regression."""
        if self.is_regression:
            return np.full(len(weights), np.nan)
        recall, there = self._recall(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(there > 1, recall / there, np.nan)

    def accuracy(self, weights: Floats) -> Floats:
        """Share of rows that were answered rightly, shape (R,); NaN for regression."""
        if self.is_regression:
            return np.full(len(weights), np.nan)
        right, count = self._of_classes(weights)
        return np.asarray(right.sum(axis=1) / count.sum(axis=1))

    def majority(self, weights: Floats) -> Floats:
        """Share of the most frequent class, the accuracy of always saying it: shape (R,); NaN for regression."""
        if self.is_regression:
            return np.full(len(weights), np.nan)
        count = self._of_classes(weights)[1]
        return np.asarray(count.max(axis=1) / count.sum(axis=1))

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of each class, shape (k,), or of the regression target, (1,)."""
        first = 3 if self.is_regression else self.sums.shape[1] // 2
        return np.asarray(self.sums[:, first:].sum(axis=0), dtype=np.int64)

    def _recall(self, weights: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """Sum over classes of the share answered rightly, and how many classes have any row, both (R,)."""
        right, count = self._of_classes(weights)
        recall = (right / np.where(count > 0, count, 1)).sum(axis=1)
        return recall, np.asarray((count > 0).sum(axis=1))

    def _of_classes(self, weights: Floats) -> tuple[Floats, Floats]:
        """Right answers and rows of each class, both (R, k)."""
        right, count = np.split(weights @ self.sums, 2, axis=1)
        return right, count


def scores_by_group(
    target: NDArray[Any],
    predicted: NDArray[Any],
    groups: NDArray[np.int64],
    is_regression: bool,
    count: int,
    classes: int = 2,
) -> list[GroupedScores]:
    """Collect statistics of P probes of one target into ``count`` groups.

    Parameters
    ----------
    target : array of shape (R, N)
        Values, or numbers of classes from 0 to ``classes - 1``. Rows that are NaN or negative are not labelled.
    predicted : array of shape (P, R, N)
    groups : int array of shape (R,)
        Which group the N rows of each of R runs belong to.
    """
    if is_regression:
        kept = ~np.isnan(target)
        y = np.where(kept, target, 0.0)
        every = [np.where(kept, (predicted - y) ** 2, 0.0)]
        shared = [y, y**2, kept]
    else:
        members = [target == c for c in range(classes)]
        hit = predicted == target
        every, shared = [hit & member for member in members], members
    of_target = [_by_group(column.sum(-1), groups, count) for column in shared]
    of_probes = [[_by_group(rows, groups, count) for rows in column.sum(-1)] for column in every]
    return [
        GroupedScores(np.stack([*of_probe, *of_target], axis=1), is_regression)
        for of_probe in zip(*of_probes, strict=True)
    ]


def _by_group(rows: NDArray[Any], groups: NDArray[np.int64], count: int) -> Floats:
    return np.asarray(np.bincount(groups, weights=rows, minlength=count), dtype=np.float64)
