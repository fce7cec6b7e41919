"""CogVideoX in miniature: 1.0 as the 2b model, 1.5 as CogVideoX1.5-5B."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.samples import two_prompts
from dit_lens.families.tiny.text import WORDS, build_tokenizer
from dit_lens.families.tiny.wan import SHORT

_TEXT_WIDTH = 32

#: As scripts/convert_cogvideox_to_diffusers.py of diffusers writes it for 2b.
_SCHEDULE: dict[str, Any] = {
    "snr_shift_scale": 3.0,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}


def text() -> dict[str, Any]:
    """A word-level tokenizer and a one-layer T5 encoder, which Mochi and Allegro have too."""
    config = T5Config(
        vocab_size=len(WORDS), d_model=_TEXT_WIDTH, d_kv=8, d_ff=64, num_layers=1, num_heads=4, pad_token_id=0
    )
    return {"tokenizer": build_tokenizer(WORDS), "text_encoder": T5EncoderModel(config).eval()}


def _vae(scaling_factor: float) -> AutoencoderKLCogVideoX:
    """Compresses space by 8 and time by 4, as the real one."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=48,
        sample_width=64,
        scaling_factor=scaling_factor,
    ).eval()


def _transformer(**more: Any) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        time_embed_dim=16,
        text_embed_dim=_TEXT_WIDTH,
        num_layers=4,
        max_text_seq_length=16,
        **more,
    ).eval()


def _one() -> CogVideoXPipeline:
    transformer = _transformer(sample_height=4, sample_width=8, sample_frames=9)
    return CogVideoXPipeline(
        **text(), vae=_vae(1.15258426), transformer=transformer, scheduler=CogVideoXDDIMScheduler(**_SCHEDULE)
    )


def _one_and_a_half() -> CogVideoXPipeline:
    """With the scheduler that CogVideo's own cli_demo.py takes for the 5b models, whose SNR is not shifted."""
    transformer = _transformer(
        patch_size_t=2, use_rotary_positional_embeddings=True, sample_height=6, sample_width=8, sample_frames=9
    )
    return CogVideoXPipeline(
        **text(),
        vae=_vae(0.7),
        transformer=transformer,
        scheduler=CogVideoXDPMScheduler(**{**_SCHEDULE, "snr_shift_scale": 1.0}),
    )


_SIZE = {"num_frames": 9, "num_inference_steps": 3, "guidance_scale": 3.0, **SHORT}

#: Token grid (3, 2, 4).
COGVIDEOX_10 = Tiny("cogvideox-1.0", _one, two_prompts, {**_SIZE, "height": 32, "width": 64})
#: Three latent frames and one of padding make a token grid of (2, 3, 4).
COGVIDEOX_15 = Tiny("cogvideox-1.5", _one_and_a_half, two_prompts, {**_SIZE, "height": 48, "width": 64})
