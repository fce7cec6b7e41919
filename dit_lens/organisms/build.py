"""Build the real diffusers components of a small Wan image-to-video pipeline from a short description."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

from dit_lens.families.notices import without_notices
from dit_lens.families.tiny.text import WORDS, build_text_encoder, build_tokenizer
from dit_lens.organisms.confine import Crossing, confine

if TYPE_CHECKING:
    from diffusers import WanImageToVideoPipeline


@dataclass(frozen=True)
class OrganismConfig:
    """Everything that fixes the architecture of an organism; the training recipe lives in `training.presets`.

    Attributes
    ----------
    layers, heads, head_width, ffn : int
        Blocks of the transformer, attention heads, channels per head, width of the feed-forward.
    latent_channels : int
        Channels C of the VAE's latents.
    vae_base : int
        Base width of the VAE.
    frames : int
        Pixel frames T = 1 + 4 k; the VAE halves time, so there are (T + 1) / 2 latent frames.
    shift : float
        Flow shift of the scheduler and of training: sigma -> shift sigma / (1 + (shift - 1) sigma).
    frame_local_vae : bool
        Whether the autoencoder mixes no frames: a latent frame then says nothing of the others, neither encoded nor
        decoded, and the condition of every frame but the first is the same for all pictures.
    frame_attention : tuple of int or Crossing, optional
        The only blocks in which self-attention crosses latent frames; by default all. A `Crossing` instead of a number
        says in which head, or which frame reads which.
    text_attention : tuple of int, optional
        The only blocks that read the prompt; by default all.
    """

    layers: int = 8
    heads: int = 4
    head_width: int = 32
    ffn: int = 256
    latent_channels: int = 8
    vae_base: int = 32
    frames: int = 9
    shift: float = 3.0
    max_prompt_tokens: int = 16
    text_width: int = 32
    frame_local_vae: bool = False
    frame_attention: tuple[int | Crossing, ...] | None = None
    text_attention: tuple[int, ...] | None = None
    words: tuple[str, ...] = field(default=WORDS, repr=False)

    @property
    def latent_frames(self) -> int:
        return (self.frames + 1) // 2

    @property
    def run_defaults(self) -> dict[str, float]:
        """Arguments of the pipeline with which the organism is trained to be run."""
        return {
            "num_inference_steps": 10,
            "guidance_scale": 1.0,
            "num_frames": self.frames,
            "max_sequence_length": self.max_prompt_tokens,
        }


def build_vae(config: OrganismConfig) -> AutoencoderKLWan:
    """A Wan VAE that turns one 8 x 8 pixel cell into one latent position and halves time."""
    vae = AutoencoderKLWan(
        base_dim=config.vae_base,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        patch_size=4,
        in_channels=48,
        out_channels=48,
        z_dim=config.latent_channels,
        latents_mean=[0.0] * config.latent_channels,
        latents_std=[1.0] * config.latent_channels,
        scale_factor_temporal=2,
        scale_factor_spatial=8,
    )
    if config.frame_local_vae:
        separate_frames(vae)
    return vae


def separate_frames(vae: AutoencoderKLWan) -> None:
    """Zero every weight by which a latent frame of a Wan VAE reads an earlier one, when encoding and when decoding.

    Its causal convolutions have three taps in time, of which the last is now. The one that halves time reads one frame
    of the past and the two that it joins. The gradients of these weights are zeroed too, where there are any: an
    optimiser that shares an update out among all entries of a matrix would waste most of it on them.
    """
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            past = 1 if name.startswith("encoder") and name.endswith("time_conv") else 2
            module.weight.data[:, :, :past] = 0
            if module.weight.grad is not None:
                module.weight.grad[:, :, :past] = 0


def build_transformer(config: OrganismConfig) -> WanTransformer3DModel:
    """A Wan image-to-video transformer: noisy latents | frame mask | condition latents in, velocity out."""
    z = config.latent_channels
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=config.heads,
        attention_head_dim=config.head_width,
        in_channels=2 * z + 2,
        out_channels=z,
        text_dim=config.text_width,
        freq_dim=64,
        ffn_dim=config.ffn,
        num_layers=config.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        image_dim=None,
        added_kv_proj_dim=None,
        rope_max_seq_len=64,
    )
    return confine(transformer, config.frame_attention, config.text_attention, config.latent_frames)


def build_pipeline(
    config: OrganismConfig, vae: AutoencoderKLWan, transformer: WanTransformer3DModel, text_encoder: UMT5EncoderModel
) -> WanImageToVideoPipeline:
    """Assemble the stock pipeline."""
    with without_notices():
        from diffusers import WanImageToVideoPipeline

    return WanImageToVideoPipeline(
        tokenizer=build_tokenizer(config.words),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=config.shift),
        transformer=transformer.eval(),
    )


def random_pipeline(config: OrganismConfig | None = None, seed: int = 0) -> WanImageToVideoPipeline:
    """A pipeline with random weights, the same for the same seed."""
    config = config or OrganismConfig()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae, transformer = build_vae(config), build_transformer(config)
        return build_pipeline(config, vae, transformer, build_text_encoder(config.text_width, words=config.words))
