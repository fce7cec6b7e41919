"""How well a model solves its tasks on held-out instances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.display.short import short_repr
from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.results.intervals import Interval, mean_interval, share
from dit_lens.results.plots import axes, plot_success
from dit_lens.results.result import VALUE_COLUMNS, Result, json_value
from dit_lens.tasks.base import Task
from dit_lens.tasks.draw import draw_instances, listed_tasks
from dit_lens.tasks.evidence import declares, require, scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A task counts as solved only where the lower end of its normalised score is above this.
CLAIM = 0.3
_WHO = "evaluate"


def _rate_json(interval: Interval, name: str = "value") -> dict[str, float | None]:
    value, low, high = map(json_value, interval)
    return {name: value, "low": low, "high": high}


@dataclass(frozen=True)
class TaskSuccess:
    """Scores of n videos on one task.

    Attributes
    ----------
    task : str
    size : int or None
        Cells a side of the board, where it has one.
    instances : tuple of str, n of them
    right : bool array of shape (n,)
        Which videos are strictly right.
    scores : float array of shape (n,)
        Partial scores.
    rules : dict from rule name to float array of shape (n,)
    lengths : int array of shape (n,), or None
        How many steps a solution needs, where the instances say it.
    floor : float
        The highest strict success of a video that cannot have solved it, NaN where the task names no such videos; see
        `dit_lens.tasks.floors.null_floors`.
    restored : bool array of shape (n,), or None
        Which true videos are strictly right after a round trip through the autoencoder.
    seconds_per_sample : float
        Wall time of generation over samples, at the batch size used.
    """

    task: str
    size: int | None
    instances: tuple[str, ...]
    right: Bools
    scores: Floats
    rules: Mapping[str, Floats]
    lengths: Ints | None
    floor: float
    restored: Bools | None
    seconds_per_sample: float

    __repr__ = short_repr

    @property
    def n(self) -> int:
        return len(self.instances)

    @property
    def strict(self) -> Interval:
        """Share of videos that are strictly right."""
        return share(self.right)

    @property
    def normalised(self) -> Interval:
        """(strict - floor) / (1 - floor)."""
        return Interval(*((x - self.floor) / (1 - self.floor) for x in self.strict))

    @property
    def claimed(self) -> bool:
        """Whether the task counts as solved."""
        return self.normalised.low > CLAIM

    @property
    def in_full(self) -> dict[str, Interval]:
        """Share of videos that satisfy each rule in full."""
        return {rule: share(np.asarray(values == 1)) for rule, values in self.rules.items()}

    @property
    def by_length(self) -> dict[str, Bools]:
        """Which videos are strictly right, by the number of steps that a solution needs, three to a bin."""
        if self.lengths is None:
            return {}
        first = self.lengths // 3 * 3
        return {f"{low}-{low + 2}": self.right[first == low] for low in np.unique(first)}

    def rows(self) -> list[tuple[Any, ...]]:
        """Rows of `Evaluation.table`."""
        found = [
            (None, None, "strict", self.strict, self.n),
            (None, None, "floor", Interval.unknown(self.floor), self.n),
            (None, None, "normalised", self.normalised, self.n),
            (None, None, "score", mean_interval(self.scores), self.n),
            *((None, steps, "strict", share(right), len(right)) for steps, right in self.by_length.items()),
            *((rule, None, "in_full", held, self.n) for rule, held in self.in_full.items()),
        ]
        if self.restored is not None:
            found.append((None, None, "autoencoder", share(self.restored), self.n))
        found.append((None, None, "seconds_per_sample", Interval.unknown(self.seconds_per_sample), self.n))
        return [(self.task, self.size, rule, steps, name, *x, n) for rule, steps, name, x, n in found]

    def to_json(self) -> dict[str, Any]:
        """Success, floor and whether it is claimed, of all videos and by the steps that a solution needs."""
        bins = [
            {"steps": steps, **_rate_json(share(right), "strict"), "n": len(right)}
            for steps, right in self.by_length.items()
        ]
        return {"task": self.task, "size": self.size, **_rate_json(self.strict, "strict"), "n": self.n} | {
            "floor": json_value(self.floor),
            "normalised": _rate_json(self.normalised),
            "claimed": self.claimed,
            "by_steps": bins,
        }

    def __str__(self) -> str:
        board = "" if self.size is None else f" {self.size} x {self.size}"
        parts = [
            f"{self.task}{board}: strict {self.strict}, n={self.n}, floor {self.floor:.3f}"
            f"{'' if self.claimed else ' (not claimed)'}",
            f"mean score {self.scores.mean():.3f}",
        ]
        bins = ", ".join(f"{steps}: {right.mean():.2f} (n={len(right)})" for steps, right in self.by_length.items())
        parts += [f"by steps {bins}"] if bins else []
        parts.append("rules in full " + ", ".join(f"{rule} {held.value:.2f}" for rule, held in self.in_full.items()))
        parts += [] if self.restored is None else [f"autoencoder alone {share(self.restored)}"]
        return "; ".join([*parts, f"{self.seconds_per_sample:.2f} s per sample"])


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """Strict success on every task that was asked for.

    Attributes
    ----------
    tasks : tuple of TaskSuccess
    """

    tasks: tuple[TaskSuccess, ...]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns task, size, rule, steps (a bin of the steps that a solution needs), measure, value, low, high, n.

        Measures: "strict", of all videos and of each bin; "floor"; "normalised", the success above the floor; "score",
        the mean partial score; "in_full", the share that satisfies a rule; "autoencoder", strict success of true videos
        after a round trip through it; "seconds_per_sample".
        """
        rows = [row for task in self.tasks for row in task.rows()]
        table = pd.DataFrame(rows, columns=["task", "size", "rule", "steps", *VALUE_COLUMNS])
        return table.astype(dict.fromkeys(("size", "rule", "steps"), object))

    def plot(self, axis: Axes | None = None) -> Axes:
        """Strict success on each task with its interval, and its floor as a line."""
        table = self.table[(self.table["measure"] == "strict") & self.table["steps"].isna()]
        axis = plot_success(table, "task", axis=axes(axis))
        for place, task in enumerate(self.tasks):
            axis.hlines(task.floor, place - 0.3, place + 0.3, color="#999999", linestyle=":")
        axis.set_ylabel("strict success")
        return axis

    def to_json(self) -> dict[str, Any]:
        """As every result, and under "tasks" whether each is claimed, with its success."""
        return super().to_json() | {"tasks": [task.to_json() for task in self.tasks]}

    def __str__(self) -> str:
        return "\n".join(map(str, self.tasks))


def evaluate(
    model: VideoDiT,
    tasks: Task | Sequence[Task],
    instances: int | Sequence[Any] = 300,
    *,
    seed: int = 0,
    interventions: Iterable[Intervention] = (),
    batch: int = 20,
) -> Evaluation:
    """Strict success on held-out instances of every task, one video each.

    Parameters
    ----------
    tasks : Task, or list of tasks
    instances : int, or list of instances
        How many of each task; a list goes with one task.
    seed : int
        Of the instances that are drawn and of their noise.
    interventions : iterable of Intervention
        Applied in every run.
    batch : int
        Videos that are made at once.

    Raises
    ------
    EvidenceError
        A task that scores no videos, or a list of instances for several tasks.
    """
    given, others = listed_tasks(tasks, who=_WHO), listed(interventions)
    if len(given) != 1 and not isinstance(instances, int):
        raise EvidenceError(f"evaluate: a list of instances goes with one task, got {len(given)}; give their number")
    for task in given:
        require(task, "score", who=_WHO)
    return Evaluation(tuple(_evaluate(model, task, instances, seed, others, batch) for task in given))


def _evaluate(
    model: VideoDiT,
    task: Task,
    instances: int | Sequence[Any],
    seed: int,
    interventions: Sequence[Intervention],
    batch: int,
) -> TaskSuccess:
    known, given = require(task, "score", who=_WHO), draw_instances(task, instances, seed, who=_WHO)
    runs = model.runs(given, seed, batch=batch, progress=task.title, interventions=interventions)
    found = [(scores_of(task, run.decoded, run.inputs, who=_WHO), run.ledger.seconds) for run in runs]
    scores, seconds = zip(*found, strict=True)
    return TaskSuccess(
        task=task.title,
        size=known.size if declares(task, "size") else None,
        instances=tuple(instance.id for instance in given),
        right=np.concatenate([s.strict for s in scores]),
        scores=np.concatenate([s.total for s in scores]),
        rules={rule: np.concatenate([s.rules[rule] for s in scores]) for rule in scores[0].rules},
        lengths=np.array([i.steps for i in given]) if all(hasattr(i, "steps") for i in given) else None,
        floor=floor_of(task, len(given), seed),
        restored=_restored(model, task, given, batch) if declares(task, "render") else None,
        seconds_per_sample=sum(seconds) / len(given),
    )


def floor_of(task: Task, count: int, seed: int) -> float:
    """The best strict success of videos that solve nothing, NaN where the task makes none."""
    if not declares(task, "floors"):
        return float("nan")
    return float(require(task, "floors", who=_WHO).floors(count, seed).query("video != 'truth'")["strict"].max())


def _restored(model: VideoDiT, task: Task, instances: Sequence[Any], batch: int) -> Bools:
    """Which true videos are strictly right after a round trip through the autoencoder: bool (n,)."""
    known, found = require(task, "render", "score", who=_WHO), []
    for first in range(0, len(instances), batch):
        part = list(instances[first : first + batch])
        found.append(scores_of(task, model.decode(model.encode(known.render(part))), part, who=_WHO).strict)
    return np.concatenate(found)
