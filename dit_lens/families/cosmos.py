"""Cosmos 1.0 text-to-world: one video stream to which every block first adds the learnable positions ("pos").

Branches are separate calls, the conditional one first. The sampler's state is data plus sigma times noise, the denoiser
is given that state scaled to unit variance, and guidance combines clean estimates, which are affine in the raw
prediction with factors that all branches share: the same weights combine the raw predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.utils import is_torchvision_available
from torch import Tensor

from dit_lens.errors import UnsupportedModel
from dit_lens.families import told
from dit_lens.families.base import Architecture, Block, Grid, Met, Reader, Settings, Stream, Term
from dit_lens.families.common import (
    causal_latent,
    head_share,
    patched_grid,
    posterior_mode,
    separate_calls,
    width_of_heads,
)


def _gated(module: str, norm: str) -> Any:
    """What a module adds under the gate that its adaptive norm gives along with the normed stream."""
    return lambda met: met[f"{norm}.output"][1] * met[f"{module}.output"]


def _head(met: Met, head: int) -> Tensor:
    attention, z = met.module.attn1, met["attn1.to_out.0.input"]
    return head_share(z, attention.to_out[0], attention.heads, head, met["norm1.output"][1])


BLOCK = Block(
    kind="single",
    streams=(Stream("video", "hidden_states"),),
    events=(
        "norm1.input",
        "norm1.output",
        "attn1.to_out.0.input",
        "attn1.output",
        "norm2.input",
        "norm2.output",
        "attn2.output",
        "norm3.input",
        "norm3.output",
        "ff.output",
    ),
    terms=(
        Term("pos", "video", (), lambda met: met.arguments["extra_pos_emb"]),
        Term(  # its output projection has no bias, so nothing is headless
            "attn",
            "video",
            ("norm1.output", "attn1.output"),
            _gated("attn1", "norm1"),
            heads=_head,
            head_needs=("norm1.output", "attn1.to_out.0.input"),
        ),
        Term("cross_attn", "video", ("norm2.output", "attn2.output"), _gated("attn2", "norm2")),
        Term("ffn", "video", ("norm3.output", "ff.output"), _gated("ff", "norm3")),
    ),
    readers=(Reader("norm1.input", "video"), Reader("norm2.input", "video"), Reader("norm3.input", "video")),
    told=(
        told.told("context", "text", "encoder_hidden_states"),
        told.told("modulation", "video", "embedded_timestep", "temb"),
    ),
)


def guide(velocities: Mapping[str, Tensor], scales: Mapping[str, float], state: Tensor, sigma: float) -> Tensor:
    """Cosmos counts the scale from the conditional prediction: a scale of 0 would be no guidance."""
    cond = velocities["cond"]
    if "uncond" not in velocities:
        return cond
    return cond + scales["guidance_scale"] * (cond - velocities["uncond"])


def refuse(pipeline: Any, settings: Settings) -> str | None:
    if pipeline.transformer.learnable_pos_embed is None:
        return "a transformer without learnable positions (Cosmos 2) adds no pos in its blocks"
    if pipeline.transformer.config.concat_padding_mask and not is_torchvision_available():
        return "diffusers resizes this model's padding mask with torchvision; install it"
    return None


def multiples(pipeline: Any) -> tuple[int, int, int]:
    return 16, 16, pipeline.vae_scale_factor_temporal


def head(transformer: Any, residual: Tensor, conditioning: Mapping[str, Any], grid: Grid) -> Tensor:
    temb, embedded_timestep = conditioning["time_embed"]
    patches = transformer.proj_out(transformer.norm_out(residual, embedded_timestep, temb))
    time, high, wide = transformer.config.patch_size
    cells = patches.unflatten(2, (high, wide, time, -1)).unflatten(1, grid)
    return cells.permute(0, 7, 1, 6, 2, 4, 3, 5).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    """Through the VAE, whose statistics are per channel and latent frame, and past the pipeline's safety checker."""
    config, sigma_data = pipeline.vae.config, pipeline.scheduler.config.sigma_data
    if config.latents_mean is None:
        latents = latents / sigma_data
    else:
        shape = (1, config.latent_channels, -1, 1, 1)
        mean, std = (
            torch.tensor(x).view(shape)[:, :, : latents.size(2)].to(latents)
            for x in (config.latents_mean, config.latents_std)
        )
        latents = latents * std / sigma_data + mean
    return _checked(pipeline, pipeline.vae.decode(latents.to(pipeline.vae.dtype), return_dict=False)[0])


def encode(pipeline: Any, video: Tensor) -> Tensor:
    config, mode = pipeline.vae.config, posterior_mode(pipeline.vae, video)
    latents: Tensor = mode * pipeline.scheduler.config.sigma_data
    if config.latents_mean is None:
        return latents
    shape = (1, config.latent_channels, -1, 1, 1)
    mean, std = (
        torch.tensor(x).view(shape)[:, :, : mode.size(2)].to(mode) for x in (config.latents_mean, config.latents_std)
    )
    return (mode - mean) * pipeline.scheduler.config.sigma_data / std


def _checked(pipeline: Any, video: Tensor) -> Tensor:
    """The pipeline shows its safety checker 8-bit frames, and these are what it returns."""
    checker = pipeline.safety_checker
    frames = (pipeline.video_processor.postprocess_video(video, output_type="np") * 255).astype(np.uint8)
    checker.to(video.device)
    checked = [checker.check_video_safety(clip) for clip in frames]
    checker.to("cpu")
    if any(clip is None for clip in checked):
        raise UnsupportedModel("the pipeline's safety checker blocked a decoded video")
    return torch.from_numpy(np.stack(checked).astype(np.float32) / 255.0 * 2 - 1).permute(0, 4, 1, 2, 3)


COSMOS = Architecture(
    family="cosmos",
    transformers=("CosmosTransformer3DModel",),
    pipelines=("CosmosTextToWorldPipeline",),
    stacks=(("transformer_blocks", BLOCK),),
    conditioning=("time_embed",),
    calls=separate_calls,
    latent=causal_latent("in_channels"),
    grid=patched_grid,
    width=width_of_heads,
    multiples=multiples,
    head=head,
    head_told=told.arguments_of("norm_out", "embedded_timestep", "temb"),
    decode=decode,
    encode=encode,
    guide=guide,
    refuse=refuse,
    causal_decoder=True,
)
