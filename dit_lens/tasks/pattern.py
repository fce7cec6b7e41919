"""Next in pattern: fill the one gap of a periodic sequence (superposition at one site).

The cells, read row by row, show a sequence that repeats itself. Either its colours change and the size is one
throughout, or its sizes change and the colour is one. One cell shows a gap. From the middle frame on the true video
shows the symbol that belongs there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dit_lens.tasks.base import Ints
from dit_lens.tasks.glyphs import COLOURS, GAP, NUMBER, SIZES
from dit_lens.tasks.puzzle import Puzzle, Scenes, distinct

_LONGEST = 4
#: Glyph of each colour and size: int (5, 3).
_GLYPH = np.array([[NUMBER[f"{colour} {size}"] for size in SIZES] for colour in COLOURS])


@dataclass(frozen=True)
class Pattern(Puzzle):
    """A periodic sequence of colours or of sizes has one gap to fill."""

    name: ClassVar[str] = "pattern"
    layout: ClassVar[tuple[str, ...]] = ("by_size", "constant", "symbols", "period", "gap")
    sizes: ClassVar[tuple[int, int]] = (3, 16)

    def draw(self, rng: np.random.Generator, count: int) -> Scenes:
        """``symbols``: colours or sizes of one period, of which the first ``period`` count (the others are -1)."""
        by_size = rng.random(count) < 0.5
        kinds = np.where(by_size, len(SIZES), len(COLOURS))
        longest = np.minimum(np.minimum(kinds, _LONGEST), self.size**2 // 2)
        period = rng.integers(2, longest + 1)
        colours = distinct(rng, count, len(COLOURS), _LONGEST)
        sizes = np.pad(distinct(rng, count, len(SIZES), len(SIZES)), ((0, 0), (0, _LONGEST - len(SIZES))))
        symbols = np.where(by_size[:, None], sizes, colours)
        other = np.where(by_size, len(COLOURS), len(SIZES))
        return {
            "by_size": by_size,
            "constant": rng.integers(0, other),
            "period": period,
            "symbols": np.where(np.arange(_LONGEST) < period[:, None], symbols, -1),
            "gap": rng.integers(0, self.size**2, count),
        }

    def _sequence(self, scenes: Scenes) -> Ints:
        """Glyph numbers of the whole sequence, the gap filled: int (B, n * n)."""
        phase = np.arange(self.size**2) % scenes["period"][:, None]
        symbols = np.take_along_axis(scenes["symbols"], phase, axis=1)
        by_size, constant = scenes["by_size"][:, None], scenes["constant"][:, None]
        return np.asarray(_GLYPH[np.where(by_size, constant, symbols), np.where(by_size, symbols, constant)])

    def codes(self, scenes: Scenes) -> Ints:
        sequence, n = self._sequence(scenes), self.size
        video = np.repeat(sequence[:, None], self.frames, axis=1)
        here = np.arange(len(sequence))
        for t in range(self.frames // 2):
            video[here, t, scenes["gap"]] = GAP
        return video.reshape(len(here), self.frames, n, n)

    def prompt(self, scene: Mapping[str, Any]) -> str:
        return "fill the gap in the pattern"
