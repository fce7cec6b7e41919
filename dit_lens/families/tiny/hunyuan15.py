"""HunyuanVideo-1.5 in miniature."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, Qwen2_5_VLTextModel, T5Config, T5EncoderModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.text import WORDS, build_tokenizer

_TEXT_WIDTH = 32
#: The pipeline cuts off the first 108 tokens, which are the system message; words of this vocabulary stand for them.
#: Something must follow an empty prompt too, as in the real template, or the mean over its tokens is not a number.
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ 'then ' * 108 }}"
    "{% else %}{{ message['content'] }} </s>{% endif %}{% endfor %}"
)


def two_prompts() -> tuple[dict[str, Any], dict[str, Any]]:
    """The second asks for written text, so that the two rows order their text tokens differently."""
    return {"prompt": "move the blue circle"}, {"prompt": 'draw the red square then "win"'}


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(WORDS)
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _qwen() -> Qwen2_5_VLTextModel:
    """Three layers: the pipeline takes the third last of the hidden states, and that should have seen attention."""
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=len(WORDS),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        )
    )


def _byt5(tokenizer: ByT5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=_TEXT_WIDTH, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    )


def _vae() -> AutoencoderKLHunyuanVideo15:
    """Compresses space by 16 and time by 4, as the real one."""
    return AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1)


def _transformer() -> HunyuanVideo15Transformer3DModel:
    """Is given the noisy latents, an image's latents and the mask of its frame; without an image those are zero."""
    return HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=_TEXT_WIDTH,
        text_embed_2_dim=_TEXT_WIDTH,
        image_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
        task_type="t2v",
    )


def _text_to_video() -> HunyuanVideo15Pipeline:
    bytes_ = ByT5Tokenizer()
    pipeline = HunyuanVideo15Pipeline(
        text_encoder=_qwen().eval(),
        tokenizer=_tokenizer(),
        transformer=_transformer().eval(),
        vae=_vae().eval(),
        # Shift and guidance of 480p_t2v in scripts/convert_hunyuan_video1_5_to_diffusers.py of diffusers.
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=_byt5(bytes_).eval(),
        tokenizer_2=bytes_,
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )
    # Padding to 1985 text tokens would cost nearly all of the time. A pipeline read from a folder has those again.
    pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length = 24, 24
    pipeline.vision_num_semantic_tokens = 5
    return pipeline


#: Token grid (2, 3, 4).
HUNYUAN_VIDEO_15_T2V = Tiny(
    "hunyuanvideo-1.5",
    _text_to_video,
    two_prompts,
    {"height": 48, "width": 64, "num_frames": 5, "num_inference_steps": 3},
)
