"""Wan 2.1 and 2.2: one video stream, guidance branches as separate calls, the conditional one first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_lens.architectures.base import Architecture, Grid


def branches(pipeline: Any, guidance_scale: float) -> tuple[str, ...]:
    return ("cond", "uncond") if guidance_scale > 1 else ("cond",)


def grid(transformer: Any, latent: tuple[int, ...]) -> Grid:
    """Tokens along (F, H, W) for latents of shape (C, F, H, W)."""
    f, h, w = (size // patch for size, patch in zip(latent[1:], transformer.config.patch_size, strict=True))
    return f, h, w


def width(transformer: Any) -> int:
    return int(transformer.config.num_attention_heads * transformer.config.attention_head_dim)


def head(transformer: Any, residual: Tensor, conditioning: Any, grid: Grid) -> Tensor:
    """Read a residual stream (B, N, D) through the model's own output head: velocity (B, C, F, H, W).

    The operations and their order are the model's, so that the last residual gives the model's output bit for bit.
    """
    temb = conditioning[0]
    table = transformer.scale_shift_table.to(temb.device)
    if temb.ndim == 3:  # one time embedding per token (Wan 2.2 TI2V)
        shift, scale = (x.squeeze(2) for x in (table.unsqueeze(0) + temb.unsqueeze(2)).chunk(2, dim=2))
    else:
        shift, scale = (table + temb.unsqueeze(1)).chunk(2, dim=1)
    normed = transformer.norm_out(residual.float()) * (1 + scale.to(residual.device)) + shift.to(residual.device)
    patches = transformer.proj_out(normed.type_as(residual))
    return unpatchify(patches, grid, transformer.config.patch_size)


def unpatchify(patches: Tensor, grid: Grid, patch: tuple[int, int, int]) -> Tensor:
    """Tokens (B, N, p_t p_h p_w C) to latents (B, C, F, H, W)."""
    channels = patches.shape[-1] // math.prod(patch)
    cells = patches.reshape(len(patches), *grid, *patch, channels)
    return cells.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def guide(velocities: Mapping[str, Tensor], guidance_scale: float) -> Tensor:
    """Classifier-free guidance as the Wan pipelines combine it."""
    if "uncond" not in velocities:
        return velocities["cond"]
    return velocities["uncond"] + guidance_scale * (velocities["cond"] - velocities["uncond"])


def denormalise(pipeline: Any, latents: Tensor) -> Tensor:
    """The sampler's latents in the scale of the VAE, operation by operation as the pipeline does it."""
    config, shape = pipeline.vae.config, (1, pipeline.vae.config.z_dim, 1, 1, 1)
    latents = latents.to(pipeline.vae.dtype)
    mean = torch.tensor(config.latents_mean).view(shape).to(latents.device, latents.dtype)
    inverse_std = 1.0 / torch.tensor(config.latents_std).view(shape).to(latents.device, latents.dtype)
    return latents / inverse_std + mean


WAN = Architecture(
    family="wan",
    transformers=("WanTransformer3DModel",),
    stacks=("blocks",),
    conditioning="condition_embedder",
    branches=branches,
    grid=grid,
    width=width,
    head=head,
    guide=guide,
    denormalise=denormalise,
)
