"""Move: two objects go where the prompt says (binding).

Two objects of different shape and colour and three targets, rings of different colours, stand in cells of their own.
The prompt names each object by its shape and its target by the ring's colour: "move the circle to red and the square to
blue". Both objects walk at the same time, one cell a frame, first along their row and then along their column, and
stand on their targets in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.tasks.base import Ints
from dit_lens.tasks.glyphs import COLOURS, FLOOR, NUMBER, SHAPES
from dit_lens.tasks.glyphs import numbers as glyph_numbers
from dit_lens.tasks.puzzle import Puzzle, Scenes, concatenate, distinct, length, take

_OBJECTS, _TARGETS = 2, 3
#: Glyph of each colour and shape: int (5, 3).
_GLYPH = np.array([[NUMBER[f"{colour} {shape}"] for shape in SHAPES] for colour in COLOURS])
_RING = glyph_numbers("ring")


@dataclass(frozen=True)
class Move(Puzzle):
    """Two objects go to the targets that the prompt names."""

    name: ClassVar[str] = "move"
    layout: ClassVar[tuple[str, ...]] = ("cells", "rings", "shapes", "colours", "ring_colours")
    sizes: ClassVar[tuple[int, int]] = (4, 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames <= 2 * (self.size - 1):
            raise TaskError(f"{self}: {self.frames} frames are too few for walks of {2 * (self.size - 1)} moves")

    def draw(self, rng: np.random.Generator, count: int) -> Scenes:
        parts: list[Scenes] = []
        while sum(map(length, parts)) < count:
            places = distinct(rng, 2 * count, self.size**2, _OBJECTS + _TARGETS)
            scenes = {
                "cells": places[:, :_OBJECTS],
                "rings": places[:, _OBJECTS:],
                "shapes": distinct(rng, 2 * count, len(SHAPES), _OBJECTS),
                "colours": distinct(rng, 2 * count, len(COLOURS), _OBJECTS),
                "ring_colours": distinct(rng, 2 * count, len(COLOURS), _TARGETS),
                "assign": distinct(rng, 2 * count, _TARGETS, _OBJECTS),
            }
            parts.append(take(scenes, ~self._collide(scenes)))
        return take(concatenate(parts), slice(count))

    def _walks(self, scenes: Scenes) -> Ints:
        """Row and column of each object in each frame: int (B, T, 2 objects, 2)."""
        n = self.size
        start = np.stack(np.divmod(scenes["cells"], n), axis=-1)
        goal = np.stack(np.divmod(np.take_along_axis(scenes["rings"], scenes["assign"], axis=1), n), axis=-1)
        way = goal - start
        t = np.arange(self.frames)[:, None]
        across = np.minimum(t, np.abs(way[:, None, :, 1]))
        down = np.minimum(np.maximum(t - np.abs(way[:, None, :, 1]), 0), np.abs(way[:, None, :, 0]))
        return start[:, None] + np.stack([down, across], axis=-1) * np.sign(way)[:, None]

    def _collide(self, scenes: Scenes) -> np.ndarray:
        """Whether the objects ever meet in a cell or exchange cells: bool (B,)."""
        walks = self._walks(scenes)
        one, two = walks[:, :, 0], walks[:, :, 1]
        meet = (one == two).all(-1).any(1)
        swap = ((one[:, 1:] == two[:, :-1]).all(-1) & (two[:, 1:] == one[:, :-1]).all(-1)).any(1)
        return np.asarray(meet | swap)

    def codes(self, scenes: Scenes) -> Ints:
        here, n = np.arange(length(scenes)), self.size
        still = np.full((len(here), n * n), FLOOR)
        np.put_along_axis(still, scenes["rings"], _RING[scenes["ring_colours"]], axis=1)
        video = np.repeat(still.reshape(-1, 1, n, n), self.frames, axis=1)
        walks, glyphs = self._walks(scenes), _GLYPH[scenes["colours"], scenes["shapes"]]
        for t in range(self.frames):
            for k in range(_OBJECTS):
                video[here, t, walks[:, t, k, 0], walks[:, t, k, 1]] = glyphs[:, k]
        return video

    def prompt(self, scene: Mapping[str, Any]) -> str:
        colours = [list(COLOURS)[scene["ring_colours"][target]] for target in scene["assign"]]
        (a, b), (one, two) = (SHAPES[s] for s in scene["shapes"]), colours
        return f"move the {a} to {one} and the {b} to {two}"
