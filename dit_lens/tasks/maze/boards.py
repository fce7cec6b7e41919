"""Mazes as arrays: vectorised generation, distances, shortest paths, splits.

Letters: B mazes, n cells a side, G goals (1 or 2). A wall belongs to the cell on its left or above it, so two arrays
hold a layout: ``right[b, i, j]`` (wall between ``(i, j)`` and ``(i, j+1)``) and ``down[b, i, j]``; the last column of
``right`` and the last row of ``down`` are always walls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.results.arrays import Bools, Ints
from dit_lens.tasks.base import Split

#: Row and column step of each move, in the order right, down, left, up.
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))
UNREACHED = 10_000


@dataclass(frozen=True)
class Boards:
    """A batch of mazes with a start and a goal, or two goals of which the prompt names one.

    Attributes
    ----------
    right, down : bool arrays of shape (B, n, n)
        Walls, as the module docstring says.
    start, goal : int arrays of shape (B, 2)
        Row and column; ``goal`` is where the path shall lead.
    other : int array of shape (B, 2), optional
        The second goal, which the prompt does not name.
    named : int array of shape (B,), optional
        Where there is a second goal, the colour of ``goal``: 0 red, 1 purple. ``other`` has the other colour.
    """

    right: Bools
    down: Bools
    start: Ints
    goal: Ints
    other: Ints | None = None
    named: Ints | None = None

    def __len__(self) -> int:
        return len(self.right)

    @property
    def size(self) -> int:
        return int(self.right.shape[1])

    @property
    def moves(self) -> Bools:
        """Legal moves of every cell, as `open_moves` gives them."""
        return open_moves(self.right, self.down)

    @property
    def goals(self) -> Ints:
        """Every goal in the order of colours, red before purple: int of shape (B, G, 2)."""
        if self.other is None or self.named is None:
            return self.goal[:, None]
        both = np.stack([self.goal, self.other], axis=1)
        return np.where(self.named[:, None, None] == 1, both[:, ::-1], both)

    def __getitem__(self, rows: slice | Ints | Bools) -> Boards:
        return Boards(*(None if column is None else column[rows] for column in _columns(self)))  # type: ignore[arg-type]


def _columns(boards: Boards) -> list[NDArray[Any] | None]:
    return [getattr(boards, field.name) for field in fields(boards)]


def concatenate(parts: Sequence[Boards]) -> Boards:
    """Join batches of boards of one size and one number of goals."""
    columns = zip(*map(_columns, parts), strict=True)
    return Boards(*(None if c[0] is None else np.concatenate(c) for c in columns))  # type: ignore[arg-type]


def open_moves(right: Bools, down: Bools) -> Bools:
    """Which of the four moves each cell allows: bool of shape (B, 4, n, n), moves in the order of ``MOVES``."""
    left = np.ones_like(right)
    left[:, :, 1:] = right[:, :, :-1]
    up = np.ones_like(down)
    up[:, 1:, :] = down[:, :-1, :]
    return ~np.stack([right, down, left, up], axis=1)


def shift(grid: NDArray[Any], move: int, fill: Any) -> NDArray[Any]:
    """Value of the neighbour that ``move`` leads to, for each cell of a grid of shape (..., n, n)."""
    out = np.full_like(grid, fill)
    di, dj = MOVES[move]
    n, m = grid.shape[-2:]
    here = (slice(max(0, -di), n - max(0, di)), slice(max(0, -dj), m - max(0, dj)))
    there = (slice(max(0, di), n + min(0, di)), slice(max(0, dj), m + min(0, dj)))
    out[(..., *here)] = grid[(..., *there)]
    return out


def restrict(moves: Bools, cells: Bools) -> Bools:
    """Only the moves that stay inside ``cells`` (B, n, n): bool of shape (B, 4, n, n)."""
    return np.stack([moves[:, m] & cells & shift(cells, m, False) for m in range(4)], axis=1)


def distances(moves: Bools, source: Ints) -> Ints:
    """Number of moves from ``source`` (B, 2) to every cell: int of shape (B, n, n), ``UNREACHED`` where cut off."""
    dist = np.full((len(moves), *moves.shape[2:]), UNREACHED, dtype=np.int64)
    dist[np.arange(len(dist)), source[:, 0], source[:, 1]] = 0
    while True:
        steps = [np.where(moves[:, m], shift(dist, m, UNREACHED) + 1, UNREACHED) for m in range(4)]
        new = np.minimum(dist, np.minimum.reduce(steps))
        if np.array_equal(new, dist):
            return dist
        dist = new


def path_counts(moves: Bools, dist: Ints) -> NDArray[np.float64]:
    """How many shortest paths lead from the source of ``dist`` to every cell: float of shape (B, n, n)."""
    counts: NDArray[np.float64] = (dist == 0).astype(np.float64)
    reached = dist[dist < UNREACHED]
    for d in range(1, int(reached.max(initial=0)) + 1):
        arriving = np.zeros_like(counts)
        for m in range(4):
            arriving += np.where(moves[:, m] & (shift(dist, m, UNREACHED) == d - 1), shift(counts, m, 0), 0)
        counts = np.where(dist == d, arriving, counts)
    return counts


def shortest_path_cells(boards: Boards) -> Bools:
    """Cells on at least one shortest path from start to goal: bool of shape (B, n, n)."""
    from_start = distances(boards.moves, boards.start)
    to_goal = distances(boards.moves, boards.goal)
    return np.asarray(from_start + to_goal == at(from_start, boards.goal)[:, None, None])


def at(grid: NDArray[Any], cells: Ints) -> NDArray[Any]:
    """Values of ``grid`` (B, n, n) at one cell (B, 2) of each board: shape (B,)."""
    return grid[np.arange(len(grid)), cells[:, 0], cells[:, 1]]


def mark(cells: Ints, size: int) -> Bools:
    """Grids that hold at one cell (B, 2) each: bool of shape (B, n, n)."""
    grid = np.zeros((len(cells), size, size), dtype=bool)
    grid[np.arange(len(cells)), cells[:, 0], cells[:, 1]] = True
    return grid


def lengths(boards: Boards) -> Ints:
    """Moves on a shortest path from start to goal, shape (B,)."""
    return at(distances(boards.moves, boards.start), boards.goal)


def sample_paths(boards: Boards, rng: np.random.Generator) -> Ints:
    """One shortest path of each board, uniform among them, as cell numbers.

    Returns
    -------
    int array of shape (B, longest + 1)
        Cell ``i * n + j`` after each move from start; after the goal is reached it repeats.
    """
    moves = boards.moves
    dist = distances(moves, boards.start)
    counts = path_counts(moves, dist)
    cell = boards.goal.copy()
    backwards = [cell.copy()]
    for _ in range(int(at(dist, cell).max())):
        here = at(dist, cell)
        weights = np.zeros((len(boards), 4))
        for m in range(4):
            ok = moves[:, m] & (shift(dist, m, UNREACHED) == dist - 1)
            weights[:, m] = at(np.where(ok, shift(counts, m, 0), 0), cell)
        # The exponential race draws move m with probability weights[m] / sum(weights).
        with np.errstate(divide="ignore"):
            choice = np.argmin(rng.exponential(size=weights.shape) / weights, axis=1)
        cell = np.where((here > 0)[:, None], cell + np.array(MOVES)[choice], cell)
        backwards.append(cell.copy())
    return _forward(np.stack(backwards, axis=1), boards)


def _forward(backwards: Ints, boards: Boards) -> Ints:
    """Turn goal-to-start walks that idle at the start into start-to-goal walks that idle at the goal."""
    numbers = backwards[..., 0] * boards.size + backwards[..., 1]
    start = boards.start[:, 0] * boards.size + boards.start[:, 1]
    length = (numbers != start[:, None]).sum(axis=1)
    index = np.maximum(length[:, None] - np.arange(numbers.shape[1]), 0)
    return np.take_along_axis(numbers, index, axis=1)


def random_layouts(rng: np.random.Generator, count: int, size: int, loops: float) -> tuple[Bools, Bools]:
    """Random spanning trees (Prim on random edge weights), each remaining wall opened with probability ``loops``."""
    ends = _edge_ends(size)
    weights = rng.random((count, len(ends)))
    inside = np.zeros((count, size * size), dtype=bool)
    inside[:, 0] = True
    is_open = rng.random((count, len(ends))) < loops
    rows = np.arange(count)
    for _ in range(size * size - 1):
        crossing = inside[:, ends[:, 0]] != inside[:, ends[:, 1]]
        best = np.argmin(np.where(crossing, weights, 2.0), axis=1)
        is_open[rows, best] = True
        inside[rows[:, None], ends[best]] = True
    return _walls(~is_open, size)


def _edge_ends(size: int) -> Ints:
    """Cell numbers at both ends of every interior edge, right edges first: int of shape (E, 2)."""
    cells = np.arange(size * size).reshape(size, size)
    across = np.stack([cells[:, :-1].ravel(), cells[:, 1:].ravel()], axis=1)
    along = np.stack([cells[:-1].ravel(), cells[1:].ravel()], axis=1)
    return np.concatenate([across, along])


def _walls(closed: Bools, size: int) -> tuple[Bools, Bools]:
    """Edge list (B, E) to the ``right`` and ``down`` arrays."""
    half = size * (size - 1)
    right = np.ones((len(closed), size, size), dtype=bool)
    down = np.ones((len(closed), size, size), dtype=bool)
    right[:, :, :-1] = closed[:, :half].reshape(-1, size, size - 1)
    down[:, :-1, :] = closed[:, half:].reshape(-1, size - 1, size)
    return right, down


def layout_keys(right: Bools, down: Bools) -> NDArray[np.uint64]:
    """A key of each wall layout, shape (B,), equal for layouts that a rotation or reflection maps onto each other."""
    across, along = right[:, :, :-1], down[:, :-1, :]
    keys = []
    for a, b in ((across, along), (along.transpose(0, 2, 1), across.transpose(0, 2, 1))):
        for flip_rows in (1, -1):
            for flip_columns in (1, -1):
                turned = [x[:, ::flip_rows, ::flip_columns].reshape(len(x), -1) for x in (a, b)]
                keys.append(_hash_bits(np.concatenate(turned, axis=1)))
    return np.asarray(np.minimum.reduce(keys))


def _hash_bits(bits: Bools) -> NDArray[np.uint64]:
    """A 64-bit hash of each row of bits (a random linear form, then the splitmix64 finaliser)."""
    weights = np.random.default_rng(bits.shape[1]).integers(0, 2**64, bits.shape[1], dtype=np.uint64)
    x = (bits * weights).sum(axis=1, dtype=np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def second_goal_cells(boards: Boards, allowed: tuple[int, int]) -> Bools:
    """Where a second goal may lie: bool of shape (B, n, n).

    Its distance from the start is ``allowed``, and neither goal lies on a shortest path to the other, so that neither
    answer is a part of the other.
    """
    dist, apart = distances(boards.moves, boards.start), distances(boards.moves, boards.goal)
    near = at(dist, boards.goal)[:, None, None]
    return np.asarray((dist >= allowed[0]) & (dist <= allowed[1]) & (near + apart != dist) & (dist + apart != near))


def goals_fit(boards: Boards, allowed: tuple[int, int]) -> Bools:
    """Whether the second goal, where there is one, lies where it may: bool of shape (B,)."""
    if boards.other is None:
        return np.ones(len(boards), dtype=bool)
    return np.asarray(at(second_goal_cells(boards, allowed), boards.other))


def name_other(boards: Boards) -> Boards:
    """The same boards with two goals when the prompt names the other one."""
    if boards.other is None or boards.named is None:
        raise TaskError("a maze with one goal has no other that its prompt could name; see Maze(goals=2)")
    return replace(boards, goal=boards.other, other=boards.goal, named=1 - boards.named)


def in_split(right: Bools, down: Bools, split: Split) -> Bools:
    """Which layouts belong to a split: of ten parts, eight train, one validates, one tests. Shape (B,)."""
    part = layout_keys(right, down) % np.uint64(10)
    chosen = {"train": part < 8, "val": part == 8, "test": part == 9}[split]
    return np.asarray(chosen)


def sample_boards(
    rng: np.random.Generator,
    count: int,
    size: int,
    *,
    loops: float,
    lengths: tuple[int, int],
    split: Split,
    goals: int = 1,
) -> Boards:
    """Boards of one split whose shortest path is as long as asked.

    Each board draws a length uniformly from ``lengths`` (both ends included), a random start, and a random goal at that
    distance; starts from which no cell is that far are drawn again. A second goal comes as near to another such length
    as `second_goal_cells` allows; boards without room for one are dropped. Which is named and which is red is drawn.

    Raises
    ------
    TaskError
        A hundred draws in a row held no such board: small boards have so few layouts that a split may have none.
    """
    parts: list[Boards] = []
    barren = 0
    while sum(map(len, parts)) < count:
        if barren == 100:
            found = "a path" if goals == 1 else "two goals, apart and each at the end of a path"
            raise TaskError(
                f"no {size} x {size} maze of split {split!r} has {found} of {lengths[0]} to {lengths[1]} moves"
            )
        right, down = random_layouts(rng, max(64, 2 * count if split == "train" else 16 * count), size, loops)
        keep = in_split(right, down, split)
        if not keep.any():
            barren += 1
            continue
        placed = _place_ends(rng, right[keep], down[keep], lengths)
        parts.append(placed if goals == 1 else _place_second(rng, placed, lengths))
        barren = 0 if len(parts[-1]) else barren + 1
    return concatenate(parts)[:count]


def _place_ends(rng: np.random.Generator, right: Bools, down: Bools, lengths: tuple[int, int]) -> Boards:
    """Start and goal at a distance drawn from ``lengths``; boards where eight tries fail are dropped."""
    size, done = right.shape[1], []
    wanted = rng.integers(lengths[0], lengths[1] + 1, len(right))
    for _ in range(8):
        if not len(right):
            break
        start = rng.integers(0, size, (len(right), 2))
        far = distances(open_moves(right, down), start) == wanted[:, None, None]
        score = np.where(far, rng.random(far.shape), -1).reshape(len(right), -1)
        goal = np.stack(np.divmod(score.argmax(axis=1), size), axis=1)
        ok = far.any(axis=(1, 2))
        done.append(Boards(right[ok], down[ok], start[ok], goal[ok]))
        right, down, wanted = right[~ok], down[~ok], wanted[~ok]
    merged = concatenate(done)
    # Later tries hold the longer paths; without a shuffle the first `count` boards would be too easy.
    return merged[rng.permutation(len(merged))]


def _place_second(rng: np.random.Generator, boards: Boards, lengths: tuple[int, int]) -> Boards:
    """Boards with a second goal, those without room for one dropped."""
    free, dist = second_goal_cells(boards, lengths), distances(boards.moves, boards.start)
    wanted = rng.integers(lengths[0], lengths[1] + 1, len(boards))[:, None, None]
    # The fraction breaks ties; it is below the difference of one move.
    score = np.where(free, rng.random(free.shape) - np.abs(dist - wanted), -np.inf).reshape(-1, boards.size**2)
    second = np.stack(np.divmod(score.argmax(axis=1), boards.size), axis=1)
    # The first goal's length is the more even one; a coin keeps the prompt from telling which goal that is.
    swap, named = rng.integers(0, 2, (2, len(boards)))
    goal, other = (np.where(swap[:, None] == s, boards.goal, second) for s in (0, 1))
    room = np.asarray(free.any(axis=(1, 2)))
    return replace(boards, goal=goal, other=other, named=named)[room]
