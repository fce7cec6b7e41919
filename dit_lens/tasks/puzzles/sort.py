"""Sort: bars change places until they stand in order of size; the number of exchanges is the serial depth.

n bars of heights 1 .. n stand in n columns. The prompt says whether they are to rise or fall from left to right: "sort
the bars up" or "sort the bars down". A legal move exchanges two neighbours that stand in the wrong order, one move a
frame. The true video makes the leftmost legal move in each frame until there is none.

Score. A column shows a bar if its lowest cell is of a bar; the bar goes up from there for as long as its colour does. A
frame is *readable* if all of its columns show bars:

- *sorted* (.45): 1 - w / s, not below 0, where s is the number of pairs of bars in the wrong order in the problem, w
  that of pairs in the wrong order or of one height in the last frame. Nothing if the last frame is not readable.
- *moves* (.30): share of frame transitions that are legal by height: both frames are readable, and nothing changes or
  one legal move is made. Nothing if no legal move is ever made or the first frame does not show the problem's heights.
- *bars* (.15): share of the bars, over all frames, that are shown by exactly one column in their height and colour.
  Nothing if no legal move is ever made.
- *background* (.10): share of the columns, over all later frames, that show a bar with nothing but floor above it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.puzzles.glyphs import COLOURS, FLOOR, NAMES
from dit_lens.tasks.puzzles.glyphs import numbers as glyph_numbers
from dit_lens.tasks.puzzles.puzzle import Facts, Maps, PuzzleInstance
from dit_lens.tasks.puzzles.scenes import Scenes, concatenate, distinct, length, take
from dit_lens.tasks.puzzles.shares import Candidates

_BAR = glyph_numbers("bar")
#: Colour of each bar glyph, -1 for what is no bar. The last entry is that of ``UNREADABLE``.
_COLOUR = np.full(len(NAMES) + 1, -1)
_COLOUR[_BAR] = np.arange(len(COLOURS))


@dataclass(frozen=True)
class Sort(Candidates):
    """Bars change places, neighbour with neighbour, until they stand in order of size.

    Parameters
    ----------
    moves : (int, int), optional
        Fewest and most exchanges that a problem needs; by default 1 to n (n - 1) / 2, as far as the video is long
        enough.

    Examples
    --------
    >>> from dit_lens.tasks import Sort
    >>> original, counterfactual = Sort().pair(seed=0)
    >>> original.prompt, original.answer
    ('sort the bars down', (1, 2, 1, 0))
    >>> counterfactual.prompt, counterfactual.answer
    ('sort the bars up', (0, 1))
    """

    moves: tuple[int, int] | None = None

    name: ClassVar[str] = "sort"
    weights: ClassVar[Mapping[str, float]] = {"sorted": 0.45, "moves": 0.3, "bars": 0.15, "background": 0.1}
    kinds: ClassVar[Mapping[str, str]] = {"direction": "descending", "bars": "heights"}
    layout: ClassVar[tuple[str, ...]] = ("heights", "colours")
    answer_rules: ClassVar[tuple[str, ...]] = ("sorted",)
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
        while sum(map(length, parts)) < count:
            colours = [distinct(rng, 2 * count, len(COLOURS), min(5, self.size - i)) for i in range(0, self.size, 5)]
            scenes = {
                "heights": 1 + distinct(rng, 2 * count, self.size, self.size),
                "colours": np.concatenate(colours, axis=1),
                "descending": rng.random(2 * count) < 0.5,
            }
            parts.append(take(scenes, self._allowed(scenes)))
        return take(concatenate(parts), slice(count))

    def vary(self, scenes: Scenes, kind: str, rng: np.random.Generator) -> tuple[Scenes, Bools]:
        """*direction*: up becomes down or down up; *bars*: two bars stand in each other's places.

        Both sides of a pair need as many moves as any problem may, and never the same ones: the first move up is
        nowhere the first move down, and the exchange of two bars makes an odd number of moves even or the reverse.
        """
        self._check_pairs(kind)
        changed = scenes | {"descending": ~scenes["descending"]}
        if kind == "bars":
            heights, places = scenes["heights"].copy(), distinct(rng, length(scenes), self.size, 2)
            np.put_along_axis(heights, places, np.take_along_axis(heights, places[:, ::-1], axis=1), axis=1)
            changed = scenes | {"heights": heights}
        return changed, self._allowed(changed)

    def _check_pairs(self, kind: str) -> None:
        """Refuse kinds of pairs that do not exist with so many moves."""
        (low, high), most = self.depths, self.size * (self.size - 1) // 2
        if kind == "direction" and not 2 * low <= most <= 2 * high:
            raise TaskError(f"{self}: what takes k moves up takes {most} - k down, and both must be {low} to {high}")
        if kind == "bars" and low == high:
            raise TaskError(f"{self}: an exchange of two bars changes the number of moves, which must be {low}")

    def _allowed(self, scenes: Scenes) -> Bools:
        """Which scenes need as many moves as was asked for: bool (B,)."""
        low, high = self.depths
        depth = inversions(_keys(scenes["heights"], scenes))
        return np.asarray((depth >= low) & (depth <= high))

    def _orders(self, scenes: Scenes) -> Ints:
        """Heights from left to right in each frame: int (B, T, n)."""
        heights = scenes["heights"].copy()
        orders, here = [heights.copy()], np.arange(len(heights))
        for _ in range(self.frames - 1):
            wrong = _inverted(_keys(heights, scenes))
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

    def judge(self, codes: Ints, scenes: Scenes) -> dict[str, Floats]:
        heights, colours = _bars(codes)
        keys, start = _keys(heights, scenes), _keys(scenes["heights"], scenes)
        readable = np.asarray((heights > 0).all(axis=2))
        legal, moved = _legal(keys, readable)
        from_start = (keys[:, 0] == start).all(axis=1)
        left = inversions(keys[:, -1], ties=True) / inversions(start)
        sizes = 1 + np.arange(self.size)
        shown = (heights[..., None] == sizes) & (colours[..., None] == scenes["colours"][:, None, None])
        alone = (heights > 0) & ((codes == FLOOR).sum(axis=2) == self.size - heights)
        return {
            "sorted": np.maximum(1 - left, 0) * readable[:, -1],
            "moves": legal.mean(axis=1) * (moved & from_start),
            "bars": (shown.sum(axis=2) == 1).mean(axis=(1, 2)) * moved,
            "background": alone[:, 1:].mean(axis=(1, 2)),
        }

    def drawn(self, codes: Ints, scenes: Scenes) -> Bools:
        """Whether every column shows a bar, all of different heights, in another order than at first."""
        bars = np.isin(codes, _BAR)
        heights = np.where(bars[:, -1], np.logical_and.accumulate(bars[:, ::-1], axis=1).sum(axis=1), 0)
        all_there = (np.sort(heights, axis=1) == 1 + np.arange(self.size)).all(axis=1)
        return np.asarray(all_there & (heights != scenes["heights"]).any(axis=1))

    def maps(self, scenes: Scenes) -> Maps:
        """Perception: a label of each colour, and ``height`` (of the column's bar). Reasoning: ``inverted`` (the
        column's bar and the next to its right are in the wrong order), ``rank`` (the column in which the column's bar
        ends) and ``answer`` (the cells that differ between the first frame and the last).
        """
        codes, orders = self.codes(scenes), self._orders(scenes)
        falling, inverted = scenes["descending"][:, None, None], np.zeros(orders.shape, dtype=bool)
        inverted[..., :-1] = _inverted(_keys(orders, scenes))
        rank = np.where(falling, self.size - orders, orders - 1)
        found: Maps = {colour: ("perception", codes == _BAR[c]) for c, colour in enumerate(COLOURS)}
        found["height"] = ("perception", self._cells(orders.astype(np.float64)))
        found["inverted"] = ("reasoning", self._cells(inverted))
        found["rank"] = ("reasoning", self._cells(rank.astype(np.float64)))
        return found | {"answer": ("reasoning", codes[:, -1] != codes[:, 0])}

    def _cells(self, columns: NDArray[Any]) -> NDArray[Any]:
        """A value of each column (B, T, n) for all cells of the column: (B, T, n, n)."""
        return np.repeat(columns[:, :, None], self.size, axis=2)

    def facts(self, scenes: Scenes) -> Facts:
        """Reasoning: whether the order asked for is ``descending``, of the clip; ``inversions`` (pairs of bars that are
        still in the wrong order), of each frame.
        """
        left = np.stack([inversions(_keys(order, scenes)) for order in self._orders(scenes).swapaxes(0, 1)], axis=1)
        return {
            "descending": ("reasoning", scenes["descending"]),
            "inversions": ("reasoning", left.astype(np.float64)),
        }

    def prompt(self, scene: Mapping[str, Any]) -> str:
        return f"sort the bars {'down' if scene['descending'] else 'up'}"

    def answer(self, scene: Mapping[str, Any]) -> Hashable:
        """The moves of the true video: the left one of the two columns that each exchanges."""
        return self._moves(_way(scene, scene["descending"]))

    def candidates(self, scene: Mapping[str, Any]) -> tuple[Hashable, ...]:
        """The answers up and down, without one that takes more or fewer moves than was asked for."""
        ways = (_way(scene, descending) for descending in (False, True))
        return tuple(self._moves(way) for way in ways if self._allowed(way)[0])

    def outcomes(self, instance: PuzzleInstance) -> Ints:
        """The candidates of `Candidates.outcomes`: sorted up and down, as far as the bars are not so at first."""
        codes = self.ends_of(instance, [{"descending": np.array([down])} for down in (False, True)])
        return codes[[0, *(1 + np.flatnonzero((codes[1:] != codes[:1]).any(axis=(1, 2))))]]

    def necessary_steps(self, scene: Mapping[str, Any]) -> int:
        """Moves, one for each pair of bars in the wrong order."""
        way = _way(scene, scene["descending"])
        return int(inversions(_keys(way["heights"], way))[0])

    def _moves(self, way: Scenes) -> tuple[int, ...]:
        order = self._orders(way)[0]
        change = order[1:] != order[:-1]
        return tuple(change[change.any(axis=1)].argmax(axis=1).tolist())


def _way(scene: Mapping[str, Any], descending: bool) -> Scenes:
    """What the moves of one scene depend on, were its bars to fall or to rise."""
    return {"heights": scene["heights"][None], "descending": np.array([descending])}


def inversions(keys: Ints, ties: bool = False) -> Ints:
    """Pairs of (B, n) that stand in the wrong order, with ``ties`` also those of equals: int (B,)."""
    one, other = keys[:, :, None], keys[:, None, :]
    return np.asarray(np.triu(one >= other if ties else one > other, 1).sum(axis=(1, 2)))


def _keys(heights: Ints, scenes: Scenes) -> Ints:
    """What is to rise from left to right, heights or their negatives: int (B, ..., n)."""
    sign = np.where(scenes["descending"], -1, 1)
    return np.asarray(heights * sign.reshape(-1, *(1,) * (heights.ndim - 1)))


def _inverted(keys: Ints) -> Bools:
    """Which neighbours of (..., n) stand in the wrong order: bool (..., n - 1)."""
    return np.asarray(keys[..., :-1] > keys[..., 1:])


def _bars(codes: Ints) -> tuple[Ints, Ints]:
    """Height and colour of the bar of each column of (B, T, n, n): int (B, T, n), 0 and -1 where no bar stands."""
    ground = codes[:, :, -1:]
    run = np.logical_and.accumulate(codes[:, :, ::-1] == ground, axis=2).sum(axis=2)
    colours = _COLOUR[ground[:, :, 0]]
    return np.where(colours >= 0, run, 0), colours


def _legal(keys: Ints, readable: Bools) -> tuple[Bools, Bools]:
    """Which transitions of (B, T, n) are legal, shape (B, T - 1), and whether one of these is a move, shape (B,)."""
    before, after = keys[:, :-1], keys[:, 1:]
    changes = (before != after).sum(axis=2)
    exchanged = (before[..., :-1] == after[..., 1:]) & (before[..., 1:] == after[..., :-1])
    after_readable = readable[:, 1:]  # so is the frame before, which shows the same heights or an exchange of them
    move = after_readable & (changes == 2) & (exchanged & _inverted(before)).any(axis=2)
    return after_readable & ((changes == 0) | move), move.any(axis=1)
