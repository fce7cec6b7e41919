"""Wan 2.1 and 2.2: one video stream, guidance branches as separate calls, the conditional one first.

Wan 2.2 A14B hands the later steps to a second transformer of the same kind; Wan 2.2 TI2V gives each token its own time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_lens.families import told
from dit_lens.families.base import Architecture, Block, Fixed, Grid, Met, Reader, Settings, Stream, Term
from dit_lens.families.common import (
    causal_latent,
    gated_attention,
    patched_grid,
    posterior_mode,
    separate_calls,
    unpatchify_channels_last,
    width_of_heads,
)


def _gate(met: Met, index: int) -> Tensor:
    """Gate of the self-attention (2) or the feed-forward (5): (B, 1, D), or (B, N, D) where each token has its time."""
    temb = met.arguments["temb"]
    gate: Tensor = met.module.scale_shift_table[:, index] + temb[..., index, :].float()
    return gate.unsqueeze(1) if temb.ndim == 3 else gate


#: Positions of the text where the context is [image; text]; diffusers' attention counts them from the end.
_TEXT_LENGTH = 512


def _sees_image(block: Any) -> bool:
    return block.attn2.add_k_proj is not None


def _text(met: Met) -> slice:
    return slice(-_TEXT_LENGTH, None) if _sees_image(met.module) else slice(None)


def _image(met: Met) -> slice:
    return slice(0, -_TEXT_LENGTH)


BLOCK = Block(
    kind="single",
    streams=(Stream("video", "hidden_states"),),
    events=(
        "attn1.to_out.0.input",
        "attn1.output",
        "norm2.input",
        "attn2.output",
        "norm3.input",
        "ffn.output",
    ),
    terms=(
        gated_attention(lambda met: _gate(met, 2)),
        Term("cross_attn", "video", ("attn2.output",), lambda met: met["attn2.output"]),
        Term("ffn", "video", ("ffn.output",), lambda met: met["ffn.output"].float() * _gate(met, 5)),
    ),
    readers=(Reader("norm2.input", "video"), Reader("norm3.input", "video")),
    told=(
        told.part_of_context("text", _text),
        told.part_of_context("image", _image, _sees_image),
        told.told("modulation", "video", "temb"),
    ),
)


def scales(pipeline: Any, settings: Settings, expert: str | None) -> dict[str, float]:
    """The second expert may have a guidance scale of its own."""
    second = settings.get("guidance_scale_2")
    own = second if expert == "low_noise" and second is not None else settings["guidance_scale"]
    return {"guidance_scale": float(own)}


def refuse(pipeline: Any, settings: Settings) -> str | None:
    """What diffusers would do wrong without a word, or fail at deep inside the transformer."""
    config, last_image = pipeline.transformer.config, settings.get("last_image") is not None
    if config.added_kv_proj_dim is not None and settings.get("max_sequence_length", 512) != 512:
        return "the transformer takes the last 512 tokens of its context for the text; leave max_sequence_length at 512"
    if last_image and pipeline.config.get("expand_timesteps"):
        return "where each token has its own time the pipeline ignores last_image"
    if config.image_dim is not None and last_image != (config.pos_embed_seq_len is not None):
        return f"this model was trained {'without a last_image' if last_image else 'with a last_image; give one'}"
    return None


def multiples(pipeline: Any) -> tuple[int, int, int]:
    """The pipelines crop to whole patches and want multiples of 16; the VAE encodes one frame, then chunks of four."""
    _, high, wide = pipeline.transformer.config.patch_size
    spatial = pipeline.vae_scale_factor_spatial
    return math.lcm(16, spatial * high), math.lcm(16, spatial * wide), max(4, pipeline.vae_scale_factor_temporal)


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


def encode(pipeline: Any, video: Tensor) -> Tensor:
    config, shape = pipeline.vae.config, (1, pipeline.vae.config.z_dim, 1, 1, 1)
    mode = posterior_mode(pipeline.vae, video)
    mean, std = (torch.tensor(x).view(shape).to(mode) for x in (config.latents_mean, config.latents_std))
    return (mode - mean) / std


def fixed(pipeline: Any, prepared: tuple[Any, ...]) -> Fixed | None:
    """TI2V with an image puts the image's latents in the place of the first frame."""
    if len(prepared) != 2:
        return None
    condition, mask = prepared
    return Fixed(mask.clone(), condition.clone())


def fixed_frames(pipeline: Any, settings: Settings) -> tuple[int, ...]:
    """TI2V with an image gives the denoiser the image's latents in the place of the state's first frame."""
    return (0,) if pipeline.config.get("expand_timesteps") and "ImageToVideo" in type(pipeline).__name__ else ()


def call_arguments(kwargs: dict[str, Any], batch: int) -> dict[str, Any]:
    """Of B pictures the pipeline repeats the embeddings B times: the first B rows are those of the batch."""
    seen = kwargs.get("encoder_hidden_states_image")
    return kwargs if seen is None else {**kwargs, "encoder_hidden_states_image": seen[:batch]}


WAN = Architecture(
    family="wan",
    transformers=("WanTransformer3DModel",),
    pipelines=("WanPipeline", "WanImageToVideoPipeline"),
    stacks=(("blocks", BLOCK),),
    conditioning=("condition_embedder",),
    calls=separate_calls,
    latent=causal_latent("out_channels"),
    grid=patched_grid,
    width=width_of_heads,
    multiples=multiples,
    head=head,
    head_told=told.element("condition_embedder", 0),
    decode=decode,
    encode=encode,
    scales=scales,
    refuse=refuse,
    fixed=fixed,
    fixed_frames=fixed_frames,
    call_arguments=call_arguments,
    shared_image=True,
    causal_decoder=True,
)
