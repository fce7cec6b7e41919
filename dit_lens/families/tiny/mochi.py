"""Mochi in miniature."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.cogvideox import text
from dit_lens.families.tiny.samples import two_prompts
from dit_lens.families.tiny.wan import SHORT


def _vae() -> AutoencoderKLMochi:
    """Compresses space by 8 and time by 6, as the real one; its norms want groups of 32 channels."""
    return AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        add_attention_block=(False,) * 5,
    ).eval()


def _transformer() -> MochiTransformer3DModel:
    """The text is 24 wide and the video 32."""
    model = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        pooled_projection_dim=24,
        text_embed_dim=32,
        time_embed_dim=32,
    ).eval()
    torch.nn.init.normal_(model.pos_frequencies)  # made as zeros, to be learned
    return model


def _text_to_video() -> MochiPipeline:
    # The published model sets invert_sigmas, and the pipeline brings sigmas of its own.
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return MochiPipeline(**text(), vae=_vae(), transformer=_transformer(), scheduler=scheduler)


_SETTINGS: dict[str, Any] = {
    "height": 48,
    "width": 64,
    "num_frames": 7,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    **SHORT,
}

#: Token grid (2, 3, 4).
MOCHI_T2V = Tiny("mochi", _text_to_video, two_prompts, _SETTINGS)
