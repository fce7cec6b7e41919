"""The chain of steps of many instances: what each denoising step believes the video to be, decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.lens.steps import step_lens
from dit_lens.model import VideoDiT
from dit_lens.tasks.base import Task

#: The seed of a chain's first instance, apart from those of the runs that are probed.
CHAIN_SEED = 10_000


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

    @property
    def title(self) -> str:
        """Name of the task, with what sets it apart from others of its name."""
        return self.task.title

    def named(self, table: pd.DataFrame, step: str = "step") -> pd.DataFrame:
        """A table with sigma and expert of its column ``step`` put behind it, and the task in front."""
        at = list(table.columns).index(step) + 1
        table.insert(at, "sigma", [self.sigmas[s] for s in table[step]])
        table.insert(at + 1, "expert", [self.experts[s] for s in table[step]])
        table.insert(0, "task", self.title)
        return table


def decoded_chain(
    model: VideoDiT, task: Any, instances: Sequence[Any], *, seed: int = 0, batch: int = 20, **run_arguments: Any
) -> Chain:
    """Run instances (instance i with seed ``seed + i``) and decode x0hat at every step.

    Parameters
    ----------
    **run_arguments
        As in `VideoDiT.run`.
    """
    if not instances:
        raise EvidenceError(f"{task.name}: no instances to run")
    parts, lens = [], None
    for i in tqdm(range(0, len(instances), batch), desc=f"chain of steps, {task.name}", unit="batch"):
        part = list(instances[i : i + batch])
        seeds = list(range(seed + i, seed + i + len(part)))
        lens = step_lens(model, part, seeds, decode=False, **run_arguments)
        parts.append(lens.decode(model))
    assert lens is not None
    return Chain(task, list(instances), np.concatenate(parts, axis=1), lens.sigmas, lens.experts)


def chain_of(model: VideoDiT, task: Any, config: BehaviourConfig) -> Chain:
    """The decoded chain of as many different instances as a survey takes, with noise that no probed run has."""
    instances = distinct(task, config.chain_instances, config.seed + 1)
    return decoded_chain(model, task, instances, seed=config.seed + CHAIN_SEED, batch=config.batch)


def distinct(task: Any, count: int, seed: int = 0, by: str = "id") -> list[Any]:
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
    for split in ("test", "val") if by == "picture" else ("test",):
        # Small tasks have few pictures, so that a draw repeats some of them.
        for times in (1, 8):
            if len(found) < count:
                for instance in task.sample(times * count, seed=seed, split=split):
                    found.setdefault(instance.id if by == "id" else instance.image.tobytes(), instance)
    return list(found.values())[:count]
