"""What the depth lens shows after every layer: how much of the final answer, and whether it is legal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.engine.plan import acting, listed
from dit_lens.interventions.base import Intervention
from dit_lens.lens.depth import depth_lens
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import mean_interval
from dit_lens.results.plots import curves
from dit_lens.results.result import VALUE_COLUMNS, Result
from dit_lens.sites.sites import Sites
from dit_lens.tasks.answers import agreement
from dit_lens.tasks.base import Task
from dit_lens.tasks.draw import draw_instances
from dit_lens.tasks.evidence import answers_of, require, rules_of_answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WHO = "lens_curves"


@dataclass(frozen=True, repr=False)
class LensCurves(Result):
    """Depth lens of one step over G task instances.

    Attributes
    ----------
    step : int
    sigma, expert : of that step
    branch : str
    layers, kinds : tuple of int, tuple of str
    agreement : float array of shape (L, G)
        Intersection over union of the answer that layer k shows with the one that this run finally draws.
    legality : float array of shape (L, G)
        The first rule of the task's `judge_answer` for what layer k shows.
    """

    step: int
    sigma: float
    expert: str | None
    branch: str
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    agreement: Floats
    legality: Floats

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns step, sigma, expert, branch, layer, kind, measure, value, low, high, n (instances).

        Measures: "agreement" and "legality".
        """
        at = self.step, self.sigma, self.expert, self.branch
        rows = [
            (*at, layer, kind, measure, *mean_interval(values[i]), values.shape[1])
            for measure, values in (("agreement", self.agreement), ("legality", self.legality))
            for i, (layer, kind) in enumerate(zip(self.layers, self.kinds, strict=True))
        ]
        columns = ["step", "sigma", "expert", "branch", "layer", "kind", *VALUE_COLUMNS]
        return pd.DataFrame(rows, columns=columns).astype({"expert": object})

    def plot(self, axis: Axes | None = None) -> Axes:
        """Agreement and legality over the layers, with their intervals."""
        axis = curves(self.table, "layer", "value", hue="measure", axis=axis)
        axis.set(ylabel="score", title=f"the answer after each layer, step {self.step}")
        return axis


def lens_curves(
    model: VideoDiT,
    task: Task,
    instances: int | Sequence[Any] = 64,
    *,
    step: int = 0,
    seed: int = 0,
    interventions: Iterable[Intervention] = (),
    batch: int = 32,
    permute: bool = False,
) -> LensCurves:
    """Read every layer of one step and compare with each run's own final answer.

    Parameters
    ----------
    instances : int, or list of instances of the task
    permute : bool
        The null: each instance is judged by the problem of the next one, and compared with what that one's run draws.

    Raises
    ------
    EvidenceError
        The task does not say what a picture shows of the answer, or how right that is.
    """
    require(task, "read_answer", "judge_answer", who=_WHO)
    given, others = draw_instances(task, instances, seed, who=_WHO), listed(interventions)
    shown, drawn = [], []
    for run in model.runs(given, seed, batch=batch, progress="depth lens", record=True, interventions=others):
        here = acting(others, run.geometry, step)
        lens = depth_lens(model, run, sites=Sites(steps=step), interventions=here)
        shown.append(lens.decode(model, frames=-1)[0, :, :, 0])
        drawn.append(answers_of(task, run.decoded[:, -1], run.inputs, who=_WHO).marks)
    frames, final = np.concatenate(shown, axis=1), np.concatenate(drawn)
    if permute:
        given, final = [*given[1:], given[0]], np.roll(final, -1, axis=0)
    agreed, legal = [], []
    for of_layer in frames:
        agreed.append(agreement(answers_of(task, of_layer, given, who=_WHO).marks, final))
        legal.append(next(iter(rules_of_answer(task, of_layer, given, who=_WHO).values())))
    reading = lens.reading
    return LensCurves(
        step=reading.steps[0],
        sigma=reading.sigmas[0],
        expert=reading.experts[0],
        branch=reading.branch,
        layers=reading.layers,
        kinds=reading.kinds,
        agreement=np.stack(agreed),
        legality=np.stack(legal),
    )
