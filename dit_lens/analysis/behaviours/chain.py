"""The chain of steps of many instances: what each denoising step believes the video to be, decoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.display.short import short_repr
from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.interventions.base import Intervention
from dit_lens.lens.steps import step_lens
from dit_lens.model import VideoDiT
from dit_lens.results.intervals import Interval
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS
from dit_lens.runs.seeds import derive
from dit_lens.tasks.base import Split, Task


@dataclass(frozen=True)
class Chain:
    """Decoded x0hat of every step of G runs, from the guided prediction.

    Attributes
    ----------
    task : Task
    instances : list of G task instances
    frames : uint8 array of shape (S, G, T, height, width, 3)
    sigmas : tuple of float, S of them
    experts : tuple of str or None, S of them
    interventions : tuple of Intervention
        Of the runs.

    Raises
    ------
    EvidenceError
        The frames are not decoded ones of as many steps and instances, or there are too few.
    """

    task: Task
    instances: Sequence[Any]
    frames: Video
    sigmas: tuple[float, ...]
    experts: tuple[str | None, ...]
    interventions: tuple[Intervention, ...] = ()

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if not isinstance(self.frames, np.ndarray) or self.frames.dtype != np.uint8 or self.frames.ndim != 6:
            raise EvidenceError(f"{self.task.name}: the chain of steps is not decoded; need uint8 (S, G, T, h, w, 3)")
        steps, count = self.frames.shape[:2]
        if (steps, count) != (len(self.sigmas), len(self.instances)) or steps != len(self.experts):
            raise EvidenceError(
                f"{self.task.name}: {steps} steps of {count} runs do not go with {len(self.sigmas)} sigmas, "
                f"{len(self.experts)} experts and {len(self.instances)} instances"
            )
        if steps < 2 or count < 2:
            raise EvidenceError(f"{self.task.name}: {steps} steps of {count} runs are too few; need at least 2 of each")

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    @property
    def count(self) -> int:
        return len(self.instances)


def decoded_chain(
    model: VideoDiT,
    task: Task,
    instances: int | Sequence[Any],
    *,
    seed: int = 0,
    interventions: Iterable[Intervention] = (),
    batch: int = 20,
    **run_arguments: Any,
) -> Chain:
    """Run instances and decode x0hat at every step.

    Parameters
    ----------
    instances : int, or list of instances
        Of a number as many different ones are drawn as the task has, see `distinct`.
    seed : int
        Of the instances that are drawn and of their noise.
    interventions : iterable of Intervention
        Applied in every run.
    **run_arguments
        As in `VideoDiT.run`.
    """
    given = distinct(task, instances, seed) if isinstance(instances, int) else list(instances)
    if not given:
        raise EvidenceError(f"{task.name}: no instances to run")
    others = listed(interventions)
    options: dict[str, Any] = {"interventions": others, "record": True, "decode": False} | run_arguments
    parts = []
    for run in model.runs(given, seed, batch=batch, progress=f"chain of steps, {task.title}", **options):
        lens = step_lens(model, run)
        parts.append(lens.decode(model))
    return Chain(task, given, np.concatenate(parts, axis=1), lens.sigmas, lens.experts, others)


def chain_of(
    model: VideoDiT,
    task: Task,
    config: BehaviourConfig,
    chain: Chain | None = None,
    interventions: Iterable[Intervention] = (),
) -> Chain:
    """The chain that was given, if it is of this task, or one of as many instances as the configuration says.

    Its instances and its noise are not those of the runs that are probed.

    Raises
    ------
    EvidenceError
        A chain of another task, or made with other interventions.
    """
    if chain is None:
        seed = derive(config.seed, "chain")
        return decoded_chain(
            model, task, config.chain_instances, seed=seed, batch=config.batch, interventions=interventions
        )
    if chain.task != task:
        raise EvidenceError(f"the chain of steps is of {chain.task}, not of {task}")
    if listed(interventions) != chain.interventions:
        raise EvidenceError("the chain of steps was made with other interventions; give the same ones, or no chain")
    return chain


def distinct(task: Task, count: int, seed: int = 0, by: str = "id") -> list[Any]:
    """Up to ``count`` instances of the test split, no two of them the same: fewer where the task has no more.

    Parameters
    ----------
    task : Task
    count : int
    seed : int
        As in ``task.sample``.
    by : "id" or "picture"
        Whether two prompts under one picture are two instances. For probes they are one: folds must not share pictures.
        Pictures of the test split that are too few are joined by those of the validation split.
    """
    found: dict[Any, Any] = {}
    splits: tuple[Split, ...] = ("test", "val") if by == "picture" else ("test",)
    for split in splits:
        # Small tasks have few pictures, so that a draw repeats some of them.
        for times in (1, 8):
            if len(found) < count:
                for instance in task.sample(times * count, seed=seed, split=split):
                    found.setdefault(instance.id if by == "id" else instance.image.tobytes(), instance)
    return list(found.values())[:count]


def step_table(
    rows: Sequence[Mapping[str, Any]], sigmas: Sequence[float], experts: Sequence[str | None], **named: str
) -> pd.DataFrame:
    """A tidy table of rows with "step" (None of no single step), own coordinates and `VALUE_COLUMNS`.

    Parameters
    ----------
    sigmas, experts : of every step
    **named
        Columns that are the same in every row.
    """
    places = [
        {"step": s, "sigma": None if s is None else sigmas[s], "expert": None if s is None else experts[s]}
        for s in (row["step"] for row in rows)
    ]
    table = pd.DataFrame([{**place, **named, **row} for place, row in zip(places, rows, strict=True)])
    known = [name for name in SITE_COLUMNS if name in table]
    own = [name for name in table if name not in (*SITE_COLUMNS, *VALUE_COLUMNS)]
    table["step"] = pd.Series([row["step"] for row in rows], dtype=object)
    table["expert"] = pd.Series([place["expert"] for place in places], dtype=object)
    return table[[*known, *own, *VALUE_COLUMNS]].astype(dict.fromkeys(("sigma", "value", "low", "high"), float))


def measured(measure: str, interval: Interval, n: int) -> dict[str, Any]:
    """The last columns of a row."""
    return dict(zip(VALUE_COLUMNS, (measure, *interval, n), strict=True))


def printed(table: pd.DataFrame) -> str:
    """A table for the terminal: what is infinite is never reached."""
    return table.replace(float("inf"), "never").to_string(index=False, float_format="{:.3f}".format, na_rep="-")
