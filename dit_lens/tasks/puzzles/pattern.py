"""Next in pattern: fill the one gap of a periodic sequence (superposition at one site).

The cells, read row by row, show a sequence that repeats itself. Either its colours change and the size is one
throughout, or its sizes change and the colour is one. One cell shows a gap. From the middle frame on the true video
shows the symbol that belongs there.

Score:

- *symbol* (.60): share of the two attributes, colour and size, that the gap's cell shows right in the last frame.
- *settled* (.30): share of frame transitions that are legal in the gap's cell: a gap stays or becomes a symbol, and a
  symbol stays as it is. A video in which the cell shows a symbol at first, or none in the end, earns nothing.
- *kept* (.10): share of the other cells that are as in the first frame, over all later frames.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.puzzles.glyphs import COLOURS, GAP, NAMES, NUMBER, SIZES
from dit_lens.tasks.puzzles.puzzle import Facts, Maps, PuzzleInstance
from dit_lens.tasks.puzzles.scenes import Scenes, distinct, length
from dit_lens.tasks.puzzles.shares import Candidates

_LONGEST = 4
#: Glyph of each colour and size: int (5, 3).
_GLYPH = np.array([[NUMBER[f"{colour} {size}"] for size in SIZES] for colour in COLOURS])
#: Colour and size of each glyph, (-1, -1) of one that is not a symbol or not readable (the last row): int (K + 1, 2).
_ATTRIBUTES = np.full((len(NAMES) + 1, 2), -1)
_ATTRIBUTES[_GLYPH] = np.moveaxis(np.indices(_GLYPH.shape), 0, -1)


@dataclass(frozen=True)
class Pattern(Candidates):
    """A periodic sequence of colours or of sizes has one gap to fill.

    Examples
    --------
    >>> from dit_lens.tasks import Pattern
    >>> original, counterfactual = Pattern().pair(seed=0, kind="symbol")
    >>> original.answer, counterfactual.answer
    ('green bar', 'green square')
    """

    name: ClassVar[str] = "pattern"
    weights: ClassVar[Mapping[str, float]] = {"symbol": 0.6, "settled": 0.3, "kept": 0.1}
    kinds: ClassVar[Mapping[str, str]] = {"symbol": "symbols", "gap": "gap"}
    layout: ClassVar[tuple[str, ...]] = ("by_size", "constant", "symbols", "period", "gap")
    answer_rules: ClassVar[tuple[str, ...]] = ("symbol",)
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

    def vary(self, scenes: Scenes, kind: str, rng: np.random.Generator) -> tuple[Scenes, Bools]:
        """*symbol*: the gap's symbol becomes one that is not in the period; *gap*: the gap is where another belongs.

        A period of all three sizes leaves no free symbol.
        """
        here, cells = np.arange(length(scenes)), np.arange(self.size**2)
        phase = scenes["gap"] % scenes["period"]
        if kind == "gap":
            other = cells % scenes["period"][:, None] != phase[:, None]
            return scenes | {"gap": _any_of(other, rng)}, other.any(axis=1)
        kinds = np.where(scenes["by_size"], len(SIZES), len(COLOURS))
        held = (scenes["symbols"][:, :, None] == np.arange(len(COLOURS))).any(axis=1)
        free = ~held & (np.arange(len(COLOURS)) < kinds[:, None])
        symbols = scenes["symbols"].copy()
        symbols[here, phase] = _any_of(free, rng)
        return scenes | {"symbols": symbols}, free.any(axis=1)

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

    def judge(self, codes: Ints, scenes: Scenes) -> dict[str, Floats]:
        count, frames = codes.shape[:2]
        here, flat = np.arange(count), codes.reshape(count, frames, -1)
        cell = flat[here, :, scenes["gap"]]
        right = _ATTRIBUTES[cell[:, -1]] == _ATTRIBUTES[self._right(scenes)]
        is_symbol = _ATTRIBUTES[cell][..., 0] >= 0
        before, after = cell[:, :-1], cell[:, 1:]
        filled = (before == GAP) & ((after == GAP) | is_symbol[:, 1:])
        legal = filled | (is_symbol[:, :-1] & (before == after))
        kept = flat[:, 1:] == self.codes(scenes).reshape(flat.shape)[:, :1]
        kept[here, :, scenes["gap"]] = False
        return {
            "symbol": right.mean(axis=1),
            "settled": legal.mean(axis=1) * (is_symbol[:, -1] & ~is_symbol[:, 0]),
            "kept": kept.sum(axis=(1, 2)) / ((flat.shape[2] - 1) * (frames - 1)),
        }

    def drawn(self, codes: Ints, scenes: Scenes) -> Bools:
        """Whether the gap's cell shows a symbol."""
        cell = codes.reshape(len(codes), -1)[np.arange(len(codes)), scenes["gap"]]
        return np.asarray(_ATTRIBUTES[cell][:, 0] >= 0)

    def maps(self, scenes: Scenes) -> Maps:
        """Perception: a label of each colour and size, and ``gap``. Reasoning: ``answer`` (the gap's cell), ``answer_``
        with a colour or size (the symbol that belongs there has it), ``phase`` (the cell's position in the period).
        """
        here, codes, n = np.arange(length(scenes)), self.codes(scenes), self.size
        shown, right = _ATTRIBUTES[codes], _ATTRIBUTES[self._right(scenes)]
        answer = (np.arange(n * n) == scenes["gap"][:, None]).reshape(-1, n, n)
        phase = np.arange(n * n) % scenes["period"][:, None]
        found: Maps = {"gap": ("perception", codes == GAP), "answer": ("reasoning", answer)}
        for attribute, names in enumerate((COLOURS, SIZES)):
            for number, name in enumerate(names):
                has = right[:, attribute] == number
                found[name] = ("perception", shown[..., attribute] == number)
                found[f"answer_{name}"] = ("reasoning", answer & has[:, None, None])
        found["phase"] = ("reasoning", phase.reshape(len(here), n, n).astype(np.float64))
        return found

    def facts(self, scenes: Scenes) -> Facts:
        """Reasoning, of the clip: ``period`` (a number), and ``right_colour`` and ``right_size`` of the symbol that
        belongs into the gap.
        """
        right = _ATTRIBUTES[self._right(scenes)]
        return {
            "period": ("reasoning", scenes["period"].astype(np.float64)),
            "right_colour": ("reasoning", right[:, 0], tuple(COLOURS)),
            "right_size": ("reasoning", right[:, 1], tuple(SIZES)),
        }

    def prompt(self, scene: Mapping[str, Any]) -> str:
        return "fill the gap in the pattern"

    def answer(self, scene: Mapping[str, Any]) -> Hashable:
        """Colour and size of the symbol that belongs into the gap; the sizes are "small", "square" and "bar"."""
        return self._name(scene, scene["symbols"][scene["gap"] % scene["period"]])

    def candidates(self, scene: Mapping[str, Any]) -> tuple[Hashable, ...]:
        return tuple(self._name(scene, symbol) for symbol in range(len(SIZES if scene["by_size"] else COLOURS)))

    def outcomes(self, instance: PuzzleInstance) -> Ints:
        """The candidates of `Candidates.outcomes`: the symbols of the period; five colours would not be independent."""
        scene = instance.scene
        phase, period = int(scene["gap"][0] % scene["period"][0]), int(scene["period"][0])
        ways = []
        for symbol in scene["symbols"][0, :period]:
            symbols = scene["symbols"].copy()
            symbols[0, phase] = symbol
            ways.append({"symbols": symbols})
        codes, gap = self.ends_of(instance, ways), int(scene["gap"][0])
        # Another symbol in the period would change its other cells too: only the gap's is taken.
        filled = np.repeat(codes[:1], len(codes), axis=0)
        filled.reshape(len(codes), -1)[:, gap] = codes.reshape(len(codes), -1)[:, gap]
        return filled

    def necessary_steps(self, scene: Mapping[str, Any]) -> int:
        """One: the gap is filled."""
        return 1

    def _right(self, scenes: Scenes) -> Ints:
        """Glyph number of the symbol that belongs into the gap: int (B,)."""
        return np.asarray(self._sequence(scenes)[np.arange(length(scenes)), scenes["gap"]])

    def _name(self, scene: Mapping[str, Any], symbol: int) -> str:
        colour, size = (scene["constant"], symbol) if scene["by_size"] else (symbol, scene["constant"])
        return f"{list(COLOURS)[colour]} {SIZES[size]}"


def _any_of(allowed: Bools, rng: np.random.Generator) -> Ints:
    """A random one of the allowed numbers of each row of (B, K), 0 where none is: int (B,)."""
    return np.asarray((rng.random(allowed.shape) * allowed).argmax(axis=1))
