"""Intervals."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dit_lens.results.arrays import Bools, Floats, Ints


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def unknown(cls, value: float) -> Interval:
        """A value of which nothing says how far it is off: its ends are NaN."""
        return cls(value, float("nan"), float("nan"))

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


def share(holds: Bools) -> Interval:
    """Share of n for which something holds, bool (n,), with Wilson's interval."""
    return wilson(int(holds.sum()), len(holds))


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
        return Interval.unknown(float(values[0]) if len(values) else float("nan"))
    weights = bootstrap_weights(len(values), replicates, seed)
    return percentile_interval(weighted_means(values, weights))


def t_interval(values: Floats) -> Interval:
    """Mean of values (n,) with Student's interval, NaN for one value alone: nothing says how far it is off.

    Examples
    --------
    >>> print(t_interval(np.array([0.1, 0.2, 0.3])))
    0.200 [-0.048, 0.448]
    """
    if len(values) < 2:
        return Interval.unknown(float(values[0]) if len(values) else float("nan"))
    mean, half = float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def over_instances(samples: pd.DataFrame, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Means over task instances of a tidy table of single rows, seeds of one instance averaged first.

    Parameters
    ----------
    samples : DataFrame with columns instance, seed, measure, value and any others
        NaN where a row has no value; an instance without any is left out.

    Returns
    -------
    DataFrame with the other columns, measure, value, low, high (95 % bootstrap interval over instances, NaN for one
    alone) and n instances, in order of first appearance

    Examples
    --------
    >>> rows = [(0, "a", 1, "skill", 1.0), (0, "a", 2, "skill", 3.0), (0, "b", 1, "skill", 4.0)]
    >>> over_instances(pd.DataFrame(rows, columns=["layer", "instance", "seed", "measure", "value"]))
       layer measure  value  low  high  n
    0      0   skill    3.0  2.0   4.0  2
    """
    by = [name for name in samples.columns if name not in ("instance", "seed", "measure", "value")] + ["measure"]
    groups: Ints = np.asarray(samples.groupby(by, sort=False, dropna=False).ngroup(), dtype=np.int64)
    means = _means_of_instances(groups, samples)
    intervals = np.full((len(means), 4), np.nan)
    counts = np.isfinite(means).sum(axis=1)
    for count in np.unique(counts):
        same = np.flatnonzero(counts == count)
        values = means[same][np.isfinite(means[same])].reshape(len(same), count)
        intervals[same] = [(*one, count) for one in _mean_intervals(values, replicates, seed)]
    table = samples[by].iloc[np.unique(groups, return_index=True)[1]].reset_index(drop=True)
    table[["value", "low", "high"]] = intervals[:, :3]
    return table.assign(n=counts)


def _means_of_instances(groups: Ints, samples: pd.DataFrame) -> Floats:
    """Mean of each group's rows of each instance: float (groups, instances), NaN where there are none."""
    instances, names = pd.factorize(samples["instance"], sort=True)
    values = samples["value"].to_numpy(dtype=np.float64)
    known = np.isfinite(values)
    sums, counts = np.zeros((groups.max() + 1, len(names))), np.zeros((groups.max() + 1, len(names)))
    np.add.at(sums, (groups[known], instances[known]), values[known])
    np.add.at(counts, (groups[known], instances[known]), 1)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _mean_intervals(values: Floats, replicates: int, seed: int) -> list[Interval]:
    """Of each row of values (groups, n); the same draws for all of them."""
    if values.shape[1] < 2:
        return [mean_interval(row) for row in values]
    replicated = weighted_means(values, bootstrap_weights(values.shape[1], replicates, seed))
    return [percentile_interval(column) for column in replicated.T]
