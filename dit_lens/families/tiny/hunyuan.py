"""HunyuanVideo in miniature."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.samples import two_prompts
from dit_lens.families.tiny.text import WORDS, build_tokenizer

_TEXT_WIDTH = 32


def _llama() -> LlamaModel:
    """Three layers: the pipeline takes the third last of the hidden states, and that should have seen attention."""
    return LlamaModel(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def _clip() -> CLIPTextModel:
    """Pools at the first ``</s>``."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def _vae() -> AutoencoderKLHunyuanVideo:
    """Compresses space by 8 and time by 4, as the real one."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def _transformer() -> HunyuanVideoTransformer3DModel:
    return HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=_TEXT_WIDTH,
        pooled_projection_dim=_TEXT_WIDTH,
        rope_axes_dim=(4, 6, 6),
    )


def _text_to_video() -> HunyuanVideoPipeline:
    return HunyuanVideoPipeline(
        text_encoder=_llama().eval(),
        tokenizer=build_tokenizer(WORDS),
        transformer=_transformer().eval(),
        vae=_vae().eval(),
        # As scripts/convert_hunyuan_video_to_diffusers.py of diffusers writes it.
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=_clip().eval(),
        tokenizer_2=build_tokenizer(WORDS),
    )


#: Token grid (2, 3, 4). The default template belongs to the real tokenizer, of whose tokens 95 are cut off.
HUNYUAN_VIDEO_T2V = Tiny(
    "hunyuanvideo",
    _text_to_video,
    two_prompts,
    {
        "height": 48,
        "width": 64,
        "num_frames": 5,
        "num_inference_steps": 3,
        "guidance_scale": 6.0,
        "true_cfg_scale": 3.0,
        "negative_prompt": "wall behind left",
        "max_sequence_length": 16,
        "prompt_template": {"template": "{}", "crop_start": 0},
    },
)
