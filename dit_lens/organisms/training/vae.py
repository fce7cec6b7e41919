"""Training of an organism's autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor, nn

from dit_lens.organisms.build import build_vae, separate_frames
from dit_lens.organisms.load import load_organism
from dit_lens.organisms.training.data import draw, still_then_gray, to_tensor
from dit_lens.organisms.training.loop import Loop, recipe_id, stage_at, total_steps
from dit_lens.organisms.training.optim import MuonAdamW, learning_rate_at
from dit_lens.organisms.training.presets import Phase, Preset, Stage, VaeRecipe


def decode_unclamped(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """`AutoencoderKLWan.decode` without its clamp to [-1, 1], which would stop gradients: (B, 3, T, height, width)."""
    vae.clear_cache()
    x = vae.post_quant_conv(z)
    frames = []
    for f in range(z.shape[2]):
        vae._conv_idx = [0]
        extra = {"first_chunk": True} if f == 0 else {}
        frames.append(vae.decoder(x[:, :, f : f + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **extra))
    vae.clear_cache()
    video: Tensor = unpatchify(torch.cat(frames, 2), patch_size=vae.config.patch_size)
    return video


def train_vae(preset: Preset, folder: Path) -> AutoencoderKLWan:
    """Train (or finish) the autoencoder of a preset and set its latents' mean and standard deviation.

    Where the preset names an organism instead of a recipe, its autoencoder is loaded.

    First both halves, then the decoder alone: what is left by then are rare large errors (a goal that shows the agent
    one frame too early), which the last phase's fourth-power term weighs up while the latents stay as they are.
    """
    recipe = preset.vae
    if isinstance(recipe, str):
        shipped: AutoencoderKLWan = load_organism(recipe).pipeline.vae
        return shipped.to(preset.device)
    torch.manual_seed(preset.seed)
    vae = build_vae(preset.config).to(preset.device)
    for stream, phase in enumerate(recipe.phases):
        # Stream 1 is that of the measurements.
        _train(vae, recipe, phase, preset, folder, stream=0 if stream == 0 else 2 + stream)
    _normalise(vae, recipe, preset)
    return vae


def _train(vae: AutoencoderKLWan, recipe: VaeRecipe, phase: Phase, preset: Preset, folder: Path, stream: int) -> None:
    """One phase of the autoencoder's training."""
    part: nn.Module = vae
    for half in (vae.encoder, vae.quant_conv):
        half.requires_grad_(not phase.decoder_only)
    if phase.decoder_only:
        part = nn.ModuleDict({"conv": vae.post_quant_conv, "decoder": vae.decoder})
    total, stages = total_steps(phase.stages), phase.stages
    optimiser = MuonAdamW(part, stages[0].learning_rate, keep_adamw=("decoder.conv_out", "decoder.decoder.conv_out"))

    def advance(step: int) -> float:
        loss = _loss(vae, recipe, phase, preset, step, stream)
        loss.backward()
        if preset.config.frame_local_vae:
            separate_frames(vae)
        peak = stage_at(stages, step).learning_rate
        optimiser.step(learning_rate_at(step, total, peak, recipe.warmup, decay=0.5))
        return float(loss.detach())

    loop = Loop(phase.name, folder, total, {"part": part, "optimiser": optimiser}, recipe_id(preset, vae))
    loop.run(advance, lambda step: {"psnr": _psnr(vae, recipe, preset)})


def _batch(recipe: VaeRecipe, stages: tuple[Stage, ...], preset: Preset, step: int, stream: int) -> Tensor:
    videos = draw(stage_at(stages, step), recipe.batch, preset.config.frames, preset.seed, step, stream)
    pixels = to_tensor(videos.pixels).to(preset.device)
    gray = round(recipe.gray * len(pixels))
    return torch.cat([still_then_gray(pixels[:gray]), pixels[gray:]])


def _loss(vae: AutoencoderKLWan, recipe: VaeRecipe, phase: Phase, preset: Preset, step: int, stream: int) -> Tensor:
    """L1 + L2 (+ L4 for the decoder alone) of reconstructions from noised latents, and a light pull to the origin."""
    video = _batch(recipe, phase.stages, preset, step, stream)
    generator = torch.Generator(preset.device).manual_seed(preset.seed * 1_000_003 + step)
    mean = vae.encode(video).latent_dist.mean
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    error = decode_unclamped(vae, mean + recipe.latent_noise * noise) - video
    loss: Tensor = 0.5 * error.abs().mean() + error.square().mean() + 1e-4 * mean.square().mean()
    return loss + error.pow(4).mean() if phase.decoder_only else loss


@torch.no_grad()
def _psnr(vae: AutoencoderKLWan, recipe: VaeRecipe, preset: Preset) -> float:
    video = _batch(recipe, recipe.phases[-1].stages, preset, step=0, stream=1)
    decoded = vae.decode(vae.encode(video).latent_dist.mean).sample
    return float(10 * torch.log10(4 / (decoded - video).square().mean()))


@torch.no_grad()
def _normalise(vae: AutoencoderKLWan, recipe: VaeRecipe, preset: Preset) -> None:
    """Write per-channel statistics of the latents into the configuration, as the Wan VAE carries them."""
    stages = recipe.phases[-1].stages
    means = [vae.encode(_batch(recipe, stages, preset, step, stream=1)).latent_dist.mean for step in range(8)]
    channels = torch.cat([m.transpose(0, 1).flatten(1) for m in means], dim=1).double()
    vae.register_to_config(
        latents_mean=[round(x, 5) for x in channels.mean(1).tolist()],
        latents_std=[round(x, 5) for x in channels.std(1).tolist()],
    )
