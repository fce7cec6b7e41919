"""Scores of probes as sums over groups, so that bootstrapping over groups needs no second fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupedScores:
    """Held-out sufficient statistics of one target in every group (task instance).

    Attributes
    ----------
    sums : float array of shape (G, 4)
        For a class target: hits among positives, positives, hits among negatives, negatives. For a regression target:
        squared errors, targets, squared targets, count.
    """

    sums: Floats
    is_regression: bool

    def skill(self, weights: Floats) -> Floats:
        """Skill under group weights of shape (R, G): shape (R,), 0 at chance and 1 at perfection.

        Balanced accuracy b as 2 b - 1; for regression R squared against the mean.
        """
        a, b, c, d = np.moveaxis(weights @ self.sums, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.is_regression:
                return np.asarray(1 - a / (c - b * b / d))
            return np.asarray(a / b + c / d - 1)


def grouped_scores(
    target: Floats, predicted: Floats, groups: NDArray[np.int64], is_regression: bool, count: int
) -> GroupedScores:
    """Collect statistics of rows (n,) into ``count`` groups."""
    if is_regression:
        columns = [(target - predicted) ** 2, target, target**2, np.ones_like(target)]
    else:
        positive, hit = target > 0.5, (predicted > 0.5) == (target > 0.5)
        columns = [np.asarray(c, dtype=np.float64) for c in (hit & positive, positive, hit & ~positive, ~positive)]
    sums = [np.bincount(groups, weights=c, minlength=count) for c in columns]
    return GroupedScores(np.stack(sums, axis=1), is_regression)
