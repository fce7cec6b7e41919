"""What a decoded frame says of the answer: whether one is drawn, whether it is right, how much of each candidate.

Two readings. The *hard* one, `read_answers`, is the scorer's: a cell shows the glyph or colour nearest to it, or is
unreadable. The *soft* ones, `read_shares` and `read_ink`, say how much of each candidate is in the pixels, so that a
blend of two answers is seen as both and not as neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]

from dit_lens.errors import EvidenceError
from dit_lens.tasks.base import Bools, Floats, Ints, Video, check_videos
from dit_lens.tasks.maze import Maze
from dit_lens.tasks.maze import boards as maze_boards
from dit_lens.tasks.maze import render as maze_render
from dit_lens.tasks.puzzles.glyphs import CELL, COLOURS, NUMBER, SHAPES, SIZES, SLOT, TOLERANCE, UNREADABLE, paint, read
from dit_lens.tasks.puzzles.glyphs import numbers as glyph_numbers
from dit_lens.tasks.puzzles.move import Move
from dit_lens.tasks.puzzles.pattern import Pattern
from dit_lens.tasks.puzzles.permanence import Permanence
from dit_lens.tasks.puzzles.puzzle import Puzzle, Scenes, concatenate
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


class Shares(NamedTuple):
    """The soft reading of S pictures of one instance.

    Attributes
    ----------
    weights : float array of shape (S, K)
        How much of each of K candidates is drawn: 0 nothing, 1 all of it.
    readable : bool array of shape (S,)
        Whether the pictures are such a mixture: what is left over is no larger than the tolerance of the hard reading.
    """

    weights: Floats
    readable: Bools


def read_shares(task: Any, images: Video, instance: Any) -> Shares:
    """How much of each candidate answer is in S pictures of one instance, uint8 (S, height, width, 3).

    The picture is taken apart into the first frame and, for each candidate, what its true last frame changes, with
    weights that are not negative and best in squared error; only cells count that some candidate changes. Candidates:
    in *pattern* the symbols of the period (five colours would not be independent), in *tic-tac-toe* the empty squares
    with the named player's mark, in *permanence* either object outside or the mover gone, in *sort* up and down.

    Raises
    ------
    EvidenceError
        The task has no list of candidates that pictures can be taken apart into.
    """
    codes = _outcomes(task, instance)
    check_videos(task, images[:, None].repeat(task.frames, axis=1), len(images), CELL * task.side, CELL * task.side)
    drawn = paint(codes, task.side).astype(np.float64)
    first, changes = drawn[0], drawn[1:] - drawn[0]
    kept = np.kron((codes[1:] != codes[:1]).any(axis=0), np.ones((CELL, CELL), dtype=bool))
    inside = np.pad(kept, (0, first.shape[0] - len(kept)))
    basis = changes[:, inside].reshape(len(changes), -1)
    fits = [nnls(basis.T, (image - first)[inside].ravel()) for image in images.astype(np.float64)]
    left = np.array([norm for _, norm in fits]) / np.sqrt(basis.shape[1])
    return Shares(np.stack([weights for weights, _ in fits]), np.asarray(left <= TOLERANCE))


@singledispatch
def _outcomes(task: Any, instance: Any) -> Ints:
    """Glyph numbers of the first frame, then of the last frame under each candidate: int (1 + K, n, n)."""
    raise EvidenceError(f"{getattr(task, 'name', task)!r} has no candidates that a picture can be taken apart into")


@_outcomes.register
def _(task: Permanence, instance: Any) -> Ints:
    mover = instance.scene["mover"]
    ways = [(np.zeros_like(mover), True), (np.ones_like(mover), True), (mover, False)]
    return _with_first(task, instance, [{"mover": who, "out": np.array([out])} for who, out in ways])


@_outcomes.register
def _(task: Sort, instance: Any) -> Ints:
    codes = _with_first(task, instance, [{"descending": np.array([down])} for down in (False, True)])
    return codes[[0, *(1 + np.flatnonzero((codes[1:] != codes[:1]).any(axis=(1, 2))))]]


@_outcomes.register
def _(task: Pattern, instance: Any) -> Ints:
    scene = instance.scene
    phase, period = int(scene["gap"][0] % scene["period"][0]), int(scene["period"][0])
    ways = []
    for symbol in scene["symbols"][0, :period]:
        symbols = scene["symbols"].copy()
        symbols[0, phase] = symbol
        ways.append({"symbols": symbols})
    codes, gap = _with_first(task, instance, ways), int(scene["gap"][0])
    # Another symbol in the period would change its other cells too: only the gap's is taken.
    filled = np.repeat(codes[:1], len(codes), axis=0)
    filled.reshape(len(codes), -1)[:, gap] = codes.reshape(len(codes), -1)[:, gap]
    return filled


@_outcomes.register
def _(task: TicTacToe, instance: Any) -> Ints:
    board, mark = instance.scene["board"][0], _MARK[int(instance.scene["player"][0]) - 1]
    first = np.array([SLOT, *_MARK])[board]
    return np.stack([first, *(_with(first, int(square), mark) for square in np.flatnonzero(board == 0))])


def _with(codes: Ints, cell: int, glyph: int) -> Ints:
    changed = codes.copy()
    changed.flat[cell] = glyph
    return changed


def _with_first(task: Puzzle, instance: Any, ways: Sequence[Scenes]) -> Ints:
    """The first frame of an instance and the last ones of what becomes of its scene with some variables changed."""
    videos = task.codes(concatenate([instance.scene | way for way in ways]))
    return np.concatenate([videos[:1, 0], videos[:, -1]])


def _scenes(instances: Sequence[Any]) -> Scenes:
    return concatenate([instance.scene for instance in instances])


def read_ink(task: Maze, images: Video, instances: Sequence[Any]) -> Floats:
    """How much of trail or agent the centre of each cell shows, 0 to 1: float (..., B, n, n) of (..., B, h, w, 3).

    The mean colour of the centre is taken apart into what the empty cell shows, trail and agent. A colour that is no
    such mixture, within the tolerance of the hard reading, counts as no ink.
    """
    boards = maze_boards.concatenate([instance.board for instance in instances])
    *lead, height, width, _ = images.shape
    cells = images.reshape(*lead, height // CELL, CELL, width // CELL, CELL, 3)[..., maze_render.CENTRE, :]
    centres = cells[..., maze_render.CENTRE, :, :, :].astype(np.float64).mean(axis=(-4, -2))
    centres = centres[..., : task.size, : task.size, :]
    palette = maze_render.COLOURS.astype(np.float64)
    empty = palette[maze_render.rings(boards)]
    towards = np.stack([palette[code] - empty for code in maze_render.ANSWER], axis=-2)
    return _mixed(centres - empty, np.broadcast_to(towards, (*centres.shape[:-1], 2, 3)))


def _mixed(colour: Floats, towards: Floats) -> Floats:
    """Sum of the two weights, not negative, at most 1 and best in squared error, with which ``towards`` (..., 2, 3)
    makes a colour (..., 3); 0 where too much is left over.
    """
    one, two = towards[..., 0, :], towards[..., 1, :]
    aa, ab, bb, ac, bc = (
        np.asarray((x * y).sum(axis=-1)) for x, y in ((one, one), (one, two), (two, two), (one, colour), (two, colour))
    )
    determinant, nothing = aa * bb - ab * ab, np.zeros_like(ac)
    # The optimum lies inside the triangle of (0, 0), (1, 0), (0, 1) or on one of its sides.
    inside = np.stack([(ac * bb - bc * ab) / determinant, (bc * aa - ac * ab) / determinant], axis=-1)
    inside *= ((inside >= 0).all(axis=-1) & (inside.sum(axis=-1) <= 1))[..., None]
    along = ((bc - ac - ab + aa) / (aa - 2 * ab + bb)).clip(0, 1)
    sides = [((ac / aa).clip(0, 1), nothing), (nothing, (bc / bb).clip(0, 1)), (1 - along, along)]
    weights = np.stack([inside, *(np.stack(side, axis=-1) for side in sides)])
    left = np.linalg.norm(colour - (weights[..., None] * towards).sum(axis=-2), axis=-1)
    best = np.take_along_axis(weights.sum(axis=-1), left.argmin(axis=0)[None], axis=0)[0]
    return np.where(left.min(axis=0) <= maze_render.TOLERANCE, best, 0.0)


def read_ends(task: Maze, images: Video, instances: Sequence[Any]) -> dict[str, Bools]:
    """Whether start and goals are drawn where they are, by name: bool (..., B) of pictures (..., B, h, w, 3)."""
    boards = maze_boards.concatenate([instance.board for instance in instances])
    shown, rows = maze_render.read_rings(images, task.size, task.goals), np.arange(len(boards))
    goals = list(zip(maze_render.GOALS, np.moveaxis(boards.goals, 1, 0), strict=False))
    names = ["goal"] if task.goals == 1 else [f"goal_{name}" for name in maze_render.GOAL_NAMES]
    ends = {"start": (maze_render.START, boards.start)} | dict(zip(names, goals, strict=True))
    return {name: shown[..., rows, cell[:, 0], cell[:, 1]] == code for name, (code, cell) in ends.items()}
