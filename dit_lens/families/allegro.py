"""Allegro: one video stream, text by cross-attention, guidance branches as halves of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit_lens.families import common, told
from dit_lens.families.base import Architecture, Block, Grid, Latent, Met, Reader, Settings, Stream, Term


def _gate(met: Met, index: int) -> Tensor:
    """Gate (B, 1, D) of the self-attention (2) or the feed-forward (5)."""
    table, temb = met.module.scale_shift_table, met.arguments["temb"]
    return (table[None] + temb.reshape(len(temb), 6, -1)).chunk(6, dim=1)[index]


BLOCK = Block(
    kind="single",
    streams=(Stream("video", "hidden_states"),),
    events=("attn1.to_out.0.input", "attn1.output", "attn2.input", "attn2.output", "norm2.input", "ff.output"),
    terms=(
        common.gated_attention(lambda met: _gate(met, 2)),
        Term("cross_attn", "video", ("attn2.output",), lambda met: met["attn2.output"]),
        Term("ffn", "video", ("ff.output",), lambda met: _gate(met, 5) * met["ff.output"]),
    ),
    readers=(Reader("attn2.input", "video"), Reader("norm2.input", "video")),
    text_valid=told.bias_valid("encoder_attention_mask"),
    told=(
        told.told("context", "text", "encoder_hidden_states"),
        told.told("modulation", "video", "temb"),
        told.bias("encoder_attention_mask"),
    ),
)


def latent(pipeline: Any, settings: Settings) -> Latent:
    frames, spatial = settings["num_frames"] // pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial
    return pipeline.transformer.config.in_channels, frames, settings["height"] // spatial, settings["width"] // spatial


def multiples(pipeline: Any) -> tuple[int, int, int]:
    spatial = pipeline.vae_scale_factor_spatial * pipeline.transformer.config.patch_size
    return spatial, spatial, 1  # frames come in fours with none in front; `refuse` sees to that


def refuse(pipeline: Any, settings: Settings) -> str | None:
    """The VAE decodes in tiles or not at all, and leaves blank what has no whole tile."""
    vae = pipeline.vae
    if not vae.use_tiling:
        return "its VAE decodes only in tiles; call pipeline.vae.enable_tiling(), which is not saved with a pipeline"
    for name, tile, step in zip(("num_frames", "height", "width"), vae.kernel, vae.stride, strict=True):
        if settings[name] < tile or (settings[name] - tile) % step:
            return f"{name}={settings[name]} is not {tile} + {step} k; the VAE's tiles would leave the rest blank"
    return common.refuse_timesteps(pipeline, settings)


def head(transformer: Any, residual: Tensor, conditioning: Mapping[str, Any], grid: Grid) -> Tensor:
    shift, scale = (transformer.scale_shift_table[None] + conditioning["adaln_single"][1][:, None]).chunk(2, dim=1)
    patches = transformer.proj_out(transformer.norm_out(residual) * (1 + scale) + shift)
    return common.unpatchify_channels_last(patches, grid, common.patch_of(transformer))


ALLEGRO = Architecture(
    family="allegro",
    transformers=("AllegroTransformer3DModel",),
    pipelines=("AllegroPipeline",),
    stacks=(("transformer_blocks", BLOCK),),
    conditioning=("adaln_single",),
    calls=common.batched_calls,
    latent=latent,
    grid=common.patched_grid,
    width=common.width_of_heads,
    multiples=multiples,
    head=head,
    head_told=told.element("adaln_single", 1),
    decode=lambda pipeline, latents: pipeline.decode_latents(latents.to(pipeline.vae.dtype)),
    encode=lambda pipeline, video: common.posterior_mode(pipeline.vae, video) * pipeline.vae.config.scaling_factor,
    refuse=refuse,
    decodes_batches=False,
)
