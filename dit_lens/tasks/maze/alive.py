"""How many paths a picture of a maze shows at once: ink, branches off the trail, goals that are reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.base import ALIVE, DECIDED
from dit_lens.tasks.maze import boards as maze_boards
from dit_lens.tasks.maze import render as maze_render
from dit_lens.tasks.maze.render import CELL

if TYPE_CHECKING:
    from dit_lens.tasks.maze.task import Maze


def paths_alive(task: Maze, images: Video, instances: Sequence[Any]) -> dict[str, Floats]:
    """Candidates in pictures (S, B, height, width, 3) of S steps; see `Maze.alive`."""
    boards = maze_boards.concatenate([instance.board for instance in instances])
    ink = read_ink(task, images, instances)
    inked, final = ink > ALIVE, np.isin(maze_render.read_centres(images[-1], task.size, task.goals), maze_render.ANSWER)
    branches = np.stack([count_branches(boards.moves, cells, final) for cells in inked]).astype(np.float64)
    if task.goals == 1:
        alive = (branches + 1) * (inked.sum(axis=(2, 3)) >= 2)
    else:
        alive = np.stack([goals_reached(boards, cells) for cells in inked])
    return {"alive": alive.astype(np.float64), "branches": branches, "undecided": undecided_cells(ink)}


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


def undecided_cells(ink: Floats) -> Floats:
    """Number of cells of ink (..., n, n) that are neither empty nor inked: float (...)."""
    return np.asarray(((ink > ALIVE) & (ink < DECIDED)).sum(axis=(-2, -1)), dtype=np.float64)


def count_branches(moves: Bools, inked: Bools, trail: Bools) -> Ints:
    """Connected sets of inked cells off a trail that a legal move joins to it: int (B,).

    Parameters
    ----------
    moves : bool array of shape (B, 4, n, n)
        Legal moves, as `dit_lens.tasks.maze.boards.open_moves` gives them.
    inked, trail : bool arrays of shape (B, n, n)
    """
    off = inked & ~trail
    inside, beside = maze_boards.restrict(moves, off), np.zeros_like(off)
    for move in range(4):
        beside |= moves[:, move] & off & maze_boards.shift(trail, move, False)
    counts = np.zeros(len(off), dtype=np.int64)
    left = off.copy()
    while left.any():
        # The first cell that is left of each board, and all that it is connected with.
        some = left.reshape(len(left), -1).argmax(axis=1)
        start = np.stack(np.divmod(some, left.shape[-1]), axis=1)
        found = (maze_boards.distances(inside, start) < maze_boards.UNREACHED) & left
        counts += (found & beside).any(axis=(1, 2))
        left &= ~found
    return counts


def goals_reached(boards: maze_boards.Boards, inked: Bools) -> Ints:
    """Number of goals that inked cells (B, n, n) join to the start by legal moves: int (B,)."""
    reached = maze_boards.distances(maze_boards.restrict(boards.moves, inked), boards.start) < maze_boards.UNREACHED
    reached &= inked
    return np.asarray(sum(maze_boards.at(reached, goal) for goal in np.moveaxis(boards.goals, 1, 0)), dtype=np.int64)
