"""The training recipes. A preset fixes everything that a training run depends on, its seed included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dit_lens.families.tiny.text import WORDS
from dit_lens.organisms.build import OrganismConfig
from dit_lens.organisms.confine import Crossing


@dataclass(frozen=True)
class Stage:
    """One part of a curriculum.

    Attributes
    ----------
    steps : int
        Optimiser steps.
    mix : dict
        Share of each kind of video, named as in `data.source`: "maze:5" is mazes of 5 x 5 cells.
    parts : int
        How many kinds, drawn by their shares, make up one batch; more than one need pictures of one size.
    """

    steps: int
    mix: dict[str, float]
    learning_rate: float = 2e-3
    parts: int = 1


@dataclass(frozen=True)
class Phase:
    """One training of the autoencoder, with an optimiser of its own: of both halves, or of the decoder alone."""

    name: str
    stages: tuple[Stage, ...]
    decoder_only: bool = False


@dataclass(frozen=True)
class VaeRecipe:
    """Training of the autoencoder: steps of ``batch`` videos, ``gray`` of them stills followed by gray frames."""

    phases: tuple[Phase, ...]
    batch: int = 16
    gray: float = 0.15
    latent_noise: float = 0.1
    warmup: int = 50


@dataclass(frozen=True)
class DenoiserRecipe:
    """Training of the transformer.

    Attributes
    ----------
    reuse : int
        Every encoded batch is used so many times in a row, each time with fresh noise.
    drop_prompt : float
        Share of samples trained with an empty prompt, which is what guidance is guided away from.
    train_text : bool
        Whether the text encoder is trained along. Where words have to be bound to each other it must be.
    keep : tuple of int
        Steps after which the averaged weights are kept beside the final ones.
    """

    stages: tuple[Stage, ...]
    batch: int = 32
    reuse: int = 1
    drop_prompt: float = 0.0
    train_text: bool = False
    keep: tuple[int, ...] = ()
    warmup: int = 100
    decay: float = 0.3
    ema: float = 0.999
    check_every: int = 200
    check_count: int = 32


@dataclass(frozen=True)
class Preset:
    """One reproducible training run.

    Attributes
    ----------
    vae : VaeRecipe or str
        How to train the autoencoder, or the shipped organism whose autoencoder is taken.
    """

    config: OrganismConfig
    vae: VaeRecipe | str
    denoiser: DenoiserRecipe
    seed: int = 0
    device: str = "cpu"
    autocast: bool = False


#: The vocabulary when the maze was trained: the size of the text encoder decides where all later random numbers start.
_MAZE_WORDS = WORDS[:41]

_MAZE_CPU = Preset(
    config=OrganismConfig(words=_MAZE_WORDS),
    vae=VaeRecipe(
        phases=(
            Phase("vae", (Stage(1000, {"maze:6": 0.5, "maze:5": 0.2, "maze:4": 0.3}, 3e-3),)),
            Phase("decoder", (Stage(700, {"maze:6": 0.5, "maze:5": 0.2, "maze:4": 0.3}, 1e-3),), decoder_only=True),
        ),
        batch=8,
    ),
    denoiser=DenoiserRecipe(
        stages=(Stage(400, {"maze:4": 1.0}), Stage(1300, {"maze:4": 0.1, "maze:5": 0.2, "maze:6": 0.7}))
    ),
)

_MAZE_GPU = Preset(
    config=OrganismConfig(layers=12, heads=6, ffn=512),
    vae=VaeRecipe(
        phases=(
            Phase("vae", (Stage(4000, {"maze:8": 0.2, "maze:6": 0.6, "maze:4": 0.2}, 3e-3),)),
            Phase("decoder", (Stage(2000, {"maze:8": 0.2, "maze:6": 0.6, "maze:4": 0.2}, 1e-3),), decoder_only=True),
        ),
        batch=64,
    ),
    denoiser=DenoiserRecipe(
        stages=(
            Stage(1500, {"maze:4": 1.0}),
            Stage(12000, {"maze:4": 0.1, "maze:5": 0.1, "maze:6": 0.5, "maze:7": 0.3}),
        ),
        batch=128,
        warmup=300,
        check_every=500,
        check_count=128,
    ),
    device="cuda",
    autocast=True,
)

#: The autoencoder of the puzzles learns cells in random arrangements first, then as the tasks arrange them. In mazes,
#: the hardest, cells join at their walls.
_GLYPHS = {"glyphs:4": 0.5, "glyphs:6": 0.1, "two-goal maze:4": 0.4}
_CELLS = {
    "glyphs:4": 0.1,
    "two-goal maze:4": 0.4,
    "move:4": 0.1,
    "sort:4": 0.1,
    "permanence:4": 0.1,
    "pattern:4": 0.1,
    "tictactoe:3": 0.1,
}
_PUZZLES = {
    "two-goal maze:4": 0.28,
    "move:4": 0.2,
    "sort:4": 0.2,
    "permanence:4": 0.12,
    "pattern:4": 0.12,
    "tictactoe:3": 0.08,
}

_PUZZLES_CPU = Preset(
    config=OrganismConfig(vae_base=24, frame_local_vae=True),
    vae=VaeRecipe(
        phases=(
            Phase("vae", (Stage(1400, _GLYPHS, 3e-3),)),
            Phase("tasks", (Stage(800, _CELLS, 2e-3, parts=6),)),
            Phase("decoder", (Stage(1000, _CELLS, 2e-3, parts=6),), decoder_only=True),
        ),
        batch=12,
    ),
    denoiser=DenoiserRecipe(
        stages=(Stage(3600, _PUZZLES, parts=8),),
        reuse=2,
        drop_prompt=0.1,
        train_text=True,
        keep=(250, 500, 1000, 1750),
        check_every=500,
        check_count=16,
    ),
)


def _planted(**blocks: Any) -> Preset:
    """Permanence alone, with attention across frames or the prompt left to a few of six blocks."""
    return Preset(
        config=OrganismConfig(layers=6, head_width=24, ffn=192, vae_base=24, frame_local_vae=True, **blocks),
        vae="puzzles",
        denoiser=DenoiserRecipe(
            stages=(Stage(900, {"permanence:4": 1.0}),), drop_prompt=0.1, reuse=2, check_every=300, check_count=48
        ),
    )


_RELAY = (Crossing(1, reads=((1, 0),)), Crossing(4, reads=((2, 1), (3, 1), (4, 1))))
_HEAD = (Crossing(3, head=2),)
_PLACES = {"early": (0, 1), "middle": (2, 3), "late": (4, 5)}

PRESETS = {
    "maze": {"cpu": _MAZE_CPU, "gpu": _MAZE_GPU},
    "puzzles": {"cpu": _PUZZLES_CPU},
    **{f"planted/frames-{place}": {"cpu": _planted(frame_attention=blocks)} for place, blocks in _PLACES.items()},
    "planted/relay": {"cpu": _planted(frame_attention=_RELAY)},
    "planted/head": {"cpu": _planted(frame_attention=_HEAD)},
    **{f"planted/text-{place}": {"cpu": _planted(text_attention=blocks)} for place, blocks in _PLACES.items()},
}
