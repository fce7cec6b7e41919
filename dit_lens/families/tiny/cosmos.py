"""Cosmos 1.0 text-to-world in miniature; the scheduler is that of diffusers' ``convert_cosmos_to_diffusers.py``."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    ModelMixin,
)
from diffusers.configuration_utils import ConfigMixin
from transformers import T5Config, T5EncoderModel

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.samples import two_prompts
from dit_lens.families.tiny.text import WORDS, build_tokenizer

_WIDTH = 32


class NoCheck(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """Stands where the pipeline demands NVIDIA's safety checker, and finds every prompt and video safe.

    The real one is a package and several gigabytes of weights; random weights draw nothing that it could find.
    """

    config_name = "config.json"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.zeros(1))  # a model without weights cannot be saved

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def _text_encoder() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=_WIDTH, d_kv=8, d_ff=64, num_layers=1, num_heads=4, pad_token_id=0)
    ).eval()


def _vae() -> AutoencoderKLCosmos:
    """Compresses space and time by 8, as the real one."""
    return AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        num_layers=1,
        attention_resolutions=(32,),
        resolution=64,
    ).eval()


def _transformer() -> CosmosTransformer3DModel:
    """As published, but without the padding mask: it is all zeros here, and diffusers resizes it with torchvision."""
    model = CosmosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        mlp_ratio=2.0,
        text_embed_dim=_WIDTH,
        adaln_lora_dim=16,
        max_size=(16, 16, 16),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=False,
        extra_pos_embed_type="learnable",
    ).eval()
    for table in model.learnable_pos_embed.parameters():  # made as zeros, to be learned
        torch.nn.init.normal_(table)
    return model


def _text_to_world() -> CosmosTextToWorldPipeline:
    return CosmosTextToWorldPipeline(
        text_encoder=_text_encoder(),
        tokenizer=build_tokenizer(WORDS),
        transformer=_transformer(),
        vae=_vae(),
        scheduler=EDMEulerScheduler(
            sigma_min=0.002,
            sigma_max=80.0,
            sigma_data=0.5,
            sigma_schedule="karras",
            prediction_type="epsilon",
            rho=7.0,
            final_sigmas_type="sigma_min",
        ),
        safety_checker=NoCheck(),
    )


#: Token grid (2, 3, 4); the pipeline's own negative prompt is longer than the text may be.
_SETTINGS = {
    "height": 48,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
    "negative_prompt": "stays behind the wall",
}

COSMOS_T2W = Tiny("cosmos", _text_to_world, two_prompts, _SETTINGS)
