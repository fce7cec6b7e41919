"""A problem of the puzzle move written by hand, and a scorer in plain Python that shares no code with the package's."""

from __future__ import annotations

from typing import Any

import numpy as np

from dit_lens.tasks import Move
from dit_lens.tasks.puzzles.glyphs import COLOURS, FLOOR, NAMES, NUMBER, SHAPES
from dit_lens.tasks.puzzles.puzzle import PuzzleInstance
from dit_lens.tasks.puzzles.scenes import Scenes

Cell = tuple[int, int]

TASK = Move()
# Red circle at (0, 0), blue square at (3, 3); rings green at (2, 0), yellow at (1, 3), purple at (2, 2).
SCENE: Scenes = {
    "cells": np.array([[0, 15]]),
    "rings": np.array([[8, 7, 10]]),
    "shapes": np.array([[0, 1]]),
    "colours": np.array([[0, 2]]),
    "ring_colours": np.array([[1, 3, 4]]),
    "assign": np.array([[1, 2]]),
}
PROBLEM = PuzzleInstance(TASK, SCENE)
RINGS = {(2, 0): "green ring", (1, 3): "yellow ring", (2, 2): "purple ring"}
CIRCLE: list[Cell] = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 3)]
SQUARE: list[Cell] = [(3, 3), (3, 2), (2, 2)]


def film(circle: list[Cell], square: list[Cell], frames: int = 9) -> Any:
    """Glyph numbers (1, T, 4, 4) of the problem above with two walks; who has arrived stays."""
    codes = np.full((1, frames, 4, 4), FLOOR)
    for t in range(frames):
        for (i, j), ring in RINGS.items():
            codes[0, t, i, j] = NUMBER[ring]
        for name, walk in (("red circle", circle), ("blue square", square)):
            codes[0, t][walk[min(t, len(walk) - 1)]] = NUMBER[name]
    return codes


def truth() -> Any:
    return film(CIRCLE, SQUARE)


def reference(codes: Any, task: Move, scene: dict[str, Any]) -> dict[str, float]:
    """The rules in plain Python, of one video (T, n, n)."""
    n, frames = task.size, len(codes)
    cells = [(i, j) for i in range(n) for j in range(n)]
    names = [f"{list(COLOURS)[c]} {SHAPES[s]}" for c, s in zip(scene["colours"], scene["shapes"], strict=True)]
    rings = {
        divmod(int(cell), n): f"{list(COLOURS)[c]} ring"
        for cell, c in zip(scene["rings"], scene["ring_colours"], strict=True)
    }
    goals = [divmod(int(scene["rings"][target]), n) for target in scene["assign"]]
    starts = [divmod(int(cell), n) for cell in scene["cells"]]

    def name_at(t: int, cell: Cell) -> str:
        code = codes[t][cell]
        return NAMES[code] if code >= 0 else "unreadable"

    where = [[[cell for cell in cells if name_at(t, cell) == name] for name in names] for t in range(frames)]
    placed = sum(where[-1][k] == [goals[k]] for k in range(2)) / 2
    legal, moved = 0, False
    for t in range(frames - 1):
        before, after = where[t], where[t + 1]
        if any(len(seen) != 1 for seen in before + after):
            continue
        one, two = [seen[0] for seen in before], [seen[0] for seen in after]
        steps = [abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in zip(one, two, strict=True)]
        if max(steps) > 1 or one == two[::-1] or (t == 0 and one != starts):
            continue
        legal, moved = legal + 1, moved or max(steps) == 1
    right = sum(name_at(-1, goal).split()[-1] in SHAPES for goal in goals)
    right += sum(name_at(-1, cell) == ring for cell, ring in rings.items() if cell not in goals)
    good = judged = 0
    for t in range(1, frames):
        for cell in cells:
            if name_at(t, cell) not in names and (t < frames - 1 or cell not in rings):
                judged += 1
                good += name_at(t, cell) == rings.get(cell, "floor")
    return {
        "placed": placed,
        "moves": legal / (frames - 1) * moved,
        "targets": right / 3 * moved,
        "kept": good / max(judged, 1),
    }
