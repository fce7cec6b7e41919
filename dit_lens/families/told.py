"""What a block and the output head are told besides their residual streams: the shapes that several families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import InputError, UnsupportedModel
from dit_lens.families.base import HeadTold, Met, Told, always, bind

#: What diffusers adds to the scores of a position that is not to be read.
_BIAS = -10000.0


def told(component: str, stream: str, *arguments: str) -> Told:
    """Arguments of the block as they come: several of one leading shape side by side along the last axis."""

    def given(met: Met) -> dict[str, Tensor]:
        return {name: met.arguments[name] for name in arguments if met.arguments[name] is not None}

    def take(met: Met) -> Tensor | None:
        return side_by_side(list(given(met).values()))

    def put(met: Met, new: Tensor) -> dict[str, Any]:
        return dict(zip(given(met), apart(new, list(given(met).values())), strict=True))

    return Told(component, stream, take, put)


def part_of_context(
    stream: str,
    part: Callable[[Met], slice],
    has: Callable[[Any], bool] = always,
    argument: str = "encoder_hidden_states",
) -> Told:
    """The positions of what a cross-attention reads that belong to a stream."""

    def put(met: Met, new: Tensor) -> dict[str, Any]:
        changed = _rows_of(met.arguments[argument], new)
        changed[:, part(met)] = new
        return {argument: changed}

    return Told("context", stream, lambda met: met.arguments[argument][:, part(met)], put, has)


def _rows_of(given: Tensor, new: Tensor) -> Tensor:
    """A copy with as many rows as ``new``: one may have served all."""
    return given.expand(len(new), *given.shape[1:]).clone()


def side_by_side(tensors: list[Tensor]) -> Tensor | None:
    """Tensors of one leading shape (B, ..., D_i) as one (B, ..., sum of D_i); one alone as it is, None of none.

    Raises
    ------
    UnsupportedModel
        Leading shapes that differ.
    """
    if len(tensors) < 2:
        return tensors[0] if tensors else None
    shapes = {tuple(tensor.shape[:-1]) for tensor in tensors}
    if len(shapes) > 1:
        raise UnsupportedModel(f"the parts of the modulation have leading shapes {sorted(shapes)}; need one for all")
    return torch.cat(tensors, dim=-1)


def apart(whole: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Inverse of `side_by_side`, each part in its own dtype."""
    parts = whole.split([tensor.shape[-1] for tensor in like], dim=-1)
    return [part.to(tensor.dtype) for part, tensor in zip(parts, like, strict=True)]


def _any_words(words: Tensor) -> str | None:
    return None


def some_words(words: Tensor) -> str | None:
    """A bias on all positions of a cross-attention is none: softmax does not see what they share."""
    return None if words.any(dim=1).all() else "a row is left nothing to read, and the attention would read everything"


def words_first(words: Tensor) -> str | None:
    """For an attention that moves the words of a row together before it puts the padding behind them."""
    return None if (words[:, 1:] <= words[:, :-1]).all() else "this model's words must stand before the padding"


def mask(
    argument: str,
    cells: Callable[[Tensor, Met], Tensor] = lambda mask, met: mask,
    *,
    stream: str = "text",
    read: float = 1.0,
    unread: float = 0.0,
    refuse: Callable[[Tensor], str | None] = _any_words,
) -> Told:
    """Which positions of the text an attention may read, from the block's own mask.

    Parameters
    ----------
    argument : str
    cells : callable (the argument, Met) -> (B, N), a view of the text's positions
    read, unread : float
        What the model has there of a position that is read, and writes of one that is not.
    refuse : callable (bool Tensor of shape (B, N)) -> what the model cannot do with it, or None
    """

    def take(met: Met) -> Tensor | None:
        given = met.arguments[argument]
        return None if given is None else (cells(given, met) == read).float().unsqueeze(-1)

    def put(met: Met, new: Tensor) -> dict[str, Any]:
        changed = _rows_of(met.arguments[argument], new)
        own, words = cells(changed, met), _words(new, refuse)
        # What stays as it was keeps its bits, whatever the model has there.
        own.copy_(torch.where(words == (own == read), own, torch.where(words, read, unread).to(own.dtype)))
        return {argument: changed}

    return Told("mask", stream, take, put)


def _words(new: Tensor, refuse: Callable[[Tensor], str | None]) -> Tensor:
    """A mask (B, N, 1) of 1 and 0 as bool (B, N)."""
    if not ((new == 0) | (new == 1)).all():
        raise InputError("mask: need 1 where attention may read a position and 0 where not, got other values")
    words = new.squeeze(-1).bool()
    if reason := refuse(words):
        raise InputError(f"mask: {reason}")
    return words


def bias(argument: str, stream: str = "text") -> Told:
    """As `mask`, of a bias (B, 1, N) that a cross-attention adds to its scores."""
    return mask(argument, lambda given, met: given[:, 0], stream=stream, read=0.0, unread=_BIAS, refuse=some_words)


def bias_valid(argument: str) -> Callable[[Met], Tensor | None]:
    """`Block.text_valid` from such a bias."""

    def valid(met: Met) -> Tensor | None:
        given = met.arguments[argument]
        return None if given is None else given[:, 0] == 0

    return valid


def element(path: str, index: int) -> HeadTold:
    """An element of a module's output, which only the head uses."""

    def put(module: Any, output: tuple[Any, ...], new: Tensor) -> tuple[Any, ...]:
        return (*output[:index], new, *output[index + 1 :])

    return HeadTold(path, "output", lambda module, output: output[index], put)


def arguments_of(path: str, *names: str) -> HeadTold:
    """Arguments of the head's own norm, side by side along the last axis."""

    def given(module: Any, call: Any) -> list[Tensor]:
        bound = bind(module, *call)
        return [bound[name] for name in names]

    def take(module: Any, call: Any) -> Tensor:
        whole = side_by_side(given(module, call))
        assert whole is not None
        return whole

    def put(module: Any, call: Any, new: Tensor) -> Any:
        bound = bind(module, *call)
        bound.pop("self")
        return (), {**bound, **dict(zip(names, apart(new, [bound[name] for name in names]), strict=True))}

    return HeadTold(path, "inputs", take, put)
