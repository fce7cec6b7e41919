"""What a decoded frame says of the answer: whether one is drawn, and whether it is right.

This is the *hard* reading, the scorer's: a cell shows the glyph or colour nearest to it, or is unreadable. The *soft*
ones, `puzzles.shares` and `maze.alive`, say how much of each candidate is in the pixels, so a blend of two answers is
seen as both and not as neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np

from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools
from dit_lens.tasks.maze import Maze
from dit_lens.tasks.maze import boards as maze_boards
from dit_lens.tasks.maze import render as maze_render
from dit_lens.tasks.puzzles.glyphs import COLOURS, NUMBER, SHAPES, SIZES, SLOT, UNREADABLE, read
from dit_lens.tasks.puzzles.glyphs import numbers as glyph_numbers
from dit_lens.tasks.puzzles.move import Move
from dit_lens.tasks.puzzles.pattern import Pattern
from dit_lens.tasks.puzzles.permanence import Permanence
from dit_lens.tasks.puzzles.puzzle import Scenes, concatenate
from dit_lens.tasks.puzzles.sort import Sort
from dit_lens.tasks.puzzles.tictactoe import TicTacToe

_OBJECT = np.array([NUMBER[f"{colour} {shape}"] for colour in COLOURS for shape in SHAPES])
_MARK = np.array([NUMBER["x"], NUMBER["o"]])
_BAR = glyph_numbers("bar")
_SYMBOL = np.array([NUMBER[f"{colour} {size}"] for colour in COLOURS for size in SIZES])

#: The rules of the score that say whether the answer is right, whatever the frames before it show.
ANSWER_RULES: dict[str, tuple[str, ...]] = {
    "maze": ("legal", "complete"),
    "move": ("placed",),
    "pattern": ("symbol",),
    "permanence": ("identity",),
    "sort": ("sorted",),
    "tictactoe": ("win",),
}


class Answers(NamedTuple):
    """The hard reading of B videos, bool arrays of shape (B,).

    Attributes
    ----------
    drawn : the last frame shows one readable answer, right or wrong
    right : it is drawn, and the rules of `ANSWER_RULES` hold in full
    """

    drawn: Bools
    right: Bools


def read_answers(task: Any, videos: Video, instances: Sequence[Any]) -> Answers:
    """Whether the last frame of each video, uint8 (B, T, height, width, 3), shows an answer, and the right one.

    An answer is *drawn* in

    - a maze where the centre of every cell is readable and at least two cells show trail or agent;
    - *permanence* where first and last column are readable, an object has left the first one, and at most one object
      stands in the last;
    - *pattern* where the gap's cell shows a symbol;
    - *sort* where every column shows a bar, all of different heights, in another order than at first;
    - *tic-tac-toe* where the squares that were empty are readable and exactly one of them shows a mark;
    - *move* where each object stands in exactly one cell, not both where they began.

    Raises
    ------
    EvidenceError
        It is not known how this task's answers are read.
    TaskError
        Videos of another size, type or number than the instances.
    """
    if task.name not in ANSWER_RULES:
        raise EvidenceError(f"no reader of the answers of task {task.name!r}; there are {', '.join(ANSWER_RULES)}")
    scores = task.score(videos, list(instances))
    drawn = _drawn(task, videos[:, -1], instances)
    right = np.logical_and.reduce([scores.rules[rule] == 1 for rule in ANSWER_RULES[task.name]])
    return Answers(drawn, drawn & right)


@singledispatch
def _drawn(task: Any, images: Video, instances: Sequence[Any]) -> Bools:
    raise EvidenceError(f"no reader of the answers of {task}")


@_drawn.register
def _(task: Maze, images: Video, instances: Sequence[Any]) -> Bools:
    centres = maze_render.read_centres(images, task.size, task.goals)
    trail = np.isin(centres, maze_render.ANSWER).sum(axis=(1, 2))
    return np.asarray((centres != maze_render.UNREADABLE).all(axis=(1, 2)) & (trail >= 2))


@_drawn.register
def _(task: Permanence, images: Video, instances: Sequence[Any]) -> Bools:
    codes = read(images, task.size)
    first, last = codes[:, :, 0], codes[:, :, -1]
    readable = (first != UNREADABLE).all(axis=1) & (last != UNREADABLE).all(axis=1)
    return np.asarray(readable & (np.isin(first, _OBJECT).sum(axis=1) < 2) & (np.isin(last, _OBJECT).sum(axis=1) < 2))


@_drawn.register
def _(task: Pattern, images: Video, instances: Sequence[Any]) -> Bools:
    codes, gap = read(images, task.size).reshape(len(images), -1), _scenes(instances)["gap"]
    return np.asarray(np.isin(codes[np.arange(len(codes)), gap], _SYMBOL))


@_drawn.register
def _(task: Sort, images: Video, instances: Sequence[Any]) -> Bools:
    codes = read(images, task.size)
    bars = np.isin(codes, _BAR)
    heights = np.where(bars[:, -1], np.logical_and.accumulate(bars[:, ::-1], axis=1).sum(axis=1), 0)
    all_there = (np.sort(heights, axis=1) == 1 + np.arange(task.size)).all(axis=1)
    return np.asarray(all_there & (heights != _scenes(instances)["heights"]).any(axis=1))


@_drawn.register
def _(task: TicTacToe, images: Video, instances: Sequence[Any]) -> Bools:
    codes = np.where(_scenes(instances)["board"] == 0, read(images, task.size), SLOT)
    return np.asarray((codes != UNREADABLE).all(axis=(1, 2)) & (np.isin(codes, _MARK).sum(axis=(1, 2)) == 1))


@_drawn.register
def _(task: Move, images: Video, instances: Sequence[Any]) -> Bools:
    codes, scenes = read(images, task.size).reshape(len(images), -1), _scenes(instances)
    glyphs = _OBJECT.reshape(len(COLOURS), len(SHAPES))[scenes["colours"], scenes["shapes"]]
    seen = codes[:, None] == glyphs[:, :, None]
    moved = (seen.argmax(axis=2) != scenes["cells"]).any(axis=1)
    return np.asarray((seen.sum(axis=2) == 1).all(axis=1) & moved)


def _scenes(instances: Sequence[Any]) -> Scenes:
    return concatenate([instance.scene for instance in instances])


def read_ends(task: Maze, images: Video, instances: Sequence[Any]) -> dict[str, Bools]:
    """Whether start and goals are drawn where they are, by name: bool (..., B) of pictures (..., B, h, w, 3)."""
    boards = maze_boards.concatenate([instance.board for instance in instances])
    shown, rows = maze_render.read_rings(images, task.size, task.goals), np.arange(len(boards))
    goals = list(zip(maze_render.GOALS, np.moveaxis(boards.goals, 1, 0), strict=False))
    names = ["goal"] if task.goals == 1 else [f"goal_{name}" for name in maze_render.GOAL_NAMES]
    ends = {"start": (maze_render.START, boards.start)} | dict(zip(names, goals, strict=True))
    return {name: shown[..., rows, cell[:, 0], cell[:, 1]] == code for name, (code, cell) in ends.items()}
