"""Self-correction: how often the decoded answer goes from wrong to right along the steps, and from right to wrong.

The definitions. At every step x0hat is decoded and its answer is read, by one of
two judges:

- *answer*: the task's hard reading of the last frame (its `read_answer`). It has three states:
  "right"; "wrong", a readable answer that is not right; "open", where no single answer is readable.
- *strict*: strict success of the whole decoded video. It has two: "right", and "wrong" for everything else, so that a
  video which is only blurred counts as wrong.

*Self-correction* is wrong to right. Open to right is an answer that takes shape and corrects nothing; it is counted
apart. Right to wrong is counted like wrong to right, for a chain that changes its mind at random does both.

What decides is the first readable answer of an instance against the last step: *corrected* is "wrong" at first and
"right" at last, *spoiled* the reverse, and the *net correction* is the share of the one less that of the other. What
lies between does not count, so that an answer which only flickers is neither. Self-correction is shown where the judge
is *answer* and the interval of the net correction lies above 0.

This is not the rule that was written first. That one took "wrong at any step, right at last" less the reverse, by which
right, wrong, right was a gain and no loss: a mostly right chain that flickers at random passed it. It was changed after
figures had been looked at, because it was wrong on states made up for the purpose. That only the judge *answer* decides
was settled after a first small run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from dit_lens.analysis.behaviours.chain import Chain, chain_of, measured, step_table
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Ints
from dit_lens.results.intervals import Interval, mean_interval, share
from dit_lens.results.plots import curves
from dit_lens.results.result import Result
from dit_lens.tasks.base import Task
from dit_lens.tasks.evidence import Evidence, answers_of, require, scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Judge = Literal["answer", "strict"]
_WHO = "self_correction"
STATES = ("open", "wrong", "right")
_OPEN, _WRONG, _RIGHT = range(3)
#: What every instance can do between two steps: name, state before, state after.
CHANGES = {
    "wrong to right": (_WRONG, _RIGHT),
    "right to wrong": (_RIGHT, _WRONG),
    "open to right": (_OPEN, _RIGHT),
    "open to wrong": (_OPEN, _WRONG),
    "right to open": (_RIGHT, _OPEN),
    "wrong to open": (_WRONG, _OPEN),
}


@dataclass(frozen=True, repr=False)
class Correction(Result):
    """States of G instances along S steps.

    Attributes
    ----------
    task : str
    sigmas, experts : S of them
    judge : "answer" or "strict"
    states : int array of shape (S, G)
        Numbers of ``STATES``.
    """

    task: str
    sigmas: tuple[float, ...]
    experts: tuple[str | None, ...]
    judge: Judge
    states: Ints

    @property
    def n(self) -> int:
        return int(self.states.shape[1])

    def matrix(self, before: int, after: int) -> pd.DataFrame:
        """Counts of instances by their state at one step (rows) and at a later one (columns): 3 x 3, sum G."""
        pair = self.states[before] * len(STATES) + self.states[after]
        counts = np.bincount(pair, minlength=len(STATES) ** 2).reshape(len(STATES), -1)
        return pd.DataFrame(counts, index=pd.Index(STATES, name="before"), columns=pd.Index(STATES, name="after"))

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns step, sigma, expert, task, judge, span, measure, value, low, high, n (instances).

        Measures by span: "state", the share in each state at a step; "step", the share that changes in a way since the
        step before; "ends", the same from the first step to the last; "chain", the shares of `ever`. "net" is "wrong to
        right" less "right to wrong". Intervals are Wilson's, those of a net are bootstraps over instances.
        """
        last = len(self.states) - 1
        rows = [row for step, of_step in enumerate(self.states) for row in self._state(step, of_step)]
        rows += [row for step in range(1, len(self.states)) for row in self._changes("step", step - 1, step)]
        rows += self._changes("ends", 0, last)
        rows += [{"step": None, "span": "chain"} | measured(name, x, self.n) for name, x in self.ever().items()]
        return step_table(rows, self.sigmas, self.experts, task=self.task, judge=self.judge)

    def _state(self, step: int, of_step: Ints) -> list[dict[str, Any]]:
        shares = {name: share(of_step == number) for number, name in enumerate(STATES)}
        return [{"step": step, "span": "state"} | measured(name, x, self.n) for name, x in shares.items()]

    def _changes(self, span: str, before: int, after: int) -> list[dict[str, Any]]:
        was, now = self.states[before], self.states[after]
        found = {name: (was == a) & (now == b) for name, (a, b) in CHANGES.items()} | {"stays": was == now}
        shares = {name: share(x) for name, x in found.items()}
        shares["net"] = mean_interval(found["wrong to right"].astype(float) - found["right to wrong"])
        return [{"step": after, "span": span} | measured(name, x, self.n) for name, x in shares.items()]

    def ever(self) -> dict[str, Interval]:
        """Shares of all instances over the whole chain, with Wilson's intervals.

        "wrong to right" and "right to wrong": whose answer does so between any two neighbouring steps. "corrected":
        whose first readable answer is wrong and whose last step is right; "spoiled": the reverse. "net correction": the
        one less the other, with its bootstrap interval.
        """
        found = {
            name: ((self.states[:-1] == a) & (self.states[1:] == b)).any(axis=0)
            for name, (a, b) in list(CHANGES.items())[:2]
        }
        first, last = self.first, self.states[-1]
        found["corrected"] = (first == _WRONG) & (last == _RIGHT)
        found["spoiled"] = (first == _RIGHT) & (last == _WRONG)
        shares = {name: share(x) for name, x in found.items()}
        return shares | {"net correction": mean_interval(found["corrected"].astype(float) - found["spoiled"])}

    @property
    def first(self) -> Ints:
        """The first state of each instance that is not "open", shape (G,); "open" where none is."""
        readable = self.states != _OPEN
        return np.asarray(np.take_along_axis(self.states, readable.argmax(axis=0)[None], axis=0)[0])

    @property
    def gains(self) -> bool:
        """Whether more instances are corrected than spoiled: the net correction lies above 0."""
        return self.ever()["net correction"].low > 0

    @property
    def shown(self) -> bool:
        """Whether self-correction is shown: the judge is "answer", and `gains`. A blur that clears up is none."""
        return self.judge == "answer" and self.gains

    def plot(self, axis: Axes | None = None) -> Axes:
        """Wrong to right and right to wrong at every step pair, with their intervals."""
        table = self.table.query("span == 'step' and measure in ('wrong to right', 'right to wrong')")
        axis = curves(table, "step", "value", hue="measure", axis=axis)
        axis.set(ylabel="share of all instances", title=f"{self.task}, judged by {self.judge}")
        return axis

    def __str__(self) -> str:
        return f"self-correction on {self.task}, judged by {self.judge}: {'shown' if self.shown else 'not shown'}; " + (
            ", ".join(f"{name} {share}" for name, share in self.ever().items()) + f", n={self.n}"
        )


def self_correction(
    model: VideoDiT,
    task: Task,
    config: BehaviourConfig | None = None,
    *,
    judge: Judge = "answer",
    chain: Chain | None = None,
    interventions: Iterable[Intervention] = (),
) -> Correction:
    """How answers change from step to step; see the module's docstring for the definitions.

    Parameters
    ----------
    config : BehaviourConfig, optional
    judge : "answer" or "strict"
    chain : Chain, optional
        Decoded chain of steps of this model and task; made where it is not given.
    interventions : iterable of Intervention
        Applied in every run.

    Raises
    ------
    EvidenceError
        No such judge, or the task has nothing to judge by.
    """
    _require_judge(task, judge)
    return correction_of(chain_of(model, task, config or BehaviourConfig(), chain, interventions), judge)


def correction_of(chain: Chain, judge: Judge = "answer") -> Correction:
    """The same from a chain alone."""
    task, instances = _require_judge(chain.task, judge), list(chain.instances)
    if judge == "strict":
        right = np.stack([scores_of(task, frames, instances, who=_WHO).strict for frames in chain.frames])
        states = np.where(right, _RIGHT, _WRONG)
    else:
        answers = [answers_of(task, frames[:, -1], instances, who=_WHO) for frames in chain.frames]
        states = np.stack([np.where(a.right, _RIGHT, np.where(a.drawn, _WRONG, _OPEN)) for a in answers])
    return Correction(task.title, chain.sigmas, chain.experts, judge, states)


def _require_judge(task: Task, judge: str) -> Evidence:
    """The task, if it has what the judge asks."""
    needs = {"answer": "read_answer", "strict": "score"}
    if judge not in needs:
        raise EvidenceError(f"no judge {judge!r}; there are {' and '.join(map(repr, needs))}")
    return require(task, needs[judge], who=_WHO)
