"""LTX-2: as LTX-Video, with an audio stream that the blocks carry and up to three calls a step.

After the call of both prompts' rows come one with the self-attention of some blocks left out ("stg") and one in which
audio and video do not see each other ("modality"), both with the positive prompt. They are combined as clean estimates.
Only the video is addressed: the audio, its state and its guidance go on as the pipeline makes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_lens.families import told
from dit_lens.families.base import Architecture, Block, Met, Reader, Settings, Stream, Term
from dit_lens.families.common import causal_latent, patched_grid, refuse_timesteps, width_of_heads
from dit_lens.families.ltx import (
    ATTENTION,
    FEED_FORWARD,
    decoded,
    denormalized,
    encode,
    gate,
    head,
    multiples,
    pack,
    refuse_noisy_decoding,
    unpack,
)

#: What runs in a block only where audio and video see each other.
_ACROSS = ("audio_to_video_norm.input", "audio_to_video_attn.output")


def _cross_attention(met: Met) -> Tensor:
    """Under a gate from LTX-2.3 on."""
    added: Tensor = met["attn2.output"]
    return added * gate(met, 8) if met.module.video_cross_attn_adaln else added


def _from_audio(met: Met) -> Tensor:
    """What the video takes from the audio; nothing in the branch "modality"."""
    if not met.arguments["use_a2v_cross_attention"]:
        return torch.zeros_like(met.arguments["hidden_states"])
    table = met.module.video_a2v_cross_attn_scale_shift_table  # four rows of scales and shifts, then the gate
    added: Tensor = (table[4] + met.arguments["temb_ca_gate"]) * met["audio_to_video_attn.output"]
    return added


def absent(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    return () if arguments["use_a2v_cross_attention"] or arguments["use_v2a_cross_attention"] else _ACROSS


BLOCK = Block(
    kind="single",
    streams=(Stream("video", "hidden_states", 0),),
    carried=(Stream("audio", "audio_hidden_states", 1),),
    events=(
        "attn1.to_out.0.input",
        "attn1.output",
        "norm2.input",
        "attn2.output",
        *_ACROSS,
        "norm3.input",
        "ff.output",
    ),
    terms=(
        ATTENTION,
        Term("cross_attn", "video", ("attn2.output",), _cross_attention),
        # After the cross-attention, also where no event of its own comes.
        Term("a2v", "video", ("attn2.output", "audio_to_video_attn.output"), _from_audio),
        FEED_FORWARD,
    ),
    readers=(
        Reader("norm2.input", "video"),
        Reader("audio_to_video_norm.input", "video"),
        Reader("norm3.input", "video"),
    ),
    absent=absent,
    text_valid=told.bias_valid("encoder_attention_mask"),
    told=(
        told.told("context", "text", "encoder_hidden_states"),
        told.told("context", "audio", "audio_hidden_states"),
        told.told("context", "audio_text", "audio_encoder_hidden_states"),
        told.told("modulation", "video", "temb", "temb_ca_scale_shift", "temb_ca_gate", "temb_prompt"),
        told.told(
            "modulation", "audio", "temb_audio", "temb_ca_audio_scale_shift", "temb_ca_audio_gate", "temb_prompt_audio"
        ),
        told.bias("encoder_attention_mask"),
        told.bias("audio_encoder_attention_mask", "audio_text"),
    ),
)


def _given(pipeline: Any, settings: Settings, name: str) -> float:
    """A scale as the pipeline takes it: the run's, or the pipeline's own default."""
    default = inspect.signature(type(pipeline).__call__).parameters[name].default
    return float(settings.get(name, default) or 0.0)


def _largest(pipeline: Any, settings: Settings, name: str) -> float:
    """Of the video's scale and the audio's, which has a default of its own and is the video's where it is None or 0."""
    video = _given(pipeline, settings, name)
    return max(video, _given(pipeline, settings, f"audio_{name}") or video)


def calls(pipeline: Any, settings: Settings) -> tuple[tuple[str, ...], ...]:
    """A branch that only the audio is guided by is computed for both."""
    guided = _largest(pipeline, settings, "guidance_scale") > 1
    first: tuple[str, ...] = ("uncond", "cond") if guided else ("cond",)
    stg = (("stg",),) if _largest(pipeline, settings, "stg_scale") > 0 else ()
    modality = (("modality",),) if _largest(pipeline, settings, "modality_scale") > 1 else ()
    return (first, *stg, *modality)


def scales(pipeline: Any, settings: Settings, expert: str | None) -> dict[str, float]:
    names = ("guidance_scale", "stg_scale", "modality_scale", "guidance_rescale")
    return {name: _given(pipeline, settings, name) for name in names}


def guide(velocities: Mapping[str, Tensor], scales: Mapping[str, float], state: Tensor, sigma: float) -> Tensor:
    """Clean estimates are pushed away from those of the other branches; their combination is turned back."""
    clean = {branch: state - v.float() * sigma for branch, v in velocities.items()}
    weights = {
        "uncond": scales["guidance_scale"] - 1,
        "stg": scales["stg_scale"],
        "modality": scales["modality_scale"] - 1,
    }
    cond = combined = clean["cond"]
    for branch, weight in weights.items():
        if branch in clean:
            combined = combined + weight * (cond - clean[branch])
    if scales["guidance_rescale"] > 0:
        combined = _rescaled(combined, cond, scales["guidance_rescale"])
    return (state - combined) / sigma


def _rescaled(combined: Tensor, cond: Tensor, share: float) -> Tensor:
    """Towards the standard deviation of the conditional estimate, row by row (Lin et al. 2023, arXiv 2305.08891)."""
    every = list(range(1, cond.ndim))
    ratio = cond.std(dim=every, keepdim=True) / combined.std(dim=every, keepdim=True)
    return share * (combined * ratio) + (1 - share) * combined


def refuse(pipeline: Any, settings: Settings) -> str | None:
    sigmas = settings.get("sigmas")
    if sigmas is not None and sigmas[0] != 1:
        return f"sigmas={sigmas!r}: the first must be 1, for a run starts at pure noise"
    return refuse_timesteps(pipeline, settings) or refuse_noisy_decoding(pipeline, settings)


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    return decoded(pipeline.vae, denormalized(pipeline.vae, latents.to(pipeline.text_encoder.dtype)))


LTX_2 = Architecture(
    family="ltx-2",
    transformers=("LTX2VideoTransformer3DModel",),
    pipelines=("LTX2Pipeline",),
    stacks=(("transformer_blocks", BLOCK),),
    conditioning=("time_embed",),
    calls=calls,
    latent=causal_latent("in_channels"),
    grid=patched_grid,
    width=width_of_heads,
    multiples=multiples,
    head=head,
    head_told=told.element("time_embed", 1),
    decode=decode,
    encode=encode,
    guide=guide,
    scales=scales,
    unpack=unpack,
    pack=pack,
    packs_given=True,
    refuse=refuse,
    late_timesteps=True,
    video_fixes_state=False,
)
