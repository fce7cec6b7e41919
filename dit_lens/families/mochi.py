"""Mochi 1: joint attention of video and a narrower text, guidance branches as halves of one batch.

What attention adds passes a norm first, so heads do not sum. The last block leaves the text as it is. The pipeline
makes its latents before it sets its timesteps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_lens.families import told
from dit_lens.families.base import (
    Architecture,
    Attends,
    Block,
    Grid,
    Met,
    Reader,
    Settings,
    Stream,
    Term,
    first_video,
    last_text,
)
from dit_lens.families.common import (
    batched_calls,
    causal_latent,
    classifier_free_float32,
    patch_of,
    patched_grid,
    posterior_mode,
    refuse_timesteps,
    unpatchify_channels_last,
    width_of_heads,
)


def _unpadded(arguments: Mapping[str, Any], row: int) -> Tensor:
    """The text's keys in a row are its words without the padding."""
    mask: Tensor = arguments["attention_mask"][row].flatten().bool()
    return mask


def _text_valid(met: Met) -> Tensor:
    mask: Tensor = met.arguments["encoder_attention_mask"]
    return mask.bool()


_TOLD = (
    told.told("modulation", "video", "temb"),
    told.mask("encoder_attention_mask", refuse=told.words_first),
)
_JOINT = (Attends("attn1", "self", video=first_video, text=last_text, positions=_unpadded),)
_STREAMS = (Stream("video", "hidden_states", 0), Stream("text", "encoder_hidden_states", 1))
# The norms after attention and feed-forward apply the gate, and their outputs are what is added; heads stay None.
_VIDEO = (
    Term("attn", "video", ("norm2.output",), lambda met: met["norm2.output"]),
    Term("ffn", "video", ("norm4.output",), lambda met: met["norm4.output"]),
)
_TEXT = (
    Term("attn", "text", ("norm2_context.output",), lambda met: met["norm2_context.output"]),
    Term("ffn", "text", ("norm4_context.output",), lambda met: met["norm4_context.output"]),
)

BLOCK = Block(
    kind="dual",
    streams=_STREAMS,
    events=(
        "norm2.output",
        "norm3.input",
        "norm4.output",
        "norm2_context.output",
        "norm3_context.input",
        "norm4_context.output",
    ),
    terms=(*_VIDEO, *_TEXT),
    readers=(Reader("norm3.input", "video"), Reader("norm3_context.input", "text")),
    attends=_JOINT,
    text_valid=_text_valid,
    told=_TOLD,
)

#: Its text is read and returned as it came.
LAST = Block(
    kind="dual",
    streams=_STREAMS,
    events=("norm2.output", "norm3.input", "norm4.output"),
    terms=_VIDEO,
    readers=(Reader("norm3.input", "video"),),
    attends=_JOINT,
    text_valid=_text_valid,
    told=_TOLD,
)


class _Mochi(Architecture):
    """Two kinds of block in one list: those of ``context_pre_only`` have no terms in the text."""

    def layers(self, transformer: Any) -> list[tuple[str, nn.Module, Block]]:
        return [
            (path, module, LAST if module.context_pre_only else block)
            for path, module, block in super().layers(transformer)
        ]


def refuse(pipeline: Any, settings: Settings) -> str | None:
    if settings["num_inference_steps"] < 2:
        return "its schedule has a linear and a quadratic half; give at least two steps"
    return refuse_timesteps(pipeline, settings)


def multiples(pipeline: Any) -> tuple[int, int, int]:
    spatial = pipeline.vae_spatial_scale_factor * pipeline.transformer.config.patch_size
    return spatial, spatial, pipeline.vae_temporal_scale_factor


def head(transformer: Any, residual: Tensor, conditioning: Mapping[str, Any], grid: Grid) -> Tensor:
    patches = transformer.proj_out(transformer.norm_out(residual, conditioning["time_embed"][0]))
    return unpatchify_channels_last(patches, grid, patch_of(transformer))


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    config, latents = pipeline.vae.config, latents.to(pipeline.vae.dtype)
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (
            torch.tensor(numbers).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
            for numbers in (config.latents_mean, config.latents_std)
        )
        latents = latents * std / config.scaling_factor + mean
    else:
        latents = latents / config.scaling_factor
    video: Tensor = pipeline.vae.decode(latents, return_dict=False)[0]
    return video


def encode(pipeline: Any, video: Tensor) -> Tensor:
    config, mode = pipeline.vae.config, posterior_mode(pipeline.vae, video)
    if config.latents_mean is None or config.latents_std is None:
        latents: Tensor = mode * config.scaling_factor
        return latents
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1).to(mode) for x in (config.latents_mean, config.latents_std))
    return (mode - mean) * config.scaling_factor / std


MOCHI = _Mochi(
    family="mochi",
    transformers=("MochiTransformer3DModel",),
    pipelines=("MochiPipeline",),
    stacks=(("transformer_blocks", BLOCK),),
    conditioning=("time_embed",),
    calls=batched_calls,
    latent=causal_latent("in_channels"),
    grid=patched_grid,
    width=width_of_heads,
    multiples=multiples,
    head=head,
    head_told=told.arguments_of("norm_out", "conditioning_embedding"),
    decode=decode,
    encode=encode,
    guide=classifier_free_float32,
    refuse=refuse,
    late_timesteps=True,
    causal_decoder=True,
)
