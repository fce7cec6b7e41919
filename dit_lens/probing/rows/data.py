"""What probes are fitted to: features and labels of one denoising step, and splits that keep instances apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from dit_lens.errors import EvidenceError
from dit_lens.tasks.base import Label, Level

Source = Literal["sample", "invert", "forward-noise"]


@dataclass(frozen=True)
class ProbeData:
    """Features and labels of one step. R runs of N rows (cells, tokens, ...) each.

    Attributes
    ----------
    features : dict from readout to float array of shape (R, N, D)
        Readouts of the model: "embed", "L00", ... Controls: "input" (the full model input), "position" (which row it
        is), and "random/embed", "random/L00", ... (the same architecture with random weights).
    labels : dict from label name to Label with values of shape (R, N)
        Booleans, integers for classes (negative: this row is not labelled), or floats for regression.
    groups : R instance ids, optional
        Runs of the same instance, whatever their seeds, are never split. By default every run is of its own instance.
    source : "sample", "invert" or "forward-noise"
        Where the states come from that the model was given.
    level : "token", "cell", "frame" or "clip"
        What a row is; N is 1 for clips.
    sigma, expert : of the step
    """

    features: Mapping[str, NDArray[Any]]
    labels: Mapping[str, Label]
    groups: Sequence[Hashable] | None = None
    source: Source = "sample"
    level: Level = "cell"
    sigma: float | None = None
    expert: str | None = None

    @property
    def runs(self) -> int:
        return len(next(iter(self.features.values()), ()))

    @property
    def instances(self) -> tuple[Hashable, ...]:
        """The id of each run's instance, R of them."""
        return tuple(range(self.runs)) if self.groups is None else tuple(self.groups)


def require_disjoint(train_ids: Iterable[Hashable], test_ids: Iterable[Hashable]) -> None:
    """Refuse training and test rows that share task instances.

    Raises
    ------
    EvidenceError
        Names the instances that are on both sides.
    """
    shared = sorted({*train_ids} & {*test_ids}, key=str)
    if shared:
        named = ", ".join(repr(i) for i in shared[:5]) + (f" and {len(shared) - 5} more" if len(shared) > 5 else "")
        raise EvidenceError(f"{len(shared)} task instances are in training and in test: {named}")


def group_numbers(ids: Sequence[Hashable]) -> NDArray[np.int64]:
    """Ids to numbers from 0, in order of first appearance."""
    order = {name: i for i, name in enumerate(dict.fromkeys(ids))}
    return np.array([order[name] for name in ids], dtype=np.int64)


def fold_of_runs(ids: Sequence[Hashable], folds: int | Sequence[int]) -> NDArray[np.int64]:
    """The fold of each run, from 0: by default instances are dealt to folds; a split that is given is checked.

    Raises
    ------
    EvidenceError
        Fewer than two instances to a fold, or a given split that has an instance in two folds.
    """
    groups = group_numbers(ids)
    if isinstance(folds, int | np.integer):
        folds = int(folds)
        count = len(set(ids))
        if folds < 2:
            raise EvidenceError(
                f"folds must be at least 2, got {folds}: probes are scored on instances they have not seen"
            )
        if count < 2 * folds:
            raise EvidenceError(f"{count} task instances are too few for {folds} folds; need at least {2 * folds}")
        fold = np.empty(len(groups), dtype=np.int64)
        for number, (_, test) in enumerate(GroupKFold(folds).split(groups, groups=groups)):
            fold[test] = number
        return fold
    fold = np.asarray(folds, dtype=np.int64)
    if len(fold) != len(ids) or len(np.unique(fold)) < 2:
        raise EvidenceError(f"a split needs a fold for each of {len(ids)} runs and at least two folds, got {folds!r}")
    for number in np.unique(fold):
        require_disjoint(
            [i for i, f in zip(ids, fold, strict=True) if f != number],
            [i for i, f in zip(ids, fold, strict=True) if f == number],
        )
    return group_numbers(fold.tolist())


def check_data(data: Mapping[int, ProbeData]) -> None:
    """Refuse data that probes cannot be fitted to, before any is.

    Raises
    ------
    EvidenceError
        Nothing there; lengths, shapes or dtypes that do not go together; NaN.
    """
    if not data or not any(part.features for part in data.values()):
        raise EvidenceError("no features to probe")
    first = next(iter(data.values()))
    for step, part in data.items():
        if not part.labels:
            raise EvidenceError("no labels to probe")
        _check_kinds(step, part)
        if len(part.instances) != part.runs:
            raise EvidenceError(f"step {step} has {part.runs} runs and groups for {len(part.instances)}")
        if group_numbers(part.instances).tolist() != group_numbers(first.instances).tolist():
            raise EvidenceError(f"step {step} has {part.runs} runs of other instances than the {first.runs} before")
        if (part.source, part.level) != (first.source, first.level):
            raise EvidenceError(
                f"step {step} is of {part.source}, {part.level}; the first of {first.source}, {first.level}"
            )
        _check_features(step, part)
        for name, label in part.labels.items():
            _check_label(step, name, label, next(iter(part.features.values())).shape[:2])


def _check_kinds(step: int, part: ProbeData) -> None:
    for readout, x in part.features.items():
        if not isinstance(x, np.ndarray):
            raise EvidenceError(
                f"features of step {step}, {readout} are a {type(x).__name__}; expected a numpy array: of a tensor "
                "x.float().cpu().numpy()"
            )
    for name, label in part.labels.items():
        if not isinstance(label, Label):
            raise EvidenceError(f"label {name!r} of step {step} is a {type(label).__name__}; expected dit_lens's Label")


def _check_features(step: int, part: ProbeData) -> None:
    kinds: dict[Any, str] = {}
    rows = next(iter(part.features.values())).shape[:2]
    for readout, x in part.features.items():
        where = f"step {step}, {readout}"
        if x.ndim != 3 or x.shape[:2] != rows:
            raise EvidenceError(f"features of {where} have shape {x.shape}, expected ({rows[0]}, {rows[1]}, D)")
        if not np.issubdtype(x.dtype, np.floating):
            raise EvidenceError(f"features of {where} are {x.dtype}; expected floats")
        if readout != "position":  # it is not read from a model, but made
            kinds.setdefault(x.dtype, readout)
    if len(kinds) > 1:
        named = " and ".join(f"{dtype} ({readout})" for dtype, readout in kinds.items())
        raise EvidenceError(f"features of step {step} mix {named}; give all in one dtype")


def _check_label(step: int, name: str, label: Label, rows: tuple[int, ...]) -> None:
    values = label.values
    if values.shape != rows:
        raise EvidenceError(f"label {name!r} of step {step} has shape {values.shape}, the features {rows}")
    if not any(np.issubdtype(values.dtype, kind) for kind in (np.bool_, np.integer, np.floating)):
        raise EvidenceError(f"label {name!r} is of {values.dtype}; expected booleans, integers (classes) or floats")
    if np.issubdtype(values.dtype, np.floating) and (bad := int((~np.isfinite(values)).sum())):
        raise EvidenceError(f"label {name!r} of step {step} is NaN or infinite in {bad} of {values.size} rows")
