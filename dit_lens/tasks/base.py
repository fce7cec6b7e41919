"""What every task has in common."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dit_lens.errors import TaskError
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")


#: More than the first of a candidate that is drawn is alive; less than the second of it is not yet decided.
ALIVE, DECIDED = 0.15, 0.85

#: What one value of a label belongs to.
Level = Literal["clip", "frame", "cell", "token"]
_LEVEL_OF_AXES: dict[int, Level] = {1: "clip", 2: "frame", 4: "cell"}


@dataclass(frozen=True)
class Label:
    """One thing a probe may be asked about every cell, every latent frame, or the whole clip.

    Attributes
    ----------
    role : "perception" or "reasoning"
        What is where, or what the answer needs.
    values : array of shape (B, F, n, n), (B, F) or (B,)
        Boolean or integers for classification, float for regression.
    level : "cell", "frame", "clip" or "token"
        What one value belongs to; where it is not given, the number of axes says it.
    names : tuple of str
        Of integer values, what each stands for.
    """

    name: str
    role: str
    values: NDArray[Any]
    level: Level | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.level is None:
            object.__setattr__(self, "level", _LEVEL_OF_AXES.get(self.values.ndim))

    @property
    def is_regression(self) -> bool:
        return bool(np.issubdtype(self.values.dtype, np.floating))


@runtime_checkable
class Instance(Protocol):
    """One problem: what `VideoDiT.run` and the analyses need of it.

    Attributes
    ----------
    id : str
        The same for the same problem.
    prompt, image : what the model is given
    video : uint8 array of shape (T, height, width, 3)
        The true video.
    variables : mapping
        The latent variables that fix the problem, by name.
    answer, candidates : the right answer, and all answers that the problem could have had
    steps : int
        Number of steps that a solution needs.
    """

    @property
    def id(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def image(self) -> Image.Image: ...

    @property
    def video(self) -> Video: ...

    @property
    def variables(self) -> Mapping[str, Any]: ...

    @property
    def answer(self) -> Hashable: ...

    @property
    def candidates(self) -> tuple[Hashable, ...]: ...

    @property
    def steps(self) -> int: ...


class Pair(NamedTuple):
    """Two instances that differ in one latent variable."""

    original: Any
    counterfactual: Any

    @property
    def variable(self) -> str:
        """Name of the variable in which they differ."""
        one, other = self.original.variables, self.counterfactual.variables
        return ", ".join(name for name in one if not np.array_equal(one[name], other[name]))


class Scores(Protocol):
    """Scores of B videos.

    Attributes
    ----------
    rules : mapping from the name of each rule to float (B,) in [0, 1]
    total : float array of shape (B,)
        Weighted sum of the rules in [0, 1].
    strict : bool array of shape (B,)
        Whether every rule holds in full.
    """

    @property
    def rules(self) -> Mapping[str, Floats]: ...

    @property
    def total(self) -> Floats: ...

    @property
    def strict(self) -> Bools: ...


class Task(Protocol):
    """What the analyses need of a task. A grid task of n x n cells draws one cell on one latent position.

    Attributes
    ----------
    name : str
    size, frames : int
        Cells n a side, and pixel frames T of a video.
    kinds : mapping
        The kinds of counterfactual pairs, the default first, and the variable that each changes.
    weights : mapping
        What each rule of the score is worth; they sum to 1.
    """

    name: ClassVar[str]
    weights: ClassVar[Mapping[str, float]]

    @property
    def size(self) -> int: ...

    @property
    def frames(self) -> int: ...

    @property
    def kinds(self) -> Mapping[str, str]: ...

    def sample(self, count: int, seed: int = 0, split: Split = "test") -> list[Any]: ...

    def pair(self, seed: int = 0, kind: str | None = None, split: Split = "test") -> Pair: ...

    def pairs(self, count: int, seed: int = 0, kind: str | None = None, split: Split = "test") -> list[Pair]: ...

    def labels(self, instances: Sequence[Any], latent_frames: int) -> dict[str, Label]: ...

    def render(self, instances: Sequence[Any]) -> Video: ...

    def score(self, frames: Video, instances: Any) -> Scores: ...

    def floors(self, count: int = 100, seed: int = 0) -> pd.DataFrame: ...

    def describe(self) -> dict[str, Any]: ...


def generator(seed: int, size: int, split: Split) -> np.random.Generator:
    """The random numbers of one (seed, size, split).

    Raises
    ------
    TaskError
        No such split.
    """
    if split not in SPLITS:
        raise TaskError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
    return np.random.default_rng([seed, size, SPLITS.index(split)])


def check_frames(name: str, frames: int) -> None:
    """Refuse numbers of frames that no pipeline makes.

    Raises
    ------
    TaskError
    """
    if not isinstance(frames, int) or frames < 5 or frames % 4 != 1:
        raise TaskError(f"{name}(frames={frames}): frames must be 1 + 4 k, such as 5, 9 or 13")


def instance_of_each(frames: Any, instances: Any) -> list[Any]:
    """The instance that each video is judged by: of a sequence its own, a single one for all of them."""
    if isinstance(instances, Sequence):
        return list(instances)
    return [instances] * (len(frames) if isinstance(frames, np.ndarray) else 1)


def check_videos(task: Any, frames: Any, count: int, height: int, width: int) -> None:
    """Refuse whatever is not ``count`` uint8 videos of the task's length and picture.

    Raises
    ------
    TaskError
    """
    expected = (count, task.frames, height, width, 3)
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.shape != expected:
        got = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise TaskError(f"{task}: expected uint8 videos of shape {expected}, got {got}")


def describe_task(task: Any) -> dict[str, Any]:
    """What a task is, as JSON types: summary, an example prompt, rules with weights, kinds of pairs, labels with roles.

    ``candidates`` is the largest number of candidate answers among a hundred instances, ``steps`` the fewest and the
    most necessary steps.
    """
    examples = task.sample(100, split="train")
    steps = [example.steps for example in examples]
    labels = task.labels(examples[:1], latent_frames=(task.frames + 1) // 2)
    return {
        "name": task.name,
        "summary": (type(task).__doc__ or "").strip().split("\n")[0],
        "size": task.size,
        "frames": task.frames,
        "prompt": examples[0].prompt,
        "rules": dict(task.weights),
        "kinds": dict(task.kinds),
        "candidates": max(len(example.candidates) for example in examples),
        "steps": [min(steps), max(steps)],
        "labels": {name: label.role for name, label in labels.items()},
    }


def title_of(task: Any) -> str:
    """Name of a task, with what sets it apart from others of its name."""
    return "two-goal maze" if getattr(task, "goals", 1) > 1 else str(task.name)
