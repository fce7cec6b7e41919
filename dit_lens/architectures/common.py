"""Pieces that several families share."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from dit_lens.architectures.base import Grid, Latent
from dit_lens.errors import UnsupportedModel


def patched_grid(transformer: Any, latent: Latent) -> Grid:
    """Tokens along (F, H, W) where ``config.patch_size`` is (p_t, p_h, p_w)."""
    f, h, w = (size // patch for size, patch in zip(latent[1:], transformer.config.patch_size, strict=True))
    return f, h, w


def unpatchify_channels_last(patches: Tensor, grid: Grid, patch: tuple[int, int, int]) -> Tensor:
    """Tokens (B, N, p_t p_h p_w C) to (B, C, F, H, W)."""
    channels = patches.shape[-1] // math.prod(patch)
    cells = patches.reshape(len(patches), *grid, *patch, channels)
    return cells.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def head_shares(z: Tensor, projection: nn.Module, heads: int, gate: Tensor | None = None) -> Tensor:
    """What each attention head adds to the stream: (B, N, heads, D).

    Parameters
    ----------
    z : Tensor of shape (B, N, heads * d)
        The heads' outputs side by side, which the output projection is given.
    projection : nn.Linear
        Its bias belongs to no head.
    gate : Tensor that broadcasts to (B, N, D), optional

    Raises
    ------
    UnsupportedModel
        The projection is not a plain linear layer (an adapter or a quantised layer cannot be split by columns).
    """
    if type(projection) is not nn.Linear:
        raise UnsupportedModel(f"heads cannot be told apart behind a {type(projection).__name__}; fuse or unload it")
    columns = projection.weight.unflatten(1, (heads, -1))  # (D, heads, d)
    shares = (z.unflatten(-1, (heads, -1)).unsqueeze(-2) @ columns.permute(1, 2, 0)).squeeze(-2)
    return shares if gate is None else shares * gate.unsqueeze(-2)


def bias_share(projection: Any, gate: Tensor | None = None) -> Tensor:
    """The output projection's bias under the gate, which no head makes: broadcasts to (B, N, D)."""
    bias: Tensor = projection.weight.new_zeros(()) if projection.bias is None else projection.bias
    return bias if gate is None else bias * gate
