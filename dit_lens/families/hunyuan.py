"""HunyuanVideo: video and text attend to each other, first in dual blocks, then in single blocks with shared weights.

The guidance scale is an input of the transformer; a second branch exists only with true guidance, as a call of its own.
In a single block attention and feed-forward leave through one projection, so its columns are split between them and its
bias is a term of its own. The image-to-video pipeline does not fit: it drops the first frame of the state, or keeps
putting the image there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
    bias_share,
    causal_latent,
    channels_through,
    head_share,
    patch_of,
    patched_grid,
    posterior_mode,
    width_of_heads,
)

_VIDEO, _TEXT = Stream("video", "hidden_states", 0), Stream("text", "encoder_hidden_states", 1)
_JOINT = (Attends("attn", "self", video=first_video, text=last_text),)


def _text_valid(met: Met) -> Tensor:
    """From the mask over the keys: (B, 1, 1, video + N) of [video; text], (B, N) of the text in HunyuanVideo-1.5."""
    return _text_cells(met.arguments["attention_mask"], met).bool()


def _text_cells(mask: Tensor, met: Met) -> Tensor:
    """(B, N) of the text, as `_text_valid`."""
    return mask if mask.ndim == 2 else mask[:, 0, 0, met.video_tokens :]


_TOLD = (told.told("modulation", "video", "temb"), told.mask("attention_mask", _text_cells))


def _gate(met: Met, norm: str, element: int) -> Tensor:
    """A gate (B, 1, D) that an adaptive norm puts out beside the normed stream."""
    gate: Tensor = met[f"{norm}.output"][element]
    return gate.unsqueeze(1)


def _dual_attention(stream: str, norm: str, element: int, projection: str) -> Term:
    def projected(met: Met) -> nn.Module:
        return met.module.get_submodule(projection)

    return Term(
        "attn",
        stream,
        (f"{norm}.output", "attn.output"),
        lambda met: met["attn.output"][element] * _gate(met, norm, 1),
        heads=lambda met, head: head_share(
            met[f"{projection}.input"], projected(met), met.module.attn.heads, head, _gate(met, norm, 1)
        ),
        headless=lambda met: bias_share(projected(met), _gate(met, norm, 1)),
        head_needs=(f"{norm}.output", f"{projection}.input"),
    )


def _dual_feed_forward(stream: str, norm: str, module: str) -> Term:
    return Term(
        "ffn", stream, (f"{norm}.output", f"{module}.output"), lambda met: _gate(met, norm, 4) * met[f"{module}.output"]
    )


#: HunyuanVideo-1.5 has the same.
DUAL = Block(
    kind="dual",
    streams=(_VIDEO, _TEXT),
    events=(
        "norm1.output",
        "norm1_context.output",
        "attn.to_out.0.input",
        "attn.to_add_out.input",
        "attn.output",
        "norm2.input",
        "norm2_context.input",
        "ff.output",
        "ff_context.output",
    ),
    terms=(
        _dual_attention("video", "norm1", 0, "attn.to_out.0"),
        _dual_attention("text", "norm1_context", 1, "attn.to_add_out"),
        _dual_feed_forward("video", "norm1", "ff"),
        _dual_feed_forward("text", "norm1_context", "ff_context"),
    ),
    readers=(Reader("norm2.input", "video"), Reader("norm2_context.input", "text")),
    attends=_JOINT,
    text_valid=_text_valid,
    told=_TOLD,
)


_PARTS = {"video": first_video, "text": last_text}


def _given(met: Met, stream: str) -> Tensor:
    """What the shared projection is given of a stream: [attention; feed-forward] side by side."""
    given: Tensor = met["proj_out.input"][:, _PARTS[stream](met.video_tokens)]
    return given


def _through(met: Met, given: Tensor, channels: slice) -> Tensor:
    """What the shared projection makes of some of its inputs under the gate; its bias is left out."""
    return _gate(met, "norm", 1) * channels_through(met.module.proj_out, given, channels)


def _single_attention(met: Met, stream: str, head: int | None = None) -> Tensor:
    width, heads = met.module.proj_out.out_features, met.module.attn.heads
    each = width // heads
    channels = slice(0, width) if head is None else slice(head * each, (head + 1) * each)
    return _through(met, _given(met, stream), channels)


def _single_feed_forward(met: Met, stream: str) -> Tensor:
    return _through(met, _given(met, stream), slice(met.module.proj_out.out_features, None))


def _single_bias(met: Met, stream: str) -> Tensor:
    bias = bias_share(met.module.proj_out, _gate(met, "norm", 1))
    return bias.expand(-1, _given(met, stream).shape[1], -1)


def _single_terms(stream: str) -> tuple[Term, ...]:
    needs = ("norm.output", "proj_out.input")
    return (
        Term(
            "attn",
            stream,
            needs,
            lambda met: _single_attention(met, stream),
            heads=lambda met, head: _single_attention(met, stream, head),
            head_needs=needs,
        ),
        Term("ffn", stream, needs, lambda met: _single_feed_forward(met, stream)),
        Term("bias", stream, needs, lambda met: _single_bias(met, stream)),
    )


SINGLE = Block(
    kind="joint-single",
    streams=(_VIDEO, _TEXT),
    events=("norm.output", "proj_out.input"),
    terms=(*_single_terms("video"), *_single_terms("text")),
    attends=_JOINT,
    text_valid=_text_valid,
    told=_TOLD,
)


def _true_guidance(settings: Settings) -> bool:
    embeds = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
    negative = settings.get("negative_prompt") is not None or all(settings.get(e) is not None for e in embeds)
    return negative and settings.get("true_cfg_scale", 1.0) > 1


def calls(pipeline: Any, settings: Settings) -> tuple[tuple[str, ...], ...]:
    return (("cond",), ("uncond",)) if _true_guidance(settings) else (("cond",),)


def scales(pipeline: Any, settings: Settings, expert: str | None) -> dict[str, float]:
    """``guidance_scale`` is not among them: the transformer is given it as an input."""
    return {"true_cfg_scale": float(settings.get("true_cfg_scale", 1.0)) if _true_guidance(settings) else 1.0}


def guide(velocities: Mapping[str, Tensor], scales: Mapping[str, float], state: Tensor, sigma: float) -> Tensor:
    if "uncond" not in velocities:
        return velocities["cond"]
    return velocities["uncond"] + scales["true_cfg_scale"] * (velocities["cond"] - velocities["uncond"])


def multiples(pipeline: Any) -> tuple[int, int, int]:
    """The pipeline wants multiples of 16; whole patches need as much of the VAE's factor."""
    spatial = math.lcm(16, pipeline.vae_scale_factor_spatial * pipeline.transformer.config.patch_size)
    return spatial, spatial, pipeline.vae_scale_factor_temporal


def head(transformer: Any, residual: Tensor, conditioning: Mapping[str, Any], grid: Grid) -> Tensor:
    return project_out(transformer, residual, conditioning["time_text_embed"][0], grid)


def project_out(transformer: Any, residual: Tensor, temb: Tensor, grid: Grid) -> Tensor:
    """The model's own norm and projection under the time embedding (B, D), and patches (C, p_t, p, p) to pixels."""
    patches = transformer.proj_out(transformer.norm_out(residual, temb))
    cells = patches.reshape(len(patches), *grid, -1, *patch_of(transformer))
    return cells.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    latents = latents.to(pipeline.vae.dtype) / pipeline.vae.config.scaling_factor
    video: Tensor = pipeline.vae.decode(latents, return_dict=False)[0]
    return video


def encode(pipeline: Any, video: Tensor) -> Tensor:
    latents: Tensor = posterior_mode(pipeline.vae, video) * pipeline.vae.config.scaling_factor
    return latents


def refuse(pipeline: Any, settings: Settings) -> str | None:
    if condition := pipeline.transformer.config.image_condition_type:
        return f"this transformer is conditioned on an image ({condition}); take a text-to-video one"
    return None


HUNYUAN_VIDEO = Architecture(
    family="hunyuanvideo",
    transformers=("HunyuanVideoTransformer3DModel",),
    pipelines=("HunyuanVideoPipeline",),
    stacks=(("transformer_blocks", DUAL), ("single_transformer_blocks", SINGLE)),
    conditioning=("time_text_embed",),
    calls=calls,
    latent=causal_latent("in_channels"),
    grid=patched_grid,
    width=width_of_heads,
    multiples=multiples,
    head=head,
    head_told=told.arguments_of("norm_out", "conditioning_embedding"),
    decode=decode,
    encode=encode,
    guide=guide,
    scales=scales,
    refuse=refuse,
)
