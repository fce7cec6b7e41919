"""Move: two objects go where the prompt says (binding).

Two objects of different shape and colour and three targets, rings of different colours, stand in cells of their own.
The prompt names each object by its shape and its target by the ring's colour: "move the circle to red and the square to
blue". Both objects walk at the same time, one cell a frame, first along their row and then along their column, and
stand on their targets in the end. They never meet or pass through each other; a walk may cross rings.

Score; an object is seen where a cell shows its shape in its colour:

- *placed* (.40): share of the objects that the last frame shows on the target that the prompt names and nowhere else.
- *moves* (.30): share of frame transitions that are legal: each object is seen in one cell before and in one after, at
  most one cell away along a row or column, they do not exchange their cells, and the first starts where they stand in
  the problem. Any legal walk will do, but where no object ever moves nothing is earned.
- *targets* (.20): share of the targets that are right in the last frame: the two named ones show some object, the third
  its ring. Nothing either where no object ever moves.
- *kept* (.10): share of the cells in which no object is seen that show floor or their ring, over all later frames but
  for the rings of the last one, which *targets* judges.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.puzzles.glyphs import COLOURS, FLOOR, NUMBER, SHAPES
from dit_lens.tasks.puzzles.glyphs import numbers as glyph_numbers
from dit_lens.tasks.puzzles.puzzle import Facts, Maps, Puzzle
from dit_lens.tasks.puzzles.scenes import Scenes, concatenate, distinct, in_order, length, take

_OBJECTS, _TARGETS = 2, 3
#: Glyph of each colour and shape: int (5, 3).
_GLYPH = np.array([[NUMBER[f"{colour} {shape}"] for shape in SHAPES] for colour in COLOURS])
_RING = glyph_numbers("ring")


@dataclass(frozen=True)
class Move(Puzzle):
    """Two objects go to the targets that the prompt names.

    Examples
    --------
    >>> from dit_lens.tasks import Move
    >>> original, counterfactual = Move().pair(seed=0)
    >>> original.prompt
    'move the square to blue and the circle to purple'
    >>> counterfactual.prompt
    'move the square to green and the circle to purple'
    >>> original.answer, counterfactual.answer
    (((1, 1), (1, 2)), ((1, 1), (1, 3)))
    """

    name: ClassVar[str] = "move"
    weights: ClassVar[Mapping[str, float]] = {"placed": 0.4, "moves": 0.3, "targets": 0.2, "kept": 0.1}
    kinds: ClassVar[Mapping[str, str]] = {"word": "assign", "ring": "rings"}
    layout: ClassVar[tuple[str, ...]] = ("cells", "rings", "shapes", "colours", "ring_colours")
    answer_rules: ClassVar[tuple[str, ...]] = ("placed",)
    sizes: ClassVar[tuple[int, int]] = (4, 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames <= 2 * (self.size - 1):
            raise TaskError(
                f"{self}: {self.frames} frames are too few for walks of {2 * (self.size - 1)} moves; "
                f"ask for at least {1 + 4 * (self.size // 2)}"
            )

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

    def shown(self, scenes: Scenes) -> Scenes:
        return in_order(scenes, "shapes", "cells", "colours") | in_order(scenes, "ring_colours", "rings")

    def vary(self, scenes: Scenes, kind: str, rng: np.random.Generator) -> tuple[Scenes, Bools]:
        """*word*: an object is sent to the third target; *ring*: a named ring is in a cell where nothing was."""
        here, which = np.arange(length(scenes)), rng.integers(0, _OBJECTS, length(scenes))
        if kind == "word":
            assign = scenes["assign"].copy()
            assign[here, which] = _third(scenes)
            changed = scenes | {"assign": assign}
        else:
            free = np.ones((len(here), self.size**2))
            np.put_along_axis(free, np.concatenate([scenes["cells"], scenes["rings"]], axis=1), 0, axis=1)
            rings = scenes["rings"].copy()
            rings[here, scenes["assign"][here, which]] = (rng.random(free.shape) * free).argmax(axis=1)
            changed = scenes | {"rings": rings}
        return changed, ~self._collide(changed)

    def _goals(self, scenes: Scenes) -> Ints:
        """Cell of each object's target: int (B, 2)."""
        return np.asarray(np.take_along_axis(scenes["rings"], scenes["assign"], axis=1))

    def _walks(self, scenes: Scenes) -> Ints:
        """Row and column of each object in each frame: int (B, T, 2 objects, 2)."""
        n = self.size
        start = np.stack(np.divmod(scenes["cells"], n), axis=-1)
        goal = np.stack(np.divmod(self._goals(scenes), n), axis=-1)
        way = goal - start
        t = np.arange(self.frames)[:, None]
        across = np.minimum(t, np.abs(way[:, None, :, 1]))
        down = np.minimum(np.maximum(t - np.abs(way[:, None, :, 1]), 0), np.abs(way[:, None, :, 0]))
        return np.asarray(start[:, None] + np.stack([down, across], axis=-1) * np.sign(way)[:, None])

    def _collide(self, scenes: Scenes) -> Bools:
        """Whether the objects ever meet in a cell or exchange cells: bool (B,)."""
        walks = self._walks(scenes)
        one, two = walks[:, :, 0], walks[:, :, 1]
        meet = (one == two).all(-1).any(1)
        swap = ((one[:, 1:] == two[:, :-1]).all(-1) & (two[:, 1:] == one[:, :-1]).all(-1)).any(1)
        return np.asarray(meet | swap)

    def codes(self, scenes: Scenes) -> Ints:
        here, n = np.arange(length(scenes)), self.size
        video = np.repeat(self._ground(scenes).reshape(-1, 1, n, n), self.frames, axis=1)
        walks, glyphs = self._walks(scenes), _GLYPH[scenes["colours"], scenes["shapes"]]
        for t in range(self.frames):
            for k in range(_OBJECTS):
                video[here, t, walks[:, t, k, 0], walks[:, t, k, 1]] = glyphs[:, k]
        return video

    def _ground(self, scenes: Scenes) -> Ints:
        """What each cell shows without the objects, floor and rings: int (B, n n)."""
        ground = np.full((length(scenes), self.size**2), FLOOR)
        np.put_along_axis(ground, scenes["rings"], _RING[scenes["ring_colours"]], axis=1)
        return ground

    def judge(self, codes: Ints, scenes: Scenes) -> dict[str, Floats]:
        here, flat, ground = np.arange(length(scenes)), codes.reshape(*codes.shape[:2], -1), self._ground(scenes)
        glyphs, goals = _GLYPH[scenes["colours"], scenes["shapes"]], self._goals(scenes)
        seen = flat[:, :, None] == glyphs[:, None, :, None]
        placed = (seen[:, -1].sum(axis=2) == 1) & seen[here[:, None], -1, np.arange(_OBJECTS), goals]
        legal, moved = self._legal(seen, scenes["cells"])
        last, third = flat[:, -1], scenes["rings"][here, _third(scenes)]
        covered = np.isin(np.take_along_axis(last, goals, axis=1), _GLYPH).sum(axis=1)
        left = last[here, third] == ground[here, third]
        judged = ~seen[:, 1:].any(axis=2)
        judged[:, -1] &= ground == FLOOR
        kept = (flat[:, 1:] == ground[:, None]) & judged
        return {
            "placed": placed.mean(axis=1),
            "moves": legal.mean(axis=1) * moved,
            "targets": (covered + left) / _TARGETS * moved,
            "kept": kept.sum(axis=(1, 2)) / np.maximum(judged.sum(axis=(1, 2)), 1),
        }

    def _legal(self, seen: Bools, start: Ints) -> tuple[Bools, Bools]:
        """Which transitions are legal, shape (B, T - 1), and whether an object moves in one of them, shape (B,).

        Parameters
        ----------
        seen : bool array of shape (B, T, 2 objects, n n)
        start : int array of shape (B, 2)
        """
        once, cell = (seen.sum(axis=3) == 1).all(axis=2), seen.argmax(axis=3)
        place = np.stack(np.divmod(cell, self.size), axis=-1)
        far = np.abs(place[:, 1:] - place[:, :-1]).sum(axis=-1)
        exchange = (cell[:, 1:] == cell[:, :-1, ::-1]).all(axis=2)
        legal = once[:, 1:] & once[:, :-1] & (far <= 1).all(axis=2) & ~exchange
        legal[:, 0] &= (cell[:, 0] == start).all(axis=1)
        return legal, (legal & (far > 0).any(axis=2)).any(axis=1)

    def drawn(self, codes: Ints, scenes: Scenes) -> Bools:
        """Whether each object stands in exactly one cell, not both where they began."""
        glyphs = _GLYPH[scenes["colours"], scenes["shapes"]]
        seen = codes.reshape(len(codes), 1, -1) == glyphs[:, :, None]
        moved = (seen.argmax(axis=2) != scenes["cells"]).any(axis=1)
        return np.asarray((seen.sum(axis=2) == 1).all(axis=1) & moved)

    def maps(self, scenes: Scenes) -> Maps:
        """Perception: ``object``, ``ring``, a label of each colour (of an object or a ring) and of each shape.
        Reasoning: ``answer`` (the targets that are to be covered), ``answer_`` with the shape that is to cover it, and
        ``way`` (the cells of both walks, ends included).
        """
        here, codes, n = np.arange(length(scenes)), self.codes(scenes), self.size
        found: Maps = {"object": ("perception", np.isin(codes, _GLYPH)), "ring": ("perception", np.isin(codes, _RING))}
        for c, colour in enumerate(COLOURS):
            found[colour] = ("perception", np.isin(codes, [*_GLYPH[c], _RING[c]]))
        for s, shape in enumerate(SHAPES):
            found[shape] = ("perception", np.isin(codes, _GLYPH[:, s]))
        goals, walks = self._goals(scenes), self._walks(scenes)
        answers, way = np.zeros((len(SHAPES), len(here), n * n), dtype=bool), np.zeros((len(here), n, n), dtype=bool)
        answers[scenes["shapes"], here[:, None], goals] = True
        way[here[:, None, None], walks[..., 0], walks[..., 1]] = True
        by_shape = answers.reshape(len(SHAPES), -1, n, n)
        found |= {"answer": ("reasoning", np.asarray(by_shape.any(axis=0))), "way": ("reasoning", way)}
        return found | {f"answer_{shape}": ("reasoning", by_shape[s]) for s, shape in enumerate(SHAPES)}

    def facts(self, scenes: Scenes) -> Facts:
        """Reasoning: row and column of the ``first`` and of the ``second`` named object, of each frame."""
        walks = self._walks(scenes).astype(np.float64)
        return {
            f"{which}_{axis}": ("reasoning", walks[:, :, k, a])
            for k, which in enumerate(("first", "second"))
            for a, axis in enumerate(("row", "column"))
        }

    def prompt(self, scene: Mapping[str, Any]) -> str:
        colours = [list(COLOURS)[scene["ring_colours"][target]] for target in scene["assign"]]
        (a, b), (one, two) = (SHAPES[s] for s in scene["shapes"]), colours
        return f"move the {a} to {one} and the {b} to {two}"

    def answer(self, scene: Mapping[str, Any]) -> Hashable:
        """Row and column in which each named shape ends, the shapes in alphabetical order."""
        return self._ends(scene, scene["assign"])

    def candidates(self, scene: Mapping[str, Any]) -> tuple[Hashable, ...]:
        """The answers of every way to send the objects to two of the three targets."""
        return tuple(self._ends(scene, assign) for assign in permutations(range(_TARGETS), _OBJECTS))

    def necessary_steps(self, scene: Mapping[str, Any]) -> int:
        """Moves of the longer walk."""
        goal, start = (np.stack(np.divmod(x, self.size)) for x in (scene["rings"][scene["assign"]], scene["cells"]))
        return int(np.abs(goal - start).sum(axis=0).max())

    def _ends(self, scene: Mapping[str, Any], assign: Sequence[int]) -> Hashable:
        """The answer if object k went to target ``assign[k]``."""
        by_name = sorted(range(_OBJECTS), key=lambda k: SHAPES[scene["shapes"][k]])
        row, column = np.divmod(scene["rings"][list(assign)], self.size)
        return tuple((int(row[k]), int(column[k])) for k in by_name)


def _third(scenes: Scenes) -> Ints:
    """Number of the target that the prompt does not name: int (B,)."""
    return np.asarray(sum(range(_TARGETS)) - scenes["assign"].sum(axis=1))
