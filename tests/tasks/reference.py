"""Mazes in plain Python, written without a look at the package's arrays: the oracle of the maze tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

Cell = tuple[int, int]


def neighbours(board: Any, cell: Cell) -> Iterator[Cell]:
    """Cells that one legal move leads to; ``board`` is a `Boards` of length 1."""
    n, right, down = board.size, board.right[0], board.down[0]
    i, j = cell
    if j + 1 < n and not right[i, j]:
        yield i, j + 1
    if i + 1 < n and not down[i, j]:
        yield i + 1, j
    if j > 0 and not right[i, j - 1]:
        yield i, j - 1
    if i > 0 and not down[i - 1, j]:
        yield i - 1, j


def search(board: Any, source: Cell) -> tuple[dict[Cell, int], dict[Cell, int]]:
    """Distance and number of shortest paths from ``source`` to every cell that it reaches."""
    distance, paths, queue = {source: 0}, {source: 1}, deque([source])
    while queue:
        here = queue.popleft()
        for there in neighbours(board, here):
            if there not in distance:
                distance[there], paths[there] = distance[here] + 1, 0
                queue.append(there)
            if distance[there] == distance[here] + 1:
                paths[there] += paths[here]
    return distance, paths


def ends(board: Any) -> tuple[Cell, Cell]:
    start, goal = (tuple(int(x) for x in end[0]) for end in (board.start, board.goal))
    return start, goal


def goals(board: Any) -> tuple[Cell, Cell]:
    """The named goal and the other one."""
    named, other = (tuple(int(x) for x in goal[0]) for goal in (board.goal, board.other))
    return named, other


def shortest_paths(board: Any, goal: Cell | None = None) -> list[tuple[Cell, ...]]:
    """Every shortest path from start to a goal, by default the one that the prompt names, cell by cell."""
    start, named = ends(board)
    goal = named if goal is None else goal
    to_goal, _ = search(board, goal)
    found, growing = [], [(start,)]
    while growing:
        path = growing.pop()
        if path[-1] == goal:
            found.append(path)
        growing += [(*path, c) for c in neighbours(board, path[-1]) if to_goal[c] == to_goal[path[-1]] - 1]
    return found


def cells_on_paths(board: Any, goal: Cell | None = None) -> set[Cell]:
    """Cells on at least one shortest path from start to a goal, by default the one that the prompt names."""
    return {cell for path in shortest_paths(board, goal) for cell in path}


def canonical(right: Any, down: Any) -> str:
    """The walls between cells, the same text for every rotation and reflection of a layout.

    Walls are unordered pairs of cells; the eight symmetries act on the cells.
    """
    n = len(right)
    walls = {((i, j), (i, j + 1)) for i in range(n) for j in range(n - 1) if right[i][j]}
    walls |= {((i, j), (i + 1, j)) for i in range(n - 1) for j in range(n) if down[i][j]}
    forms = []
    for turn in (False, True):
        for flip_i in (False, True):
            for flip_j in (False, True):

                def move(cell: Cell, turn: bool = turn, flip_i: bool = flip_i, flip_j: bool = flip_j) -> Cell:
                    i, j = (cell[1], cell[0]) if turn else cell
                    return n - 1 - i if flip_i else i, n - 1 - j if flip_j else j

                forms.append(str(sorted(tuple(sorted(map(move, wall))) for wall in walls)))
    return min(forms)
