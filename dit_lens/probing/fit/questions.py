"""Labels as columns of one least-squares problem, true and shuffled, and back from scores to answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import EvidenceError, InputError, MadeForAnother
from dit_lens.probing.fit.discriminant import discriminant
from dit_lens.probing.fit.moments import Linear, Moments
from dit_lens.tasks.base import Label

Kind = Literal["binary", "classes", "regression"]


@dataclass(frozen=True)
class Question:
    """One label under one control, and where its columns are.

    Attributes
    ----------
    control : "none" or "shuffled"
    columns : slice
        One column, or one for each class of more than two.
    classes : array of shape (k,)
        The label's values; empty for regression.
    codes : array of shape (R, N), integers as small as they can be or float64
        Numbers of classes, -1 where a row is not labelled; of a regression the values.
    """

    name: str
    control: str
    kind: Kind
    columns: slice
    classes: NDArray[Any]
    codes: NDArray[Any]

    def targets(self, runs: slice) -> NDArray[np.float64]:
        """Columns (R, N, k) for least squares, NaN where a row is not labelled."""
        codes = self.codes[runs]
        if self.kind == "regression":
            return codes.astype(np.float64)[..., None]
        of_class = [codes == c for c in range(len(self.classes))] if self.kind == "classes" else [codes == 1]
        return np.where(codes[..., None] >= 0, np.stack(of_class, axis=-1), np.nan)

    def named(self, label: Label) -> tuple[str, ...]:
        """What each class is called."""
        return tuple(label.names[int(c)] if label.names else str(c) for c in self.classes)

    def answer(self, scores: Tensor, train: Moments, linear: Linear, middle: Tensor, features: Tensor) -> Tensor:
        """Predictions (P, n): classes by threshold or discriminant analysis, or values."""
        if self.kind == "regression":
            return scores[..., self.columns.start]
        if self.kind == "binary":
            return (scores[..., self.columns.start] > middle[:, self.columns, None].flatten(1)).to(scores)
        return discriminant(train, linear, self.columns)(features).argmax(-1).to(scores)


def ask(labels: Mapping[str, Label], groups: NDArray[np.int64], seed: int) -> list[Question]:
    """All questions: every label, then every label with each instance's labels taken from another instance.

    Raises
    ------
    EvidenceError
        A label with one value only, or one instance only.
    """
    donor, found, start = donors(groups, seed), [], 0
    for control in ("none", "shuffled"):
        for name, label in labels.items():
            kind, classes, codes = _coded(name, label)
            width = len(classes) if kind == "classes" else 1
            given = codes if control == "none" else codes[donor]
            found.append(Question(name, control, kind, slice(start, start + width), classes, given))
            start += width
    return found


def donors(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """For each run the run whose labels it is given: one of another instance, (R,).

    A cyclic shift along a random order gives every instance the labels of another one; its runs take those of the
    other's runs in turn.
    """
    count = int(groups.max()) + 1
    if count < 2:
        raise EvidenceError("one task instance only: there is no other whose labels it could be given as a control")
    order = np.random.default_rng(seed).permutation(count)
    other = order[np.argsort(order) - 1]
    runs = [np.flatnonzero(groups == g) for g in range(count)]
    taken = np.empty(len(groups), dtype=np.int64)
    for g in range(count):
        taken[runs[g]] = np.resize(runs[other[g]], len(runs[g]))
    return taken


def check_folds(questions: Sequence[Question], fold: NDArray[np.int64]) -> None:
    """Refuse a split in which the probes of a fold would never see a class.

    Raises
    ------
    EvidenceError
        Names label, class and fold.
    """
    for question in questions:
        if question.kind == "regression" or question.control != "none":
            continue
        for number in np.unique(fold):
            seen = np.unique(question.codes[fold != number])
            missing = [question.classes[c] for c in range(len(question.classes)) if c not in seen]
            if missing:
                raise EvidenceError(
                    f"label {question.name!r}: class {', '.join(map(str, missing))} is in no training instance of fold "
                    f"{number}; give more instances or fewer folds"
                )


def _coded(name: str, label: Label) -> tuple[Kind, NDArray[Any], NDArray[Any]]:
    values = label.values
    if np.issubdtype(values.dtype, np.floating):
        classes, kind = np.unique(values), "regression"
        codes: NDArray[Any] = values.astype(np.float64)
    else:
        numbers = values.astype(np.int64)
        classes = np.unique(numbers[numbers >= 0])
        kind = "binary" if len(classes) == 2 else "classes"
        # As small as they can be: of streamed probes they are all that grows with the number of instances.
        codes = np.where(numbers >= 0, np.searchsorted(classes, numbers), -1)
        codes = codes.astype(np.min_scalar_type(-max(len(classes), 1)))
        classes = classes.astype(values.dtype)
    if len(classes) < 2:
        held = f"one value only ({classes[0]})" if len(classes) else "no labelled row"
        raise EvidenceError(f"label {name!r} has {held}; there is nothing to probe")
    return kind, classes if kind != "regression" else classes[:0], codes  # type: ignore[return-value]


def targets(questions: Sequence[Question], runs: slice = slice(None)) -> Tensor:
    """Columns of all questions for some runs: float64 (R, N, K)."""
    return torch.from_numpy(np.concatenate([question.targets(runs) for question in questions], axis=-1))


@dataclass(frozen=True)
class Asked:
    """What some of a probe's outputs answer.

    Attributes
    ----------
    control : "none" or "shuffled"
    kind : "binary" (one output, above 0 means the second class), "classes" (the largest wins), or "regression"
    classes : tuple
        The label's values; empty for regression.
    names : tuple of str
        What each class is called.
    start, stop : int
        The outputs.
    """

    name: str
    role: str
    control: str
    kind: str
    classes: tuple[Any, ...]
    names: tuple[str, ...]
    start: int
    stop: int

    def answers(self, scores: Tensor) -> Tensor:
        """Scores (..., K) to numbers of classes or values (...)."""
        own = scores[..., self.start : self.stop]
        if self.kind == "classes":
            return own.argmax(-1)
        return own[..., 0] if self.kind == "regression" else (own[..., 0] > 0).long()

    def codes(self, values: NDArray[Any]) -> NDArray[Any]:
        """A label's values as numbers of classes, -1 where they are negative; values of a regression as they are.

        Raises
        ------
        MadeForAnother
            A class that the probe has not been trained on.
        """
        if self.kind == "regression":
            return values.astype(np.float64)
        numbers, known = values.astype(np.int64), np.array([int(c) for c in self.classes])
        if len(missing := np.setdiff1d(numbers[numbers >= 0], known)):
            raise MadeForAnother(
                f"the probes of {self.name!r} were trained on the classes {', '.join(self.names)}; there is also "
                f"{', '.join(map(str, missing))}"
            )
        return np.where(numbers >= 0, np.searchsorted(known, numbers), -1)

    def number(self, answer: Any) -> int:
        """The class that an answer names, or whose value it is.

        Raises
        ------
        InputError
        """
        if answer in self.names:
            return self.names.index(answer)
        if answer in self.classes:
            return self.classes.index(answer)
        raise InputError(f"{self.name!r} has the classes {', '.join(self.names)}; answer={answer!r} is none of them")
