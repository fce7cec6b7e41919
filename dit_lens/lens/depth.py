"""The depth lens: the logit lens of a diffusion transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.interventions import Capture
from dit_lens.model import VideoDiT
from dit_lens.run import Call, Run
from dit_lens.selection import Select, indices
from dit_lens.sites import Sites


@dataclass(frozen=True)
class DepthLens:
    """What each layer's residual stream would answer if it were the last.

    Attributes
    ----------
    layers : tuple of int
    velocities, x0hat : Tensor of shape (layers, B, C, F, H, W)
        At layer L-1 they equal the model's own, bit for bit.
    """

    step: int
    branch: str
    layers: tuple[int, ...]
    velocities: Tensor
    x0hat: Tensor

    def frames(self, model: VideoDiT, layers: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Decoded estimates of the given layers (default: all read): uint8 (layers, B, T, height, width, 3)."""
        chosen = self.layers if layers is None else layers
        return np.stack([model.decode(self.x0hat[self.layers.index(k)]) for k in chosen])


@torch.no_grad()
def depth_lens(model: VideoDiT, run: Run, step: int, layers: Select = "all", branch: str = "cond") -> DepthLens:
    """Read the residual stream after each block through the model's own output head, with its own modulation.

    Parameters
    ----------
    run : Run made with ``record=True``
    step : int
    layers : Select
    branch : str
        The estimate is of this branch alone, before guidance.

    Notes
    -----
    Follows the logit lens (nostalgebraist 2020) with the adaptive output norm of a DiT in the place of the unembedding.
    """
    chosen = indices(layers, run.geometry.layers, "layer")
    replay = model.replay(run, step, [Capture(Sites("resid", steps=step, layers=chosen, branches=branch))])
    call = next(c for c in run.recorded(step) if branch in c.branches)
    velocities = torch.stack([
        read_out(model, call, residual, replay.conditioning[branch]) for residual in replay.captures[""].values()
    ])  # fmt: skip
    x0hat = torch.stack([run.clean(step, run.states[step], v) for v in velocities])
    return DepthLens(step, branch, tuple(chosen), velocities, x0hat)


def read_out(model: VideoDiT, call: Call, residual: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
    """A residual stream (B, F, H, W, D) through the model's own output head: velocity (B, C, F, H, W).

    Parameters
    ----------
    call : Call
        The denoiser call that the residual is of.
    conditioning : mapping
        What the head needs besides, from `Replay.conditioning` of the residual's branch.
    """
    architecture, grid, times = model.architecture, call.context.geometry.grid, len(call.branches)
    # The last bits of a matrix product depend on its batch: the head is given one as large as the model's own.
    residuals = _repeated(residual.flatten(1, 3), times)
    output = architecture.head(model.experts[call.expert], residuals, _repeated(conditioning, times), grid)
    return architecture.unpack(output[: len(residual)], call.context.latent)


def _repeated(nest: Any, times: int) -> Any:
    """Everything in a nest of mappings and tuples, over and over along its first axis."""
    if isinstance(nest, Mapping):
        return {k: _repeated(v, times) for k, v in nest.items()}
    if isinstance(nest, tuple):
        return tuple(_repeated(v, times) for v in nest)
    return torch.cat([nest] * times) if isinstance(nest, Tensor) and times > 1 else nest
