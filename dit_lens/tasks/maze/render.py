"""Pixels of a maze: how a board and an agent's walk become RGB video, and how video becomes cell codes again.

One cell is 8 x 8 pixels: a 6 x 6 interior (rows and columns 0-5) and the cell's own right and lower wall (columns and
rows 6-7). The 4 x 4 centre of the interior shows who is there (floor, trail, agent); the ring around it shows start or
goal. A second goal is purple; the colour is looked for only where there are two, since a maze with one has none.
"""

from __future__ import annotations

import numpy as np

from dit_lens.files.video import Video
from dit_lens.results.arrays import Floats, Ints
from dit_lens.tasks.maze.boards import Boards

CELL = 8
CENTRE, INTERIOR, WALL = slice(1, 5), slice(0, 6), slice(6, 8)

#: Colours by name; their order gives the codes that `read_cells` returns.
PALETTE = {
    "floor": (238, 238, 232),
    "wall": (40, 40, 48),
    "start": (50, 180, 90),
    "goal": (225, 60, 60),
    "trail": (60, 100, 235),
    "agent": (250, 180, 20),
    "second": (205, 65, 205),
}
COLOURS = np.array(list(PALETTE.values()), dtype=np.uint8)
FLOOR, WALLED, START, GOAL, TRAIL, AGENT, SECOND = range(7)
#: Codes of the goals, in the order of `Boards.goals`, and what the prompt calls them.
GOALS, GOAL_NAMES = (GOAL, SECOND), ("red", "purple")
UNREADABLE = -1
#: What the centre of a cell of the answer shows.
ANSWER = (TRAIL, AGENT)
#: A patch whose mean colour is farther than this (Euclidean, in 0-255 RGB) from every candidate is unreadable. The two
#: nearest colours of the palette (red and purple) are 146 apart.
TOLERANCE = 70.0


def walk(paths: Ints, frames: int, speed: int) -> Ints:
    """Where the agent is in each frame: index into its path, ``speed`` moves a frame until it arrives; shape (T,)."""
    return np.asarray(np.minimum(np.arange(frames) * speed, paths.shape[1] - 1))


def frame_sides(size: int) -> int:
    """Cells a side of the picture: the board's, rounded up to an even number so that pixels divide by 16."""
    return size + size % 2


def render_video(boards: Boards, paths: Ints, frames: int, speed: int) -> Video:
    """Ground-truth video of agents that walk ``paths`` (B, length + 1) and leave a trail.

    Returns
    -------
    uint8 array of shape (B, T, height, width, 3)
    """
    still = render_board(boards)
    video = np.repeat(still[:, None], frames, axis=1)
    steps = walk(paths, frames, speed)
    for t, now in enumerate(steps):
        for past in range(now):
            _paint_centre(video[:, t], paths[:, past], boards.size, TRAIL)
        _paint_centre(video[:, t], paths[:, now], boards.size, AGENT)
    return video


def render_board(boards: Boards) -> Video:
    """The board alone, without an agent: uint8 of shape (B, height, width, 3)."""
    count, n = boards.right.shape[:2]
    side = frame_sides(n)
    codes = np.full((count, side, CELL, side, CELL), WALLED)
    cells = codes[:, :n, :, :n, :]
    cells[:] = FLOOR
    cells[:, :, INTERIOR, :, INTERIOR] = rings(boards)[:, :, None, :, None]
    right, down = boards.right[:, :, None, :, None], boards.down[:, :, None, :, None]
    cells[..., WALL] = np.where(right, WALLED, cells[..., WALL])
    cells[:, :, WALL] = np.where(down, WALLED, cells[:, :, WALL])
    cells[:, :, WALL, :, WALL] = np.where(right | down, WALLED, FLOOR)
    return np.asarray(COLOURS[codes.reshape(count, side * CELL, side * CELL)])


def rings(boards: Boards) -> Ints:
    """What each cell is: FLOOR, START or the code of a goal, int of shape (B, n, n)."""
    codes, rows = np.full(boards.right.shape, FLOOR), np.arange(len(boards))
    ends = [(boards.start, START), *zip(np.moveaxis(boards.goals, 1, 0), GOALS, strict=False)]
    for cell, code in ends:
        codes[rows, cell[:, 0], cell[:, 1]] = code
    return codes


def _paint_centre(frames: Video, cells: Ints, size: int, code: int) -> None:
    side = frames.shape[1] // CELL
    grid = frames.reshape(len(frames), side, CELL, side, CELL, 3)
    i, j = np.divmod(cells, size)
    grid[np.arange(len(frames)), i, CENTRE, j, CENTRE] = COLOURS[code]


def _nearest(patch: Floats, candidates: tuple[int, ...]) -> Ints:
    """Code of the nearest candidate colour of each mean colour (..., 3), ``UNREADABLE`` beyond the tolerance."""
    far = np.linalg.norm(patch[..., None, :] - COLOURS[list(candidates)], axis=-1)
    best = np.array(candidates)[far.argmin(axis=-1)]
    return np.where(far.min(axis=-1) <= TOLERANCE, best, UNREADABLE)


def _as_cells(video: Video, size: int) -> Video:
    """View (..., height, width, 3) as (..., n, n, CELL, CELL, 3), the margin of odd boards cut off."""
    *lead, height, width, _ = video.shape
    grid = video.reshape(*lead, height // CELL, CELL, width // CELL, CELL, 3)
    return np.moveaxis(grid, -3, -4)[..., :size, :size, :, :, :]


def read_centres(video: Video, size: int, goals: int = 1) -> Ints:
    """Who is in each cell: FLOOR, START, a goal, TRAIL, AGENT or UNREADABLE, int of shape (..., n, n)."""
    cells = _as_cells(video, size)
    patch = cells[..., CENTRE, CENTRE, :].mean(axis=(-3, -2))
    return _nearest(patch, (FLOOR, START, *GOALS[:goals], TRAIL, AGENT))


def read_rings(video: Video, size: int, goals: int = 1) -> Ints:
    """What each cell is: FLOOR, START, a goal or UNREADABLE, int of shape (..., n, n)."""
    inner = _as_cells(video, size)[..., INTERIOR, INTERIOR, :].astype(np.float64)
    total, centre = inner.sum(axis=(-3, -2)), inner[..., CENTRE, CENTRE, :].sum(axis=(-3, -2))
    return _nearest((total - centre) / 20, (FLOOR, START, *GOALS[:goals]))


def read_walls(video: Video, size: int) -> tuple[Ints, Ints]:
    """Right and lower wall of each cell: WALLED, FLOOR or UNREADABLE, two int arrays of shape (..., n, n)."""
    cells = _as_cells(video, size)
    right = cells[..., INTERIOR, WALL, :].mean(axis=(-3, -2))
    down = cells[..., WALL, INTERIOR, :].mean(axis=(-3, -2))
    return _nearest(right, (WALLED, FLOOR)), _nearest(down, (WALLED, FLOOR))
