"""What each layer's update causes: activation patching over counterfactual pairs.

Recipient and donor are the two sides of a pair that differs in one thing, run from the same noise. Both directions are
used. Two effects are told apart, because an image-to-video model is given its picture again at every step, so that a
patch at one step is undone by the next:

- *share*: the patch at one step moves x0hat of that step by some share of the way from the recipient's to the donor's.
It
  is measured where the two true answers differ and nothing else does: on the cells of one answer but not the other,
  goals excluded, on the latent frames after the given one.
- *flip*: the patch at every step makes the final video show the donor's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from dit_lens.errors import EvidenceError
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.patch import Patch
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import bootstrap_weights, percentile_interval, weighted_means, wilson
from dit_lens.sites.select import Select, indices
from dit_lens.sites.sites import Sites
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.evidence import answer_masks, on_grid, require, show_answer


@dataclass(frozen=True)
class PatchingSweep:
    """Effects of patching one layer's update.

    Attributes
    ----------
    step : int
        The step of the one-step share.
    share : float array of shape (L, P)
        Mean over both directions, of each of P pairs.
    unrelated : float array of shape (L, P)
        The same movement read along another pair's direction: the null of ``share``.
    flips : bool array of shape (L, Q)
        Whether recipient q of Q showed the donor's answer when the layer was patched at all steps.
    right : int
        Pairs whose two clean runs were both right, of ``tried``; where there were none, the share is of all pairs and
        ``selected`` is False.
    """

    component: str
    step: int
    layers: tuple[int, ...]
    share: Floats
    unrelated: Floats
    flips: NDArray[np.bool_]
    right: int
    tried: int
    selected: bool

    def frame(self, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Tidy table: layer, component, step, measure, value, low, high, n."""
        weights = bootstrap_weights(self.share.shape[1], replicates, seed)
        rows = []
        for i, layer in enumerate(self.layers):
            for measure, values in (("share", self.share[i]), ("share of an unrelated pair", self.unrelated[i])):
                interval = percentile_interval(weighted_means(values, weights))
                rows.append((layer, self.component, str(self.step), measure, *interval, len(values)))
            if self.flips.shape[1]:
                flips = wilson(int(self.flips[i].sum()), self.flips.shape[1])
                rows.append((layer, self.component, "all", "flip rate", *flips, self.flips.shape[1]))
        return pd.DataFrame(rows, columns=["layer", "component", "step", "measure", "value", "low", "high", "n"])


def patching_sweep(
    model: VideoDiT,
    task: Task,
    pairs: Sequence[Pair],
    *,
    step: int = 0,
    layers: Select = "all",
    component: str = "delta",
    seed: int = 0,
    batch: int = 16,
    flip_pairs: int = 16,
    permute: bool = False,
) -> PatchingSweep:
    """Patch ``component`` of one layer after the other from each side of a pair into the other.

    Parameters
    ----------
    pairs : list of (original, counterfactual)
        Pairs of which not both clean runs are right are dropped; where none is left, all are kept for ``share``.
    step : int
        Denoising step of the one-step patch.
    component : str
        "delta" localises; "resid" at all tokens hands over everything at any layer.
    flip_pairs : int
        How many of the remaining pairs are patched at all steps as well.
    permute : bool
        The null: every pair's movement is read along the direction of another pair, as if that were its own.

    Raises
    ------
    EvidenceError
        No pair has an answer cell of its own to measure on.
    """
    chosen = indices(layers, model.layers, "layer")
    masks = answer_masks(task, pairs, who="patching_sweep")
    pairs = [pair for pair, mask in zip(pairs, masks, strict=True) if mask.any()]
    if not pairs:
        raise EvidenceError(
            "no pair's two answers differ where what was given does not; there is nothing to measure on"
        )
    right = both_right(model, task, pairs, seed, batch)
    kept = [pair for pair, ok in zip(pairs, right, strict=True) if ok] or list(pairs)
    seeds = {id(pair): seed + i for i, pair in enumerate(pairs)}
    batches = [kept[i : i + batch] for i in range(0, len(kept), batch)]
    measured = [
        _movements(model, task, part, [seeds[id(p)] for p in part], step, chosen, component)
        for part in tqdm(batches, desc="patching at one step", unit="batch")
    ]
    moved, direction = (torch.cat(x, dim=-2) for x in zip(*measured, strict=True))
    own, other = (1, 2) if permute else (0, 1)
    share, unrelated = (_along(moved, direction.roll(shift, dims=-2)) for shift in (own, other))
    flipping = kept[:flip_pairs] if any(right) else []
    flips = _flips(model, task, flipping, [seeds[id(p)] for p in flipping], chosen, component)
    return PatchingSweep(component, step, tuple(chosen), share, unrelated, flips, sum(right), len(pairs), any(right))


def both_right(model: VideoDiT, task: Task, pairs: Sequence[Pair], seed: int, batch: int) -> list[bool]:
    """Whether the clean runs of both sides, from the same noise, are strictly right."""
    right: list[bool] = []
    for i in tqdm(range(0, len(pairs), batch), desc="clean runs of pairs", unit="batch"):
        part = pairs[i : i + batch]
        seeds = range(seed + i, seed + i + len(part))
        sides = []
        for side in (0, 1):
            instances = [pair[side] for pair in part]
            frames = model.run(instances, seed=list(seeds)).frames
            assert frames is not None
            sides.append(require(task, "score", who="patching_sweep").score(frames, instances).strict)
        right += [bool(a and b) for a, b in zip(*sides, strict=True)]
    return right


def _movements(
    model: VideoDiT, task: Task, pairs: Sequence[Pair], seeds: list[int], step: int, layers: list[int], component: str
) -> tuple[Tensor, Tensor]:
    """How x0hat moves, (layers, 2 directions, pairs, latents), and the way to the donor's, (2, pairs, latents)."""
    instances = [pair[side] for side in (0, 1) for pair in pairs]
    # Rows 0..P-1 are originals and P..2P-1 counterfactuals: each row's donor is the other side of its pair.
    other = tuple(np.roll(np.arange(len(instances)), len(pairs)).tolist())
    clean = model.run(instances, seed=seeds * 2, record=True, stop_after=step)
    unpatched = model.replay(clean, step, [Capture(Sites(component, steps=step))])
    own, donor = unpatched.x0hat, replace(clean, captures=unpatched.captures)
    direction = (own[list(other)] - own) * _latent_mask(task, pairs, own)
    moved = []
    for layer in layers:
        patch = Patch(donor, Sites(component, steps=step, layers=layer), rows=other)
        moved.append(model.replay(clean, step, [patch]).x0hat - own)
    shape = (2, len(pairs), -1)
    return torch.stack(moved).reshape(len(layers), *shape), direction.reshape(shape)


def _latent_mask(task: Task, pairs: Sequence[Pair], x0hat: Tensor) -> Tensor:
    """Answer cells on every latent frame but the given first one: (2 P, 1, F, H, W)."""
    mask = torch.zeros(len(x0hat), 1, *x0hat.shape[2:], dtype=x0hat.dtype, device=x0hat.device)
    height, width = x0hat.shape[3:]
    masks = answer_masks(task, pairs, who="patching_sweep")
    cells = on_grid(task, masks, (height, width), (8 * height, 8 * width))
    mask[:, 0, 1:] = torch.from_numpy(cells).to(mask).repeat(2, 1, 1)[:, None]
    return mask


def _along(moved: Tensor, direction: Tensor) -> Floats:
    """Movement (layers, 2, pairs, X) along directions (2, pairs, X), in units of their length: (layers, pairs)."""
    way = direction.double()
    share = (moved.double() * way).sum(-1) / way.square().sum(-1).clamp(min=1e-12)
    return np.asarray(share.mean(dim=1).cpu().numpy())


def _flips(
    model: VideoDiT, task: Task, pairs: Sequence[Pair], seeds: list[int], layers: list[int], component: str
) -> NDArray[np.bool_]:
    """Whether the original shows the counterfactual's answer when a layer is patched at every step: (layers, pairs)."""
    if not pairs:
        return np.zeros((len(layers), 0), dtype=bool)
    originals, others = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    donor = model.run(others, seed=seeds, interventions=[Capture(Sites(component, layers=layers))], decode=False)
    flips = []
    for layer in tqdm(layers, desc="patching at all steps", unit="layer"):
        patch = Patch(donor, Sites(component, layers=layer))
        frames = model.run(originals, seed=seeds, interventions=[patch]).frames
        assert frames is not None
        flips.append(show_answer(task, frames, others, who="patching_sweep"))
    return np.stack(flips)
