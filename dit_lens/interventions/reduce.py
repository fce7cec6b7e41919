"""Reductions of an activation to what is worth keeping of it, for `Capture`.

Each takes an activation of B rows and gives a tensor whose first axis is B and whose channels, where it keeps them, are
the last axis: of the residual stream (B, F, H, W, D) and of a text stream (B, N, D) as they come, of the latent grid
(B, C, F, H, W) with its channels moved to the end. With a mask the tokens arrive in one axis, (B, n, D) or (B, C, n).
``at`` says which of them it is; without it the channels are taken to be last.

One's own reduction is any function of the activation, or of the activation and ``at``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import InputError
from dit_lens.interventions.base import At
from dit_lens.interventions.shapes import channel_axis
from dit_lens.sites.site import MODULATIONS

Reduce = Callable[..., Tensor]

__all__ = ["channels", "frame_mean", "norm", "project", "token_mean", "tokens", "top_k"]


def token_mean(activation: Tensor, at: At | None = None) -> Tensor:
    """Mean over all tokens but padding: (B, D), or (B, C) of the latent grid.

    Raises
    ------
    InputError
        "modulation" or "head_modulation", which have no tokens.
    """
    _require_tokens("token_mean", at)
    if at is not None and at.valid is not None:
        counted, tokens = at.valid.to(activation.device)[..., None], _channels_last(activation, at)
        total = torch.where(counted, tokens, 0).sum(dim=1, dtype=torch.promote_types(tokens.dtype, torch.float32))
        mean: Tensor = (total / counted.sum(dim=1)).to(activation.dtype)
        return mean
    axis = _axis(at) % activation.ndim
    return activation.mean(dim=[a for a in range(1, activation.ndim) if a != axis])


def frame_mean(activation: Tensor, at: At | None = None) -> Tensor:
    """Mean over the tokens of each latent frame: (B, F, D), or (B, F, C) of the latent grid.

    Raises
    ------
    InputError
        A text stream, a mask, or a modulation: none has frames.
    """
    if activation.ndim != 5 or (at is not None and at.site.component in MODULATIONS):
        raise InputError(f"frame_mean{_where(at)}: an activation of shape {tuple(activation.shape)} has no frames")
    return _channels_last(activation, at).mean(dim=(2, 3))


def norm(activation: Tensor, at: At | None = None) -> Tensor:
    """L2 norm over the channels of each token: (B, F, H, W) of the residual stream and of the latent grid.

    On ``resid`` this is the token energy of "Demystifying Video Reasoning" (arXiv 2603.16870).
    """
    norms: Tensor = torch.linalg.vector_norm(activation, dim=_axis(at))
    return norms


def project(basis: Tensor) -> Reduce:
    """Coordinates along k directions: (B, ..., k), in float32 at least.

    Parameters
    ----------
    basis : Tensor of shape (D, k), or (C, k) for the latent grid
    """
    if not isinstance(basis, Tensor) or basis.ndim != 2 or not basis.is_floating_point():
        given = f"{basis.dtype} {tuple(basis.shape)}" if isinstance(basis, Tensor) else type(basis).__name__
        raise InputError(f"project: need a floating-point basis of shape (channels, k), got {given}")
    return _Project(basis)


def channels(indices: Sequence[int]) -> Reduce:
    """Some channels of every token, in the given order: (B, ..., len(indices))."""
    chosen = tuple(int(i) for i in indices)
    if not chosen:
        raise InputError("channels: need at least one index")
    return _Channels(chosen)


def tokens(count: int, seed: int = 0) -> Reduce:
    """A fixed random subset of the tokens: (B, count, D), or (B, count, C) of the latent grid.

    The subset depends on ``seed`` and the number of tokens alone, so that it is one for all captures of one size. The
    reduction's ``indices(total)`` tells which they are, in row-major order of the grid. Of a text stream the tokens are
    the positions that hold a word in all rows.
    """
    return _Subset(_positive("tokens", "count", count), seed)


def top_k(k: int) -> Reduce:
    """The k channels of largest magnitude in each token: (B, ..., 2, k), in float32 at least.

    ``[..., 0, :]`` are their values, with their sign and the largest magnitude first; ``[..., 1, :]`` their channel
    numbers, which float32 holds exactly.
    """
    return _TopK(_positive("top_k", "k", k))


@dataclass(frozen=True, eq=False)
class _Project:
    basis: Tensor

    def __call__(self, activation: Tensor, at: At | None = None) -> Tensor:
        moved = _channels_last(activation, at)
        _require_channels("project", len(self.basis), moved.shape[-1] == len(self.basis), moved, at)
        dtype = torch.promote_types(torch.promote_types(moved.dtype, self.basis.dtype), torch.float32)
        return moved.to(dtype) @ self.basis.to(moved.device, dtype)


@dataclass(frozen=True)
class _Channels:
    indices: tuple[int, ...]

    def __call__(self, activation: Tensor, at: At | None = None) -> Tensor:
        moved = _channels_last(activation, at)
        size = moved.shape[-1]
        _require_channels("channels", self.indices, all(-size <= i < size for i in self.indices), moved, at)
        return moved[..., list(self.indices)]


@dataclass(frozen=True)
class _Subset:
    count: int
    seed: int

    def indices(self, total: int) -> Tensor:
        """Positions of the kept tokens among ``total``, rising: (count,)."""
        return torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))[: self.count].sort().values

    def __call__(self, activation: Tensor, at: At | None = None) -> Tensor:
        _require_tokens("tokens", at)
        flat = _channels_last(activation, at).flatten(1, -2)
        if at is not None and at.valid is not None:
            flat = flat[:, at.valid.all(dim=0).to(flat.device)]
        if self.count > flat.shape[1]:
            raise InputError(f"tokens(count={self.count}){_where(at)}: there are {flat.shape[1]}")
        return flat[:, self.indices(flat.shape[1]).to(flat.device)]


@dataclass(frozen=True)
class _TopK:
    k: int

    def __call__(self, activation: Tensor, at: At | None = None) -> Tensor:
        moved = _channels_last(activation, at)
        _require_channels("top_k", self.k, self.k <= moved.shape[-1], moved, at)
        found = moved.abs().topk(self.k, dim=-1).indices
        values = moved.gather(-1, found)
        dtype = torch.promote_types(values.dtype, torch.float32)
        return torch.stack([values.to(dtype), found.to(dtype)], dim=-2)


#: Reductions that `Capture` knows by their name.
NAMED: dict[str, Reduce] = {"token_mean": token_mean, "frame_mean": frame_mean, "norm": norm}


def is_of_this_module(reduce: Any) -> bool:
    """Whether it may be tried on a tensor without data before a run; one's own may look at the values."""
    return reduce in NAMED.values() or isinstance(reduce, _Project | _Channels | _Subset | _TopK)


def takes_at(reduce: Reduce) -> bool:
    """Whether a reduction declares a second parameter for ``at``: by this name, or one that must be given."""
    try:
        parameters = inspect.signature(reduce).parameters.values()
    except (TypeError, ValueError):  # functions of C have no signature
        return False
    given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(given) > 1 and (given[1].name == "at" or given[1].default is inspect.Parameter.empty)


def _axis(at: At | None) -> int:
    return -1 if at is None else channel_axis(at.site)


def _channels_last(activation: Tensor, at: At | None) -> Tensor:
    return activation.movedim(_axis(at), -1)


def _require_channels(name: str, setting: Any, fits: bool, moved: Tensor, at: At | None) -> None:
    if not fits:
        raise InputError(f"{name}, set for {setting}{_where(at)}: an activation has channels 0..{moved.shape[-1] - 1}")


def _positive(name: str, setting: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}({setting}={value!r}): need a whole number of at least 1")
    return value


def _require_tokens(name: str, at: At | None) -> None:
    if at is not None and at.site.component in MODULATIONS:
        raise InputError(
            f"{name}{_where(at)}: {at.site.component} has no tokens; keep it whole, or reduce it by channels"
        )


def _where(at: At | None) -> str:
    return "" if at is None else f" at {at.site}"
