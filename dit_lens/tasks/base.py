"""What every task has in common."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dit_lens.display.short import short_repr
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

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.level is None:
            object.__setattr__(self, "level", _LEVEL_OF_AXES.get(self.values.ndim))

    @property
    def is_regression(self) -> bool:
        return bool(np.issubdtype(self.values.dtype, np.floating))


@runtime_checkable
class Instance(Protocol):
    """One problem: what `VideoDiT.run` needs of it.

    Attributes
    ----------
    id : str
        The same for the same problem.
    prompt, image : what the model is given; the image is None where it is given none
    """

    @property
    def id(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def image(self) -> Image.Image | None: ...


@runtime_checkable
class Problem(Instance, Protocol):
    """An instance whose truth is known.

    Attributes
    ----------
    video : uint8 array of shape (T, height, width, 3)
        The true video.
    variables : mapping
        The latent variables that fix the problem, by name.
    answer, candidates : the right answer, and all answers that the problem could have had
    steps : int
        Number of steps that a solution needs.
    """

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


class Rendered:
    """An instance whose task draws its true video, of which the first frame is what the model is given."""

    task: Any

    @property
    def video(self) -> Video:
        """The true video, uint8 of shape (T, height, width, 3)."""
        return np.asarray(self.task.render([self])[0])

    @property
    def image(self) -> Image.Image:
        """The first frame, which the model is given."""
        return Image.fromarray(self.video[0])


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
    """The least that a task is: a name and instances. What more it has, `dit_lens.tasks.evidence` says.

    Attributes
    ----------
    name : str
    title : str
        The name, with what sets the task apart from others of its name.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str:
        return self.name

    def sample(self, count: int, seed: int = 0, split: Split = "test") -> list[Any]:
        """Instances, the same for the same arguments; no two splits share one."""
        ...


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


def check_pixels(task: object, pixels: Any, shape: tuple[int, ...], what: str = "videos") -> None:
    """Refuse whatever is not uint8 videos, or pictures, of this shape.

    Raises
    ------
    TaskError
    """
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise TaskError(f"{task}: expected uint8 {what} of shape {shape}, got {got}")
