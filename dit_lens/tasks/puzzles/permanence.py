"""Permanence: an object goes behind a wall and comes out as it went in, or stays there.

Two objects stand in the first column, in rows of their own. The prompt names one by its shape and says whether it comes
out. It walks to the right at an even pace, unseen while it is in the wall's columns 1 .. n - 2, and reaches the last
column or stops in the middle of the wall. While it is hidden, its row, colour and shape are only in memory.

Score:

- *place* (.40): in the last frame the named object has left its cell, and the last column shows one object, in its row,
  if it is to come out, and none if it is to stay.
- *identity* (.30): *place*, and the object that came out has its colour and shape.
- *passage* (.20): share of frame transitions that are legal: from the first frame on the object is seen as it is at
  the start, then not at all, then, if it is to come out, some object at the end, which stays as it came out; the rest
  of the last column, and the cell that it left, show floor. Nothing if it is never away or is back in the last frame.
- *kept* (.10): share of the other cells, wall and other object, that are as in the first frame, over all later frames.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.puzzles.glyphs import COLOURS, FLOOR, NUMBER, SHAPES, UNREADABLE, WALL
from dit_lens.tasks.puzzles.puzzle import Facts, Maps, PuzzleInstance
from dit_lens.tasks.puzzles.scenes import Scenes, distinct, in_order, length
from dit_lens.tasks.puzzles.shares import Candidates

_OBJECTS = 2
#: Glyph of each colour and shape: int (5, 3).
_GLYPH = np.array([[NUMBER[f"{colour} {shape}"] for shape in SHAPES] for colour in COLOURS])
#: Where the named object is seen.
_START, _HIDDEN, _END, _NOWHERE = range(4)


@dataclass(frozen=True)
class Permanence(Candidates):
    """An object goes behind a wall and comes out, or stays; the prompt says which object and whether.

    Examples
    --------
    >>> from dit_lens.tasks import Permanence
    >>> original, counterfactual = Permanence().pair(seed=0, kind="colour")
    >>> original.answer, counterfactual.answer
    ('blue square', 'purple square')
    """

    name: ClassVar[str] = "permanence"
    weights: ClassVar[Mapping[str, float]] = {"place": 0.4, "identity": 0.3, "passage": 0.2, "kept": 0.1}
    kinds: ClassVar[Mapping[str, str]] = {"exit": "out", "object": "mover", "colour": "colours"}
    layout: ClassVar[tuple[str, ...]] = ("rows", "colours", "shapes")
    answer_rules: ClassVar[tuple[str, ...]] = ("identity",)
    sizes: ClassVar[tuple[int, int]] = (4, 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames <= self.size:
            least = 1 + 4 * -(-self.size // 4)
            raise TaskError(f"{self}: {self.frames} frames are too few for {self.size} cells; ask for at least {least}")

    def draw(self, rng: np.random.Generator, count: int) -> Scenes:
        return {
            "rows": distinct(rng, count, self.size, _OBJECTS),
            "shapes": distinct(rng, count, len(SHAPES), _OBJECTS),
            "colours": distinct(rng, count, len(COLOURS), _OBJECTS),
            "mover": rng.integers(0, _OBJECTS, count),
            "out": rng.random(count) < 0.5,
        }

    def shown(self, scenes: Scenes) -> Scenes:
        return in_order(scenes, "rows", "colours", "shapes")

    def vary(self, scenes: Scenes, kind: str, rng: np.random.Generator) -> tuple[Scenes, Bools]:
        """*exit*: comes out or stays; *object*: the other one goes; *colour*: the mover has a colour nobody has."""
        here, possible = np.arange(length(scenes)), np.ones(length(scenes), dtype=bool)
        if kind == "exit":
            return scenes | {"out": ~scenes["out"]}, possible
        if kind == "object":
            # Were both to stay, both answers would be "nothing comes out".
            return scenes | {"mover": 1 - scenes["mover"]}, scenes["out"]
        free = np.ones((len(here), len(COLOURS)))
        np.put_along_axis(free, scenes["colours"], 0, axis=1)
        colours = scenes["colours"].copy()
        colours[here, scenes["mover"]] = (rng.random(free.shape) * free).argmax(axis=1)
        return scenes | {"colours": colours}, scenes["out"]

    def codes(self, scenes: Scenes) -> Ints:
        here, n = np.arange(length(scenes)), self.size
        video = np.full((len(here), self.frames, n, n), FLOOR)
        video[..., 1 : n - 1] = WALL
        glyphs = _GLYPH[scenes["colours"], scenes["shapes"]]
        other = 1 - scenes["mover"]
        video[here, :, scenes["rows"][here, other], 0] = glyphs[here, other][:, None]
        column = self._columns(scenes)
        row, glyph = scenes["rows"][here, scenes["mover"]], glyphs[here, scenes["mover"]]
        for t in range(self.frames):
            seen = np.flatnonzero((column[:, t] == 0) | (column[:, t] == n - 1))
            video[seen, t, row[seen], column[seen, t]] = glyph[seen]
        return video

    def _columns(self, scenes: Scenes) -> Ints:
        """Column of the mover in each frame: int (B, T)."""
        pace = (self.frames - 1) // (self.size - 1)
        end = np.where(scenes["out"], self.size - 1, (self.size - 1) // 2)
        return np.minimum(np.arange(self.frames) // pace, end[:, None])

    def judge(self, codes: Ints, scenes: Scenes) -> dict[str, Floats]:
        here, truth = np.arange(length(scenes)), self.codes(scenes)
        row, glyph = (x[here, scenes["mover"]] for x in (scenes["rows"], _GLYPH[scenes["colours"], scenes["shapes"]]))
        shown, expected = codes[:, -1, :, -1], truth[:, -1, :, -1]
        arrived = np.where(expected == FLOOR, shown == FLOOR, np.isin(shown, _GLYPH)).all(axis=1)
        place = arrived & (codes[here, -1, row, 0] == FLOOR)
        others = np.zeros((self.size, self.size), dtype=bool)[None].repeat(len(here), axis=0)
        others[:, :, :-1] = True
        others[here, row, 0] = False
        kept = (codes[:, 1:] == truth[:, :1]) & others[:, None]
        return {
            "place": place.astype(np.float64),
            "identity": (place & (shown == expected).all(axis=1)).astype(np.float64),
            "passage": self._passage(codes, row, glyph, scenes["out"]),
            "kept": kept.sum(axis=(1, 2, 3)) / (others.sum(axis=(1, 2)) * (self.frames - 1)),
        }

    def _passage(self, codes: Ints, row: Ints, glyph: Ints, out: Bools) -> Floats:
        """The rule *passage*: the object is at the start, hidden or at the end of its row, one after the other."""
        here, last = np.arange(len(codes)), codes[..., -1]
        start, end, floors = codes[here, :, row, 0], last[here, :, row], (last == FLOOR).sum(axis=2)
        emerged = np.isin(end, _GLYPH) & (floors == self.size - 1) & out[:, None]
        place = np.full(start.shape, _NOWHERE)
        place[(start == glyph[:, None]) & (floors == self.size)] = _START
        place[(start == FLOOR) & (floors == self.size)] = _HIDDEN
        place[(start == FLOOR) & emerged] = _END
        before, after = place[:, :-1], place[:, 1:]
        same = (before == after) & ((after != _END) | (end[:, :-1] == end[:, 1:]))
        legal = (same | (after - before == 1)) & (after < _NOWHERE)
        legal[:, 0] &= place[:, 0] == _START
        away = ((place == _HIDDEN) | (place == _END)).any(axis=1) & (place[:, -1] != _START)
        return np.asarray(legal.mean(axis=1) * away)

    def drawn(self, codes: Ints, scenes: Scenes) -> Bools:
        """Whether first and last column are readable, one object left the first, and the last shows one at most."""
        first, last = codes[:, :, 0], codes[:, :, -1]
        readable = (first != UNREADABLE).all(axis=1) & (last != UNREADABLE).all(axis=1)
        return np.asarray(readable & (np.isin(first, _GLYPH).sum(axis=1) < 2) & (np.isin(last, _GLYPH).sum(axis=1) < 2))

    def maps(self, scenes: Scenes) -> Maps:
        """Perception: ``wall``, ``object`` (seen here), a label of each colour and shape. Reasoning: ``mover`` (the
        cell in which the named object is, seen or not), ``hidden`` (it is here and not seen) and ``hidden_`` with its
        colour, ``answer`` (what comes out is in this cell at the end) and ``answer_`` with its colour.
        """
        here, codes, n = np.arange(length(scenes)), self.codes(scenes), self.size
        found: Maps = {"wall": ("perception", codes == WALL), "object": ("perception", np.isin(codes, _GLYPH))}
        for c, colour in enumerate(COLOURS):
            found[colour] = ("perception", np.isin(codes, _GLYPH[c]))
        for s, shape in enumerate(SHAPES):
            found[shape] = ("perception", np.isin(codes, _GLYPH[:, s]))
        column, row = self._columns(scenes), scenes["rows"][here, scenes["mover"]]
        mover = np.zeros(codes.shape, dtype=bool)
        for t in range(self.frames):
            mover[here, t, row, column[:, t]] = True
        answer = np.zeros((len(here), n, n), dtype=bool)
        answer[here, row, -1] = scenes["out"]
        hidden, colours = mover & (codes == WALL), scenes["colours"][here, scenes["mover"]]
        found |= {name: ("reasoning", x) for name, x in (("mover", mover), ("hidden", hidden), ("answer", answer))}
        for c, colour in enumerate(COLOURS):
            found[f"hidden_{colour}"] = ("reasoning", hidden & (colours == c)[:, None, None, None])
            found[f"answer_{colour}"] = ("reasoning", answer & (colours == c)[:, None, None])
        return found

    def facts(self, scenes: Scenes) -> Facts:
        """Reasoning: ``row``, ``colour`` and ``shape`` of the named object and whether it comes ``out``, of the clip;
        its ``column`` and whether it ``is_hidden``, of each frame.
        """
        here, mover = np.arange(length(scenes)), scenes["mover"]
        column = self._columns(scenes)
        return {
            "row": ("reasoning", scenes["rows"][here, mover], tuple(map(str, range(self.size)))),
            "colour": ("reasoning", scenes["colours"][here, mover], tuple(COLOURS)),
            "shape": ("reasoning", scenes["shapes"][here, mover], tuple(SHAPES)),
            "out": ("reasoning", scenes["out"]),
            "column": ("reasoning", column.astype(np.float64)),
            "is_hidden": ("reasoning", (column > 0) & (column < self.size - 1)),
        }

    def prompt(self, scene: Mapping[str, Any]) -> str:
        shape = SHAPES[scene["shapes"][scene["mover"]]]
        return f"the {shape} goes behind the wall and {'comes out' if scene['out'] else 'stays'}"

    def answer(self, scene: Mapping[str, Any]) -> Hashable:
        """Colour and shape of what comes out, or "nothing"."""
        return self._name(scene, scene["mover"]) if scene["out"] else "nothing"

    def candidates(self, scene: Mapping[str, Any]) -> tuple[Hashable, ...]:
        return (*(self._name(scene, i) for i in range(_OBJECTS)), "nothing")

    def outcomes(self, instance: PuzzleInstance) -> Ints:
        """The candidates of `Candidates.outcomes`: either object outside, or the mover gone."""
        mover = instance.scene["mover"]
        ways = [(np.zeros_like(mover), True), (np.ones_like(mover), True), (mover, False)]
        return self.ends_of(instance, [{"mover": who, "out": np.array([out])} for who, out in ways])

    def necessary_steps(self, scene: Mapping[str, Any]) -> int:
        """Cells that the object crosses."""
        return self.size - 1 if scene["out"] else (self.size - 1) // 2

    def _name(self, scene: Mapping[str, Any], which: int) -> str:
        return f"{list(COLOURS)[scene['colours'][which]]} {SHAPES[scene['shapes'][which]]}"
