"""What the depth lens shows after every layer: how much of the final answer, and whether it is legal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dit_lens.lens.depth import depth_lens
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import mean_interval
from dit_lens.tasks.answers import agreement
from dit_lens.tasks.base import Task
from dit_lens.tasks.evidence import answers_of, rules_of_answer


@dataclass(frozen=True)
class LensCurves:
    """Depth lens of one step over G task instances.

    Attributes
    ----------
    agreement : float array of shape (L, G)
        Intersection over union of the answer that layer k shows with the one that this run finally draws.
    legality : float array of shape (L, G)
        The task's rule *legal* for what layer k shows.
    """

    step: int
    agreement: Floats
    legality: Floats

    def frame(self, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Tidy table: layer, step, measure, value, low, high, n."""
        rows = []
        for measure, values in (("lens agreement", self.agreement), ("lens legality", self.legality)):
            for layer, of_layer in enumerate(values):
                interval = mean_interval(of_layer, replicates, seed)
                rows.append((layer, str(self.step), measure, *interval, len(of_layer)))
        return pd.DataFrame(rows, columns=["layer", "step", "measure", "value", "low", "high", "n"])


def lens_curves(
    model: VideoDiT,
    task: Task,
    instances: Sequence[Any],
    *,
    step: int = 0,
    seed: int = 0,
    batch: int = 32,
    judged_on: Sequence[Any] | None = None,
) -> LensCurves:
    """Read every layer of one step and compare with each run's own final answer.

    Parameters
    ----------
    judged_on : instances whose walls decide what is legal, and whose runs what is agreed with; for the permuted control
    """
    judges = list(instances if judged_on is None else judged_on)
    place = {id(instance): i for i, instance in enumerate(instances)}
    shown, drawn = [], []
    for i in tqdm(range(0, len(instances), batch), desc="depth lens", unit="batch"):
        part = list(instances[i : i + batch])
        run = model.run(part, seed=list(range(seed + i, seed + i + len(part))), record=True)
        assert run.frames is not None
        shown.append(depth_lens(model, run, step).decode(model, frames=-1)[:, :, 0])
        drawn.append(answers_of(task, run.frames[:, -1], part, who="lens_curves").marks)
    frames, final = np.concatenate(shown, axis=1), np.concatenate(drawn)
    final = final[[place[id(j)] for j in judges]]
    agreed, legality = [], []
    for of_layer in frames:
        agreed.append(agreement(answers_of(task, of_layer, judges, who="lens_curves").marks, final))
        legality.append(next(iter(rules_of_answer(task, of_layer, judges, who="lens_curves").values())))
    return LensCurves(step, np.stack(agreed), np.stack(legality))
