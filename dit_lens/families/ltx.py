"""LTX-Video: packed latents (B, N, C) of one latent cell per token, guidance branches as halves of one batch.

The pipeline makes its latents before it sets its timesteps. Its image-to-video pipeline does not fit: it hands the
scheduler all latent frames but the first, whose tokens have a time of their own that the prediction does not tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit_lens.families import told
from dit_lens.families.base import Architecture, Block, Grid, Latent, Met, Reader, Settings, Stream, Term
from dit_lens.families.common import (
    batched_calls,
    causal_latent,
    classifier_free_float32,
    gated_attention,
    patched_grid,
    posterior_mode,
    refuse_timesteps,
    width_of_heads,
)


def gate(met: Met, index: int) -> Tensor:
    """Gate of the self-attention (2), the feed-forward (5) or LTX-2's cross-attention (8): (B, 1 or N, D)."""
    table = met.module.scale_shift_table
    given = met.arguments["temb"].unflatten(-1, (len(table), -1))
    shifted: Tensor = table[index] + given[:, :, index]
    return shifted


ATTENTION = gated_attention(lambda met: gate(met, 2))
FEED_FORWARD = Term("ffn", "video", ("ff.output",), lambda met: met["ff.output"] * gate(met, 5))

BLOCK = Block(
    kind="single",
    streams=(Stream("video", "hidden_states"),),
    events=(
        "attn1.to_out.0.input",
        "attn1.output",
        "attn2.input",
        "attn2.output",
        "norm2.input",
        "ff.output",
    ),
    terms=(
        ATTENTION,
        Term("cross_attn", "video", ("attn2.output",), lambda met: met["attn2.output"]),
        FEED_FORWARD,
    ),
    # The cross-attention's queries are made of the stream itself, without a norm.
    readers=(Reader("attn2.input", "video"), Reader("norm2.input", "video")),
    text_valid=told.bias_valid("encoder_attention_mask"),
    told=(
        told.told("context", "text", "encoder_hidden_states"),
        told.told("modulation", "video", "temb"),
        told.bias("encoder_attention_mask"),
    ),
)


def refuse(pipeline: Any, settings: Settings) -> str | None:
    if settings.get("guidance_rescale", 0.0) > 0:
        return f"guidance_rescale={settings['guidance_rescale']} is not modelled; set it to 0"
    return refuse_timesteps(pipeline, settings) or refuse_noisy_decoding(pipeline, settings)


def refuse_noisy_decoding(pipeline: Any, settings: Settings) -> str | None:
    """Fresh noise before decoding, which latents alone do not tell; a VAE without a time ignores both settings."""
    if not pipeline.vae.config.timestep_conditioning:
        return None
    for name in ("decode_timestep", "decode_noise_scale"):
        given = settings.get(name) or 0.0
        if any(given) if isinstance(given, list) else given:
            return f"{name}={given} is not modelled, for what a lens decodes would differ from the run's frames; set 0"
    return None


def multiples(pipeline: Any) -> tuple[int, int, int]:
    """The pipelines check for multiples of 32, whatever the VAE's factor."""
    spatial = math.lcm(32, pipeline.vae_spatial_compression_ratio)
    return spatial, spatial, pipeline.vae_temporal_compression_ratio


def unpack(x: Tensor, latent: Latent) -> Tensor:
    """(B, N, C) to (B, C, F, H, W)."""
    return x.unflatten(1, latent[1:]).movedim(-1, 1)


def pack(x: Tensor, latent: Latent) -> Tensor:
    """(B, C, F, H, W) to (B, N, C), in memory as it is: the pipelines do not make it contiguous either."""
    return x.flatten(2).transpose(1, 2)


def head(transformer: Any, residual: Tensor, conditioning: Mapping[str, Any], grid: Grid) -> Tensor:
    embedded = conditioning["time_embed"][1].view(len(residual), -1, residual.shape[-1])
    modulation = transformer.scale_shift_table[None, None] + embedded[:, :, None]
    shift, scale = modulation[:, :, 0], modulation[:, :, 1]
    packed: Tensor = transformer.proj_out(transformer.norm_out(residual) * (1 + scale) + shift)
    return packed


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    latents = denormalized(pipeline.vae, latents).to(pipeline.text_encoder.dtype)
    return decoded(pipeline.vae, latents)


def denormalized(vae: Any, latents: Tensor) -> Tensor:
    """In the scale of the VAE: (B, C, F, H, W)."""
    mean, std = (x.view(1, -1, 1, 1, 1).to(latents.device, latents.dtype) for x in (vae.latents_mean, vae.latents_std))
    return latents * std / vae.config.scaling_factor + mean


def encode(pipeline: Any, video: Tensor) -> Tensor:
    vae = pipeline.vae
    mode = posterior_mode(vae, video)
    mean, std = (x.view(1, -1, 1, 1, 1).to(mode) for x in (vae.latents_mean, vae.latents_std))
    return (mode - mean) * vae.config.scaling_factor / std


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """At time 0 where the VAE wants one, so that no noise is mixed in."""
    time = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
    video: Tensor = vae.decode(latents.to(vae.dtype), time, return_dict=False)[0]
    return video


LTX_VIDEO = Architecture(
    family="ltx-video",
    transformers=("LTXVideoTransformer3DModel",),
    pipelines=("LTXPipeline",),
    stacks=(("transformer_blocks", BLOCK),),
    conditioning=("time_embed",),
    calls=batched_calls,
    latent=causal_latent("in_channels"),
    grid=patched_grid,
    width=width_of_heads,
    multiples=multiples,
    head=head,
    head_told=told.element("time_embed", 1),
    decode=decode,
    encode=encode,
    guide=classifier_free_float32,
    unpack=unpack,
    pack=pack,
    refuse=refuse,
    late_timesteps=True,
)
