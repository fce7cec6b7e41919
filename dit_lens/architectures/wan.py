"""Wan 2.1, 2.2 and SkyReels-V2: one video stream, guidance branches as separate calls, the conditional one first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_lens.architectures.base import Architecture, Block, Grid, Latent, Met, Reader, Settings, Stream, Term
from dit_lens.architectures.common import bias_share, head_shares, patched_grid, unpatchify_channels_last


def _modulation(met: Met, index: int) -> Tensor:
    """Gate of the self-attention (2) or the feed-forward (5): (B, 1, D), or (B, N, D) where each token has its time."""
    table, temb = met.module.scale_shift_table, met.arguments["temb"].float()
    if temb.ndim == 3:
        return (table + temb).chunk(6, dim=1)[index]
    if table.shape[1] == temb.shape[1]:  # SkyReels-V2 keeps the six in front of the tokens
        return (table.unsqueeze(2) + temb).chunk(6, dim=1)[index].squeeze(1)
    return (table.unsqueeze(0) + temb).chunk(6, dim=2)[index].squeeze(2)


BLOCK = Block(
    kind="single",
    streams=(Stream("video", "hidden_states"),),
    events=(
        "attn1.to_out.0.input", "attn1.output", "norm2.input", "attn2.output", "norm3.input", "ffn.output",
    ),
    terms=(
        Term(
            "attn", "video", ("attn1.output",), lambda met: met["attn1.output"] * _modulation(met, 2),
            heads=lambda met: head_shares(
                met["attn1.to_out.0.input"], met.module.attn1.to_out[0], met.module.attn1.heads, _modulation(met, 2)
            ),
            headless=lambda met: bias_share(met.module.attn1.to_out[0], _modulation(met, 2)),
            head_needs=("attn1.to_out.0.input",),
        ),
        Term("cross_attn", "video", ("attn2.output",), lambda met: met["attn2.output"]),
        Term("ffn", "video", ("ffn.output",), lambda met: met["ffn.output"].float() * _modulation(met, 5)),
    ),
    readers=(Reader("norm2.input", "video"), Reader("norm3.input", "video")),
)  # fmt: skip


def calls(pipeline: Any, settings: Settings) -> tuple[tuple[str, ...], ...]:
    return (("cond",), ("uncond",)) if settings["guidance_scale"] > 1 else (("cond",),)


def scales(pipeline: Any, settings: Settings, expert: str | None) -> dict[str, float]:
    """The second expert may have a guidance scale of its own."""
    second = settings.get("guidance_scale_2")
    own = second if expert == "low_noise" and second is not None else settings["guidance_scale"]
    return {"guidance_scale": float(own)}


def latent(pipeline: Any, settings: Settings) -> Latent:
    return (
        pipeline.transformer.config.out_channels,
        (settings["num_frames"] - 1) // pipeline.vae_scale_factor_temporal + 1,
        settings["height"] // pipeline.vae_scale_factor_spatial,
        settings["width"] // pipeline.vae_scale_factor_spatial,
    )


def multiples(pipeline: Any) -> tuple[int, int, int]:
    """The pipelines crop to whole patches and want multiples of 16; the VAE encodes one frame, then chunks of four."""
    _, high, wide = pipeline.transformer.config.patch_size
    spatial = pipeline.vae_scale_factor_spatial
    return _lcm(16, spatial * high), _lcm(16, spatial * wide), max(4, pipeline.vae_scale_factor_temporal)


def _lcm(a: int, b: int) -> int:
    return int(torch.lcm(torch.tensor(a), torch.tensor(b)))


def width(transformer: Any) -> int:
    return int(transformer.config.num_attention_heads * transformer.config.attention_head_dim)


def head(transformer: Any, residual: Tensor, conditioning: Mapping[str, Any], grid: Grid) -> Tensor:
    temb = conditioning["condition_embedder"][0]
    table = transformer.scale_shift_table.to(temb.device)
    if temb.ndim == 3:  # one time embedding per token (Wan 2.2 TI2V)
        shift, scale = (x.squeeze(2) for x in (table.unsqueeze(0) + temb.unsqueeze(2)).chunk(2, dim=2))
    else:
        shift, scale = (table + temb.unsqueeze(1)).chunk(2, dim=1)
    normed = transformer.norm_out(residual.float()) * (1 + scale.to(residual.device)) + shift.to(residual.device)
    patches = transformer.proj_out(normed.type_as(residual))
    return unpatchify_channels_last(patches, grid, transformer.config.patch_size)


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    """The sampler's latents through the VAE, operation by operation as the pipeline does it."""
    config, shape = pipeline.vae.config, (1, pipeline.vae.config.z_dim, 1, 1, 1)
    latents = latents.to(pipeline.vae.dtype)
    mean = torch.tensor(config.latents_mean).view(shape).to(latents.device, latents.dtype)
    inverse_std = 1.0 / torch.tensor(config.latents_std).view(shape).to(latents.device, latents.dtype)
    video: Tensor = pipeline.vae.decode(latents / inverse_std + mean, return_dict=False)[0]
    return video


WAN = Architecture(
    family="wan",
    transformers=("WanTransformer3DModel", "SkyReelsV2Transformer3DModel"),
    pipelines=("WanPipeline", "WanImageToVideoPipeline", "SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"),
    stacks=(("blocks", BLOCK),),
    conditioning=("condition_embedder",),
    calls=calls,
    latent=latent,
    grid=patched_grid,
    width=width,
    multiples=multiples,
    head=head,
    decode=decode,
    scales=scales,
)
