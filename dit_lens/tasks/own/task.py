"""What every task of a user's own data has: inputs that are drawn by seed, and the evidence that was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.display.short import short_repr
from dit_lens.errors import TaskError
from dit_lens.files.digest import short_hash
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.base import Label, Split, generator, instance_of_each
from dit_lens.tasks.evidence import declared
from dit_lens.tasks.own.arrays import read_scores
from dit_lens.tasks.own.inputs import Input, picture_size

#: Given videos, uint8 (B, T, height, width, 3), and their inputs: a score of each, 0 to 1 or a boolean.
Scorer = Callable[[Video, Sequence[Input]], Any]


@dataclass(frozen=True)
class OwnScores:
    """Scores of B videos by a user's scorer.

    Attributes
    ----------
    total : float array of shape (B,)
        0 to 1.
    """

    total: Floats

    __repr__ = short_repr

    @property
    def rules(self) -> Mapping[str, Floats]:
        """The one rule, "score"."""
        return {"score": self.total}

    @property
    def strict(self) -> Bools:
        """Whether the score is 1."""
        return np.asarray(self.total == 1)


class Own:
    """Base of the tasks of own data. What was not given is None, and so not declared.

    Attributes
    ----------
    name : str
    inputs : tuple of N Input
    split : array of the split of each
    given : dict of Label, values of shape (N, ...)
    truth : uint8 array of shape (N, T, height, width, 3), optional
    scorer : callable, optional
    size, cell : int, optional
        Cells n a side, and pixels a side of a cell.
    """

    name: str
    inputs: tuple[Input, ...]
    split: NDArray[np.str_]
    given: Mapping[str, Label]
    truth: Video | None
    scorer: Scorer | None
    size: int | None
    cell: int | None

    @property
    def title(self) -> str:
        return self.name

    @property
    def settings(self) -> dict[str, Any]:
        """How many inputs, and a hash of what they are."""
        return {"inputs": len(self.inputs), "content": short_hash([i.id.encode() for i in self.inputs])}

    @property
    def picture(self) -> tuple[int, int] | None:
        """Height and width of the images, or of the true videos where there are no images."""
        height, width = (None, None) if self.truth is None else self.truth.shape[2:4]
        return picture_size(self.inputs) or (None if height is None else (height, width))

    @property
    def frames(self) -> int | None:
        """Pixel frames T of the true videos."""
        return None if self.truth is None else len(self.truth[0])

    def sample(self, count: int, seed: int = 0, split: Split = "test") -> list[Input]:
        """Inputs in the random order of a seed, none of them twice.

        Raises
        ------
        TaskError
            More inputs than the split has.
        """
        return [self.inputs[row] for row in self.drawn(self.split, count, seed, split)]

    def drawn(self, splits: NDArray[np.str_], count: int, seed: int, split: Split) -> Ints:
        """``count`` of the places at which the split is this, in the random order of a seed."""
        rng, here = generator(seed, len(splits), split), np.flatnonzero(splits == split)
        if not 1 <= count <= len(here):
            known = zip(*np.unique(splits, return_counts=True), strict=True)
            told = ", ".join(f"{number} of {name}" for name, number in known)
            raise TaskError(f"{self.name}: asked for {count} of split {split!r}; there are {told}; split= says which")
        return rng.permutation(here)[:count]

    @property
    def labels(self) -> Callable[[Sequence[Input], int], dict[str, Label]] | None:
        """Labels of cells and tokens, if any were given."""
        return self._labels_of("cell", "token")

    @property
    def scene_labels(self) -> Callable[[Sequence[Input], int], dict[str, Label]] | None:
        """Labels of clips and latent frames, if any were given."""
        return self._labels_of("clip", "frame")

    @property
    def render(self) -> Callable[[Sequence[Input]], Video] | None:
        """True videos, if they were given."""
        return None if self.truth is None else self._render

    @property
    def score(self) -> Callable[[Video, Any], OwnScores] | None:
        """Scores of videos, if a scorer was given."""
        return None if self.scorer is None else self._score

    def _labels_of(self, *levels: str) -> Callable[[Sequence[Input], int], dict[str, Label]] | None:
        chosen = {name: label for name, label in self.given.items() if label.level in levels}

        def labels(instances: Sequence[Input], latent_frames: int) -> dict[str, Label]:
            rows = self.rows(instances)
            return {name: _taken(label, rows, latent_frames, self.name) for name, label in chosen.items()}

        return labels if chosen else None

    def _render(self, instances: Sequence[Input]) -> Video:
        assert self.truth is not None
        return np.asarray(self.truth[self.rows(instances)])

    def _score(self, frames: Video, instances: Input | Sequence[Input]) -> OwnScores:
        assert self.scorer is not None
        many = instance_of_each(frames, instances)
        self.rows(many)
        made = isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim == 5
        if not made or len(frames) != len(many):
            got = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
            raise TaskError(f"{self.name}: expected {len(many)} uint8 videos (B, T, height, width, 3), got {got}")
        return OwnScores(read_scores(self.scorer(frames, many), len(many), self.name))

    def rows(self, instances: Sequence[Input]) -> Ints:
        """Places of inputs among those of the task.

        Raises
        ------
        TaskError
            None given, or inputs of another task.
        """
        if not len(instances):
            raise TaskError(f"{self.name}: no inputs given")
        for instance in instances:
            row = getattr(instance, "row", len(self.inputs))
            if row >= len(self.inputs) or self.inputs[row].id != instance.id:
                raise TaskError(f"{self.name}: {instance!r:.80} is an input of another task")
        return np.array([instance.row for instance in instances])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.inputs)} inputs, has {', '.join(declared(self))})"


def _taken(label: Label, rows: Ints, latent_frames: int, name: str) -> Label:
    """The label of some rows.

    Raises
    ------
    TaskError
        Values of another number of latent frames than the model makes.
    """
    of_text = label.level == "token" and label.values.ndim == 2
    if label.level != "clip" and not of_text and label.values.shape[1] != latent_frames:
        raise TaskError(
            f"{name}: label {label.name!r} has {label.values.shape[1]} latent frames, the model makes {latent_frames}"
        )
    return Label(label.name, label.role, label.values[rows], label.level, label.names)
