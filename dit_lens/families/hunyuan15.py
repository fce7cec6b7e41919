"""HunyuanVideo-1.5: the dual blocks of HunyuanVideo alone, guided by the pipeline's guider instead of an argument.

Branches are separate calls, the conditional one first. The text stream holds [image; glyphs; prompt], in each row first
the tokens that count and then the padding of all three: one index means different words in different rows. There is no
callback at the end of a step, so the state is seen where the scheduler makes it. The image-to-video pipeline does not
fit: it takes neither height nor width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit_lens.families import told
from dit_lens.families.base import Architecture, Grid, Settings
from dit_lens.families.common import causal_latent, patched_grid, width_of_heads
from dit_lens.families.hunyuan import DUAL, decode, encode, project_out


def _guided(guider: Any) -> bool:
    return guider._enabled and not math.isclose(guider.guidance_scale, 1.0)


def calls(pipeline: Any, settings: Settings) -> tuple[tuple[str, ...], ...]:
    return (("cond",), ("uncond",)) if _guided(pipeline.guider) else (("cond",),)


def scales(pipeline: Any, settings: Settings, expert: str | None) -> dict[str, float]:
    guider = pipeline.guider
    return {"guidance_scale": float(guider.guidance_scale) if _guided(guider) else 1.0}


def refuse(pipeline: Any, settings: Settings) -> str | None:
    """Anything but plain classifier-free guidance over all steps."""
    guider = pipeline.guider
    if type(guider).__name__ != "ClassifierFreeGuidance":
        return f"guider {type(guider).__name__} is not modelled; set pipeline.guider to a ClassifierFreeGuidance"
    if guider.guidance_rescale > 0:
        return f"the guider's guidance_rescale={guider.guidance_rescale} is not modelled; set it to 0"
    if not guider._enabled:
        return None
    if guider.use_original_formulation:
        return "the guider's use_original_formulation is not modelled; guide with its default, and a scale one larger"
    if (guider._start, guider._stop) != (0.0, 1.0):
        return f"the guider guides only part of the steps ({guider._start} to {guider._stop}); set 0 to 1"
    return None


def pipeline_arguments(arguments: dict[str, Any], batch: int) -> dict[str, Any]:
    """The pipeline takes a negative prompt only as one string per row."""
    negative = arguments.get("negative_prompt")
    return {**arguments, "negative_prompt": [negative] * batch} if isinstance(negative, str) else arguments


def multiples(pipeline: Any) -> tuple[int, int, int]:
    """The pipeline checks nothing and rounds down: whole latent cells and whole patches."""
    spatial = pipeline.vae_scale_factor_spatial * pipeline.transformer.config.patch_size
    return spatial, spatial, pipeline.vae_scale_factor_temporal


def head(transformer: Any, residual: Tensor, conditioning: Mapping[str, Any], grid: Grid) -> Tensor:
    return project_out(transformer, residual, conditioning["time_embed"], grid)


HUNYUAN_VIDEO_15 = Architecture(
    family="hunyuanvideo-1.5",
    transformers=("HunyuanVideo15Transformer3DModel",),
    pipelines=("HunyuanVideo15Pipeline",),
    stacks=(("transformer_blocks", DUAL),),
    conditioning=("time_embed",),
    calls=calls,
    latent=causal_latent("out_channels"),
    grid=patched_grid,
    width=width_of_heads,
    multiples=multiples,
    head=head,
    head_told=told.arguments_of("norm_out", "conditioning_embedding"),
    decode=decode,
    encode=encode,
    scales=scales,
    refuse=refuse,
    pipeline_arguments=pipeline_arguments,
    step_callback=False,
    causal_decoder=True,
    decodes_batches=False,  # the mask of shape (B, N, N) of its VAE's attention is none for (B, 1, N, D)
)
