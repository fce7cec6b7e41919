"""One maze to solve."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_lens.results.arrays import Ints
from dit_lens.tasks.base import Rendered
from dit_lens.tasks.maze.boards import Boards, name_other, shortest_path_cells
from dit_lens.tasks.maze.render import GOAL_NAMES

if TYPE_CHECKING:
    from dit_lens.tasks.maze.task import Maze


@dataclass(frozen=True, eq=False)
class MazeInstance(Rendered):
    """One maze with a start, a goal (or two, of which the prompt names one), and one of its shortest paths.

    Attributes
    ----------
    task : Maze
    board : Boards of length 1
    path : tuple of int
        Cell numbers ``i * n + j`` from start to the named goal, the true answer that the video shows.
    """

    task: Maze
    board: Boards
    path: tuple[int, ...]

    @cached_property
    def id(self) -> str:
        """A name that is the same for the same walls, start and goals, the same one named."""
        b = self.board
        content = b"".join(x.tobytes() for x in (b.right, b.down, b.start, b.goals))
        content += b"" if b.named is None else b.named.tobytes()
        return f"maze{b.size}-{hashlib.sha256(content).hexdigest()[:12]}"

    @property
    def prompt(self) -> str:
        return prompts(self.board)[0]

    @property
    def variables(self) -> Mapping[str, Any]:
        """The latent variables by name.

        ``walls`` (bool (2, n, n): right and lower ones) and ``start`` (row, column); with one goal ``goal`` (row,
        column); with two ``goals`` (the red one's row and column, the purple one's) and ``named``, the goal's colour.
        """
        b = self.board
        fixed = {"walls": np.stack([b.right[0], b.down[0]]), "start": b.start[0]}
        if b.named is None:
            return fixed | {"goal": b.goal[0]}
        return fixed | {"goals": b.goals[0], "named": GOAL_NAMES[b.named[0]]}

    @property
    def answer(self) -> frozenset[tuple[int, int]]:
        """Cells (row, column) of all shortest paths from start to the named goal."""
        return _on_paths(self.board)

    @property
    def candidates(self) -> tuple[frozenset[tuple[int, int]], ...]:
        """The answers of the red and of the purple goal; with one goal its answer alone."""
        b = self.board
        if b.named is None:
            return (_on_paths(b),)
        red, purple = (b, name_other(b)) if b.named[0] == 0 else (name_other(b), b)
        return _on_paths(red), _on_paths(purple)

    @property
    def steps(self) -> int:
        """Moves on a shortest path."""
        return self.length

    @property
    def length(self) -> int:
        """Moves on a shortest path."""
        return len(self.path) - 1

    def __repr__(self) -> str:
        return f"MazeInstance({self.id}, length={self.length})"


def prompts(boards: Boards) -> list[str]:
    """The prompt of each board."""
    named: Ints = np.zeros(len(boards), dtype=np.int64) if boards.named is None else boards.named
    return [f"draw the path from green to {GOAL_NAMES[colour]}" for colour in named]


def _on_paths(board: Boards) -> frozenset[tuple[int, int]]:
    return frozenset((int(i), int(j)) for i, j in np.argwhere(shortest_path_cells(board)[0]))
