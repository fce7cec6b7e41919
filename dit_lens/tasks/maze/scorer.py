"""The rules of the maze, read off decoded frames.

The final trail is every cell whose centre shows trail or agent in the last frame. Partial score, with the weights of
the VBVR-Bench maze rule (valid .45, complete .30, contiguous .20, walls kept .05):

- *legal*: the trail is one path from the start that crosses no wall and does not go on beyond the goal. It must be an
  induced path: a chord would leave open which way the agent went. Otherwise the share of trail cells that legal moves
  inside the trail reach from the start, halved where the reached part is no such path. A trail of fewer than two cells
  is no path and earns nothing.
- *complete*: the trail's part that the start reaches contains the goal; otherwise how much nearer to the goal it comes,
  as a share of the distance.
- *continuous*: share of frame transitions in which both frames show exactly one agent, the trail loses no cell, and the
  agent makes at most ``speed`` legal moves. A video in which the agent never moves earns nothing.
- *walls*: share of walls, start and goal that the last frame shows as the board has them.

Strict success is all four at 1. Of two goals the rules mean the one that the prompt names, and *walls* wants both kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dit_lens.display.short import short_repr
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats
from dit_lens.tasks.maze.boards import UNREACHED, Boards, at, distances, restrict, shift
from dit_lens.tasks.maze.render import (
    AGENT,
    ANSWER,
    FLOOR,
    WALLED,
    read_centres,
    read_rings,
    read_walls,
    rings,
)

WEIGHTS = {"legal": 0.45, "complete": 0.30, "continuous": 0.20, "walls": 0.05}


@dataclass(frozen=True)
class MazeScores:
    """Scores of B videos.

    Attributes
    ----------
    legal, complete, continuous, walls : float arrays of shape (B,)
        Each rule in [0, 1].
    trail : bool array of shape (B, n, n)
        Cells of the final trail.
    """

    legal: Floats
    complete: Floats
    continuous: Floats
    walls: Floats
    trail: Bools
    weights: ClassVar[Mapping[str, float]] = WEIGHTS

    __repr__ = short_repr

    @property
    def rules(self) -> dict[str, Floats]:
        """Each rule by its name."""
        return {rule: getattr(self, rule) for rule in self.weights}

    @property
    def total(self) -> Floats:
        """Weighted sum of the rules in [0, 1], shape (B,)."""
        return np.asarray(sum(weight * self.rules[rule] for rule, weight in self.weights.items()))

    @property
    def strict(self) -> Bools:
        """Whether every rule holds in full, shape (B,)."""
        return np.asarray(np.logical_and.reduce([self.rules[rule] == 1 for rule in self.weights]))


def score_videos(videos: Video, boards: Boards, speed: int) -> MazeScores:
    """Score uint8 videos of shape (B, T, height, width, 3) against their boards."""
    centres = read_centres(videos, boards.size, boards.goals.shape[1])
    trails, agents = np.isin(centres, ANSWER), centres == AGENT
    legal, complete = judge_trails(trails[:, -1], boards)
    return MazeScores(
        legal=legal,
        complete=complete,
        continuous=_continuous(trails, agents, boards.moves, speed),
        walls=_walls_kept(videos[:, -1], boards),
        trail=trails[:, -1],
    )


def judge_trails(trail: Bools, boards: Boards) -> tuple[Floats, Floats]:
    """The rules *legal* and *complete* of trails (B, n, n): two float arrays of shape (B,)."""
    inside = restrict(boards.moves, trail)
    reached = (distances(inside, boards.start) < UNREACHED) & trail
    to_goal = np.where(reached, distances(boards.moves, boards.goal), UNREACHED)
    progress = 1 - to_goal.min(axis=(1, 2)) / np.maximum(at(distances(boards.moves, boards.goal), boards.start), 1)
    complete = np.where(at(reached, boards.goal), 1.0, np.clip(progress, 0, 1))
    neighbours = restrict(boards.moves, reached).sum(axis=1)
    is_path = (at(neighbours, boards.start) == 1) & (((neighbours == 1) & reached).sum(axis=(1, 2)) == 2)
    is_path &= (neighbours.max(axis=(1, 2)) <= 2) & (at(neighbours, boards.goal) <= 1)
    cells = trail.sum(axis=(1, 2))
    share = reached.sum(axis=(1, 2)) / np.maximum(cells, 1)
    return np.where(cells >= 2, share * np.where(is_path, 1.0, 0.5), 0.0), complete


def _continuous(trails: Bools, agents: Bools, moves: Bools, speed: int) -> Floats:
    """The rule *continuous* of trails and agents of shape (B, T, n, n)."""
    one = agents.sum(axis=(2, 3)) == 1
    kept = ~(trails[:, :-1] & ~trails[:, 1:]).any(axis=(2, 3))
    near = np.stack([_dilate(agents[:, t], moves, speed) for t in range(agents.shape[1] - 1)], axis=1)
    stepped = ~(agents[:, 1:] & ~near).any(axis=(2, 3))
    moved = (agents != agents[:, :1]).any(axis=(1, 2, 3))
    return np.asarray((one[:, :-1] & one[:, 1:] & kept & stepped).mean(axis=1) * moved)


def _dilate(cells: Bools, moves: Bools, steps: int) -> Bools:
    """Cells within ``steps`` legal moves of ``cells`` (B, n, n)."""
    for _ in range(steps):
        cells = cells | np.logical_or.reduce([moves[:, m] & shift(cells, m, False) for m in range(4)])
    return cells


def _walls_kept(frames: Video, boards: Boards) -> Floats:
    """The rule *walls* of one frame each: frames of shape (B, height, width, 3)."""
    right, down = read_walls(frames, boards.size)
    kept = [
        right == np.where(boards.right, WALLED, FLOOR),
        down == np.where(boards.down, WALLED, FLOOR),
        read_rings(frames, boards.size, boards.goals.shape[1]) == rings(boards),
    ]
    return np.asarray(np.stack(kept).mean(axis=(0, 2, 3)))
