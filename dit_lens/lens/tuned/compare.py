"""The plain and the tuned depth lens side by side, on runs that the tuned one was not made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dit_lens.errors import EvidenceError, InputError
from dit_lens.lens.depth import MEASURES, DepthLens, depth_lens
from dit_lens.lens.representation.reading import geometry_of
from dit_lens.lens.tuned.bands import band_of
from dit_lens.lens.tuned.fit import batches, seeded_from
from dit_lens.model import VideoDiT
from dit_lens.results.intervals import means_over_instances
from dit_lens.results.plots import curves
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select, indices
from dit_lens.tasks.answers import agreement
from dit_lens.tasks.evidence import declares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dit_lens.lens.tuned.tuned_lens import TunedLens

#: Seeds of held-out runs begin here, far from those of a training; where they meet, `compare_lenses` refuses.
FIRST_SEED = 10_000
_BY = ["task", "step", "sigma", "expert", "branch", "layer", "kind"]


@dataclass(frozen=True)
class LensComparison:
    """What both lenses show at every layer of held-out runs.

    Attributes
    ----------
    table : DataFrame
        One row for every lens, step, layer and run: task, lens, step, sigma, expert, branch, layer, kind, instance,
        seed; how near velocity and x0hat are to the model's own, as in `DepthLens.frame`; ``strict`` and ``total``, the
        task's score of the decoded x0hat; and for tasks whose answer is a set of cells ``agreement`` (intersection over
        union with the answer that this run finally draws) and ``legality`` (the task's rule).
    """

    table: pd.DataFrame

    @property
    def measures(self) -> list[str]:
        return [m for m in (*MEASURES, "strict", "total", "agreement", "legality") if m in self.table.columns]

    def frame(self) -> pd.DataFrame:
        """Means over instances with their 95 % bootstrap intervals.

        Returns
        -------
        DataFrame with columns task, step, sigma, expert, branch, layer, kind, lens, measure, value, low, high, n
            ``lens`` is "plain", "tuned", or "tuned - plain", the difference paired by run.
        """
        wide = self.table.set_index([*_BY, "instance", "seed", "lens"])[self.measures]
        both = {name: wide.xs(name, level="lens") for name in ("plain", "tuned")}
        both["tuned - plain"] = both["tuned"] - both["plain"]
        parts = []
        for lens, values in both.items():
            for measure in self.measures:
                known = values[[measure]].dropna().reset_index()
                means = means_over_instances(known, _BY, measure)
                parts.append(means.rename(columns={measure: "value"}).assign(lens=lens, measure=measure))
        return pd.concat(parts, ignore_index=True)[[*_BY, "lens", "measure", "value", "low", "high", "n"]]

    def plot(self, axis: Axes | None = None, measure: str = "velocity_cosine", step: int | None = None) -> Axes:
        """Both lenses over the layers at one step, with 95 % bootstrap intervals over instances of all tasks.

        Parameters
        ----------
        measure : one of ``measures``
        step : int, optional
            By default the first that was read.
        """
        steps = sorted(set(self.table["step"]))
        step = steps[0] if step is None else step
        if measure not in self.measures or step not in steps:
            raise InputError(f"no measure {measure!r} of step {step}; there are {', '.join(self.measures)} of {steps}")
        chosen = self.table[self.table["step"] == step].dropna(subset=[measure])
        axis = curves(means_over_instances(chosen, ["lens", "layer"], measure), "layer", measure, "lens", axis)
        sigma, n = chosen["sigma"].iloc[0], chosen["instance"].nunique()
        axis.set_title(f"step {step}, sigma {sigma:.2f}, n = {n} held-out instances", fontsize=9)
        return axis


def compare_lenses(
    tuned: TunedLens,
    model: VideoDiT,
    task: Any,
    instances: int | Sequence[Any] = 64,
    *,
    steps: Select | None = None,
    seed: int = 0,
    batch: int = 16,
    decode: bool = True,
    **arguments: Any,
) -> LensComparison:
    """Read held-out runs with both lenses.

    Parameters
    ----------
    task : Task or list of Task
    instances : int or list
        So many of each task's split "test", or instances of one task.
    steps : Select, optional
        Which to read, by default the first of every band; how many there are is ``num_inference_steps``.
    seed : int
        Of the instances; number i runs with seed ``10000 + seed + i``, other noise than that of the training.
    decode : bool
        Whether to decode and score what the layers show; the velocities alone cost a fraction of it.
    **arguments
        Of the runs.

    Raises
    ------
    EvidenceError
        An instance or a seed that the lens was trained or validated on.
    SiteError
        A step that the runs will not have.
    MadeForAnother
        The lens is of another model.
    """
    tuned.require(model)
    tasks = list(task) if isinstance(task, Sequence) else [task]
    drawn = [t.sample(instances, seed) for t in tasks] if isinstance(instances, int) else [list(instances)]
    if len(drawn) != len(tasks) or not all(drawn):
        raise InputError("give instances of one task at a time, or how many of each")
    first = FIRST_SEED + seed
    _check_held_out(tuned, [i.id for part in drawn for i in part], range(first, first + max(map(len, drawn))))
    if steps is not None:
        indices(steps, geometry_of(model, drawn[0][0], arguments).steps, "step")
    tables = []
    for of_task, part in zip(tasks, drawn, strict=True):
        parts = list(batches(seeded_from(part, first), batch))
        for some, seeds in tqdm(parts, desc=f"{of_task.name}, both lenses", unit="batch"):
            run = model.run(some, seeds, record=True, decode=decode, **arguments)
            chosen = _first_of_bands(tuned, run) if steps is None else indices(steps, run.geometry.steps, "step")
            for step in chosen:
                for translator in (None, tuned):
                    lens = depth_lens(model, run, step, branch=tuned.record.branch, translator=translator)
                    table = lens.frame().assign(task=of_task.name)
                    tables.append(table.assign(**_scores(of_task, some, run, lens, model)) if decode else table)
    return LensComparison(pd.concat(tables, ignore_index=True))


def _check_held_out(tuned: TunedLens, ids: Sequence[str], seeds: range) -> None:
    record = tuned.record
    known = set(record.train) | set(record.validation)
    if shared := sorted(known & set(ids)):
        raise EvidenceError(
            f"{len(shared)} instances are not held out, the lens was trained or validated on them: "
            f"{', '.join(shared[:3])}"
        )
    for what, (start, stop) in (("trained", record.train_seeds), ("validated", record.validation_seeds)):
        if max(start, seeds.start) < min(stop, seeds.stop):
            raise EvidenceError(
                f"seeds {seeds.start}..{seeds.stop - 1} are not held out, the lens was {what} on runs with seeds "
                f"{start}..{stop - 1}: give another seed"
            )


def _first_of_bands(tuned: TunedLens, run: Run) -> list[int]:
    first: dict[int, int] = {}
    for call in run.calls:
        first.setdefault(band_of(tuned.record.bands, call.sigma, call.expert), call.step)
    return sorted(first.values())


def _scores(task: Any, instances: Sequence[Any], run: Run, lens: DepthLens, model: VideoDiT) -> dict[str, Any]:
    """Columns of what the task reads off the decoded answers, in the order of `DepthLens.frame`."""
    columns, reads = [], declares(task, "read_answer", "judge_answer")
    drawn: Any = task.read_answer(run.decoded[:, -1], instances).marks if reads else None
    for frames in lens.decode(model):
        scores = task.score(frames, instances)
        found = {"strict": scores.strict.astype(float), "total": scores.total}
        if reads:
            shown, rules = task.read_answer(frames[:, -1], instances), task.judge_answer(frames[:, -1], instances)
            found |= {"agreement": agreement(shown.marks, drawn), "legality": next(iter(rules.values()))}
        columns.append(found)
    return {name: np.concatenate([found[name] for found in columns]) for name in columns[0]}
