"""What each layer's update causes: activation patching over counterfactual pairs.

Recipient and donor are the two sides of a pair that differs in one thing, run from the same noise. Both directions are
used. Two effects are told apart, because an image-to-video model is given its picture again at every step, which undoes
a patch at one step:

- *share*: the patch at one step moves x0hat of that step by some share of the way from the recipient's to the donor's.
  It is measured where the two true answers differ and nothing that was given does, on the latent frames after the given
  one.
- *flip*: the patch at every step makes the final video show the donor's answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError, SiteError
from dit_lens.interventions.base import Intervention
from dit_lens.interventions.patch import Patch
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import mean_interval
from dit_lens.results.plots import curves
from dit_lens.results.result import VALUE_COLUMNS, Result
from dit_lens.runs.seeds import row_seeds
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import indices
from dit_lens.sites.site import TERM_COMPONENTS, TOLD_COMPONENTS
from dit_lens.sites.sites import Sites
from dit_lens.sweeps import metrics
from dit_lens.sweeps.metrics import Metric
from dit_lens.sweeps.sweep import Sweep, sweep
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.draw import draw_pairs
from dit_lens.tasks.evidence import declares, pairs_that_differ, scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WHO = "patching_sweep"
#: What has a layer and is patched in the video or in a text.
_PATCHED = ("delta", "resid", "head", *TERM_COMPONENTS, *TOLD_COMPONENTS)


@dataclass(frozen=True, repr=False)
class PatchingSweep(Result):
    """Effects of patching one layer after the other.

    Attributes
    ----------
    step : int
        The step of the one-step share.
    sigma, expert : of that step
    component, stream : str
        What was patched.
    layers, kinds : tuple of int, tuple of str
        L layers, and the kind of each block.
    along : float array of shape (3, L, P)
        Mean over both directions of how far each of P pairs moved, along its own direction and along those of the pair
        before it and of the one before that, counted round within the pairs that were run at once. NaN where there are
        too few of them.
    flips : float array of shape (L, Q)
        Share of both directions in which the recipient of Q pairs showed the donor's answer when the layer was patched
        at all steps.
    right : int
        Pairs whose two clean runs were both right, of ``tried``.
    selected : bool
        Whether only those pairs were patched. It is False where there were none, or where the task scores no videos:
        then all pairs were.
    """

    step: int
    sigma: float
    expert: str | None
    component: str
    stream: str
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    along: Floats
    flips: Floats
    right: int
    tried: int
    selected: bool

    @property
    def share(self) -> Floats:
        """How far each pair moved towards the donor's x0hat: (L, P)."""
        return np.asarray(self.along[0])

    @property
    def unrelated(self) -> Floats:
        """The null of ``share``: the same movement along another pair's direction, (L, P)."""
        return np.asarray(self.along[1])

    @property
    def flip_rate(self) -> Floats:
        """Share of the pairs whose answer flips when a layer is patched at all steps: (L,), or empty."""
        return np.asarray(self.flips.mean(axis=1)) if self.flips.size else np.zeros(0)

    def permuted(self) -> PatchingSweep:
        """The null of the whole sweep: every movement is read as if another pair's direction were its own."""
        return replace(self, along=np.roll(self.along, -1, axis=0))

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns step, sigma, expert, layer, kind, component, stream, measure, value, low, high, n (pairs).

        Measures: "share", "unrelated_share" and, where pairs were patched at all steps, "flip_rate", which has no step.
        """
        rows: list[tuple[Any, ...]] = []
        at, what = (self.step, self.sigma, self.expert), (self.component, self.stream)
        for i, layer in enumerate(zip(self.layers, self.kinds, strict=True)):
            for measure, values in (("share", self.share[i]), ("unrelated_share", self.unrelated[i])):
                rows.append((*at, *layer, *what, measure, *mean_interval(values), len(values)))
            if count := self.flips.shape[1]:
                rows.append((None, None, None, *layer, *what, "flip_rate", *mean_interval(self.flips[i]), count))
        columns = ["step", "sigma", "expert", "layer", "kind", "component", "stream", *VALUE_COLUMNS]
        return pd.DataFrame(rows, columns=columns).astype({"step": object, "expert": object})

    def plot(self, axis: Axes | None = None) -> Axes:
        """Share, its null and the flip rate over the layers, with their intervals."""
        axis = curves(self.table, "layer", "value", hue="measure", axis=axis)
        axis.set(ylabel="effect", title=f"patching {self.component} of one layer, step {self.step}")
        return axis


def patching_sweep(
    model: VideoDiT,
    task: Task,
    pairs: int | Sequence[Pair] = 48,
    *,
    sites: Sites = Sites("delta", steps=0),  # noqa: B008 - it is frozen
    seed: int = 0,
    interventions: Iterable[Intervention] = (),
    batch: int = 16,
    flip_pairs: int = 16,
) -> PatchingSweep:
    """Patch one layer after the other from each side of a pair into the other.

    Parameters
    ----------
    pairs : int, or list of pairs of the task
        Pairs of which not both clean runs are right are dropped; where none is left, all are kept for ``share``.
    sites : Sites
        One component of one stream at one step. "delta" localises; "resid" at all tokens hands over everything at any
        layer.
    seed : int
        Of the pairs that are drawn and of their noise, which the two sides of a pair share.
    interventions : iterable of Intervention
        Applied to every run besides the patches.
    batch : int
        Pairs that are run at once.
    flip_pairs : int
        How many of the pairs whose clean runs are both right are patched at all steps as well.

    Raises
    ------
    EvidenceError
        The task does not say where the answers of a pair differ, or no pair's answers differ anywhere.
    SiteError
        Not one component, stream and step, or a layer that the model does not have.
    """
    given = draw_pairs(task, pairs, seed, who=_WHO)
    given = [given[number] for number in pairs_that_differ(task, given, who=_WHO)]
    if not given:
        raise EvidenceError(
            "no pair's two answers differ where what was given does not; there is nothing to measure on"
        )
    geometry = model.geometry(given[0].original)
    every = _Pairs(model, task, tuple(given), tuple(row_seeds(seed, len(given))), sites, listed(interventions), batch)
    step, layers = _one_step(sites, geometry), indices(sites.layers, geometry.layers, "layer")
    right = every.both_right()
    kept = every.only([i for i, ok in enumerate(right) if ok]) if any(right) else every
    moved = kept.patched(layers, step, kept.directions)
    along = np.full((3, len(layers), len(kept.pairs)), np.nan)
    along[: len(moved.measures)] = _of_pairs(moved)
    flipped = kept.only(range(min(flip_pairs, sum(right))))
    point = next(point for point in moved.points if point.cell == "baseline")
    return PatchingSweep(
        step=step,
        sigma=float(point.columns["sigma"] or 0),
        expert=_text(point.columns["expert"]),
        component=sites.components[0],
        stream=str(sites.stream),
        layers=tuple(layers),
        kinds=tuple(geometry.layer(layer).kind for layer in layers),
        along=along,
        flips=_of_pairs(flipped.patched(layers, "all", ["donor_answer"]))[0]
        if flipped.pairs
        else np.zeros((len(layers), 0)),
        right=sum(right),
        tried=len(given),
        selected=any(right),
    )


def _text(label: Any) -> str | None:
    return None if label is None else str(label)


def _one_step(sites: Sites, geometry: Geometry) -> int:
    """The step of sites that select one component of the layers, of one stream at one step."""
    if not isinstance(sites, Sites):
        raise SiteError(f"{_WHO}(sites={sites!r:.80}): need a Sites, such as Sites('delta', steps=0)")
    steps = indices(sites.steps, geometry.steps, "step")
    if len(steps) != 1 or len(sites.components) != 1 or not isinstance(sites.stream, str) or sites.stream == "all":
        raise SiteError(
            f"{_WHO} patches one component of one stream at one step, such as Sites('delta', steps=0); got {sites}"
        )
    if sites.components[0] not in _PATCHED:
        raise SiteError(f"{_WHO} goes over layers and {sites.components[0]} has none; one of {', '.join(_PATCHED)}")
    sites.resolve(geometry)
    return steps[0]


def _of_pairs(found: Sweep) -> Floats:
    """Means over both directions of every pair: float (M, L, P)."""
    if found.errors:
        raise EvidenceError(f"{_WHO}: {next(iter(found.errors.values()))}")
    swept = found.values[[point.cell == "swept" for point in found.points]]
    return np.asarray(swept.reshape(*swept.shape[:2], -1, 2).mean(axis=-1).swapaxes(0, 1))


@dataclass(frozen=True)
class _Pairs:
    """P pairs with the noise of each, what is patched in them, and what else is done in every run."""

    model: VideoDiT
    task: Task
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    sites: Sites
    interventions: tuple[Intervention, ...]
    batch: int

    def only(self, numbers: Iterable[int]) -> _Pairs:
        """Some of the pairs, with their noise."""
        chosen = list(numbers)
        return replace(self, pairs=tuple(self.pairs[i] for i in chosen), seeds=tuple(self.seeds[i] for i in chosen))

    def both_right(self) -> list[bool]:
        """Whether the clean runs of both sides are strictly right; of no pair where the task scores nothing."""
        if not declares(self.task, "score"):
            return [False] * len(self.pairs)
        sides, seeds = [side for pair in self.pairs for side in pair], [s for s in self.seeds for _ in range(2)]
        runs = self.model.runs(
            sides, seeds, batch=2 * self.batch, progress="clean runs of pairs", interventions=self.interventions
        )
        strict = np.concatenate([scores_of(self.task, run.decoded, run.inputs, who=_WHO).strict for run in runs])
        return [bool(one and other) for one, other in strict.reshape(-1, 2)]

    @property
    def directions(self) -> list[Metric]:
        """How far x0hat moves along the own direction of a pair, and along those of up to two others."""
        smallest = len(self.pairs) // -(-len(self.pairs) // self.batch)
        names = ("own", "one before", "two before")[:smallest]
        return [Metric(name, "x0hat", partial(metrics.share, of=i), pairs=True) for i, name in enumerate(names)]

    def patched(self, layers: Sequence[int], steps: int | str, measured: Sequence[Any]) -> Sweep:
        """The other side of each pair patched into one layer after the other."""
        return sweep(
            self.model,
            self.task,
            Patch("pair", self.sites.at(steps=steps)),
            {"layers": layers},
            measured,
            instances=self.pairs,
            seed=self.seeds,
            batch=2 * self.batch,
            interventions=self.interventions,
        )
