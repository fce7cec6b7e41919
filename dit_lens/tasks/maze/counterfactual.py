"""Mazes that differ from a given one in one thing and have another answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dit_lens.results.arrays import Bools
from dit_lens.tasks.base import Split
from dit_lens.tasks.maze.boards import Boards, goals_fit, in_split, lengths, name_other, second_goal_cells


def move_goal(board: Boards, rng: np.random.Generator, allowed: tuple[int, int], split: Split) -> Boards | None:
    """The same walls and start with another goal; ``None`` where no cell qualifies.

    Neither goal may lie on a shortest path to the other, so that neither answer is a part of the other. A second goal
    stays where it is and is kept apart from the moved one in the same way.
    """
    fits = np.argwhere(second_goal_cells(board, allowed)[0])
    options = replace(_repeat(board, len(fits)), goal=fits)
    return _choose(options, goals_fit(options, allowed), rng)


def name_other_goal(board: Boards, rng: np.random.Generator, allowed: tuple[int, int], split: Split) -> Boards:
    """The same picture when the prompt names the other of two goals."""
    return name_other(board)


def change_wall(board: Boards, rng: np.random.Generator, allowed: tuple[int, int], split: Split) -> Boards | None:
    """One wall opened or closed so that no old shortest path stays one; ``None`` where no wall qualifies."""
    n = board.size
    edges = np.argwhere(np.ones((2, n, n), dtype=bool))
    edges = edges[np.where(edges[:, 0] == 0, edges[:, 2], edges[:, 1]) < n - 1]
    options = _repeat(board, len(edges))
    for axis, walls in enumerate((options.right, options.down)):
        rows = np.flatnonzero(edges[:, 0] == axis)
        walls[rows, edges[rows, 1], edges[rows, 2]] ^= True
    length, old = lengths(options), int(lengths(board)[0])
    # An opened wall must shorten the way, a closed one must lengthen it: then no old shortest path is still one.
    fits = (length != old) & (length >= allowed[0]) & (length <= allowed[1]) & goals_fit(options, allowed)
    return _choose(options, fits & in_split(options.right, options.down, split), rng)


def _repeat(board: Boards, count: int) -> Boards:
    return board[np.zeros(count, dtype=np.int64)]


def _choose(options: Boards, fits: Bools, rng: np.random.Generator) -> Boards | None:
    rows = np.flatnonzero(fits)
    return options[rng.choice(rows, 1)] if len(rows) else None


KINDS: dict[str, Callable[[Boards, np.random.Generator, tuple[int, int], Split], Boards | None]] = {
    "prompt": name_other_goal,
    "goal": move_goal,
    "wall": change_wall,
}
