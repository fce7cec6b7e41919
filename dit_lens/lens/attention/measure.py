"""Softmaxes in chunks of queries, each reduced before the next is computed: memory grows with the number of keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_lens.errors import InputError

#: Arrays of (queries, keys) that one chunk may have alive: scores, mask, probabilities, entropy, selected columns.
_ALIVE = 5
#: An additive mask below this leaves a key nothing in any precision.
_CLOSED = -1000.0


@dataclass(frozen=True)
class Softmax:
    """One softmax that the model computed, of one row.

    Attributes
    ----------
    query : Tensor of shape (heads, n, d), after norms and positions
    key : Tensor of shape (heads, m, d), or with fewer heads that the queries' heads share in turn
    mask : Tensor that broadcasts to (heads, n, m), or None
        Boolean (True: may be attended to) or added to the scores.
    scale : float
    at : Tensor of shape (asked,)
        The queries that are asked for, as places among the n.
    frames : Tensor of shape (asked,)
        The frame of each of them.
    asked : Tensor of shape (asked,)
        Their places among all queries asked for.
    columns : Tensor of shape (m,)
        The place of each key among the `Axis` of keys.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    at: Tensor
    frames: Tensor
    asked: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Axis:
    """What the keys are: first ``video`` tokens, then ``others`` (positions in a text, or of an image).

    Attributes
    ----------
    grid : (F, H, W), the token grid
    video, others : int
        F H W or 0; the number of the others.
    region : bool Tensor of shape (video + others,), or None
    """

    grid: tuple[int, int, int]
    video: int
    others: int
    region: Tensor | None = None


class Sums:
    """What the softmaxes of one row add up to, by the frame of the query.

    Attributes
    ----------
    frames, uniform : Tensor of shape (heads, F, F)
        Mass on every frame's keys; the same if all keys that the mask leaves open had equal mass.
    others : Tensor of shape (heads, F, others)
    region, entropy, share : Tensor of shape (heads, F)
        Entropy in nats, and over the log of the number of open keys.
    maps : Tensor of shape (heads, asked, keys), or None
    """

    def __init__(self, heads: int, axis: Axis, asked: int, keep_maps: bool, device: torch.device) -> None:
        count = axis.grid[0]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(heads, *shape, dtype=torch.float64, device=device)

        self.axis = axis
        self.frames, self.uniform = zeros(count, count), zeros(count, count)
        self.others = zeros(count, axis.others)
        self.region, self.entropy, self.share = zeros(count), zeros(count), zeros(count)
        size = (heads, asked, axis.video + axis.others)
        self.maps = torch.zeros(size, dtype=torch.float32, device=device) if keep_maps else None

    def cpu(self) -> Sums:
        """The same sums, off the accelerator."""
        for name in ("frames", "uniform", "others", "region", "entropy", "share", "maps"):
            value: Tensor | None = getattr(self, name)
            setattr(self, name, None if value is None else value.cpu())
        return self

    def add(self, softmax: Softmax, heads: Tensor, budget: int) -> None:
        """Add one softmax, in chunks of heads and queries that hold within ``budget`` bytes."""
        of_frames = _frame_of_keys(softmax.columns, self.axis).to(_working(softmax.query))
        with _no_tf32():
            for own, part in _chunks(softmax, len(heads), budget):
                self._add_chunk(softmax, of_frames, own, heads[own], part)

    def _add_chunk(self, softmax: Softmax, of_frames: Tensor, own: slice, heads: Tensor, part: slice) -> None:
        at, axis, count = softmax.at[part], self.axis, self.axis.grid[0]
        mask = _rows_of(softmax.mask, heads, at)
        p = _probabilities(softmax, heads, at, mask)
        members = torch.nn.functional.one_hot(softmax.frames[part], count).to(p).T  # (F, queries)

        def by_frame(values: Tensor) -> Tensor:
            """Sums of (heads, queries, k) over the queries of each frame: (heads, F, k)."""
            return (members @ values.expand(p.shape[0], p.shape[1], -1)).double()

        open_keys = _open(mask, softmax)
        if axis.video:
            self.frames[own] += by_frame(p @ of_frames)
            even = open_keys.to(p)
            self.uniform[own] += by_frame((even / even.sum(-1, keepdim=True)) @ of_frames)
        other = (softmax.columns >= axis.video).nonzero().flatten()
        if len(other):
            self.others[own] = self.others[own].index_add(
                -1, softmax.columns[other] - axis.video, by_frame(p[..., other])
            )
        if axis.region is not None:
            self.region[own] += by_frame((p @ axis.region[softmax.columns].to(p)).unsqueeze(-1)).squeeze(-1)
        entropy = torch.special.entr(p).sum(-1, keepdim=True)
        most = open_keys.sum(-1, keepdim=True).to(p).log()
        self.entropy[own] += by_frame(entropy).squeeze(-1)
        self.share[own] += by_frame(torch.where(most > 0, entropy / most.clamp(min=1e-30), 0.0)).squeeze(-1)
        if self.maps is not None:
            places = torch.arange(own.start, own.start + len(heads), device=p.device)
            self.maps[places[:, None, None], softmax.asked[part][None, :, None], softmax.columns[None, None]] = (
                p.float()
            )


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Products of single precision stay so, whatever the user allows the model."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _chunks(softmax: Softmax, heads: int, budget: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the heads and of the queries asked for."""
    asked, keys = len(softmax.at), softmax.key.shape[1]
    row = _ALIVE * keys * _working(softmax.query).itemsize
    rows = budget // row
    if rows == 0:
        raise InputError(f"a budget of {budget:,} bytes does not hold one query's {keys} keys; give at least {row:,}")
    together = max(1, min(heads, rows // asked))
    length = min(asked, rows)
    for head in range(0, heads, together):
        for start in range(0, asked, length):
            yield slice(head, min(heads, head + together)), slice(start, start + length)


def _working(query: Tensor) -> torch.dtype:
    """One precision above the model's: scores of some tens would be off by 1e-6 and more in the model's own."""
    return torch.float64 if query.dtype in (torch.float32, torch.float64) else torch.float32


def _probabilities(softmax: Softmax, heads: Tensor, at: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of some heads and queries: (heads, queries, m)."""
    dtype = _working(softmax.query)
    shared = softmax.query.shape[0] // softmax.key.shape[0]
    scores = softmax.query[heads[:, None], at].to(dtype) @ softmax.key[heads // shared].to(dtype).mT
    scores *= softmax.scale
    if mask is not None and mask.dtype == torch.bool:
        scores.masked_fill_(~mask, float("-inf"))
    elif mask is not None:
        scores += mask
    return scores.softmax(-1)


def _rows_of(mask: Tensor | None, heads: Tensor, at: Tensor) -> Tensor | None:
    """The mask of some heads and queries, never more of it: broadcasts to (heads, queries, m)."""
    if mask is None:
        return None
    own = heads if mask.shape[0] > 1 else torch.zeros_like(heads[:1])
    rows = at if mask.shape[1] > 1 else torch.zeros_like(at[:1])
    return mask[own[:, None], rows]


def _open(mask: Tensor | None, softmax: Softmax) -> Tensor:
    """Keys that the mask leaves: bool that broadcasts to (heads, queries, m)."""
    if mask is None:
        return torch.ones(1, 1, softmax.key.shape[1], dtype=torch.bool, device=softmax.key.device)
    return mask if mask.dtype == torch.bool else mask > _CLOSED


def _frame_of_keys(columns: Tensor, axis: Axis) -> Tensor:
    """Which frame each key is of: (m, F), a row of zeros for one that is of none."""
    per_frame = axis.grid[1] * axis.grid[2]
    frame = torch.where(columns < axis.video, columns // per_frame, axis.grid[0])
    return torch.nn.functional.one_hot(frame, axis.grid[0] + 1)[:, :-1]
