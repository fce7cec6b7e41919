"""All four behaviours of a model on its tasks, in one result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from dit_lens.analysis.behaviours.chain import Chain, chain_of, printed
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.analysis.behaviours.correction import Correction, Judge, correction_of
from dit_lens.analysis.behaviours.memory import WorkingMemory, working_memory
from dit_lens.analysis.behaviours.order import MEASURES, PerceptionOrder, perception_before_action
from dit_lens.analysis.behaviours.paths import MultiPath, paths_of
from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError, TaskError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result
from dit_lens.tasks.base import Task
from dit_lens.tasks.draw import listed_tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEHAVIOURS = ("working memory", "perception before action", "self-correction", "multi-path")


@dataclass(frozen=True, repr=False)
class Survey(Result):
    """What was found on each task, by its title.

    Attributes
    ----------
    config : BehaviourConfig
    memory : dict of WorkingMemory
    order : dict of PerceptionOrder
    correction : dict from (task, judge) to Correction
    paths : dict of MultiPath
    skipped : tuple of (behaviour, task, reason)
    counts : tuple of (task, use, asked, found)
        How many instances were asked for, and how many different ones the task gave.
    """

    config: BehaviourConfig
    memory: dict[str, WorkingMemory] = field(default_factory=dict)
    order: dict[str, PerceptionOrder] = field(default_factory=dict)
    correction: dict[tuple[str, str], Correction] = field(default_factory=dict)
    paths: dict[str, MultiPath] = field(default_factory=dict)
    skipped: tuple[tuple[str, str, str], ...] = ()
    counts: tuple[tuple[str, str, int, int], ...] = ()

    @property
    def found(self) -> dict[str, list[Result]]:
        """The results of each behaviour that some task has."""
        of_each = (self.memory, self.order, self.correction, self.paths)
        return {name: [*of.values()] for name, of in zip(BEHAVIOURS, of_each, strict=True) if of}  # type: ignore[attr-defined]

    @cached_property
    def table(self) -> pd.DataFrame:
        """The tables of all results, one below the other, with a column ``behaviour``."""
        parts = [part.table.assign(behaviour=name) for name, of in self.found.items() for part in of]
        if not parts:
            return pd.DataFrame(columns=["behaviour", "task", *VALUE_COLUMNS])
        table = pd.concat([part.astype(object) for part in parts], ignore_index=True)
        known = [name for name in SITE_COLUMNS if name in table]
        own = [name for name in table if name not in (*SITE_COLUMNS, "behaviour", "task", *VALUE_COLUMNS)]
        numbers = dict.fromkeys({"sigma", "value", "low", "high"} & set(table), float)
        return table[[*known, "behaviour", "task", *own, *VALUE_COLUMNS]].astype(numbers)

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """What is shown and what is not: objects with behaviour, task, what was asked, and verdict."""
        asked = [
            *(
                (BEHAVIOURS[0], m.task, f"{t} in frame {f}", _said(m.shown(f, t)))
                for m in self.memory.values()
                for f, t in m.grids
            ),
            *(
                (BEHAVIOURS[1], o.task, measure, o.verdict(measure))
                for o in self.order.values()
                for measure in MEASURES
            ),
            *((BEHAVIOURS[2], c.task, f"judged by {c.judge}", _said(c.shown)) for c in self.correction.values()),
        ]
        return [dict(zip(("behaviour", "task", "asked", "verdict"), row, strict=True)) for row in asked]

    def plot(self, axis: Axes | None = None, *, behaviour: str | None = None, number: int = 0) -> Axes:
        """The picture of one of the results, by default the first.

        Parameters
        ----------
        behaviour : one of ``BEHAVIOURS`` that was found, optional
        number : int
            Which of its results, in the order of the tasks.
        """
        if not (there := self.found) or (behaviour is not None and behaviour not in there):
            raise EvidenceError(
                f"nothing was found of {behaviour or 'any behaviour'}; there is {', '.join(there) or 'none'}"
            )
        return there[behaviour or next(iter(there))][number].plot(axis)

    def to_json(self) -> dict[str, Any]:
        """As every result, with the verdicts, what was skipped and why, and the numbers of instances."""
        return super().to_json() | {
            "verdicts": self.verdicts,
            "skipped": [dict(zip(("behaviour", "task", "reason"), row, strict=True)) for row in self.skipped],
            "instances": [dict(zip(("task", "use", "asked", "found"), row, strict=True)) for row in self.counts],
            "config": asdict(self.config),
        }

    def __str__(self) -> str:
        parts = [str(part) for of in (self.memory, self.order) for part in of.values()]
        parts += [_by_step(*self.correction.values())] if self.correction else []
        parts += [_per_step(*self.paths.values())] if self.paths else []
        parts += [f"no {what} on {task}: {why}" for what, task, why in self.skipped]
        few = [row for row in self.counts if row[3] < row[2]]
        parts += [f"{task}, {use}: asked for {asked} instances, found {found}" for task, use, asked, found in few]
        return "\n\n".join(parts)


def _said(shown: bool) -> str:
    return "shown" if shown else "not shown"


def survey(
    model: VideoDiT,
    tasks: Task | Sequence[Task],
    config: BehaviourConfig | None = None,
    *,
    interventions: Iterable[Intervention] = (),
) -> Survey:
    """Every behaviour of a model on every task that has what it needs.

    Parameters
    ----------
    tasks : Task, or list of tasks
    config : BehaviourConfig, optional
    interventions : iterable of Intervention
        Applied in every run.

    Raises
    ------
    EvidenceError
        What is no task.
    """
    asked, others = _Asked(config or BehaviourConfig()), listed(interventions)
    for task in listed_tasks(tasks, who="survey"):
        asked.all_of(model, task, others)
    return asked.survey()


class _Asked:
    """What has been found so far."""

    def __init__(self, config: BehaviourConfig) -> None:
        self.config = config
        self.memory: dict[str, WorkingMemory] = {}
        self.order: dict[str, PerceptionOrder] = {}
        self.correction: dict[tuple[str, str], Correction] = {}
        self.paths: dict[str, MultiPath] = {}
        self.skipped: list[tuple[str, str, str]] = []
        self.counts: list[tuple[str, str, int, int]] = []

    def survey(self) -> Survey:
        lists = tuple(self.skipped), tuple(self.counts)
        return Survey(self.config, self.memory, self.order, self.correction, self.paths, *lists)

    @contextmanager
    def skipping(self, behaviour: str, task: Task) -> Iterator[None]:
        """What the task lacks is noted, and the others are measured all the same."""
        try:
            yield
        except (EvidenceError, TaskError) as error:
            self.skipped.append((behaviour, task.title, str(error)))

    def all_of(self, model: VideoDiT, task: Task, interventions: Sequence[Intervention]) -> None:
        """Every behaviour of one task."""
        name, config, chain = task.title, self.config, None
        with self.skipping("chain of steps", task):
            chain = chain_of(model, task, config, interventions=interventions)
            self.counts.append((name, "chain of steps", config.chain_instances, chain.count))
            self.of_chain(task, chain)
        with self.skipping("working memory", task):
            memory = self.memory[name] = working_memory(model, task, config, interventions=interventions)
            self.counts.append((name, "working memory", config.memory_instances, memory.instances))
        if chain is not None:
            with self.skipping("perception before action", task):
                order = perception_before_action(model, task, config, chain=chain, interventions=interventions)
                self.order[name] = order
                self.counts.append((name, "perception before action", config.order_instances, order.instances))

    def of_chain(self, task: Task, chain: Chain) -> None:
        """What is read from the chain of steps alone."""
        judges: tuple[Judge, ...] = ("answer", "strict")
        for judge in judges:
            with self.skipping(f"self-correction judged by {judge}", task):
                self.correction[task.title, judge] = correction_of(chain, judge)
        with self.skipping("multi-path", task):
            self.paths[task.title] = paths_of(chain)


def _by_step(*found: Correction) -> str:
    """Every verdict, then the counts of the changes with a column for each step that is reached."""
    table = pd.concat([part.table for part in found], ignore_index=True)
    table = table[(table["span"] == "step") & table["measure"].isin(["wrong to right", "right to wrong", "net"])]
    table = table.assign(count=(table["value"] * table["n"]).round().astype(int))
    wide = table.pivot_table(index=["task", "judge", "measure", "n"], columns="step", values="count", sort=False)
    return "\n".join([*map(str, found), "", "counts by step", printed(wide.astype(int).reset_index())])


def _per_step(*found: MultiPath) -> str:
    """Means with their intervals, one column for each step."""
    table = pd.concat([part.table for part in found], ignore_index=True)
    table = table[table["step"].notna()]
    cells = [f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in table.itertuples()]
    wide = table.assign(cell=cells).pivot(index=["task", "measure", "n"], columns="step", values="cell")
    return "multi-path\n" + printed(wide.reset_index())
