"""Batches of videos, each a function of (seed, step) alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from dit_lens.organisms.training.loop import stage_at
from dit_lens.organisms.training.presets import Stage
from dit_lens.tasks import task_named
from dit_lens.tasks.maze import Maze
from dit_lens.tasks.puzzles.glyphs import ATLAS, FLOOR, paint


class Videos(NamedTuple):
    """Videos, uint8 (B, T, height, width, 3), and what was asked for in each."""

    pixels: np.ndarray
    prompts: list[str]


class Encoded(NamedTuple):
    """Latents and condition latents, float32 (B, C, F, H, W), and the prompts."""

    target: Tensor
    condition: Tensor
    prompts: list[str]


@dataclass(frozen=True)
class Glyphs:
    """Videos of no task, for an autoencoder: a third of all cells floor, the others random, changing at times."""

    size: int
    frames: int

    def sample_videos(self, rng: np.random.Generator, count: int, split: str) -> Videos:
        shape = (count, self.frames, self.size, self.size)
        codes = np.where(rng.random(shape) < 1 / 3, FLOOR, rng.integers(0, len(ATLAS), shape))
        changes = rng.random(shape) < 1 / 8
        for t in range(1, self.frames):
            codes[:, t] = np.where(changes[:, t], codes[:, t], codes[:, t - 1])
        return Videos(paint(codes, self.size), [""] * count)


def source(name: str, frames: int) -> Any:
    """What a kind of video is drawn from: "glyphs:4", or a task as `dit_lens.tasks.task_named` names it."""
    if name.startswith("glyphs:"):
        return Glyphs(int(name.removeprefix("glyphs:")), frames)
    task = task_named(name, frames)
    # Mazes are trained on paths of up to 14 moves on every board, wherever there are such.
    return replace(task, lengths=(3, 14)) if isinstance(task, Maze) else task


def draw(stage: Stage, batch: int, frames: int, seed: int, step: int, stream: int) -> Videos:
    """One batch of a stage, drawn by its shares."""
    rng = np.random.default_rng([seed, stream, step])
    kinds, shares = list(stage.mix), np.array(list(stage.mix.values()))
    chosen = rng.choice(kinds, size=stage.parts, p=shares / shares.sum())
    counts = [len(part) for part in np.array_split(np.arange(batch), stage.parts)]
    parts = [source(str(k), frames).sample_videos(rng, n, "train") for k, n in zip(chosen, counts, strict=True) if n]
    return Videos(np.concatenate([p[0] for p in parts]), [prompt for p in parts for prompt in p[1]])


def to_tensor(video: np.ndarray) -> Tensor:
    """uint8 (B, T, height, width, 3) to float32 (B, 3, T, height, width) in [-1, 1]."""
    return torch.from_numpy(video).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def still_then_gray(video: Tensor) -> Tensor:
    """What the pipeline encodes as the condition: the first frame, then gray (zero) frames."""
    gray = torch.zeros_like(video)
    gray[:, :, 0] = video[:, :, 0]
    return gray


def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Mean of the posterior, normalised: float (B, C, F, H, W)."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=video.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=video.device).view(shape)
    latents: Tensor = (vae.encode(video).latent_dist.mean - mean) / std
    return latents


def encode_condition(vae: AutoencoderKLWan, video: Tensor, latents: Tensor, frame_local: bool) -> Tensor:
    """Latents of the first frame followed by gray ones.

    An autoencoder that mixes no frames has them already: the video's own first latent frame, and gray ones that are the
    same for every video.
    """
    if not frame_local:
        return encode(vae, still_then_gray(video))
    gray = encode(vae, still_then_gray(video[:1]))
    return torch.cat([latents[:, :, :1], gray[:, :, 1:].expand_as(latents[:, :, 1:])], dim=2)


@dataclass
class Batches(IterableDataset[Encoded]):
    """Encoded batches of fresh videos, normalised as the pipeline normalises them."""

    vae: AutoencoderKLWan
    frame_local: bool
    stages: tuple[Stage, ...]
    batch: int
    frames: int
    seed: int
    first: int
    every: int

    def __iter__(self) -> Iterator[Encoded]:
        device = self.vae.device
        step = self.first - self.first % self.every
        while True:
            videos = draw(stage_at(self.stages, step), self.batch, self.frames, self.seed, step, stream=2)
            pixels = to_tensor(videos.pixels).to(device)
            with torch.no_grad():
                target = encode(self.vae, pixels)
                yield Encoded(target, encode_condition(self.vae, pixels, target, self.frame_local), videos.prompts)
            step += self.every


def encoded_batches(dataset: Batches) -> Iterator[Encoded]:
    """Iterate, on the CPU with the encoder in a process of its own so that it has the second core."""
    workers = 1 if dataset.vae.device.type == "cpu" else 0
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers))
