"""What probes are fitted to: features and labels of one denoising step, and splits that keep instances apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from dit_lens.display.short import short_repr
from dit_lens.errors import EvidenceError, SiteError
from dit_lens.sites.site import Site
from dit_lens.tasks.base import Label, Level

Source = Literal["sample", "invert", "forward-noise"]

#: The controls that are features of their own; shuffled labels and the majority need none.
CONTROLS = ("input", "position", "random")
#: Those that are the same for every site of a step.
STILL = ("input", "position")


class Place(NamedTuple):
    """Where the features of a probe come from.

    Attributes
    ----------
    step : int
    site : str
        Canonical string of the site; "" for the controls that are the same for every site.
    control : "none", "random", "input" or "position"
        "random" is the site in the twin with random weights.
    """

    step: int
    site: str = ""
    control: str = "none"

    def __str__(self) -> str:
        return f"step {self.step}, {' '.join(part for part in (self.control, self.site) if part not in ('', 'none'))}"


@dataclass(frozen=True)
class ProbeData:
    """Features and labels of one step. R runs of N rows (cells, tokens, ...) each.

    Attributes
    ----------
    features : dict from canonical site ("s00/cond/L03/resid/video") to float array of shape (R, N, D)
    labels : dict from label name to Label with values of shape (R, N)
        Booleans, integers for classes (negative: this row is not labelled), or floats for regression.
    groups : R instance ids, optional
        Runs of the same instance, whatever their seeds, are never split. By default every run is of its own instance.
    source : "sample", "invert" or "forward-noise"
        Where the states come from that the model was given.
    level : "token", "cell", "frame" or "clip"
        What a row is; N is 1 for clips.
    sigma, expert : of the step
    input, position : float arrays of shape (R, N, C) and (R, N, P), optional
        Controls: the full model input of every row, and which row it is.
    random : dict from canonical site to float array of shape (R, N, D)
        Control: the same sites in a twin with random weights.
    """

    features: Mapping[str, NDArray[Any]]
    labels: Mapping[str, Label]
    groups: Sequence[Hashable] | None = None
    source: Source = "sample"
    level: Level = "cell"
    sigma: float | None = None
    expert: str | None = None
    input: NDArray[Any] | None = None
    position: NDArray[Any] | None = None
    random: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    __repr__ = short_repr

    @property
    def runs(self) -> int:
        return len(next(iter(self.features.values()), ()))

    @property
    def instances(self) -> tuple[Hashable, ...]:
        """The id of each run's instance, R of them."""
        return tuple(range(self.runs)) if self.groups is None else tuple(self.groups)

    def places(self, step: int) -> dict[Place, NDArray[Any]]:
        """All features with where they come from, the controls after the model's own."""
        found = {Place(step, site): x for site, x in self.features.items()}
        still = {"input": self.input, "position": self.position}
        found |= {Place(step, "", name): x for name, x in still.items() if x is not None}
        return found | {Place(step, site, "random"): x for site, x in self.random.items()}

    def take(self, runs: NDArray[np.int64], rows: NDArray[np.int64], labels: Mapping[str, Label]) -> ProbeData:
        """Some rows of some runs, with labels of their own.

        Parameters
        ----------
        runs : int array of shape (r,)
        rows : int array of shape (r, k)
            Which of the N rows of each run.
        labels : dict from name to Label with values of shape (r, k)
        """

        def of(x: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(x)[runs[:, None], rows]

        return replace(
            self,
            labels=labels,
            groups=[self.instances[run] for run in runs],
            features={site: of(x) for site, x in self.features.items()},
            input=None if self.input is None else of(self.input),
            position=None if self.position is None else of(self.position),
            random={site: of(x) for site, x in self.random.items()},
        )


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
    if not data or not all(part.features for part in data.values()):
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
    for place, x in part.places(step).items():
        if not isinstance(x, np.ndarray):
            raise EvidenceError(
                f"features of {place} are a {type(x).__name__}; expected a numpy array: of a tensor "
                "x.float().cpu().numpy()"
            )
        if place.site:
            _check_site(place)
    for name, label in part.labels.items():
        if not isinstance(label, Label):
            raise EvidenceError(f"label {name!r} of step {step} is a {type(label).__name__}; expected dit_lens's Label")


def _check_site(place: Place) -> None:
    """Features are named by the canonical string of a site of their step."""
    try:
        site = Site.parse(place.site)
    except SiteError as error:
        raise EvidenceError(f"features of step {place.step}: {error}") from error
    if str(site) != place.site or site.step != place.step:
        raise EvidenceError(
            f"features of step {place.step} are named {place.site!r}; write "
            f"{str(replace(site, step=place.step))!r}, the whole name of a site of that step"
        )


def _check_features(step: int, part: ProbeData) -> None:
    kinds: dict[Any, Place] = {}
    rows = next(iter(part.features.values())).shape[:2]
    for place, x in part.places(step).items():
        if x.ndim != 3 or x.shape[:2] != rows:
            raise EvidenceError(f"features of {place} have shape {x.shape}, expected ({rows[0]}, {rows[1]}, D)")
        if not np.issubdtype(x.dtype, np.floating):
            raise EvidenceError(f"features of {place} are {x.dtype}; expected floats")
        if place.control != "position":  # it is not read from a model, but made
            kinds.setdefault(x.dtype, place)
    if len(kinds) > 1:
        named = " and ".join(f"{dtype} ({place.site or place.control})" for dtype, place in kinds.items())
        raise EvidenceError(f"features of step {step} mix {named}; give all in one dtype")


def _check_label(step: int, name: str, label: Label, rows: tuple[int, ...]) -> None:
    values = label.values
    if values.shape != rows:
        raise EvidenceError(f"label {name!r} of step {step} has shape {values.shape}, the features {rows}")
    if not any(np.issubdtype(values.dtype, kind) for kind in (np.bool_, np.integer, np.floating)):
        raise EvidenceError(f"label {name!r} is of {values.dtype}; expected booleans, integers (classes) or floats")
    if np.issubdtype(values.dtype, np.floating) and (bad := int((~np.isfinite(values)).sum())):
        raise EvidenceError(f"label {name!r} of step {step} is NaN or infinite in {bad} of {values.size} rows")
