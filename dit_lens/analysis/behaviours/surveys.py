"""All four behaviours of a model on its tasks, in one object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd

from dit_lens.analysis.behaviours.chain import Chain, chain_of
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.analysis.behaviours.correction import Correction, self_correction
from dit_lens.analysis.behaviours.memory import WorkingMemory, working_memory
from dit_lens.analysis.behaviours.order import MEASURES, PerceptionOrder, perception_before_action
from dit_lens.analysis.behaviours.paths import MultiPath, multi_path
from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT


@dataclass
class Survey:
    """What was found on each task, by its title.

    Attributes
    ----------
    memory : dict of WorkingMemory
    order : dict of PerceptionOrder
    correction : dict from (task, judge) to Correction
    paths : dict of MultiPath
    skipped : list of (behaviour, task, reason)
    counts : list of (task, use, asked, found)
        How many instances were asked for, and how many different ones the task gave.
    """

    config: BehaviourConfig
    memory: dict[str, WorkingMemory] = field(default_factory=dict)
    order: dict[str, PerceptionOrder] = field(default_factory=dict)
    correction: dict[tuple[str, str], Correction] = field(default_factory=dict)
    paths: dict[str, MultiPath] = field(default_factory=dict)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    counts: list[tuple[str, str, int, int]] = field(default_factory=list)

    @contextmanager
    def skipping(self, behaviour: str, task: str) -> Iterator[None]:
        """What the task lacks is noted among ``skipped``, and the others are measured all the same."""
        try:
            yield
        except EvidenceError as error:
            self.skipped.append((behaviour, task, str(error)))

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that answer, by name; those of behaviours that no task has are left out."""
        found = {
            "working memory": [memory.summary() for memory in self.memory.values()],
            "perception before action": [order.frame() for order in self.order.values()],
            "perception before action, verdicts": [_verdicts(order) for order in self.order.values()],
            "self-correction": [_ever(*key, correction) for key, correction in self.correction.items()],
            "self-correction by step": [correction.frame() for correction in self.correction.values()],
            "multi-path": [paths.frame() for paths in self.paths.values()],
        }
        return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items() if parts}

    def details(self) -> dict[str, pd.DataFrame]:
        """Long tables, by name: every place, step, hidden frame and control of memory, every step of the order."""
        orders = [order.curves.assign(task=name) for name, order in self.order.items()]
        found = {
            "working memory, every place": [memory.frame() for memory in self.memory.values()],
            "perception before action by step": [table[["task", *table.columns[:-1]]] for table in orders],
        }
        return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items() if parts}

    def to_json(self) -> dict[str, Any]:
        """Every table, the long ones too, as a list of rows; what is infinite (never) or missing is null."""
        tables = self.tables() | self.details()
        return {
            "tables": {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()},
            "skipped": [dict(zip(("behaviour", "task", "reason"), row, strict=True)) for row in self.skipped],
            "instances": [dict(zip(("task", "use", "asked", "found"), row, strict=True)) for row in self.counts],
            "config": asdict(self.config),
        }

    def __str__(self) -> str:
        parts = []
        for name, table in self.tables().items():
            if name == "self-correction by step":
                table = _by_step(table)
            if name == "multi-path":
                table = _per_step(table)
            if "expert" in table and table["expert"].isna().all():
                table = table.drop(columns="expert")
            text = table.replace(float("inf"), "never").to_string(index=False, float_format="{:.3f}".format, na_rep="-")
            parts.append(f"{name}\n{text}")
        parts += [f"no {what} on {task}: {why}" for what, task, why in self.skipped]
        few = [row for row in self.counts if row[3] < row[2]]
        parts += [f"{task}, {use}: asked for {asked} instances, found {found}" for task, use, asked, found in few]
        return "\n\n".join(parts)


def survey(model: VideoDiT, tasks: Sequence[Any], config: BehaviourConfig | None = None, **changes: Any) -> Survey:
    """Every behaviour of a model on every task that has what it needs.

    Parameters
    ----------
    config, **changes
        As in `BehaviourConfig`.
    """
    config = replace(config or BehaviourConfig(), **changes)
    found = Survey(config)
    for task in tasks:
        name, chain = task.title, None
        with found.skipping("chain of steps", name):
            chain = _chain(found, model, task)
        one = task.sample(1, seed=config.seed)
        labels = set(task.labels(one, model.geometry(one[0]).grid[0]))
        if "hidden" in labels:
            with found.skipping("working memory", name):
                memory = found.memory[name] = working_memory(model, task, config)
                found.counts.append((name, "working memory", config.memory_instances, memory.instances))
        if chain is not None and {"start", "on_path"} <= labels:
            with found.skipping("perception before action", name):
                order = found.order[name] = perception_before_action(model, task, config, chain=chain)
                found.counts.append((name, "perception before action", config.order_instances, order.instances))
    return found


def _chain(found: Survey, model: VideoDiT, task: Any) -> Chain:
    """The decoded chain of a task, with what is read from it alone."""
    chain = chain_of(model, task, found.config)
    found.counts.append((chain.title, "chain of steps", found.config.chain_instances, chain.count))
    with found.skipping("self-correction", chain.title):
        found.correction[chain.title, "answer"] = self_correction(chain, "answer")
    found.correction[chain.title, "strict"] = self_correction(chain, "strict")
    with found.skipping("multi-path", chain.title):
        found.paths[chain.title] = multi_path(chain)
    return chain


def _verdicts(order: PerceptionOrder) -> pd.DataFrame:
    rows = [
        (order.task, measure, order.before(measure), order.shown(measure), order.verdict(measure))
        for measure in MEASURES
    ]
    return pd.DataFrame(rows, columns=["task", "measure", "share of replicates", "shown", "verdict"])


def _ever(task: str, judge: str, correction: Correction) -> pd.DataFrame:
    n, gains = correction.chain.count, correction.gains
    rows = [
        (task, judge, change, *interval, n, gains, correction.shown) for change, interval in correction.ever().items()
    ]
    return pd.DataFrame(
        rows, columns=["task", "judge", "over the chain", "value", "low", "high", "n", "net correction > 0", "shown"]
    )


def _by_step(table: pd.DataFrame) -> pd.DataFrame:
    """Counts of the changes, one column for each step that is reached."""
    table = table[(table["span"] == "step") & table["change"].isin(["wrong to right", "right to wrong", "net"])]
    columns = table.pivot_table(index=["task", "judge", "change", "n"], columns="step", values="count", sort=False)
    return columns.astype(int).reset_index()


def _per_step(table: pd.DataFrame) -> pd.DataFrame:
    """Means with their intervals, one column for each step."""
    cells = [f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in table.itertuples()]
    wide = table.assign(cell=cells).pivot(index=["task", "measure", "n"], columns="step", values="cell")
    return wide.reset_index()
