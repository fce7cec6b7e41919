"""Batches of maze videos, each a function of (seed, step) alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from dit_lens.organisms.training.loop import stage_at
from dit_lens.organisms.training.presets import Stage
from dit_lens.tasks.maze import Maze


def to_tensor(video: np.ndarray) -> Tensor:
    """uint8 (B, T, height, width, 3) to float32 (B, 3, T, height, width) in [-1, 1]."""
    return torch.from_numpy(video).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def still_then_gray(video: Tensor) -> Tensor:
    """What the pipeline encodes as the condition: the first frame, then gray (zero) frames."""
    gray = torch.zeros_like(video)
    gray[:, :, 0] = video[:, :, 0]
    return gray


def sample_videos(stage: Stage, batch: int, frames: int, seed: int, step: int, stream: int) -> Tensor:
    """Videos of one board size, drawn by the stage's shares: float (B, 3, T, height, width)."""
    rng = np.random.default_rng([seed, stream, step])
    sizes, shares = list(stage.sizes), np.array(list(stage.sizes.values()))
    size = int(rng.choice(sizes, p=shares / shares.sum()))
    return to_tensor(training_task(size, frames).sample_videos(rng, batch, split="train"))


def training_task(size: int, frames: int) -> Maze:
    """The mazes of training: paths of up to 14 moves on every board, wherever there are such."""
    return Maze(size, frames=frames, lengths=(3, 14))


@dataclass
class Encoded(IterableDataset[tuple[Tensor, Tensor]]):
    """Latents and condition latents of fresh videos, normalised as the pipeline normalises them.

    Yields
    ------
    target, condition : float32 of shape (B, C, F, H, W)
    """

    vae: AutoencoderKLWan
    stages: tuple[Stage, ...]
    batch: int
    frames: int
    seed: int
    first: int
    every: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.vae.device
        step = self.first - self.first % self.every
        while True:
            video = sample_videos(stage_at(self.stages, step), self.batch, self.frames, self.seed, step, stream=2)
            with torch.no_grad():
                pair = [encode(self.vae, v.to(device)) for v in (video, still_then_gray(video))]
            yield pair[0], pair[1]
            step += self.every


def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Mean of the posterior, normalised: float (B, C, F, H, W)."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=video.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=video.device).view(shape)
    latents: Tensor = (vae.encode(video).latent_dist.mean - mean) / std
    return latents


def encoded_batches(dataset: Encoded) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate, on the CPU with the encoder in a process of its own so that it has the second core."""
    workers = 1 if dataset.vae.device.type == "cpu" else 0
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers))
