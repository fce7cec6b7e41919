"""Wan 2.1 and 2.2 in miniature; schedulers as in diffusers' ``convert_wan_to_diffusers.py``."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.samples import two_pictures, two_prompts
from dit_lens.families.tiny.text import WORDS, build_text_encoder, build_tokenizer

_TEXT_WIDTH = 32

#: Token grid (2, 3, 4).
SIZE = {"height": 48, "width": 64, "num_frames": 5, "num_inference_steps": 3, "guidance_scale": 3.0}
SHORT = {"max_sequence_length": 16}
_LARGE = {**SIZE, **SHORT, "height": 96, "width": 128}


def text() -> dict[str, Any]:
    return {"tokenizer": build_tokenizer(WORDS), "text_encoder": build_text_encoder(_TEXT_WIDTH).eval()}


def scheduler(flow_shift: float = 3.0) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=flow_shift)


def vae(channels: int = 16, **more: Any) -> AutoencoderKLWan:
    """Compresses space by 8 and time by 4, as the real one."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * channels,
        latents_std=[1.1] * channels,
        **more,
    ).eval()


def vae_22() -> AutoencoderKLWan:
    """Compresses space by 16: first 2 x 2 pixels to channels, then as before, with 48 channels of latents."""
    return vae(
        48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
    )


#: What the transformers of Wan and SkyReels-V2 are configured with.
NARROW: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_dim": _TEXT_WIDTH,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 4,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
#: Of one that also attends to the tokens of a CLIP image encoder.
SEEING: dict[str, Any] = {"in_channels": 36, "out_channels": 16, "image_dim": 24, "added_kv_proj_dim": 32}


def transformer(in_channels: int = 16, out_channels: int = 16, **more: Any) -> WanTransformer3DModel:
    return WanTransformer3DModel(in_channels=in_channels, out_channels=out_channels, **NARROW, **more).eval()


def image_encoder(kind: Any = CLIPVisionModel) -> dict[str, Any]:
    """A CLIP of five tokens and its preprocessing."""
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=16,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return {"image_encoder": kind(config).eval(), "image_processor": processor}


def _text_to_video() -> WanPipeline:
    return WanPipeline(**text(), vae=vae(), scheduler=scheduler(), transformer=transformer())


def _image_to_video() -> WanImageToVideoPipeline:
    return WanImageToVideoPipeline(
        **text(), vae=vae(), scheduler=scheduler(), transformer=transformer(**SEEING), **image_encoder()
    )


def _two_experts() -> WanPipeline:
    """Of three steps the first lies above the boundary."""
    return WanPipeline(
        **text(),
        vae=vae(),
        scheduler=scheduler(),
        transformer=transformer(),
        transformer_2=transformer(),
        boundary_ratio=0.875,
    )


def _token_times(kind: Any) -> Any:
    """TI2V 5B, from text or from text and an image: one transformer for both."""
    return kind(
        **text(), vae=vae_22(), scheduler=scheduler(5.0), transformer=transformer(48, 48), expand_timesteps=True
    )


WAN21_T2V = Tiny("wan2.1-t2v", _text_to_video, two_prompts, {**SIZE, **SHORT})
# With an image encoder the text must have the full 512 tokens.
WAN21_I2V = Tiny("wan2.1-i2v", _image_to_video, lambda: two_pictures(SIZE), SIZE)
WAN22_A14B = Tiny("wan2.2-a14b", _two_experts, two_prompts, {**SIZE, **SHORT, "guidance_scale_2": 2.0})
WAN22_TI2V = Tiny("wan2.2-ti2v", lambda: _token_times(WanPipeline), two_prompts, _LARGE)
WAN22_TI2V_IMAGE = Tiny(
    "wan2.2-ti2v-image",
    lambda: _token_times(WanImageToVideoPipeline),
    lambda: two_pictures(_LARGE),
    _LARGE,
)
