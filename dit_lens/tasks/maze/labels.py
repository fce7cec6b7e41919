"""What a probe may be asked about a maze, per latent cell and latent frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.results.arrays import Bools, Ints
from dit_lens.tasks.base import Label
from dit_lens.tasks.latent_frames import over_latent_frames, pixel_frames
from dit_lens.tasks.maze.boards import MOVES, Boards, distances, mark, open_moves, shortest_path_cells
from dit_lens.tasks.maze.render import GOAL_NAMES, walk

#: The labels that a verdict is read from; of a maze with two goals ``goal`` has the other role.
MAIN_LABELS = {
    "perception": (
        "wall_right",
        "wall_down",
        "wall_left",
        "wall_up",
        "start",
        "goal",
        "goal_red",
        "goal_purple",
    ),
    "reasoning": ("on_path", "distance"),
}


def maze_labels(
    boards: Boards, paths: list[tuple[int, ...]], latent_frames: int, frames: int, speed: int
) -> dict[str, Label]:
    """Labels of B mazes on F latent frames, each of shape (B, F, n, n).

    Perception: ``wall_right`` and ``wall_down`` (walls that the cell itself shows), ``wall_left`` and ``wall_up``
    (walls that the neighbouring cell shows), ``start``, ``goal``. Reasoning: ``dead_end``, ``on_path`` (on some
    shortest path), ``distance`` (moves to the goal, a regression target), ``agent`` (the true walk is here in this
    latent frame).

    With two goals ``goal`` is the one that the prompt names, which the picture alone does not tell: reasoning, as are
    ``on_path`` and ``distance``, which mean that goal. ``goal_red`` and ``goal_purple`` are perception.
    """
    walls = ~open_moves(boards.right, boards.down)
    two = boards.other is not None
    still: dict[str, tuple[str, NDArray[Any]]] = {
        "wall_right": ("perception", walls[:, 0]),
        "wall_down": ("perception", walls[:, 1]),
        "wall_left": ("perception", walls[:, 2]),
        "wall_up": ("perception", walls[:, 3]),
        "start": ("perception", mark(boards.start, boards.size)),
        "goal": ("reasoning" if two else "perception", mark(boards.goal, boards.size)),
        "dead_end": ("reasoning", walls.sum(axis=1) == 3),
        "on_path": ("reasoning", shortest_path_cells(boards)),
        "distance": ("reasoning", distances(boards.moves, boards.goal).astype(np.float64)),
    }
    if two:
        of_colour = zip(GOAL_NAMES, np.moveaxis(boards.goals, 1, 0), strict=True)
        still |= {f"goal_{name}": ("perception", mark(cells, boards.size)) for name, cells in of_colour}
    labels = {
        name: Label(name, role, np.repeat(values[:, None], latent_frames, axis=1))
        for name, (role, values) in still.items()
    }
    labels["agent"] = Label("agent", "reasoning", _agent(boards.size, paths, latent_frames, frames, speed))
    return labels


def _agent(size: int, paths: list[tuple[int, ...]], latent_frames: int, frames: int, speed: int) -> Bools:
    """Where the true agent is seen during each latent frame (the first covers one pixel frame, the others several)."""
    here = np.zeros((len(paths), latent_frames, size * size), dtype=bool)
    for b, path in enumerate(paths):
        cells: Ints = np.array(path)[walk(np.array([path]), frames, speed)]
        for f, covered in enumerate(pixel_frames(frames, latent_frames)):
            here[b, f, cells[covered]] = True
    return here.reshape(len(paths), latent_frames, size, size)


#: What the moves of `MOVES` are called.
_MOVE_NAMES = ("right", "down", "left", "up")


def maze_scene_labels(
    boards: Boards, paths: list[tuple[int, ...]], latent_frames: int, frames: int, speed: int
) -> dict[str, Label]:
    """Labels of the whole clip, of shape (B,), and of each latent frame, (B, F).

    Reasoning: ``first_move`` of the true walk (a class), the row and column of the agent, ``agent_row`` and
    ``agent_column`` (regression), and with two goals whether the purple one is named, ``to_purple``.
    """
    size = boards.size
    walks = np.stack([np.array(path)[walk(np.array([path]), frames, speed)].reshape(frames) for path in paths])
    ways = [np.subtract(divmod(path[1], size), divmod(path[0], size)) for path in paths]
    first = np.array([MOVES.index((int(way[0]), int(way[1]))) for way in ways])
    labels = {"first_move": Label("first_move", "reasoning", first, names=_MOVE_NAMES)}
    for name, values in zip(("agent_row", "agent_column"), np.divmod(walks, size), strict=True):
        pooled = over_latent_frames(values.astype(np.float64), frames, latent_frames)
        labels[name] = Label(name, "reasoning", pooled)
    if boards.named is not None:
        labels["to_purple"] = Label("to_purple", "reasoning", np.asarray(boards.named == 1))
    return labels
