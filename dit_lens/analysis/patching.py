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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dit_lens.engine.plan import acting
from dit_lens.errors import EvidenceError, SiteError
from dit_lens.interventions.base import Intervention
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.patch import Patch
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools, Floats
from dit_lens.results.intervals import mean_interval, share
from dit_lens.results.plots import curves
from dit_lens.results.result import VALUE_COLUMNS, Result
from dit_lens.runs.run import Run
from dit_lens.runs.seeds import row_seeds
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import indices
from dit_lens.sites.sites import Sites
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.draw import draw_pairs
from dit_lens.tasks.evidence import answer_masks, declares, on_grid, require, show_answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WHO = "patching_sweep"


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
        Mean over both directions of how far each of P pairs moved, along its own direction and along those of the next
        pair and of the one after that. NaN where there are too few pairs.
    flips : bool array of shape (L, Q)
        Whether recipient q of Q showed the donor's answer when the layer was patched at all steps.
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
    flips: Bools
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
                rows.append((None, None, None, *layer, *what, "flip_rate", *share(self.flips[i]), count))
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
        How many of the remaining pairs are patched at all steps as well.

    Raises
    ------
    EvidenceError
        The task does not say where the answers of a pair differ, or no pair's answers differ anywhere.
    SiteError
        Not one component, stream and step, or a layer that the model does not have.
    """
    given = draw_pairs(task, pairs, seed, who=_WHO)
    given = [pair for pair, mask in zip(given, answer_masks(task, given, who=_WHO), strict=True) if mask.any()]
    if not given:
        raise EvidenceError(
            "no pair's two answers differ where what was given does not; there is nothing to measure on"
        )
    geometry = model.geometry(given[0].original)
    step, seeds = _one_step(sites, geometry), row_seeds(seed, len(given))
    every = _Pairs(model, task, tuple(given), tuple(seeds), sites, step, tuple(interventions), batch)
    right = every.both_right()
    kept = every.only([i for i, ok in enumerate(right) if ok]) if any(right) else every
    along, clean = kept.movements()
    layers = _layers(sites, geometry)
    return PatchingSweep(
        step=step,
        sigma=clean.sigmas[step],
        expert=clean.experts[step],
        component=sites.components[0],
        stream=str(sites.stream),
        layers=tuple(layers),
        kinds=tuple(geometry.layer(layer).kind for layer in layers),
        along=along,
        flips=kept.only(range(min(flip_pairs, sum(right)))).flips(geometry),
        right=sum(right),
        tried=len(given),
        selected=any(right),
    )


def _one_step(sites: Sites, geometry: Geometry) -> int:
    """The step of sites that select one component of one stream at one step."""
    steps = indices(sites.steps, geometry.steps, "step")
    if len(steps) != 1 or len(sites.components) != 1 or not isinstance(sites.stream, str) or sites.stream == "all":
        raise SiteError(
            f"{_WHO} patches one component of one stream at one step, such as Sites('delta', steps=0); got {sites}"
        )
    sites.resolve(geometry)
    return steps[0]


def _until(interventions: Iterable[Intervention], geometry: Geometry, step: int) -> list[Intervention]:
    """The interventions that a run which stops after ``step`` meets."""
    return [i for i in interventions if any(site.step <= step for site in i.sites.resolve(geometry))]


def _layers(sites: Sites, geometry: Geometry) -> list[int]:
    return indices(sites.layers, geometry.layers, "layer")


@dataclass(frozen=True)
class _Pairs:
    """P pairs with the noise of each, what is patched in them at which step, and what else is done in every run."""

    model: VideoDiT
    task: Task
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    sites: Sites
    step: int
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
        runs = self._both_sides("clean runs of pairs", interventions=self.interventions)
        score = require(self.task, "score", who=_WHO).score
        strict = np.concatenate([score(run.decoded, list(run.inputs)).strict for run in runs])
        return [bool(one and other) for one, other in strict.reshape(-1, 2)]

    def _both_sides(self, progress: str, **options: Any) -> Iterator[Run]:
        """Runs in which the counterfactual follows its original from the same noise: row r's partner is row r ^ 1."""
        sides, seeds = [side for pair in self.pairs for side in pair], [s for s in self.seeds for _ in range(2)]
        return self.model.runs(sides, seeds, batch=2 * self.batch, progress=progress, **options)

    def movements(self) -> tuple[Floats, Run]:
        """Movement of x0hat along the directions of pairs, (3, L, P), and the last clean run."""
        geometry, found = self.model.geometry(self.pairs[0].original), []
        others = _until(self.interventions, geometry, self.step)
        for run in self._both_sides("patching at one step", record=True, stop_after=self.step, interventions=others):
            found.append(self._moved(run, acting(self.interventions, geometry, self.step)))
        moved, ways = (torch.cat(parts, dim=-5) for parts in zip(*found, strict=True))
        return _along(moved.flatten(2), (ways * self._mask(ways, geometry)).flatten(1)), run

    def _moved(self, run: Run, interventions: list[Intervention]) -> tuple[Tensor, Tensor]:
        """How x0hat of each row moves, (L, rows, C, F, H, W), and its way to the partner's, (rows, C, F, H, W)."""
        partners = tuple(row ^ 1 for row in range(len(run.rows)))
        own = self.model.replay(run, self.step, interventions).x0hat
        moved = []
        for layer in _layers(self.sites, run.geometry):
            patch = Patch("rows", self.sites.at(steps=self.step, layers=layer), rows=partners)
            moved.append(self.model.replay(run, self.step, [*interventions, patch]).x0hat - own)
        return torch.stack(moved), own[list(partners)] - own

    def _mask(self, like: Tensor, geometry: Geometry) -> Tensor:
        """Where answers differ, on every latent frame but the given first one: (2 P, 1, F, H, W)."""
        height, width = like.shape[-2:]
        pixels = geometry.pixels
        picture = (height, width) if pixels is None else (pixels.height, pixels.width)
        cells = on_grid(self.task, answer_masks(self.task, self.pairs, who=_WHO), (height, width), picture)
        mask = torch.zeros(len(like), 1, *like.shape[2:], dtype=like.dtype, device=like.device)
        mask[:, 0, 1:] = torch.from_numpy(cells).to(mask).repeat_interleave(2, dim=0)[:, None]
        return mask

    def flips(self, geometry: Geometry) -> Bools:
        """Whether originals show the counterfactual's answer when a layer is patched at every step: (L, P)."""
        layers, sites = _layers(self.sites, geometry), self.sites.at(steps="all")
        found = [np.zeros((len(layers), 0), dtype=bool)]
        if not self.pairs:
            return found[0]
        originals, others = zip(*self.pairs, strict=True)
        options: dict[str, Any] = {"interventions": [*self.interventions, Capture(sites)], "decode": False}
        unpatched = iter(originals)
        for donor in self.model.runs(others, self.seeds, batch=self.batch, progress="donors", **options):
            recipients = list(islice(unpatched, len(donor.rows)))
            found.append(np.stack([self._flipped(donor, recipients, sites.at(layers=layer)) for layer in layers]))
        return np.concatenate(found, axis=1)

    def _flipped(self, donor: Run, recipients: list[Any], sites: Sites) -> Bools:
        """Whether recipients that are patched at these sites show the answers of the donor's rows: bool (rows,)."""
        seeds, patches = [row.seed for row in donor.rows], [*self.interventions, Patch(donor, sites)]
        patched = self.model.run(recipients, seeds, interventions=patches)
        return show_answer(self.task, patched.decoded, donor.inputs, who=_WHO)


def _along(moved: Tensor, ways: Tensor) -> Floats:
    """Movement (L, 2 P, X) along the directions (2 P, X) of pairs 0, 1 and 2 places before: float (3, L, P)."""
    steps, paths = moved.double().unflatten(1, (-1, 2)), ways.double().unflatten(0, (-1, 2))
    count = len(paths)
    found = np.full((3, len(moved), count), np.nan)
    for places in range(min(3, count)):
        path = paths.roll(places, dims=0)
        share = (steps * path).sum(-1) / path.square().sum(-1).clamp(min=1e-12)
        found[places] = share.mean(dim=-1).cpu().numpy()
    return found
