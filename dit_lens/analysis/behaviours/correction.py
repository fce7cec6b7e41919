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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dit_lens.analysis.behaviours.chain import Chain
from dit_lens.errors import EvidenceError
from dit_lens.results.intervals import Interval, mean_interval, wilson
from dit_lens.results.plots import curves
from dit_lens.tasks.evidence import answers_of, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Judge = Literal["answer", "strict"]
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


@dataclass(frozen=True)
class Correction:
    """States of G instances along S steps.

    Attributes
    ----------
    chain : Chain
    judge : "answer" or "strict"
    states : int array of shape (S, G)
        Numbers of ``STATES``.
    """

    chain: Chain
    judge: Judge
    states: NDArray[np.int64]

    def matrix(self, before: int, after: int) -> pd.DataFrame:
        """Counts of instances by their state at one step (rows) and at a later one (columns): 3 x 3, sum G."""
        pair = self.states[before] * len(STATES) + self.states[after]
        counts = np.bincount(pair, minlength=len(STATES) ** 2).reshape(len(STATES), -1)
        return pd.DataFrame(counts, index=pd.Index(STATES, name="before"), columns=pd.Index(STATES, name="after"))

    def frame(self) -> pd.DataFrame:
        """Tidy table of every step pair s, s + 1 and of the first against the last step.

        Returns
        -------
        DataFrame with columns task, judge, span ("step" or "chain"), step, sigma, expert (of the later step), change,
        count, value (share of all G), low, high (Wilson; of "net" the bootstrap over instances), n
        """
        pairs = [("step", s, s + 1) for s in range(self.chain.steps - 1)] + [("chain", 0, self.chain.steps - 1)]
        rows = [row for span, s, t in pairs for row in self._changes(span, s, t)]
        table = pd.DataFrame(rows, columns=["span", "step", "change", "count", "value", "low", "high", "n"])
        table = self.chain.named(table)
        table.insert(1, "judge", self.judge)
        return table

    def _changes(self, span: str, s: int, t: int) -> list[tuple[Any, ...]]:
        before, after, n = self.states[s], self.states[t], self.chain.count
        found = {name: (before == a) & (after == b) for name, (a, b) in CHANGES.items()}
        found["stays"] = before == after
        rows = [(span, t, name, int(x.sum()), *wilson(int(x.sum()), n), n) for name, x in found.items()]
        net = found["wrong to right"].astype(float) - found["right to wrong"]
        return [*rows, (span, t, "net", int(net.sum()), *mean_interval(net), n)]

    def shares(self) -> pd.DataFrame:
        """Share in each state at each step: columns task, judge, step, sigma, expert, state, value, low, high, n."""
        rows = [
            (s, name, *wilson(int((of_step == number).sum()), len(of_step)), len(of_step))
            for s, of_step in enumerate(self.states)
            for number, name in enumerate(STATES)
        ]
        table = self.chain.named(pd.DataFrame(rows, columns=["step", "state", "value", "low", "high", "n"]))
        table.insert(1, "judge", self.judge)
        return table

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
        shares = {name: wilson(int(x.sum()), self.chain.count) for name, x in found.items()}
        return shares | {"net correction": mean_interval(found["corrected"].astype(float) - found["spoiled"])}

    @property
    def first(self) -> NDArray[np.int64]:
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
        table = self.frame().query("span == 'step' and change in ('wrong to right', 'right to wrong')")
        axis = curves(table, "step", "value", hue="change", axis=axis)
        axis.set(ylabel="share of all instances", title=f"{self.chain.title}, judged by {self.judge}")
        return axis


def self_correction(chain: Chain, judge: Judge = "answer") -> Correction:
    """How answers change from step to step; see the module's docstring for the definitions.

    Raises
    ------
    EvidenceError
        No such judge, or the task has no reader of answers.
    """
    task, instances = chain.task, list(chain.instances)
    if judge == "strict":
        known = require(task, "score", who="self_correction")
        right = np.stack([known.score(frames, instances).strict for frames in chain.frames])
        return Correction(chain, judge, np.where(right, _RIGHT, _WRONG))
    if judge != "answer":
        raise EvidenceError(f"no judge {judge!r}; there are 'answer' and 'strict'")
    answers = [answers_of(task, frames[:, -1], instances, who="self_correction") for frames in chain.frames]
    states = [np.where(a.right, _RIGHT, np.where(a.drawn, _WRONG, _OPEN)) for a in answers]
    return Correction(chain, judge, np.stack(states))
