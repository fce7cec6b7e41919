"""CogVideoX 1.0 and 1.5: joint attention on [text; video], branches as halves of one batch, frames before channels.

In 1.5 a token spans two latent frames; the pipelines put one more in front of the state to make them even, and drop it
before they decode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_lens.families import told
from dit_lens.families.base import (
    Architecture,
    Attends,
    Block,
    Grid,
    Latent,
    Met,
    Part,
    Reader,
    Settings,
    Stream,
    Term,
    first_text,
    last_video,
)
from dit_lens.families.common import (
    batched_calls,
    bias_share,
    causal_latent,
    classifier_free_float32,
    head_share,
    patch_of,
    patched_grid,
    posterior_mode,
    width_of_heads,
)


def _attention(stream: str, element: int, gate: int, part: Part) -> Term:
    def heads(met: Met, head: int) -> Tensor:
        attention, z = met.module.attn1, met["attn1.to_out.0.input"][:, part(met.video_tokens)]
        return head_share(z, attention.to_out[0], attention.heads, head, met["norm1.output"][gate])

    return Term(
        "attn",
        stream,
        ("norm1.output", "attn1.output"),
        lambda met: met["norm1.output"][gate] * met["attn1.output"][element],
        heads=heads,
        headless=lambda met: bias_share(met.module.attn1.to_out[0], met["norm1.output"][gate]),
        head_needs=("norm1.output", "attn1.to_out.0.input"),
    )


def _feed_forward(stream: str, gate: int, part: Part) -> Term:
    return Term(
        "ffn",
        stream,
        ("norm2.output", "ff.output"),
        lambda met: met["norm2.output"][gate] * met["ff.output"][:, part(met.video_tokens)],
    )


BLOCK = Block(
    kind="joint-single",
    streams=(Stream("video", "hidden_states", 0), Stream("text", "encoder_hidden_states", 1)),
    events=(
        "norm1.output",
        "attn1.to_out.0.input",
        "attn1.output",
        "norm2.input",
        "norm2.output",
        "ff.output",
    ),
    terms=(
        _attention("video", 0, 2, last_video),
        _attention("text", 1, 3, first_text),
        _feed_forward("video", 2, last_video),
        _feed_forward("text", 3, first_text),
    ),
    readers=(Reader("norm2.input", "video", 0), Reader("norm2.input", "text", 1)),
    attends=(Attends("attn1", "self", video=last_video, text=first_text),),
    told=(told.told("modulation", "video", "temb"),),
)


def refuse(pipeline: Any, settings: Settings) -> str | None:
    config = pipeline.transformer.config
    if settings.get("use_dynamic_cfg"):
        return "with use_dynamic_cfg the guidance scale moves from step to step; leave it off"
    tokens = config.max_text_seq_length
    placed = not config.use_rotary_positional_embeddings or config.use_learned_positional_embeddings
    if placed and settings.get("max_sequence_length", 226) != tokens:
        return f"this transformer's positions start after {tokens} tokens of text; give max_sequence_length={tokens}"
    return None


def latent(pipeline: Any, settings: Settings) -> Latent:
    channels, frames, high, wide = causal_latent("out_channels")(pipeline, settings)
    together, _, _ = patch_of(pipeline.transformer)
    return channels, math.ceil(frames / together) * together, high, wide


def multiples(pipeline: Any) -> tuple[int, int, int]:
    """The VAE decodes pairs of latent frames, and of an even number makes more than 1 + 4 k frames."""
    spatial = pipeline.vae_scale_factor_spatial * pipeline.transformer.config.patch_size
    return spatial, spatial, 2 * pipeline.vae_scale_factor_temporal


def head(transformer: Any, residual: Tensor, conditioning: Mapping[str, Any], grid: Grid) -> Tensor:
    temb = conditioning["time_embedding"]
    if "ofs_embedding" in conditioning:  # CogVideoX 1.5 image-to-video
        temb = temb + conditioning["ofs_embedding"]
    patches = transformer.proj_out(transformer.norm_out(transformer.norm_final(residual), temb=temb))
    cells = patches.reshape(len(patches), *grid, -1, *patch_of(transformer))
    # (B, F, H, W, C, p_t, p, p) to (B, F p_t, C, H p, W p)
    return cells.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)


def swap(x: Tensor, latent: Latent) -> Tensor:
    """(B, F, C, H, W) to (B, C, F, H, W), and back."""
    return x.transpose(1, 2)


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    """An even number of latent frames is that of 1.5, with the padding in front (see `multiples`)."""
    latents = latents.to(pipeline.vae.dtype).transpose(1, 2)
    padding = 1 - latents.shape[1] % 2
    video: Tensor = pipeline.decode_latents(latents[:, padding:])
    return video


def encode(pipeline: Any, video: Tensor) -> Tensor:
    """The padding of 1.5 repeats the first latent frame, as where diffusers pads an image's latents."""
    latents = posterior_mode(pipeline.vae, video) * pipeline.vae_scaling_factor_image
    padding = -latents.shape[2] % patch_of(pipeline.transformer)[0]
    return torch.cat([latents[:, :, :padding], latents], dim=2)


COGVIDEOX = Architecture(
    family="cogvideox",
    transformers=("CogVideoXTransformer3DModel",),
    pipelines=("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"),
    stacks=(("transformer_blocks", BLOCK),),
    conditioning=("time_embedding", "ofs_embedding"),
    calls=batched_calls,
    latent=latent,
    grid=patched_grid,
    width=width_of_heads,
    multiples=multiples,
    head=head,
    head_told=told.arguments_of("norm_out", "temb"),
    decode=decode,
    encode=encode,
    guide=classifier_free_float32,
    unpack=swap,
    pack=swap,
    refuse=refuse,
)
