"""How well a model solves its tasks on held-out instances, and whether it reads its prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.analysis.instances import drawn_instances, drawn_pairs
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.results.intervals import Interval, mean_interval, wilson
from dit_lens.results.plots import axes, plot_success
from dit_lens.results.result import VALUE_COLUMNS, Result
from dit_lens.runs.seeds import row_seeds
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.evidence import declares, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A task counts as solved only where the lower end of its normalised score is above this.
CLAIM = 0.3
#: A video is changed where a pixel differs by more than a tenth of its range.
_CHANGED = 25


def _rate(right: Bools) -> Interval:
    """Share of B videos for which something holds, with Wilson's interval."""
    return wilson(int(right.sum()), len(right))


def _unknown(value: float) -> Interval:
    """A value whose interval nothing says."""
    return Interval(value, float("nan"), float("nan"))


def _number(value: float) -> float | None:
    """JSON has no number that is none."""
    return value if np.isfinite(value) else None


def _rate_json(interval: Interval, name: str = "value") -> dict[str, float | None]:
    value, low, high = map(_number, interval)
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

    @property
    def n(self) -> int:
        return len(self.instances)

    @property
    def strict(self) -> Interval:
        """Share of videos that are strictly right."""
        return _rate(self.right)

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
        return {rule: _rate(np.asarray(values == 1)) for rule, values in self.rules.items()}

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
            (None, None, "floor", _unknown(self.floor), self.n),
            (None, None, "normalised", self.normalised, self.n),
            (None, None, "score", mean_interval(self.scores), self.n),
            *((None, steps, "strict", _rate(right), len(right)) for steps, right in self.by_length.items()),
            *((rule, None, "in_full", share, self.n) for rule, share in self.in_full.items()),
        ]
        if self.restored is not None:
            found.append((None, None, "autoencoder", _rate(self.restored), self.n))
        found.append((None, None, "seconds_per_sample", _unknown(self.seconds_per_sample), self.n))
        return [(self.task, self.size, rule, steps, name, *x, n) for rule, steps, name, x, n in found]

    def to_json(self) -> dict[str, Any]:
        """Success, floor and whether it is claimed, of all videos and by the steps that a solution needs."""
        bins = [
            {"steps": steps, **_rate_json(_rate(right), "strict"), "n": len(right)}
            for steps, right in self.by_length.items()
        ]
        return {"task": self.task, "size": self.size, **_rate_json(self.strict, "strict"), "n": self.n} | {
            "floor": _number(self.floor),
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
        parts.append("rules in full " + ", ".join(f"{rule} {share.value:.2f}" for rule, share in self.in_full.items()))
        parts += [] if self.restored is None else [f"autoencoder alone {_rate(self.restored)}"]
        return "; ".join([*parts, f"{self.seconds_per_sample:.2f} s per sample"])


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class PromptExchange(Result):
    """What happens when only the prompt is exchanged for its counterfactual.

    Attributes
    ----------
    task : str
    kind : str
        Of the n pairs.
    original, swapped : bool array of shape (n,)
        Which videos are strictly right for the original problem, with its own prompt and with the other one.
    followed : bool array of shape (n,)
        Which videos with the other prompt are strictly right for the other problem.
    """

    task: str
    kind: str
    original: Bools
    swapped: Bools
    followed: Bools

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns task, kind_of_pair, prompt, judged_by, measure ("strict"), value, low, high, n."""
        cases = (
            ("original", "original", self.original),
            ("other", "original", self.swapped),
            ("other", "other", self.followed),
        )
        rows = [(self.task, self.kind, *by, "strict", *_rate(right), len(right)) for *by, right in cases]
        return pd.DataFrame(rows, columns=["task", "kind_of_pair", "prompt", "judged_by", *VALUE_COLUMNS])

    def plot(self, axis: Axes | None = None) -> Axes:
        """Strict success with the own and the other prompt, with its interval."""
        table = self.table.assign(case=[f"{r.prompt} prompt,\n{r.judged_by} answer" for r in self.table.itertuples()])
        axis = plot_success(table, "case", axis=axes(axis))
        axis.set(xlabel="", ylabel="strict success", title=f"{self.task}, {self.kind}")
        return axis

    def __str__(self) -> str:
        return (
            f"{self.task}, prompt exchanged ({self.kind}): the original answer {_rate(self.original)} -> "
            f"{_rate(self.swapped)}, the other answer {_rate(self.followed)}, n={len(self.original)}"
        )


@dataclass(frozen=True)
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
            (self.task, scale, measure, *_rate(of_scale), len(of_scale))
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
            f"{scale:g}: {_rate(strict)} ({changed.mean():.2f} changed)"
            for scale, strict, changed in zip(self.scales, self.strict, self.changed, strict=True)
        )
        return f"{self.task}, guidance {scales}, n={self.strict.shape[1]}"


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
    given, others = [*tasks] if isinstance(tasks, Sequence) else [tasks], tuple(interventions)
    if len(given) != 1 and not isinstance(instances, int):
        raise EvidenceError(f"evaluate: a list of instances goes with one task, got {len(given)}; give their number")
    for task in given:
        require(task, "score", who="evaluate")
    return Evaluation(tuple(_evaluate(model, task, instances, seed, others, batch) for task in given))


def _evaluate(
    model: VideoDiT,
    task: Task,
    instances: int | Sequence[Any],
    seed: int,
    interventions: Sequence[Intervention],
    batch: int,
) -> TaskSuccess:
    known, given = require(task, "score", who="evaluate"), drawn_instances(task, instances, seed, who="evaluate")
    runs = model.runs(given, seed, batch=batch, progress=task.title, interventions=interventions)
    found = [(known.score(run.decoded, list(run.inputs)), run.ledger.seconds) for run in runs]
    scores, seconds = zip(*found, strict=True)
    return TaskSuccess(
        task=task.title,
        size=known.size if declares(task, "size") else None,
        instances=tuple(instance.id for instance in given),
        right=np.concatenate([s.strict for s in scores]),
        scores=np.concatenate([s.total for s in scores]),
        rules={rule: np.concatenate([s.rules[rule] for s in scores]) for rule in scores[0].rules},
        lengths=np.array([i.steps for i in given]) if all(hasattr(i, "steps") for i in given) else None,
        floor=_floor(task, len(given), seed),
        restored=_restored(model, task, given, batch) if declares(task, "render") else None,
        seconds_per_sample=sum(seconds) / len(given),
    )


def _floor(task: Task, count: int, seed: int) -> float:
    """The best strict success of videos that solve nothing, NaN where the task makes none."""
    if not declares(task, "floors"):
        return float("nan")
    return float(require(task, "floors", who="evaluate").floors(count, seed).query("video != 'truth'")["strict"].max())


def _restored(model: VideoDiT, task: Task, instances: Sequence[Any], batch: int) -> Bools:
    """Which true videos are strictly right after a round trip through the autoencoder: bool (n,)."""
    known, found = require(task, "render", "score", who="evaluate"), []
    for first in range(0, len(instances), batch):
        part = list(instances[first : first + batch])
        found.append(known.score(model.decode(model.encode(known.render(part))), part).strict)
    return np.concatenate(found)


def exchange_prompts(
    model: VideoDiT,
    task: Task,
    pairs: int | Sequence[Pair] = 300,
    *,
    kind: str | None = None,
    seed: int = 0,
    interventions: Iterable[Intervention] = (),
    batch: int = 20,
) -> PromptExchange:
    """Run pairs that differ in the prompt alone: the picture and the noise of the original, the words of the other.

    Parameters
    ----------
    pairs : int, or list of pairs of the task
    kind : str, optional
        Kind of the pairs that are drawn, by default the first of `prompt_kinds`.
    seed, interventions, batch
        As in `evaluate`; both sides of a pair share their noise.

    Raises
    ------
    EvidenceError
        A task that scores no videos or makes no pairs, or pairs whose pictures differ.
    """
    who, others = "exchange_prompts", tuple(interventions)
    score = require(task, "score", "pairs", who=who).score
    kind = kind or next(iter(prompt_kinds(task)), None)
    given = drawn_pairs(task, pairs, seed, kind, who=who)
    for pair in given:
        if not _same_picture(pair):
            kinds = ", ".join(prompt_kinds(task)) or "none"
            raise EvidenceError(
                f"{who} needs pairs that differ in the prompt alone; in {pair.original.id!r} the pictures differ. "
                f"Kinds of {task.name!r} that do: {kinds}"
            )
    originals, swapped = ([pair[side] for pair in given] for side in (0, 1))
    seeds = row_seeds(seed, len(given))
    judged: list[list[Bools]] = [[], [], []]
    clean, other = (
        model.runs(side, seeds, batch=batch, progress=task.title, interventions=others) for side in (originals, swapped)
    )
    for one, two in zip(clean, other, strict=True):
        cases = ((one, one.inputs), (two, one.inputs), (two, two.inputs))
        for found, (run, by) in zip(judged, cases, strict=True):
            found.append(score(run.decoded, list(by)).strict)
    return PromptExchange(task.title, kind or given[0].variable, *(np.concatenate(found) for found in judged))


def prompt_kinds(task: Task) -> list[str]:
    """The kinds of pairs whose two pictures are the same: only the prompt tells them apart."""
    known = require(task, "pairs", who="exchange_prompts")
    return [kind for kind in known.kinds if _same_picture(known.pair(0, kind))]


def _same_picture(pair: Pair) -> bool:
    one, other = (side.image for side in pair)
    return one is other or (one is not None and other is not None and one.tobytes() == other.tobytes())


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
    who, others = "compare_guidance", tuple(interventions)
    if not len(scales):
        raise EvidenceError(f"{who}: no scales were given; give some, such as 1, 2 and 4")
    score, given = require(task, "score", who=who).score, drawn_instances(task, instances, seed, who=who)
    strict, changed = [], []
    of_scales = [
        model.runs(given, seed, batch=batch, progress=f"guidance {s:g}", interventions=others, guidance_scale=s)
        for s in scales
    ]
    for runs in zip(*of_scales, strict=True):
        videos = [run.decoded for run in runs]
        plain = videos[0].astype(np.int16)
        strict.append([score(video, list(runs[0].inputs)).strict for video in videos])
        changed.append([(np.abs(video - plain) > _CHANGED).any(axis=(1, 2, 3, 4)) for video in videos])
    return GuidanceComparison(
        task.title, tuple(map(float, scales)), np.concatenate(strict, axis=1), np.concatenate(changed, axis=1)
    )
