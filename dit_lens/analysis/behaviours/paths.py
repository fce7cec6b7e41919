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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dit_lens.analysis.behaviours.chain import Chain, chain_of, measured, step_table
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools, Floats
from dit_lens.results.intervals import Interval, mean_interval, share
from dit_lens.results.plots import curves
from dit_lens.results.result import Result
from dit_lens.tasks.base import Task
from dit_lens.tasks.evidence import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WHO = "multi_path"
_SHARES = ("superposed", "readable")


@dataclass(frozen=True, repr=False)
class MultiPath(Result):
    """Candidates of G instances along S steps.

    Attributes
    ----------
    task : str
    sigmas, experts : S of them
    values : dict from measure to float array of shape (S, G)
        "alive" always; "readable" of puzzles; "branches" and "undecided" of mazes.
    """

    task: str
    sigmas: tuple[float, ...]
    experts: tuple[str | None, ...]
    values: Mapping[str, Floats]

    @property
    def superposed(self) -> Bools:
        """Which instances have more than one candidate alive at each step: bool (S, G)."""
        return np.asarray(self.values["alive"] > 1)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns step, sigma, expert, task, measure, value, low, high, n (instances).

        Means with bootstrap intervals over instances; the shares "superposed" and "readable" with Wilson's. The rows
        without a step are of the whole chain: "ever superposed" is superposed at some step.
        """
        every = {"superposed": self.superposed.astype(np.float64)} | dict(self.values)
        rows = [
            {"step": step} | measured(measure, _interval(measure, of_step), len(of_step))
            for measure, values in every.items()
            for step, of_step in enumerate(values)
        ]
        ever, n = self.ever()["at some step"], self.superposed.shape[1]
        rows.append({"step": None} | measured("ever superposed", ever, n))
        return step_table(rows, self.sigmas, self.experts, task=self.task)

    def ever(self) -> dict[str, Interval]:
        """Share of instances that are superposed at some step, and at the last (Wilson)."""
        return {
            "at some step": share(np.asarray(self.superposed.any(axis=0))),
            "at the last step": share(self.superposed[-1]),
        }

    def plot(self, axis: Axes | None = None, *, measure: str = "alive") -> Axes:
        """One measure at every step, with its interval."""
        table = self.table[(self.table["measure"] == measure) & self.table["step"].notna()]
        axis = curves(table, "step", "value", axis=axis)
        axis.set(ylabel=measure, title=self.task)
        return axis


def _interval(measure: str, values: Floats) -> Interval:
    return share(values == 1) if measure in _SHARES else mean_interval(values)


def multi_path(
    model: VideoDiT,
    task: Task,
    config: BehaviourConfig | None = None,
    *,
    chain: Chain | None = None,
    interventions: Iterable[Intervention] = (),
) -> MultiPath:
    """How many candidates are alive at each step; see the module's docstring for the definitions.

    Parameters
    ----------
    config, chain, interventions
        As in `self_correction`.

    Raises
    ------
    EvidenceError
        The task has no candidates that a picture can be taken apart into.
    """
    require(task, "alive", who=_WHO)
    return paths_of(chain_of(model, task, config or BehaviourConfig(), chain, interventions))


def paths_of(chain: Chain) -> MultiPath:
    """The same from a chain alone."""
    task = require(chain.task, "alive", who=_WHO)
    alive = task.alive(chain.frames[:, :, -1], chain.instances)
    return MultiPath(task.title, chain.sigmas, chain.experts, dict(alive))
