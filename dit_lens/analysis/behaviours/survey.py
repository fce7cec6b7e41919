"""All four behaviours of a model on its tasks, in one object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd

from dit_lens.analysis.behaviours.chain import Chain, decoded_chain, distinct
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.analysis.behaviours.correction import Correction, self_correction
from dit_lens.analysis.behaviours.memory import WorkingMemory, working_memory
from dit_lens.analysis.behaviours.order import MEASURES, PerceptionOrder, perception_before_action
from dit_lens.analysis.behaviours.paths import MultiPath, multi_path
from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT

#: The seed of a chain's first instance, apart from those of the runs that are probed.
CHAIN_SEED = 10_000


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
    """

    config: BehaviourConfig
    memory: dict[str, WorkingMemory] = field(default_factory=dict)
    order: dict[str, PerceptionOrder] = field(default_factory=dict)
    correction: dict[tuple[str, str], Correction] = field(default_factory=dict)
    paths: dict[str, MultiPath] = field(default_factory=dict)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

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

    def to_json(self) -> dict[str, Any]:
        """Every table as a list of rows; what is infinite (never) or missing is null."""
        tables = {name: json.loads(table.to_json(orient="records")) for name, table in self.tables().items()}
        skipped = [dict(zip(("behaviour", "task", "reason"), row, strict=True)) for row in self.skipped]
        return {"tables": tables, "skipped": skipped, "config": asdict(self.config)}

    def __str__(self) -> str:
        parts = []
        for name, table in self.tables().items():
            if name == "self-correction by step":
                table = _by_step(table)
            if name == "multi-path":
                table = _per_step(table)
            text = table.replace(float("inf"), "never").to_string(index=False, float_format="{:.3f}".format, na_rep="-")
            parts.append(f"{name}\n{text}")
        return "\n\n".join([*parts, *(f"no {what} on {task}: {why}" for what, task, why in self.skipped)])


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
        instances = distinct(task, config.chain_instances, config.seed + 1)
        chain = decoded_chain(model, task, instances, seed=config.seed + CHAIN_SEED, batch=config.batch)
        _of_chain(found, chain)
        labels = set(task.labels(instances[:1], model.geometry(instances[0]).grid[0]))
        if "hidden" in labels:
            found.memory[chain.title] = working_memory(model, task, config)
        if {"start", "on_path"} <= labels:
            found.order[chain.title] = perception_before_action(model, task, config, chain=chain)
    return found


def _of_chain(found: Survey, chain: Chain) -> None:
    try:
        found.correction[chain.title, "answer"] = self_correction(chain, "answer")
    except EvidenceError as error:
        found.skipped.append(("self-correction", chain.title, str(error)))
    found.correction[chain.title, "strict"] = self_correction(chain, "strict")
    try:
        found.paths[chain.title] = multi_path(chain)
    except EvidenceError as error:
        found.skipped.append(("multi-path", chain.title, str(error)))


def _verdicts(order: PerceptionOrder) -> pd.DataFrame:
    rows = [(order.task, measure, order.before(measure), order.shown(measure)) for measure in MEASURES]
    return pd.DataFrame(rows, columns=["task", "measure", "share of replicates", "shown"])


def _ever(task: str, judge: str, correction: Correction) -> pd.DataFrame:
    n, gains = correction.chain.count, correction.gains
    rows = [
        (task, judge, change, *interval, n, gains, correction.shown) for change, interval in correction.ever().items()
    ]
    return pd.DataFrame(
        rows, columns=["task", "judge", "over the chain", "value", "low", "high", "n", "net > 0", "shown"]
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
