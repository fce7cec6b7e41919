"""Where the tokens of the video and of the text lie in what an attention module computes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_lens.engine.attention_calls import AttentionCall, Given
from dit_lens.errors import UnsupportedModel
from dit_lens.lens.attention.measure import Softmax


@dataclass(frozen=True)
class Queries:
    """What is asked of every attention module.

    Attributes
    ----------
    grid : (F, H, W), the token grid
    queries : Tensor of shape (asked,)
        Tokens of the video, in order.
    rows : range
        The rows of the branch in the call's batch.
    batch : int
        Rows of the call.
    """

    grid: tuple[int, int, int]
    queries: Tensor
    rows: range
    batch: int

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)


def others_of_self(call: AttentionCall, asked: Queries) -> int:
    """Positions of the text among the keys of a self-attention."""
    if call.attends.text is None:
        return 0
    positions = call.attends.positions(call.arguments, 0)
    return call.given[0].key.shape[2] - asked.tokens if positions is None else len(positions)


def self_softmaxes(call: AttentionCall, asked: Queries) -> Iterator[tuple[int, Softmax]]:
    """Row of the branch and softmax, one or (attention within frames) F for every row.

    Raises
    ------
    UnsupportedModel
        The batch or the tokens are not those of the call, and the processor does not say how its rows lie.
    """
    frames = getattr(getattr(call.module, "processor", None), "latent_frames", None)
    if frames is not None:
        yield from _within_frames(call, asked, frames)
        return
    for place, row in enumerate(asked.rows):
        given, index = _row_of(call, asked, row)
        yield place, _joint(call, asked, given, index, row)


def cross_softmaxes(call: AttentionCall, asked: Queries, kind: str) -> Iterator[tuple[int, Softmax]]:
    """Row of the branch and softmax of a cross-attention's text ("cross") or image ("image")."""
    given = named(call)["text" if kind == "cross" else kind]
    _require(call, given.query.shape[:3:2] == (asked.batch, asked.tokens), given, asked)
    columns = torch.arange(given.key.shape[2], device=given.key.device)
    at = asked.queries.to(given.query.device)
    for place, row in enumerate(asked.rows):
        yield place, _softmax(given, row, asked, at, columns)


def named(call: AttentionCall) -> dict[str, Given]:
    """The softmaxes of a cross-attention by what they read."""
    names = call.attends.keys[-len(call.given) :]
    if len(names) != len(call.given):
        known = ", ".join(call.attends.keys)
        raise UnsupportedModel(
            f"layer {call.layer}: {len(call.given)} softmaxes in {call.attends.path}, known: {known}"
        )
    return dict(zip(names, call.given, strict=True))


def _row_of(call: AttentionCall, asked: Queries, row: int) -> tuple[Given, int]:
    """The softmax that holds a row of the call: one for all rows, or (Mochi) one for each."""
    first = call.given[0]
    if len(call.given) == 1 and len(first.query) == asked.batch:
        return first, row
    alone = len(call.given) == asked.batch and all(len(g.query) == 1 for g in call.given)
    _require(call, alone, first, asked)
    return call.given[row], 0


def _joint(call: AttentionCall, asked: Queries, given: Given, index: int, row: int) -> Softmax:
    """Of the video, or of video and text in either order."""
    total, device = given.key.shape[2], given.key.device
    places = torch.arange(total, device=device)
    video = places[call.attends.video(asked.tokens)]
    fits = (
        len(video) == asked.tokens
        and given.query.shape[2] == total
        and (call.attends.text is not None or total == asked.tokens)
    )
    _require(call, fits, given, asked)
    columns = torch.empty_like(places)
    columns[video] = torch.arange(asked.tokens, device=device)
    if call.attends.text is not None:
        positions = call.attends.positions(call.arguments, row)
        text = places[call.attends.text(asked.tokens)]
        words = torch.arange(len(text), device=device) if positions is None else positions.nonzero().flatten()
        columns[text] = asked.tokens + words.to(device)
    return _softmax(given, index, asked, video[asked.queries.to(device)], columns)


def _within_frames(call: AttentionCall, asked: Queries, frames: int) -> Iterator[tuple[int, Softmax]]:
    """A processor with ``latent_frames`` makes every frame a row: (B F, H W)."""
    given, size = call.given[0], asked.tokens // frames
    fits = frames == asked.grid[0] and given.query.shape[:3:2] == (asked.batch * frames, size)
    _require(call, len(call.given) == 1 and fits and given.key.shape[2] == size, given, asked)
    device = given.query.device
    tokens = torch.arange(asked.tokens, device=device).view(frames, size)
    queries, order = asked.queries.to(device), torch.arange(len(asked.queries), device=device)
    for place, row in enumerate(asked.rows):
        for frame in range(frames):
            own = queries // size == frame
            if own.any():
                index = row * frames + frame
                yield place, _softmax(given, index, asked, queries[own] % size, tokens[frame], order[own])


def _softmax(
    given: Given, index: int, asked: Queries, at: Tensor, columns: Tensor, order: Tensor | None = None
) -> Softmax:
    device = given.query.device
    order = torch.arange(len(at), device=device) if order is None else order
    frames = asked.queries.to(device)[order] // (asked.tokens // asked.grid[0])
    mask = None if given.mask is None else given.mask[index if len(given.mask) > 1 else 0]
    return Softmax(given.query[index], given.key[index], mask, given.scale, at, frames, order, columns)


def _require(call: AttentionCall, fits: bool, given: Given, asked: Queries) -> None:
    if not fits:
        raise UnsupportedModel(
            f"layer {call.layer}: {call.attends.path} computes {len(call.given)} softmaxes of queries "
            f"{tuple(given.query.shape)} and keys {tuple(given.key.shape)}, which are not {asked.batch} rows of a grid "
            f"{asked.grid}; a processor that attends within frames, rows (B F, H W), says so by its latent_frames"
        )
