"""LTX-2 in miniature, with what 2.3 added: gates on heads, a modulated cross-attention, blocks that STG perturbs."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Pipeline, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.ltx import CHANNELS, COMPRESSION, SIZE, scheduler, with_statistics
from dit_lens.families.tiny.samples import two_prompts
from dit_lens.families.tiny.text import WORDS, build_tokenizer

_TEXT_WIDTH, _TEXT_LAYERS = 32, 2
_WIDTH, _AUDIO_WIDTH = 48, 32
#: Of the audio VAE, which compresses mel bins and time by 4 as the real one; one token holds all bins of a latent time.
_AUDIO_CHANNELS, _MEL_BINS = 4, 16
_AUDIO_TOKEN = _AUDIO_CHANNELS * _MEL_BINS // 4


def _gemma() -> Gemma3ForConditionalGeneration:
    """Its eyes are never used."""
    text = Gemma3TextConfig(
        vocab_size=len(WORDS),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=_TEXT_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
    )
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    ).eval()


def _connectors() -> LTX2TextConnectors:
    return LTX2TextConnectors(
        caption_channels=_TEXT_WIDTH,
        text_proj_in_factor=_TEXT_LAYERS + 1,
        per_modality_projections=True,
        video_hidden_dim=_WIDTH,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=_WIDTH // 2,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=4,
        video_gated_attn=True,
        audio_hidden_dim=_AUDIO_WIDTH,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=_AUDIO_WIDTH // 2,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=4,
        audio_gated_attn=True,
        connector_rope_base_seq_len=32,
        rope_type="split",
        proj_bias=True,
    ).eval()


def _vae() -> Any:
    return with_statistics(AutoencoderKLLTX2Video(**COMPRESSION).eval())


def _audio_vae() -> Any:
    """Its statistics are of ``base_channels`` numbers and applied to tokens, so the two must be as many."""
    vae = AutoencoderKLLTX2Audio(
        base_channels=_AUDIO_TOKEN,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        resolution=32,
        latent_channels=_AUDIO_CHANNELS,
        mel_bins=_MEL_BINS,
    )
    return with_statistics(vae.eval())


def _vocoder() -> LTX2Vocoder:
    return LTX2Vocoder(
        in_channels=2 * _MEL_BINS,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
        output_sampling_rate=16000,
    ).eval()


def _transformer() -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=_WIDTH // 2,
        cross_attention_dim=_WIDTH,
        audio_in_channels=_AUDIO_TOKEN,
        audio_out_channels=_AUDIO_TOKEN,
        audio_num_attention_heads=2,
        audio_attention_head_dim=_AUDIO_WIDTH // 2,
        audio_cross_attention_dim=_AUDIO_WIDTH,
        num_layers=4,
        caption_channels=_TEXT_WIDTH,
        rope_type="split",
        gated_attn=True,
        cross_attn_mod=True,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        use_prompt_embeddings=False,
        perturbed_attn=True,
    ).eval()


def _text_to_video() -> LTX2Pipeline:
    return LTX2Pipeline(
        text_encoder=_gemma(),
        tokenizer=build_tokenizer(WORDS),
        connectors=_connectors(),
        vae=_vae(),
        audio_vae=_audio_vae(),
        vocoder=_vocoder(),
        transformer=_transformer(),
        scheduler=scheduler(),
    )


#: Without scales of its own the audio is guided as the video is.
_GUIDANCE: dict[str, Any] = {
    "stg_scale": 1.0,
    "spatio_temporal_guidance_blocks": [1],
    "modality_scale": 2.0,
    "guidance_rescale": 0.7,
    "audio_guidance_scale": None,
    "audio_stg_scale": None,
    "audio_modality_scale": None,
}

#: Token grid (2, 3, 4), and 9 tokens of audio.
LTX_2_T2V = Tiny("ltx-2", _text_to_video, two_prompts, {**SIZE, **_GUIDANCE})
