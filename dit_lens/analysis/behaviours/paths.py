"""Multi-path: how many candidate answers x0hat draws at once, at every step.

The definitions, fixed before any figure was looked at. What is drawn is read softly from the last decoded frame
(`dit_lens.tasks.reading`): a thing is *alive* where more than 0.15 of it is drawn, and *undecided* where more than 0.15
and less than 0.85 is. *Superposed* is an instance with more than one candidate alive at that step.

- Puzzles (pattern, tic-tac-toe, permanence, sort): the picture is taken apart into the candidates' true last frames;
  *alive* counts those of weight above 0.15, none where the picture is no mixture of them (*readable* is the share that
  is).
- Mazes: *ink* is how much of trail or agent a cell shows. *branches* are the connected sets of inked cells off the
  run's own final trail from which a legal move leads onto it. *alive* is 1, for the trail, and one for each branch; 0
  where fewer than two cells are inked. *undecided* counts undecided cells.
- Mazes with two goals: *alive* counts the goals that are reached from the start through inked cells by legal moves;
  *branches* and *undecided* are reported beside it.

Read with care: x0hat of a model trained by squared error is an average over the videos that it holds possible. At high
noise such an average shows several answers even in a model that knows nothing but their frequencies. Superposition at
early steps is what the paper calls multi-path; it is not evidence of a search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dit_lens.analysis.behaviours.chain import Chain
from dit_lens.results.intervals import Interval, mean_interval, wilson
from dit_lens.results.plots import curves
from dit_lens.tasks.maze import Maze
from dit_lens.tasks.maze import boards as maze_boards
from dit_lens.tasks.reading import read_ink, read_shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: More than the first of a thing is alive; less than the second of it is not yet decided.
ALIVE, DECIDED = 0.15, 0.85


@dataclass(frozen=True)
class MultiPath:
    """Candidates of G instances along S steps.

    Attributes
    ----------
    chain : Chain
    values : dict from measure to float array of shape (S, G)
        "alive" always; "readable" of puzzles; "branches" and "undecided" of mazes.
    """

    chain: Chain
    values: Mapping[str, Floats]

    @property
    def superposed(self) -> Bools:
        """Which instances have more than one candidate alive at each step: bool (S, G)."""
        return np.asarray(self.values["alive"] > 1)

    def frame(self) -> pd.DataFrame:
        """Tidy table: task, step, sigma, expert, measure, value, low, high, n.

        Means with bootstrap intervals over instances; the shares "superposed" and "readable" with Wilson's.
        """
        rows = []
        for measure, values in ({"superposed": self.superposed} | dict(self.values)).items():
            for step, of_step in enumerate(values):
                share = measure in ("superposed", "readable")
                interval = wilson(int(of_step.sum()), len(of_step)) if share else mean_interval(of_step.astype(float))
                rows.append((step, measure, *interval, len(of_step)))
        return self.chain.named(pd.DataFrame(rows, columns=["step", "measure", "value", "low", "high", "n"]))

    def ever(self) -> dict[str, Interval]:
        """Share of instances that are superposed at some step, and at the last (Wilson)."""
        n = self.chain.count
        return {
            "at some step": wilson(int(self.superposed.any(axis=0).sum()), n),
            "at the last step": wilson(int(self.superposed[-1].sum()), n),
        }

    def plot(self, axis: Axes | None = None, measure: str = "alive") -> Axes:
        """One measure at every step, with its interval."""
        table = self.frame()
        axis = curves(table[table["measure"] == measure], "step", "value", axis=axis)
        axis.set(ylabel=measure, title=self.chain.title)
        return axis


def multi_path(chain: Chain) -> MultiPath:
    """How many candidates are alive at each step; see the module's docstring for the definitions.

    Raises
    ------
    EvidenceError
        The task has no candidates that a picture can be taken apart into.
    """
    if isinstance(chain.task, Maze):
        return MultiPath(chain, _of_mazes(chain))
    shares = [read_shares(chain.task, chain.frames[:, g, -1], instance) for g, instance in enumerate(chain.instances)]
    alive = [(s.weights > ALIVE).sum(axis=1) * s.readable for s in shares]
    readable = np.stack([s.readable for s in shares], axis=1)
    return MultiPath(chain, {"alive": np.stack(alive, axis=1).astype(np.float64), "readable": readable.astype(float)})


def _of_mazes(chain: Chain) -> dict[str, Floats]:
    task, instances = chain.task, list(chain.instances)
    boards = maze_boards.concatenate([instance.board for instance in instances])
    ink = read_ink(task, chain.frames[:, :, -1], instances)
    inked, final = ink > ALIVE, task.read_answer(chain.frames[-1, :, -1])
    branches = np.stack([count_branches(boards.moves, cells, final) for cells in inked]).astype(np.float64)
    if task.goals == 1:
        alive = (branches + 1) * (inked.sum(axis=(2, 3)) >= 2)
    else:
        alive = np.stack([_goals_reached(boards, cells) for cells in inked])
    undecided = undecided_cells(ink)
    return {"alive": alive.astype(np.float64), "branches": branches, "undecided": undecided}


def undecided_cells(ink: Floats) -> Floats:
    """Number of cells of ink (..., n, n) that are neither empty nor inked: float (...)."""
    return np.asarray(((ink > ALIVE) & (ink < DECIDED)).sum(axis=(-2, -1)), dtype=np.float64)


def count_branches(moves: Bools, inked: Bools, trail: Bools) -> NDArray[np.int64]:
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


def _goals_reached(boards: maze_boards.Boards, inked: Bools) -> NDArray[np.int64]:
    """Number of goals that inked cells (B, n, n) join to the start by legal moves: int (B,)."""
    reached = maze_boards.distances(maze_boards.restrict(boards.moves, inked), boards.start) < maze_boards.UNREACHED
    reached &= inked
    return np.asarray(sum(maze_boards.at(reached, goal) for goal in np.moveaxis(boards.goals, 1, 0)), dtype=np.int64)
