"""Multi-path: how many candidate answers x0hat draws at once, at every step.

The definitions, fixed before any figure was looked at. What is drawn is read softly from the last decoded frame
(`alive` of the task): a thing is *alive* where more than 0.15 of it is drawn, and *undecided* where more than 0.15
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

from dit_lens.analysis.behaviours.chain import Chain
from dit_lens.results.arrays import Bools, Floats
from dit_lens.results.intervals import Interval, mean_interval, wilson
from dit_lens.results.plots import curves
from dit_lens.tasks.evidence import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    task = require(chain.task, "alive", who="multi_path")
    return MultiPath(chain, task.alive(chain.frames[:, :, -1], chain.instances))
