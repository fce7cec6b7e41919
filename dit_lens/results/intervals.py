"""Intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
import pandas as pd

from dit_lens.results.arrays import Floats


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, count: int, z: float = 1.959964) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927).

    Examples
    --------
    >>> print(wilson(8, 10))
    0.800 [0.490, 0.943]
    """
    if count == 0:
        return Interval(float("nan"), 0.0, 1.0)
    share, square = successes / count, z * z / count
    centre = (share + square / 2) / (1 + square)
    half = z * sqrt(share * (1 - share) / count + square / count / 4) / (1 + square)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_weights(count: int, replicates: int, seed: int) -> Floats:
    """How often each of ``count`` units is drawn in each replicate: float of shape (replicates + 1, count).

    The first row is the sample itself (all ones), so that a statistic of all rows gives the estimate and its
    replicates.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.float64)
    return np.concatenate([np.ones((1, count)), drawn])


def weighted_means(values: Floats, weights: Floats) -> Floats:
    """Means of values (..., n) under every row of weights (R, n): float of shape (R, ...)."""
    return np.asarray((weights / weights.sum(axis=1, keepdims=True)) @ values.T)


def percentile_interval(replicates: Floats) -> Interval:
    """Interval from an estimate followed by its bootstrap replicates, shape (replicates + 1,)."""
    finite = replicates[1:][np.isfinite(replicates[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (float("nan"), float("nan"))
    return Interval(float(replicates[0]), float(low), float(high))


def mean_interval(values: Floats, replicates: int = 1000, seed: int = 0) -> Interval:
    """Mean of values (n,) with its bootstrap interval, NaN for one value alone: nothing says how far it is off.

    Examples
    --------
    >>> print(mean_interval(np.array([0.5])))
    0.500 [nan, nan]
    """
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else float("nan"), float("nan"), float("nan"))
    weights = bootstrap_weights(len(values), replicates, seed)
    return percentile_interval(weighted_means(values, weights))


def mean_over_instances(
    values: Floats, instances: Sequence[str] | pd.Series, replicates: int = 1000, seed: int = 0
) -> tuple[Interval, int]:
    """Mean over task instances of values (n,), the rows of one instance averaged first, and how many instances.

    Parameters
    ----------
    values : float array of shape (n,)
        NaN where a row has no value; an instance without any is left out.
    instances : list of str, n of them

    Examples
    --------
    >>> interval, count = mean_over_instances(np.array([1.0, 3.0, 4.0]), ["a", "a", "b"])
    >>> interval.value, count
    (3.0, 2)
    """
    means = np.asarray(pd.Series(values).groupby(np.asarray(instances)).mean().dropna(), dtype=np.float64)
    return mean_interval(means, replicates, seed), len(means)


def means_over_instances(table: pd.DataFrame, by: Sequence[str], measure: str) -> pd.DataFrame:
    """Means of a measure over task instances, seeds of one instance averaged first.

    Returns
    -------
    DataFrame with columns ``by``, ``measure``, low, high (95 % bootstrap interval over instances, NaN for one alone)
    and n instances
    """
    rows = []
    for names, part in table.groupby(list(by), sort=False, dropna=False):
        interval, count = mean_over_instances(part[measure].to_numpy(dtype=np.float64), part["instance"])
        rows.append((*names, *interval, count))
    return pd.DataFrame(rows, columns=[*by, measure, "low", "high", "n"])
