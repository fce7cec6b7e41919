"""LTX-Video in miniature, with the VAE of 0.9.5 and later, which is told at what time it decodes."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.cogvideox import text
from dit_lens.families.tiny.samples import two_prompts
from dit_lens.families.tiny.wan import SHORT

CHANNELS = 16


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As scripts/convert_ltx_to_diffusers.py and convert_ltx2_to_diffusers.py of diffusers write it."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


#: Compresses space by 32 and time by 8, as the real ones of LTX-Video and LTX-2.
COMPRESSION: dict[str, Any] = {
    "latent_channels": CHANNELS,
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1, 1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, True, True),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "decoder_inject_noise": (False, False, False, False),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}


def _vae() -> AutoencoderKLLTXVideo:
    # Of the encoder blocks of 0.9.5 there is one fewer than there are widths.
    config = {**COMPRESSION, "block_out_channels": (8,) * 5}
    vae = AutoencoderKLLTXVideo(**config, down_block_types=("LTXVideo095DownBlock3D",) * 4, timestep_conditioning=True)
    return with_statistics(vae.eval())


def with_statistics(vae: Any) -> Any:
    """Of latents that are not normal by themselves: what a VAE keeps beside its weights."""
    vae.latents_mean.fill_(0.1)
    vae.latents_std.fill_(1.1)
    return vae


def _transformer() -> LTXVideoTransformer3DModel:
    return LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=24,
        cross_attention_dim=48,
        caption_channels=32,
        num_layers=4,
    ).eval()


def _text_to_video() -> LTXPipeline:
    return LTXPipeline(**text(), vae=_vae(), transformer=_transformer(), scheduler=scheduler())


#: Token grid (2, 3, 4).
SIZE: dict[str, Any] = {
    "height": 96,
    "width": 128,
    "num_frames": 9,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    **SHORT,
}

LTX_VIDEO_T2V = Tiny("ltx-video", _text_to_video, two_prompts, SIZE)
