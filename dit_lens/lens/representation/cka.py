"""Linear CKA without bias: how alike two sets of features are up to rotation and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import InputError
from dit_lens.interventions.reduce import Reduce, token_mean, tokens
from dit_lens.interventions.shapes import require_choice
from dit_lens.lens.reading import Reading
from dit_lens.lens.representation.hsic import FEWEST, Centred, estimates, require_enough, require_same_dtype
from dit_lens.lens.representation.read import read, require_readable
from dit_lens.lens.source import geometry_of
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.plots import heatmap
from dit_lens.results.result import Result
from dit_lens.runs.run import Run
from dit_lens.sites.select import indices
from dit_lens.sites.sites import Sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: Bytes that the features may take in float64, in which CKA is computed, all steps and layers together.
BUDGET = 2**33
#: What one sample is, and what its features are.
UNITS = {
    "tokens": "a token of a row, its channels",
    "clips": "a row, the mean over its tokens",
    "flat clips": "a row, all of its tokens side by side",
}


@dataclass(frozen=True)
class Features:
    """Samples of one component at many steps and layers, for `cka`.

    Attributes
    ----------
    values : Tensor of shape (steps, layers, B, m, D)
        m samples of each row: its tokens, or one.
    unit : "tokens", "clips" or "flat clips"
        What one sample is; see ``dit_lens.lens.representation.cka.UNITS``.
    tokens : tuple of int
        Numbers of the tokens that were taken, in row-major order of the grid; empty where a sample is a clip.
    reading : Reading
    """

    values: Tensor
    unit: str
    tokens: tuple[int, ...]
    reading: Reading

    __repr__ = short_repr

    @property
    def count(self) -> int:
        """Number of samples n."""
        return self.values.shape[2] * self.values.shape[3]

    def to(self, dtype: torch.dtype) -> Features:
        """A copy in another dtype."""
        return replace(self, values=self.values.to(dtype))


@dataclass(frozen=True, repr=False)
class CKA(Result):
    """Linear CKA of every place of one reading against every place of another.

    Attributes
    ----------
    values : float array of shape (steps, layers, other steps, other layers)
        At most 1; about 0, on either side, for independent features.
    low, high : float arrays of the same shape
        95 % interval, jackknife over instances; NaN where there are too few.
    unit : str
        What a sample is: "tokens", "clips" or "flat clips".
    count, instances : int
        Samples n, and the task instances that they come from.
    a, b : Reading
    """

    values: Floats
    low: Floats
    high: Floats
    unit: str
    count: int
    instances: int
    a: Reading
    b: Reading

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per pair of places.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, layer, kind, component, stream, the same with "other_"
        before them, unit, n_samples, measure ("cka"), value, low, high and n (instances)
        """
        other = self.b.table.add_prefix("other_")
        table = self.a.table.merge(other, how="cross").assign(unit=self.unit, n_samples=self.count, measure="cka")
        measured = {"value": self.values, "low": self.low, "high": self.high}
        return table.assign(**{name: found.reshape(-1) for name, found in measured.items()}, n=self.instances)

    def plot(self, axis: Axes | None = None, **options: Any) -> Axes:
        """Heat map: layer by layer where one step was read, step by step where one layer was, else all places.

        Parameters
        ----------
        axis : Axes, optional
        **options
            Passed to ``seaborn.heatmap``; colours run from 0 to 1 unless told otherwise.
        """
        table = self.table.copy()
        name = self._axis_of_plot(table)
        options = {"vmin": 0, "vmax": 1, "square": True, "cbar_kws": {"label": "cka"}, **options}
        axis = heatmap(table, name, f"other_{name}", "value", axis, **options)
        axis.set_title(f"{self.a.component}, samples: {self.unit} (n = {self.count} of {self.instances} instances)")
        axis.title.set_fontsize(10)
        axis.set(xlabel=name if self.a == self.b else f"{name} of the other run")
        axis.tick_params(axis="y", rotation=0)
        return axis

    def _axis_of_plot(self, table: pd.DataFrame) -> str:
        """Name of a column: of the steps or layers there is only one on either side, else "place", which is put in."""
        sides = (self.a, self.b)
        if all(len(side.steps) == 1 for side in sides):
            return "layer"
        if all(len(side.layers) == 1 for side in sides):
            return "step"
        for before in ("", "other_"):
            pairs = zip(table[f"{before}step"], table[f"{before}layer"], strict=True)
            table[f"{before}place"] = [f"s{step:02d} L{layer:02d}" for step, layer in pairs]
        return "place"


def cka_features(
    model: VideoDiT,
    source: Any,
    *,
    sites: Sites = Sites(),  # noqa: B008 - it is frozen
    branch: str = "cond",
    unit: str = "tokens",
    per_row: int | None = 64,
    token_seed: int = 0,
    budget: int = BUDGET,
    **run_arguments: Any,
) -> Features:
    """Keep what `cka` compares.

    Parameters
    ----------
    source : Run made with ``record=True``, or inputs as in `VideoDiT.run`, which are run up to the last site
    sites : Sites
        Steps and layers of one component ("resid", "delta", or a term of the block such as "attn") and stream.
    branch : str
    unit : "tokens", "clips" or "flat clips"
        What one sample is: a token; a row of the batch, as the mean over its tokens; or a row, as all of its tokens.
    per_row : int or None
        Of ``unit="tokens"``: how many tokens of each row, one random subset for all rows and places; None for all.
    token_seed : int
        Of that subset.
    budget : int
        Bytes that `cka` may take for them. Every pair of places is compared too: fewer steps or layers spare both.
    **run_arguments
        Of inputs ``seed``, ``interventions`` and the others of `VideoDiT.run`; of a run only ``interventions``, under
        which its steps are read: a run that was made under some needs them, or [] for none.

    Raises
    ------
    SiteError
        A step, layer, component, branch or stream that the model does not have.
    InputError
        An unknown unit, a number of tokens that is not a positive whole one, or a run that was not recorded; at the
        first site, features that take more than the budget.
    """
    require_choice("cka_features", "unit", unit, tuple(UNITS))
    if per_row is not None and (not isinstance(per_row, int) or isinstance(per_row, bool) or per_row < 1):
        raise InputError(
            f"cka_features(per_row={per_row!r}): need a whole number of at least 1, or None for all tokens"
        )
    sites = require_readable("cka_features", sites, branch)
    geometry = source.geometry if isinstance(source, Run) else geometry_of(model, source, run_arguments)
    places = len(indices(sites.steps, geometry.steps, "step")), len(indices(sites.layers, geometry.layers, "layer"))
    taken: list[int] = []
    reduction = _reduction(unit, per_row, token_seed, taken)

    def reduce(activation: Tensor) -> Tensor:
        values: Tensor = reduction(activation)
        require_budget((*places, *values.shape), budget)
        return values

    reading, found = read(model, source, sites, {"features": reduce}, run_arguments)
    return Features(found["features"], unit, tuple(taken), reading)


def _reduction(unit: str, per_row: int | None, seed: int, taken: list[int]) -> Reduce:
    """From (B, ..., D) to (B, m, D); notes in ``taken`` which tokens they are."""

    def reduce(activation: Tensor) -> Tensor:
        if unit == "clips":
            return token_mean(activation)[:, None]
        flat = activation.flatten(1, -2)
        if unit == "flat clips":
            return flat.flatten(1)[:, None]
        subset: Any = tokens(min(per_row or flat.shape[1], flat.shape[1]), seed)
        taken[:] = subset.indices(flat.shape[1]).tolist()
        chosen: Tensor = subset(flat)
        return chosen

    return reduce


def require_budget(shape: Sequence[int], budget: int) -> None:
    """Refuse features that would not fit into memory when they are compared, with the numbers that make them so many.

    Parameters
    ----------
    shape : (steps, layers, B, m, D)

    Raises
    ------
    InputError
    """
    steps, layers, rows, each, width = shape
    places = steps * layers
    if (size := 8 * math.prod(shape)) > budget:
        raise InputError(
            f"cka: {steps} steps x {layers} layers x {rows} rows x {each} samples of {width} channels take {size:,} "
            f"bytes in float64, the budget is {budget:,} (and {places * (places + 1) // 2:,} pairs of places would be "
            "compared); choose fewer steps, layers or tokens per row"
        )


def cka(a: Features, b: Features | None = None, *, budget: int = BUDGET) -> CKA:
    """Linear CKA of every step and layer of ``a`` against every one of ``b``, or of ``a`` itself.

    Sample i of ``a`` is compared with sample i of ``b``: the same instance and, where samples are tokens, the same
    place on the same grid. Models, widths, seeds, layers and steps may differ, so that one model is compared with
    another, one set of seeds with another, a run with the run under an intervention.

    Parameters
    ----------
    a, b : Features
        From `cka_features`.
    budget : int
        Bytes that either's features may take in float64.

    Raises
    ------
    InputError
        The samples are of different kinds, tokens, instances or dtypes, there are fewer than 4, or the features take
        more than the budget.
    EvidenceError
        A place where all samples are the same.
    NotFinite
        NaN or infinity.

    Notes
    -----
    CKA of Kornblith et al. 2019 (arXiv 1905.00414) with the unbiased estimator HSIC_1 of Song et al. 2012 (JMLR 13,
    1393-1434) as in Nguyen, Raghu & Kornblith 2021 (arXiv 2010.15327). The biased one grows towards 1
    where there are fewer samples than channels, however unlike the features are. It is a ratio of unbiased estimates,
    which is itself not quite unbiased.

    The interval is the value plus and minus 1.96 jackknife standard errors over instances (Efron & Stein 1981), all
    rows and tokens of an instance left out together. A bootstrap would draw a sample twice, and HSIC_1 leaves out the
    comparison of a sample with itself but not with its copy.
    """
    other = a if b is None else b
    _require_same_samples(a, other)
    for features in (a, other):
        require_budget(features.values.shape, budget)
    groups = _groups(a.reading)
    firsts = _places(a, groups)
    seconds = firsts if b is None else _places(b, groups)
    found = np.zeros((len(firsts), len(seconds), 3))
    for i, j in np.ndindex(found.shape[:2]):
        # Of a reading with itself the matrix is symmetric.
        found[i, j] = found[j, i] if b is None and j < i else _interval(estimates(firsts[i], seconds[j]))
    shape = (*a.values.shape[:2], *other.values.shape[:2])
    value, low, high = (found[..., k].reshape(shape) for k in range(3))
    return CKA(value, low, high, a.unit, a.count, len(groups), a.reading, other.reading)


def _interval(of_all: Floats) -> tuple[float, float, float]:
    """Value, low and high from the estimate of all samples and those without each instance."""
    value, without = float(of_all[0]), of_all[1:]
    if not len(without):
        return value, math.nan, math.nan
    half = 1.96 * math.sqrt((len(without) - 1) * float(np.var(without)))
    low, high = np.clip([value - half, value + half], -1, 1)
    return value, float(low), float(high)


def _groups(reading: Reading) -> list[list[int]]:
    """Rows of each instance."""
    names = [row.instance for row in reading.rows]
    return [[i for i, name in enumerate(names) if name == one] for one in reading.instances]


def _places(features: Features, groups: Sequence[Sequence[int]]) -> list[Centred]:
    """All steps and layers, layers the faster; groups that would leave too few samples are not left out."""
    rows, each = features.values.shape[2:4]
    enough = len(groups) > 1 and all((rows - len(group)) * each >= FEWEST for group in groups)
    numbers = torch.arange(rows * each, device=features.values.device).reshape(rows, each)
    left_out = [numbers[list(group)].flatten() for group in groups] if enough else []
    reading = features.reading
    return [
        Centred.of(features.values[i, j].flatten(0, 1), left_out, f"{reading.component} of step {step}, layer {layer}")
        for i, step in enumerate(reading.steps)
        for j, layer in enumerate(reading.layers)
    ]


def _require_same_samples(a: Features, b: Features) -> None:
    if a.unit != b.unit:
        raise InputError(f"cka: samples are {a.unit} in one and {b.unit} in the other")
    names = [[row.instance for row in features.reading.rows] for features in (a, b)]
    if len(names[0]) != len(names[1]):
        raise InputError(f"cka: {len(names[0])} rows in one and {len(names[1])} in the other")
    if names[0] != names[1]:
        row = next(i for i, (one, other) in enumerate(zip(*names, strict=True)) if one != other)
        raise InputError(f"cka: row {row} is of instance {names[0][row]} in one and of {names[1][row]} in the other")
    on_grid = bool(a.tokens) and a.reading.stream == "video"
    if a.tokens != b.tokens or (on_grid and a.reading.grid != b.reading.grid):
        grids = f"{len(a.tokens)} of {a.reading.grid} and {len(b.tokens)} of {b.reading.grid}"
        raise InputError(f"cka: the samples are different tokens: {grids}; unit='clips' compares whole rows")
    require_same_dtype(a.values, b.values)
    require_enough(a.count, a.unit)
