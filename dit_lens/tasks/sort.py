"""Sort: bars change places until they stand in order of size; the number of exchanges is the serial depth.

n bars of heights 1 .. n stand in n columns. The prompt says whether they are to rise or fall from left to right: "sort
the bars up" or "sort the bars down". A legal move exchanges two neighbours that stand in the wrong order, one move a
frame. The true video makes the leftmost legal move in each frame until there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.tasks.base import Ints
from dit_lens.tasks.glyphs import COLOURS, FLOOR
from dit_lens.tasks.glyphs import numbers as glyph_numbers
from dit_lens.tasks.puzzle import Puzzle, Scenes, concatenate, distinct, length, take

_BAR = glyph_numbers("bar")


@dataclass(frozen=True)
class Sort(Puzzle):
    """Bars change places, neighbour with neighbour, until they stand in order of size.

    Parameters
    ----------
    moves : (int, int), optional
        Fewest and most exchanges that a problem needs; by default 1 to n (n - 1) / 2, as far as the video is long
        enough.
    """

    moves: tuple[int, int] | None = None

    name: ClassVar[str] = "sort"
    layout: ClassVar[tuple[str, ...]] = ("heights", "colours")
    sizes: ClassVar[tuple[int, int]] = (3, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.depths
        most = min(self.size * (self.size - 1) // 2, self.frames - 1)
        if not 1 <= low <= high <= most:
            raise TaskError(f"Sort(moves={self.moves}): need 1 <= fewest <= most <= {most}")

    @property
    def depths(self) -> tuple[int, int]:
        """Fewest and most exchanges that a problem needs."""
        return self.moves or (1, min(self.size * (self.size - 1) // 2, self.frames - 1))

    def draw(self, rng: np.random.Generator, count: int) -> Scenes:
        """Heights (from the left), and the colour of each height: those of 5 or fewer bars differ."""
        parts: list[Scenes] = []
        low, high = self.depths
        while sum(map(length, parts)) < count:
            colours = [distinct(rng, 2 * count, len(COLOURS), min(5, self.size - i)) for i in range(0, self.size, 5)]
            scenes = {
                "heights": 1 + distinct(rng, 2 * count, self.size, self.size),
                "colours": np.concatenate(colours, axis=1),
                "descending": rng.random(2 * count) < 0.5,
            }
            depth = inversions(self._keys(scenes))
            parts.append(take(scenes, (depth >= low) & (depth <= high)))
        return take(concatenate(parts), slice(count))

    def _keys(self, scenes: Scenes) -> Ints:
        """What is to rise from left to right: int (B, n)."""
        return np.where(scenes["descending"][:, None], -scenes["heights"], scenes["heights"])

    def _orders(self, scenes: Scenes) -> Ints:
        """Heights from left to right in each frame: int (B, T, n)."""
        heights = scenes["heights"].copy()
        sign = np.where(scenes["descending"], -1, 1)[:, None]
        orders, here = [heights.copy()], np.arange(len(heights))
        for _ in range(self.frames - 1):
            wrong = sign * heights[:, :-1] > sign * heights[:, 1:]
            left, moving = wrong.argmax(axis=1), wrong.any(axis=1)
            rows, j = here[moving], left[moving]
            heights[rows, j], heights[rows, j + 1] = heights[rows, j + 1], heights[rows, j]
            orders.append(heights.copy())
        return np.stack(orders, axis=1)

    def codes(self, scenes: Scenes) -> Ints:
        orders = self._orders(scenes)
        colours = _BAR[scenes["colours"]][np.arange(len(orders))[:, None, None], orders - 1]
        filled = np.arange(self.size)[:, None] >= self.size - orders[:, :, None, :]
        return np.where(filled, colours[:, :, None, :], FLOOR)

    def prompt(self, scene: Mapping[str, Any]) -> str:
        return f"sort the bars {'down' if scene['descending'] else 'up'}"


def inversions(keys: Ints) -> Ints:
    """Pairs of (B, n) that stand in the wrong order: int (B,)."""
    return np.asarray(np.triu(keys[:, :, None] > keys[:, None, :], 1).sum(axis=(1, 2)))
