"""Wan 2.1 and 2.2 in miniature."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from PIL import Image

from dit_lens.organisms.build import OrganismConfig, build_text_encoder, build_tokenizer
from dit_lens.tiny.base import Tiny

_TEXT = OrganismConfig()


def two_prompts() -> tuple[dict[str, Any], dict[str, Any]]:
    return {"prompt": "move the blue circle"}, {"prompt": "draw the red square then the star"}


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Smooth random colours, so that a VAE has something to see."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def vae(channels: int = 16) -> AutoencoderKLWan:
    """Compresses space by 8 and time by 4, as the real one."""
    return AutoencoderKLWan(
        base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * channels, latents_std=[1.1] * channels,
    )  # fmt: skip


def transformer(in_channels: int = 16, out_channels: int = 16, **more: Any) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=in_channels,
        out_channels=out_channels, text_dim=_TEXT.text_width, freq_dim=32, ffn_dim=48, num_layers=4,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=64, **more,
    )  # fmt: skip


def _text_to_video() -> WanPipeline:
    return WanPipeline(
        tokenizer=build_tokenizer(_TEXT.words),
        text_encoder=build_text_encoder(_TEXT).eval(),
        vae=vae().eval(),
        scheduler=UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        transformer=transformer().eval(),
    )


#: Token grid (2, 3, 4).
_SIZE = {"height": 48, "width": 64, "num_frames": 5, "num_inference_steps": 3, "guidance_scale": 3.0}

WAN21_T2V = Tiny("wan2.1-t2v", _text_to_video, two_prompts, {**_SIZE, "max_sequence_length": 16})
