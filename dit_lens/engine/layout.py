"""How interventions see what a call holds, and how it goes back: a row for each input, on the grid."""

from __future__ import annotations

import math

from torch import Tensor

from dit_lens.errors import UnsupportedModel
from dit_lens.families.base import Architecture
from dit_lens.runs.call import Call, Context
from dit_lens.sites.site import MODULATIONS, Site
from dit_lens.sites.tokens import LATENT_COMPONENTS


def shaped(tensor: Tensor, site: Site, architecture: Architecture, context: Context) -> Tensor:
    """Rows of one branch as interventions see them."""
    if site.component in LATENT_COMPONENTS:
        return architecture.unpack(tensor, context.latent)
    if site.stream != "video" or site.component in MODULATIONS:
        return tensor
    return tensor.reshape(len(tensor), *context.geometry.grid, -1)


def packed(activation: Tensor, site: Site, architecture: Architecture, context: Context) -> Tensor:
    """Inverse of `shaped`."""
    if site.component in LATENT_COMPONENTS:
        return architecture.pack(activation, context.latent)
    return activation if site.component in MODULATIONS else activation.flatten(1, -2)


def per_row(tensor: Tensor, rows: int) -> Tensor:
    """A tensor of one entry for all rows, or of several for each in one axis, as (rows, ...).

    Raises
    ------
    UnsupportedModel
        Its first axis is neither.
    """
    if len(tensor) == rows:
        return tensor
    if len(tensor) == 1:
        return tensor.expand(rows, *tensor.shape[1:])
    if len(tensor) % rows:
        raise UnsupportedModel(
            f"what the model is told has {len(tensor)} entries for {rows} rows; need as many for each"
        )
    apart: Tensor = tensor.unflatten(0, (rows, -1))
    return apart


def as_before(changed: Tensor, before: Tensor) -> Tensor:
    """Inverse of `per_row`; what was one entry for all rows stays one for each, for they may differ now."""
    return changed if changed.ndim == before.ndim else changed.flatten(0, 1)


def token_sigma(call: Call) -> Tensor | None:
    """Noise level of every token (F, H, W) where the call is given one timestep per token, else None."""
    given = call.kwargs.get("timestep")
    grid = call.context.geometry.grid
    if not isinstance(given, Tensor) or given.ndim != 2 or given.shape[1] != math.prod(grid) or not call.timestep:
        return None
    sigma: Tensor = given[-1].float() / call.timestep * call.sigma
    return sigma.reshape(grid)
