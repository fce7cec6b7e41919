"""Allegro in miniature; the scheduler is that of the single_inference.py published with the model."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    EulerAncestralDiscreteScheduler,
)

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.cogvideox import text
from dit_lens.families.tiny.samples import two_prompts
from dit_lens.families.tiny.wan import SHORT


def _vae() -> AutoencoderKLAllegro:
    """Compresses space by 8 and time by 4, as the real one, and can decode only in tiles: here of 24 x 128 x 128."""
    return AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, sample_size=128
    ).eval()


def _transformer() -> AllegroTransformer3DModel:
    return AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=4,
        cross_attention_dim=48,
        caption_channels=32,
        sample_height=16,
        sample_width=22,
        sample_frames=6,
    ).eval()


def _text_to_video() -> AllegroPipeline:
    return AllegroPipeline(
        **text(), vae=_vae(), transformer=_transformer(), scheduler=EulerAncestralDiscreteScheduler()
    )


#: Token grid (6, 8, 11), two tiles. Without clean_caption the pipeline needs neither bs4 nor ftfy.
_SETTINGS: dict[str, Any] = {
    "height": 128,
    "width": 176,
    "num_frames": 24,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "clean_caption": False,
    **SHORT,
}

ALLEGRO_T2V = Tiny(
    "allegro", _text_to_video, two_prompts, _SETTINGS, ready=lambda pipeline: pipeline.vae.enable_tiling()
)
