"""What attribution patching found: estimates, true effects, and how far the two agree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dit_lens.results.arrays import Floats, Ints
from dit_lens.results.intervals import (
    Interval,
    bootstrap_weights,
    mean_interval,
    over_instances,
    percentile_interval,
    weighted_means,
)
from dit_lens.results.plots import axes, curves
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result
from dit_lens.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Effects below this share of a pair's largest are too small for their sign to say anything.
_SMALL = 0.05
#: Effects that differ by less than this share of the largest have no order.
_SAME = 1e-3
#: Sums of effects below this share of the sum of their sizes are what is left of effects of both signs.
_CANCEL = 0.5
#: Fewer sites than this have no rank correlation.
_FEWEST = 3


@dataclass(frozen=True, repr=False)
class AttributionPatching(Result):
    """First-order estimates of what patching every site does, and beside them what it did.

    Attributes
    ----------
    model, task, metric : str
    on : "step" or "final"
        Of which step's clean estimate: that of each site, or the last.
    sites : tuple of Site
        K sites. One whose branches were patched together has no branch.
    kinds : tuple of str or None
        The kind of each site's block.
    pairs : tuple of str
        The first of each of P pairs, of ``tried``; the others' right answers do not differ.
    seeds : tuple of int
        The noise of each pair.
    estimates, truths : float array of shape (K, P, 2)
        Of both directions. ``truths`` is NaN at sites that were not patched.
    forwards, true_forwards : float
        Denoiser forwards of one row and branch. Of those of the estimates all but the first run's go backward too.
    seconds, true_seconds : float
    """

    model: str
    task: str
    metric: str
    on: str
    sites: tuple[Site, ...]
    kinds: tuple[str | None, ...]
    pairs: tuple[str, ...]
    tried: int
    seeds: tuple[int, ...]
    estimates: Floats
    truths: Floats
    forwards: float
    true_forwards: float
    seconds: float
    true_seconds: float

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row for each site, pair, direction and measure: the site's columns, instance, seed, measure, value."""
        measures = {"estimate": self.estimates}
        if self._patched:
            measures |= {"truth": self.truths, "error": self.estimates - self.truths}
        count = len(self.sites), len(self.pairs), 2
        site, pair, _ = (index.ravel() for index in np.indices(count))
        parts = [
            self._columns.iloc[site].assign(
                instance=np.array(self.pairs, dtype=object)[pair],
                seed=np.array(self.seeds)[pair],
                measure=measure,
                value=values.ravel(),
            )
            for measure, values in measures.items()
        ]
        samples: pd.DataFrame = pd.concat(parts, ignore_index=True)
        return samples

    @cached_property
    def _columns(self) -> pd.DataFrame:
        """The address of every site, the parts that apply."""
        own = {name: [getattr(site, name, None) for site in self.sites] for name in SITE_COLUMNS}
        own["kind"] = list(self.kinds)
        known = [name for name in SITE_COLUMNS if any(value is not None for value in own[name])]
        return pd.DataFrame({name: own[name] for name in known}, dtype=object)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The columns of the sites that apply, then measure, value, low, high, n (pairs).

        Measures of a site are "estimate" and, where it was patched, "truth" and "error" (estimate less truth), means
        over pairs. Rows without a layer are of all patched sites of a step, and those without a step of all steps; see
        `agreement`.
        """
        of_sites = over_instances(self.samples)
        measured = of_sites.loc[of_sites["n"] > 0]
        return pd.concat([measured, self.agreement], ignore_index=True) if self._patched else measured

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """How far estimates can be believed, over the patched sites of each step and of all steps.

        Measures: "spearman", the rank correlation over sites in one pair, mean over pairs; "spearman_of_means", that of
        the means over pairs; "slope", of the line through zero that gives estimates from effects; "ratio", the sum of
        all estimates over that of all effects; "wrong_sign", the share of a pair's sites (those with an effect of at
        least .05 of its largest) at which the estimate has the other sign. A rank correlation is NaN where there are
        fewer than three sites or where all effects are the same, the ratio where effects of both signs cancel.
        """
        steps = sorted({self.sites[i].step for i in self._patched})
        parts = [self._agreement([i for i in self._patched if self.sites[i].step == step]) for step in steps]
        parts += [self._agreement(self._patched)] if len(steps) > 1 else []
        columns = [*self._columns.columns, *VALUE_COLUMNS]
        return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)

    @cached_property
    def _patched(self) -> list[int]:
        """Numbers of the sites that were patched too."""
        return [i for i, truths in enumerate(self.truths) if np.isfinite(truths).all()]

    def _agreement(self, chosen: list[int]) -> pd.DataFrame:
        """Of some sites, with what their addresses share."""
        found = _agreement(self.estimates[chosen].mean(axis=2), self.truths[chosen].mean(axis=2))
        values = [(measure, *interval, count) for measure, (interval, count) in found.items()]
        table = pd.DataFrame(values, columns=list(VALUE_COLUMNS))
        for name, column in self._columns.iloc[chosen].items():
            one = column.iloc[0] if column.nunique() == 1 and name not in ("layer", "kind", "head") else None
            table[name] = pd.Series([one] * len(table), dtype=object)
        return table

    @cached_property
    def worst(self) -> pd.DataFrame:
        """The patched sites, those first whose mean estimate is furthest from the truth."""
        means = {"estimate": self.estimates.mean(axis=(1, 2)), "truth": self.truths.mean(axis=(1, 2))}
        found = self._columns.assign(**means, error=means["estimate"] - means["truth"])
        return found.iloc[self._patched].sort_values("error", key=abs, ascending=False, ignore_index=True)

    def __str__(self) -> str:
        lines = [
            f"{self.metric} of {self.task} on {self.model} ({'own' if self.on == 'step' else 'last'} step), "
            f"{len(self.sites)} sites, {len(self.pairs)} pairs, both directions",
            f"estimated with {self.forwards:,.0f} forwards",
        ]
        if self._patched:
            shown = self.agreement[["step", *VALUE_COLUMNS]].fillna({"step": "all"})
            lines += [
                f"{len(self.worst)} sites patched with {self.true_forwards:,.0f} forwards",
                shown.round(3).to_string(index=False),
                "furthest off:",
                self.worst.head(5).dropna(axis=1, how="all").round(3).to_string(index=False),
            ]
        return "\n".join(lines)

    def plot(self, axis: Axes | None = None) -> Axes:
        """Estimates against effects, one point for each patched site; where none was patched, estimates over layers."""
        if not self._patched:
            axis = curves(self.table, "layer" if "layer" in self.table else "step", "value", "step", axis)
            axis.set(ylabel=f"estimated {self.metric}")
            return axis
        axis, part = axes(axis), self.worst
        ends = [part[["estimate", "truth"]].min().min(), part[["estimate", "truth"]].max().max()]
        axis.plot(ends, ends, color="grey", linewidth=1, zorder=0)
        for step, of_step in part.groupby("step"):
            axis.scatter(of_step["truth"], of_step["estimate"], s=16, label=str(step))
        axis.legend(title="step", fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axis.set(xlabel=f"{self.metric} when patched", ylabel=f"estimated {self.metric}")
        return axis


def _agreement(estimates: Floats, truths: Floats) -> dict[str, tuple[Interval, int]]:
    """Every measure of agreement of effects (K, P), with how many pairs it is of."""
    count = truths.shape[1]
    weights = bootstrap_weights(count, 1000, seed=0)
    estimated, true = (weighted_means(values, weights).T for values in (estimates, truths))
    products, squares = (weighted_means((x * truths).sum(axis=0), weights) for x in (estimates, truths))
    return {
        "spearman": _mean(_spearman(estimates, truths)),
        "spearman_of_means": _replicated(_spearman(estimated, true), count),
        "slope": _replicated(_over(products, squares), count),
        "ratio": _replicated(_ratio(estimated, true), count),
        "wrong_sign": _mean(_wrong_sign(estimates, truths)),
    }


def _replicated(replicates: Floats, count: int) -> tuple[Interval, int]:
    found = percentile_interval(replicates)
    known = np.isfinite(found.value)
    return (found if known and count > 1 else Interval.unknown(found.value)), count if known else 0


def _mean(values: Floats) -> tuple[Interval, int]:
    known = values[np.isfinite(values)]
    return mean_interval(known), len(known)


def _spearman(estimates: Floats, truths: Floats) -> Floats:
    """Rank correlation down each column of (K, P): (P,), NaN where there is no order."""
    if len(truths) < _FEWEST:
        return np.full(truths.shape[1], np.nan)
    one, other = (pd.DataFrame(values).rank() for values in (estimates, truths))
    found = one.corrwith(other).to_numpy(dtype=np.float64)
    same = [np.ptp(values, axis=0) <= _SAME * np.abs(values).max(axis=0) for values in (estimates, truths)]
    return np.where(same[0] | same[1], np.nan, found)


def _ratio(estimates: Floats, truths: Floats) -> Floats:
    """Sum over sum down each column of (K, R): (R,), NaN where effects of both signs cancel."""
    sums, sizes = truths.sum(axis=0), np.abs(truths).sum(axis=0)
    return np.where(np.abs(sums) < _CANCEL * sizes, np.nan, _over(estimates.sum(axis=0), sums))


def _wrong_sign(estimates: Floats, truths: Floats) -> Floats:
    """Share of the sites of a pair with an effect worth the name whose estimate has the other sign: (P,)."""
    counted = (np.abs(truths) >= _SMALL * np.abs(truths).max(axis=0)) & (truths != 0)
    wrong = counted & (np.sign(estimates) != np.sign(truths))
    return _over(wrong.sum(axis=0), counted.sum(axis=0))


def _over(parts: Floats | Ints, wholes: Floats | Ints) -> Floats:
    """Ratios, NaN over zero."""
    return np.asarray(np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes != 0))
