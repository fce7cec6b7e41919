"""The training recipes. A preset fixes everything that a training run depends on, its seed included."""

from __future__ import annotations

from dataclasses import dataclass

from dit_lens.organisms.build import OrganismConfig


@dataclass(frozen=True)
class Stage:
    """One part of a curriculum: how many optimiser steps, and the share of each board size in the batches."""

    steps: int
    sizes: dict[int, float]
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class VaeRecipe:
    """Training of the autoencoder: steps of ``batch`` videos, ``gray`` of them stills followed by gray frames."""

    stages: tuple[Stage, ...]
    decoder_stages: tuple[Stage, ...]
    batch: int = 16
    gray: float = 0.15
    latent_noise: float = 0.1
    warmup: int = 50


@dataclass(frozen=True)
class DenoiserRecipe:
    """Training of the transformer. Every encoded batch is used ``reuse`` times, each time with fresh noise."""

    stages: tuple[Stage, ...]
    batch: int = 32
    reuse: int = 1
    warmup: int = 100
    decay: float = 0.3
    ema: float = 0.999
    check_every: int = 200
    check_mazes: int = 32


@dataclass(frozen=True)
class Preset:
    """One reproducible training run."""

    config: OrganismConfig
    vae: VaeRecipe
    denoiser: DenoiserRecipe
    seed: int = 0
    device: str = "cpu"
    autocast: bool = False


CPU = Preset(
    config=OrganismConfig(),
    vae=VaeRecipe(
        stages=(Stage(1000, {6: 0.5, 5: 0.2, 4: 0.3}, 3e-3),),
        decoder_stages=(Stage(700, {6: 0.5, 5: 0.2, 4: 0.3}, 1e-3),),
        batch=8,
    ),
    denoiser=DenoiserRecipe(stages=(Stage(400, {4: 1.0}), Stage(1300, {4: 0.1, 5: 0.2, 6: 0.7}))),
)

GPU = Preset(
    config=OrganismConfig(layers=12, heads=6, ffn=512),
    vae=VaeRecipe(
        stages=(Stage(4000, {8: 0.2, 6: 0.6, 4: 0.2}, 3e-3),),
        decoder_stages=(Stage(2000, {8: 0.2, 6: 0.6, 4: 0.2}, 1e-3),),
        batch=64,
    ),
    denoiser=DenoiserRecipe(
        stages=(Stage(1500, {4: 1.0}), Stage(12000, {4: 0.1, 5: 0.1, 6: 0.5, 7: 0.3})),
        batch=128, warmup=300, check_every=500, check_mazes=128,
    ),
    device="cuda",
    autocast=True,
)  # fmt: skip

PRESETS = {"cpu": CPU, "gpu": GPU}
