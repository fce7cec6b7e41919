"""Pairs before anything is exchanged: which are solved, the way between their answers, and where it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dit_lens.analysis.flow.looks import Pairs
from dit_lens.analysis.flow.sets import cells_of_tokens, require_apart, target_from_answers, tokens_of_cells
from dit_lens.analysis.flow.ways import Ways, shapes_of, truths
from dit_lens.analysis.success import floor_of
from dit_lens.display.short import short_repr
from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats
from dit_lens.results.intervals import share
from dit_lens.sites.geometry import Geometry
from dit_lens.sweeps.metrics import Sides
from dit_lens.tasks.base import Task
from dit_lens.tasks.evidence import declares, require, scores_of

WHO = "information_flow"


@dataclass(frozen=True, eq=False)
class Prepared:
    """P pairs that can be measured.

    Attributes
    ----------
    task : Task
    pairs : Pairs
    way : Tensor of shape (P, C, F, H, W)
        From the right answer of each original to its counterfactual's.
    target : bool array of shape (P, F, H, W), tokens
    frozen : float array of shape (P,), or empty
        How far a video goes along the way that shows its first frame all along.
    solves : bool or None
    solved, floor : float
    experts : tuple, one for each step
    videos : uint8 array of shape (2 P, T, height, width, 3), or None
        The true videos.
    ends : Tensor of shape (2 P, C, F, H, W)
        The final latents of the clean runs.
    dropped : dict from reason to int
    geometry : Geometry
    right : bool array of shape (P,)
        Pairs of which both sides are solved, or all where nothing is scored. Where none is, the others speak for the
        gates alone.
    """

    task: Task
    pairs: Pairs
    way: Tensor
    target: Bools
    frozen: Floats
    solves: bool | None
    solved: float
    floor: float
    experts: tuple[str | None, ...]
    videos: Video | None
    ends: Tensor
    geometry: Geometry
    right: Bools
    dropped: dict[str, int] = field(default_factory=dict)

    __repr__ = short_repr

    def frames_of(self, pair: int) -> Video:
        """Videos of the two sides of a pair, uint8 (2, T, height, width, 3)."""
        rows = slice(2 * pair, 2 * pair + 2)
        return self.pairs.model.decode(self.ends[rows]) if self.videos is None else self.videos[rows]

    @property
    def truth(self) -> bool:
        return self.videos is not None

    @cached_property
    def ways(self) -> Ways:
        return Ways.of(self.way, cells_of_tokens(self.target, self.geometry))


@dataclass(frozen=True, eq=False)
class _Clean:
    """The clean videos of 2 P rows: which are right, what they end at, and the experts of the steps."""

    right: Bools | None
    ends: Tensor
    experts: tuple[str | None, ...]


def prepared(task: Task, pairs: Pairs, target: Bools | None, source: Bools | None) -> Prepared:
    """Run both sides of each pair, and drop the pairs that say nothing.

    Parameters
    ----------
    target, source : bool array of shape (F, H, W), optional
        Tokens that the user names.

    Raises
    ------
    EvidenceError
        No pair is left; pictures of different sizes; true videos of another size than the model's or equal on both
        sides; a named source that meets the target. Where true videos are known, before any video is made.
    """
    _require_one_size(pairs)
    geometry = pairs.model.geometry(pairs.pairs[0].original, **pairs.arguments)
    known = _Answers.known(task, pairs, geometry, target, source) if declares(task, "render") else None
    clean = _clean(task, pairs)
    ends = clean.ends[1::2] - clean.ends[::2]
    answers = known or _Answers.of(ends, None, None, _target(task, pairs, ends, geometry, target), geometry, source)
    sides = np.ones(2 * len(ends), dtype=bool) if clean.right is None else clean.right
    right: Bools = np.asarray(sides.reshape(-1, 2).all(axis=1))
    both = answers.differ & right
    kept = both if both.any() else answers.differ
    numbers = np.flatnonzero(kept).tolist()
    rows = [row for number in numbers for row in (2 * number, 2 * number + 1)]
    solved, floor = _success(task, clean, len(pairs.pairs))
    return Prepared(
        task=task,
        pairs=pairs.only(numbers),
        way=answers.way[numbers],
        target=answers.target[numbers],
        frozen=answers.frozen[numbers] if len(answers.frozen) else answers.frozen,
        solves=None if clean.right is None else bool(both.any() and share(clean.right).low > np.nan_to_num(floor)),
        solved=solved,
        floor=floor,
        experts=clean.experts,
        videos=None if answers.videos is None else answers.videos[rows],
        ends=clean.ends[rows],
        geometry=geometry,
        right=right[numbers],
        dropped={
            "whose answers do not differ": int((~answers.differ).sum()),
            "of which a side is not solved": int((answers.differ & ~right).sum()),
        },
    )


@dataclass(frozen=True, eq=False)
class _Answers:
    """The ways between the answers of P pairs, and where they are drawn."""

    way: Tensor
    videos: Video | None
    frozen: Floats
    target: Bools
    differ: Bools

    @classmethod
    def known(
        cls, task: Task, pairs: Pairs, geometry: Geometry, target: Bools | None, source: Bools | None
    ) -> _Answers:
        """Between right answers."""
        videos = require(task, "render", who=WHO).render([side for pair in pairs.pairs for side in pair])
        way, frozen = truths(pairs.model, videos, geometry.shapes["latents"], task.name)
        found = _target(task, pairs, way, geometry, target)
        return cls.of(way.cpu(), videos, frozen.cpu(), found, geometry, source)

    @classmethod
    def of(
        cls,
        way: Tensor,
        videos: Video | None,
        frozen: Tensor | None,
        target: Bools,
        geometry: Geometry,
        source: Bools | None,
    ) -> _Answers:
        if source is not None:
            require_apart(source, target, WHO)
        cells = cells_of_tokens(target, geometry)
        differ = np.asarray((way * torch.from_numpy(cells)[:, None]).flatten(1).any(dim=1))
        if not differ.any():
            what = "the model draws the same" if videos is None else "the true videos are the same"
            why = f"at the target {what} on both sides"
            if not target.any():
                why = "there is no place at which the answers differ and what was given does not"
            raise EvidenceError(f"{WHO}: in each of {len(way)} pairs {why}: nothing can be measured")
        return cls(way, videos, np.zeros(0) if frozen is None else _along(frozen, way, cells), target, differ)


def _require_one_size(pairs: Pairs) -> None:
    sizes = shapes_of([getattr(side, "image", None) for pair in pairs.pairs for side in pair])
    if len(sizes) > 1:
        told = ", ".join(sorted("no picture" if size is None else f"{size[0]} x {size[1]}" for size in sizes))
        raise EvidenceError(f"{WHO} needs pictures of one size; these pairs have {told}")


def _clean(task: Task, pairs: Pairs) -> _Clean:
    scored = declares(task, "score")
    right, ends = list[Bools](), list[Tensor]()
    experts: tuple[str | None, ...] = ()
    runs = pairs.model.runs(
        *pairs.rows,
        batch=pairs.batch,
        progress="clean runs of pairs",
        interventions=pairs.interventions,
        decode=scored,
        **pairs.arguments,
    )
    for run in runs:
        right += [scores_of(task, run.decoded, run.inputs, who=WHO).strict] if scored else []
        ends.append(run.latents.cpu())
        experts = tuple(run.experts[step] for step in range(run.geometry.steps))
    return _Clean(np.concatenate(right) if scored else None, torch.cat(ends), experts)


def _target(task: Task, pairs: Pairs, way: Tensor, geometry: Geometry, named: Bools | None) -> Bools:
    """Tokens at which the answers of each pair differ."""
    if named is not None:
        return np.repeat(named[None], len(way), axis=0)
    if declares(task, "answer_mask"):
        sides = Sides(pairs.model, task, pairs.pairs, geometry)
        cells = np.asarray(sides.mask(way.repeat_interleave(2, dim=0))[::2, 0].bool())
    else:
        pictures = [getattr(side, "image", None) for side in pairs.pairs[0]]
        cells = target_from_answers(way, given=any(picture is not None for picture in pictures))
    return tokens_of_cells(cells, geometry)


def _along(step: Tensor, way: Tensor, cells: Bools) -> Floats:
    """How far each of P steps (P, C, F, H, W) goes along its way at the target's cells."""
    masked = (way.double() * torch.from_numpy(cells)[:, None]).flatten(1)
    length = masked.square().sum(dim=1)
    return np.asarray((step.double().flatten(1) * masked).sum(dim=1) / length.clamp(min=1e-30))


def _success(task: Task, clean: _Clean, pairs: int) -> tuple[float, float]:
    """Strict success of the sides, and of videos that cannot have solved them."""
    if clean.right is None:
        return float("nan"), float("nan")
    return float(clean.right.mean()), floor_of(task, pairs, seed=0)
