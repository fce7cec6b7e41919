"""A residual stream through the model's own output head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import InputError
from dit_lens.families.at_hand import at_hand
from dit_lens.families.base import Architecture
from dit_lens.runs.call import Call
from dit_lens.runs.nest import mapped


def read_out(
    architecture: Architecture, transformer: Any, call: Call, residual: Tensor, conditioning: Mapping[str, Any]
) -> Tensor:
    """A residual stream (B, F, H, W, D) through the model's own output head: velocity (B, C, F, H, W).

    Parameters
    ----------
    architecture : Architecture
    transformer : nn.Module
        The one that ``call.expert`` names.
    call : Call
        The denoiser call that the residual is of.
    conditioning : mapping
        What the head needs besides, from `Replay.conditioning` of the residual's branch.

    Raises
    ------
    InputError
        It is empty, for the replay edited "head_modulation" behind the blocks.
    """
    if architecture.conditioning and not conditioning:
        raise InputError(
            "this replay edited head_modulation, which the head of this family is told after the blocks: what it was "
            "given is not kept; read out a replay without that edit"
        )
    grid, times = call.context.geometry.grid, len(call.branches)
    # The last bits of a matrix product depend on its batch: the head is given one as large as the model's own.
    residuals = _repeated(residual.flatten(1, 3), times)
    given = mapped(conditioning, lambda tensor: _repeated(tensor, times))
    output = at_hand(transformer, lambda: architecture.head(transformer, residuals, given, grid))
    return architecture.unpack(output[: len(residual)], call.context.latent)


def _repeated(tensor: Tensor, times: int) -> Tensor:
    """A tensor over and over along its first axis."""
    return torch.cat([tensor] * times) if times > 1 else tensor
