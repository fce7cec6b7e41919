"""The plain and the tuned depth lens side by side, on runs that the tuned one was not made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.engine.plan import acting
from dit_lens.errors import EvidenceError, InputError
from dit_lens.interventions.base import Intervention
from dit_lens.lens.depth import DepthLens, depth_lens
from dit_lens.lens.reading import tidy
from dit_lens.lens.source import at_branch, geometry_of, replayed_arguments_of
from dit_lens.lens.tuned.bands import band_of
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import over_instances
from dit_lens.results.plots import curves
from dit_lens.results.result import Result
from dit_lens.runs.run import Run
from dit_lens.runs.seeds import derive, row_seeds
from dit_lens.sites.select import indices
from dit_lens.sites.sites import Sites
from dit_lens.tasks.answers import agreement
from dit_lens.tasks.base import Task
from dit_lens.tasks.draw import listed_tasks
from dit_lens.tasks.evidence import answers_of, declares, rules_of_answer, scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dit_lens.lens.tuned.tuned_lens import TunedLens

_DIFFERENCE = "tuned - plain"
_WHO = "compare_lenses"


@dataclass(frozen=True, repr=False)
class LensComparison(Result):
    """What both lenses show at every layer of held-out runs.

    Attributes
    ----------
    samples : DataFrame
        Columns step, sigma, expert, branch, layer, kind, component, stream, task, lens ("plain" or "tuned"), instance,
        seed, measure, value. Measures are those of `DepthLens.table`; where the answers were decoded, for
        tasks that score videos ``strict`` and ``total``; and for tasks whose answer is read off a picture ``agreement``
        (intersection over union with the answer that this run finally draws) and ``legality`` (the task's first rule
        of a drawn answer).
    """

    samples: pd.DataFrame

    @property
    def measures(self) -> list[str]:
        return list(dict.fromkeys(self.samples["measure"]))

    @cached_property
    def table(self) -> pd.DataFrame:
        """`samples`, means over instances with their 95 % bootstrap intervals.

        ``lens`` is "plain", "tuned", or "tuned - plain", the difference paired by run.
        """
        plain, tuned = (self.samples[self.samples["lens"] == lens].reset_index() for lens in ("plain", "tuned"))
        # Both lenses read the same runs, steps and layers one after the other.
        paired = tuned.assign(lens=_DIFFERENCE, value=tuned["value"] - plain["value"])
        return over_instances(pd.concat([plain, tuned, paired], ignore_index=True).drop(columns="index"))

    def plot(self, axis: Axes | None = None, *, measure: str = "velocity_cosine", step: int | None = None) -> Axes:
        """Both lenses over the layers at one step, with 95 % bootstrap intervals over instances of all tasks.

        Parameters
        ----------
        measure : one of ``measures``
        step : int, optional
            By default the first that was read.
        """
        steps = sorted(set(self.samples["step"]))
        step = steps[0] if step is None else step
        if measure not in self.measures or step not in steps:
            raise InputError(f"no measure {measure!r} of step {step}; there are {', '.join(self.measures)} of {steps}")
        chosen = self.samples[(self.samples["step"] == step) & (self.samples["measure"] == measure)]
        axis = curves(over_instances(chosen.drop(columns="task")), "layer", "value", "lens", axis)
        sigma, n = chosen["sigma"].iloc[0], chosen["instance"].nunique()
        axis.set_ylabel(measure)
        axis.set_title(f"step {step}, sigma {sigma:.2f}, n = {n} held-out instances", fontsize=9)
        return axis


def compare_lenses(
    model: VideoDiT,
    task: Task | Sequence[Task],
    tuned: TunedLens,
    *,
    instances: int | Sequence[Any] = 64,
    sites: Sites | None = None,
    seed: int = 0,
    batch: int = 16,
    decode: bool = True,
    **run_arguments: Any,
) -> LensComparison:
    """Read held-out runs with both lenses, in the branch of the tuned one.

    Parameters
    ----------
    task : Task or list of Task
    instances : int or list
        So many of each task's split "test", or instances of one task.
    sites : Sites, optional
        Steps and layers of the component "resid", by default all layers at the first step of every band.
    seed : int
        Of the instances and of the runs, which share no noise with those of the training.
    batch : int
        Rows that are run at once.
    decode : bool
        Whether to decode and score what the layers show; the velocities alone cost a fraction of it.
    **run_arguments
        Of `VideoDiT.run`; the interventions among them apply to the reading too.

    Raises
    ------
    EvidenceError
        An instance or a seed that the lens was trained or validated on.
    SiteError
        A step or layer that the runs will not have.
    MadeForAnother
        The lens is of another model.
    """
    tuned.require(model)
    tasks = listed_tasks(task, who=_WHO)
    drawn = [t.sample(instances, seed) for t in tasks] if isinstance(instances, int) else [list(instances)]
    if len(drawn) != len(tasks) or not all(drawn):
        raise InputError("give instances of one task at a time, or how many of each")
    _, interventions, others = replayed_arguments_of(run_arguments)
    if sites is not None:
        at_branch(sites, tuned.record.branch).resolve(geometry_of(model, drawn[0][0], others))
    seeds = row_seeds(derive(seed, "comparison"), sum(map(len, drawn)))
    _check_held_out(tuned, [i.id for part in drawn for i in part], seeds)
    tables = []
    for of_task, part in zip(tasks, drawn, strict=True):
        own, seeds = seeds[: len(part)], seeds[len(part) :]
        made = model.runs(
            part,
            own,
            batch=batch,
            progress=f"{of_task.name}, both lenses",
            record=True,
            interventions=interventions,
            decode=decode,
            **others,
        )
        tables += [_read(model, of_task, run, tuned, sites, interventions) for run in made]
    return LensComparison(pd.concat(tables, ignore_index=True))


def _check_held_out(tuned: TunedLens, ids: Sequence[str], seeds: Sequence[int]) -> None:
    record = tuned.record
    known = set(record.train) | set(record.validation)
    if shared := sorted(known & set(ids)):
        raise EvidenceError(
            f"{len(shared)} instances are not held out, the lens was trained or validated on them: "
            f"{', '.join(shared[:3])}"
        )
    if noise := record.run_seeds & set(seeds):
        raise EvidenceError(
            f"{len(noise)} seeds of runs are not held out, the lens was trained or validated on them: give another seed"
        )


def _read(
    model: VideoDiT,
    task: Task,
    run: Run,
    tuned: TunedLens,
    sites: Sites | None,
    interventions: Sequence[Intervention],
) -> pd.DataFrame:
    """Samples of one run, the plain lens first."""
    chosen, tables = Sites(steps=_first_of_bands(tuned, run)) if sites is None else sites, []
    here = acting(interventions, run.geometry, *indices(chosen.steps, run.geometry.steps, "step"))
    for translator in (None, tuned):
        lens = depth_lens(
            model,
            run,
            sites=chosen,
            branch=tuned.record.branch,
            translator=translator,
            interventions=here,
        )
        places = lens.reading.table.assign(lens=lens.lens)
        scores = {} if run.frames is None else _scores(task, run, lens, model)
        tables += [lens.samples, *([tidy(places, run.rows, scores)] if scores else [])]
    found = pd.concat(tables, ignore_index=True)
    found.insert(list(found.columns).index("lens"), "task", task.name)
    return found


def _first_of_bands(tuned: TunedLens, run: Run) -> list[int]:
    first: dict[int, int] = {}
    for call in run.calls:
        first.setdefault(band_of(tuned.record.bands, call.sigma, call.expert), call.step)
    return sorted(first.values())


def _scores(task: Task, run: Run, lens: DepthLens, model: VideoDiT) -> dict[str, Floats]:
    """What the task reads off the decoded answers, by measure: float (S L, B)."""
    instances, found = run.inputs, dict[str, list[Floats]]()
    scores, reads = declares(task, "score"), declares(task, "read_answer", "judge_answer")
    final = answers_of(task, run.decoded[:, -1], instances, who=_WHO).marks if reads else np.zeros(0, dtype=np.int64)
    for video in lens.decode(model).reshape(-1, *run.decoded.shape):
        shown = dict[str, Floats]()
        if scores:
            scored = scores_of(task, video, instances, who=_WHO)
            shown |= {"strict": scored.strict.astype(float), "total": scored.total}
        if reads:
            marks = answers_of(task, video[:, -1], instances, who=_WHO).marks
            rules = rules_of_answer(task, video[:, -1], instances, who=_WHO)
            shown |= {"agreement": agreement(marks, final), "legality": next(iter(rules.values()))}
        for measure, values in shown.items():
            found.setdefault(measure, []).append(values)
    return {measure: np.stack(values) for measure, values in found.items()}
