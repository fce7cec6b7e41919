"""Move activations along a direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import InputError
from dit_lens.interventions.base import At
from dit_lens.interventions.shapes import (
    broadcasts,
    channel_axis,
    one_of_each,
    part_shape,
    require_choice,
    require_number,
    wide,
)
from dit_lens.runs.inputs import Row
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites


@dataclass(frozen=True, eq=False)
class Steer:
    """Add ``scale * direction`` to the activations at ``sites``.

    Parameters
    ----------
    sites : Sites
    direction : Tensor
        Of shape (D,), the same for all tokens, or of one that broadcasts to the selected part of one row, such as
        (F, 1, 1, D). On the latent grid of shape (C,), or one that broadcasts to (C, F, H, W).
    scale : float
        0 leaves the activation as it is, bit for bit.
    unit : "absolute" or "norm"
        With "norm" the step is also multiplied by the L2 norm of the token's own activation, so that one scale means
        much the same in all layers.
    normalize : bool
        Divide the direction by its L2 norm first, that of the whole tensor.

    Notes
    -----
    Activation addition (Turner et al. 2023, arXiv 2308.10248); a usual direction is the difference of the means of two
    sets of runs (Rimsky et al. 2023, arXiv 2312.06681).
    """

    sites: Sites
    direction: Tensor
    scale: float = 1.0
    unit: str = "absolute"
    normalize: bool = True

    __repr__ = short_repr

    def __post_init__(self) -> None:
        given = self.direction
        if not isinstance(given, Tensor) or not given.ndim or not given.is_floating_point():
            what = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f"Steer(direction=): need a floating-point tensor whose last axis is channels, got {what}")
        require_number("Steer", "scale", self.scale)
        require_choice("Steer", "unit", self.unit, ("absolute", "norm"))
        length = float(torch.linalg.vector_norm(wide(self.direction)))
        if not 0 < length < float("inf") and (self.normalize or length):
            raise InputError(f"Steer(direction=): a direction of norm {length:g} cannot be normalized or added")

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        if self.scale == 0:
            return activation
        start, axis = wide(activation), channel_axis(at.site)
        direction = self._laid_out(at.site, tuple(activation.shape[1:])).to(start.device, start.dtype)
        step = direction / torch.linalg.vector_norm(direction) if self.normalize else direction
        if self.unit == "norm":
            step = step * torch.linalg.vector_norm(start, dim=axis, keepdim=True)
        return (start + self.scale * step).to(activation.dtype)

    def check(self, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
        """Refuse a direction that does not fit an activation."""
        for site in one_of_each(sites):
            shape = part_shape(self.sites, site, geometry)
            if shape is not None:
                self._laid_out(site, shape)

    def _laid_out(self, site: Site, shape: tuple[int, ...]) -> Tensor:
        """The direction as it is added to rows of a shape, with its channels where theirs are."""
        axis = channel_axis(site) - 1 if channel_axis(site) > 0 else -1
        if self.direction.ndim == 1 and len(self.direction) == shape[axis]:
            return self.direction.reshape(-1, *[1] * (len(shape) - 1 - axis % len(shape)))
        if self.direction.ndim == 1 or not broadcasts(self.direction.shape, shape):
            given = tuple(self.direction.shape)
            raise InputError(
                f"Steer(direction=) of shape {given} at {site}: need ({shape[axis]},), or what broadcasts to {shape}"
            )
        return self.direction
