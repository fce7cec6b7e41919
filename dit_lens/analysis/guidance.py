"""Success at several guidance scales."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools
from dit_lens.results.intervals import share
from dit_lens.results.plots import axes, plot_success
from dit_lens.results.result import VALUE_COLUMNS, Result
from dit_lens.tasks.base import Task
from dit_lens.tasks.draw import draw_instances
from dit_lens.tasks.evidence import require, scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A video is changed where a pixel differs by more than a tenth of its range.
_CHANGED = 25


@dataclass(frozen=True, repr=False)
class GuidanceComparison(Result):
    """Strict success at several guidance scales, over the same instances and noise.

    Attributes
    ----------
    task : str
    scales : tuple of float, S of them
    strict : bool array of shape (S, n)
    changed : bool array of shape (S, n)
        Which videos differ in a pixel by more than a tenth of its range from those at the first scale.
    """

    task: str
    scales: tuple[float, ...]
    strict: Bools
    changed: Bools

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns task, guidance_scale, measure ("strict", "changed"), value, low, high, n."""
        rows = [
            (self.task, scale, measure, *share(of_scale), len(of_scale))
            for measure, values in (("strict", self.strict), ("changed", self.changed))
            for scale, of_scale in zip(self.scales, values, strict=True)
        ]
        return pd.DataFrame(rows, columns=["task", "guidance_scale", *VALUE_COLUMNS])

    def plot(self, axis: Axes | None = None) -> Axes:
        """Strict success at every scale, with its interval."""
        axis = plot_success(self.table[self.table["measure"] == "strict"], "guidance_scale", axis=axes(axis))
        axis.set(ylabel="strict success", title=self.task)
        return axis

    def __str__(self) -> str:
        scales = "; ".join(
            f"{scale:g}: {share(strict)} ({changed.mean():.2f} changed)"
            for scale, strict, changed in zip(self.scales, self.strict, self.changed, strict=True)
        )
        return f"{self.task}, guidance {scales}, n={self.strict.shape[1]}"


def compare_guidance(
    model: VideoDiT,
    task: Task,
    instances: int | Sequence[Any] = 100,
    *,
    scales: Sequence[float] = (1.0, 2.0, 4.0),
    seed: int = 0,
    interventions: Iterable[Intervention] = (),
    batch: int = 20,
) -> GuidanceComparison:
    """Strict success at each guidance scale, over the same instances and noise.

    Parameters
    ----------
    scales : list of float
        The videos at the first are what the others are compared with.
    instances, seed, interventions, batch
        As in `evaluate`.

    Raises
    ------
    EvidenceError
        A task that scores no videos, or no scales.
    """
    who, others = "compare_guidance", listed(interventions)
    if not len(scales):
        raise EvidenceError(f"{who}: no scales were given; give some, such as 1, 2 and 4")
    require(task, "score", who=who)
    given = draw_instances(task, instances, seed, who=who)
    strict, changed = [], []
    of_scales = [
        model.runs(given, seed, batch=batch, progress=f"guidance {s:g}", interventions=others, guidance_scale=s)
        for s in scales
    ]
    for runs in zip(*of_scales, strict=True):
        videos = [run.decoded for run in runs]
        plain = videos[0].astype(np.int16)
        strict.append([scores_of(task, video, runs[0].inputs, who=who).strict for video in videos])
        changed.append([(np.abs(video - plain) > _CHANGED).any(axis=(1, 2, 3, 4)) for video in videos])
    return GuidanceComparison(
        task.title, tuple(map(float, scales)), np.concatenate(strict, axis=1), np.concatenate(changed, axis=1)
    )
