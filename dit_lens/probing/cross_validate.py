"""Probes over sites and labels, with the controls that make them mean something.

All probes of a step, or of as many sites as fit into memory, are fitted at once: the second moments of every
fold are computed once, those of its training rows are the sum of the other folds', and all labels with their shuffled
controls are columns of one factorised system. Every probe is scored on task instances that it was not fitted on, beside

- *shuffled*: the same features, each instance's labels taken from another instance. What remains is what the position
  of a row says, and what the probe can memorise; skill minus this, with negative control skill counted as 0,
  is the *selectivity* (Hewitt and Liang 2019, arXiv 1909.03368);
- *input*: the full model input at the same token (noisy latents, frame mask and condition latents) in the features'
  place;
- *position*: which row it is, and nothing else;
- *random*: the same site of the same architecture with random weights;
- *majority*: the most frequent answer, whose skill is 0 by the definition of skill.

A control that the data does not hold is named in the table as missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm.auto import tqdm

from dit_lens.errors import EvidenceError
from dit_lens.probing.fit.moments import Moments, complements
from dit_lens.probing.fit.questions import Question, ask, check_folds, targets
from dit_lens.probing.fit.scores import GroupedScores, scores_by_group
from dit_lens.probing.probe_grid import Probe, ProbeGrid, probes_of
from dit_lens.probing.rows.data import Place, ProbeData, check_data, fold_of_runs, group_numbers

#: Bytes of features that are worked on at once. On a CPU more would only leave the cache.
AT_ONCE = {"cpu": 2**24, "cuda": 2**32}
#: Up to this width the matrices are so small that BLAS threads which wait for each other cost more than they do.
NARROW = 1024


def probe_grid(
    data: Mapping[int, ProbeData],
    *,
    folds: int | Sequence[int] = 3,
    alpha: float = 1e-3,
    seed: int = 0,
    shuffled: bool = True,
    device: torch.device | str = "cpu",
    product: torch.dtype = torch.float64,
) -> ProbeGrid:
    """Fit and score probes at every step and site of ``data`` (step -> ProbeData).

    Parameters
    ----------
    folds : int, or R ints
        Into how many folds the task instances are dealt; or the fold of each run.
    alpha : float
        Ridge penalty in units of the number of training rows, on standardised features; see `Moments.solve`.
    seed : int
        Of the order in which shuffled labels are taken from other instances.
    shuffled : bool
        Also fit every probe to shuffled labels.
    device : torch.device
        Where sums and factors are made.
    product : torch.dtype
        float32 halves the time of products of rows; they are summed and solved in float64 all the same.

    Raises
    ------
    EvidenceError
        Fewer than two instances to a fold, a split that shares instances, labels of one class only or with a class that
        no training row of a fold has, NaN, or shapes and dtypes that do not go together.
    """
    check_data(data)
    first = next(iter(data.values()))
    fold = fold_of_runs(first.instances, folds)
    groups = group_numbers(first.instances)
    questions: dict[str, Question] = {}
    scores: dict[Probe, GroupedScores] = {}
    work = _Work(scores, fold, groups, alpha, torch.device(device), product)
    places = {step: part.places(step) for step, part in data.items()}
    widest = max(x.shape[-1] for found in places.values() for x in found.values())
    total = sum(map(len, places.values()))
    with (
        threadpool_limits(1 if widest <= NARROW else None, user_api="blas"),
        tqdm(total=total, desc="probes", unit="site") as bar,
    ):
        for asked, batch in _batches(data, places, groups, seed, shuffled, work):
            questions |= {question.name: question for question in asked if question.control == "none"}
            work.score(asked, batch, data)
            bar.update(len(batch))
    labels = {name: label for part in data.values() for name, label in part.labels.items()}
    return ProbeGrid(
        groups=int(groups.max()) + 1,
        labels={name: label.role for name, label in labels.items()},
        scores=scores,
        kinds={name: question.kind for name, question in questions.items()},
        classes={name: question.named(labels[name]) for name, question in questions.items()},
        source=first.source,
        level=first.level,
        sigmas={step: part.sigma for step, part in data.items()},
        experts={step: part.expert for step, part in data.items()},
    )


#: Where features come from, and the features (R, N, D).
ReadFeatures = tuple[Place, NDArray[Any]]


def _batches(
    data: Mapping[int, ProbeData],
    places: Mapping[int, Mapping[Place, NDArray[Any]]],
    groups: NDArray[np.int64],
    seed: int,
    shuffled: bool,
    work: _Work,
) -> Iterator[tuple[list[Question], list[ReadFeatures]]]:
    """Features that share labels and width, as many as fit into memory at once."""
    for steps in _same_labels(data):
        questions = [q for q in ask(data[steps[0]].labels, groups, seed) if shuffled or q.control == "none"]
        check_folds(questions, work.fold)
        read = [(place, x) for step in steps for place, x in places[step].items()]
        for width in dict.fromkeys(x.shape[-1] for _, x in read):
            alike = [(place, x) for place, x in read if x.shape[-1] == width]
            size = max(1, work.at_once // alike[0][1].size // work.product.itemsize)
            for start in range(0, len(alike), size):
                yield questions, alike[start : start + size]


def _same_labels(data: Mapping[int, ProbeData]) -> list[list[int]]:
    """Steps in runs of equal labels."""
    found: list[list[int]] = []
    for step, part in data.items():
        if found and _equal(data[found[-1][0]], part):
            found[-1].append(step)
        else:
            found.append([step])
    return found


def _equal(one: ProbeData, other: ProbeData) -> bool:
    a, b = one.labels, other.labels
    return a is b or (
        list(a) == list(b)
        and all(a[name].values.dtype == b[name].values.dtype for name in a)
        and all(np.array_equal(a[name].values, b[name].values) for name in a)
    )


@dataclass(frozen=True)
class _Work:
    """What is the same for every batch of places."""

    scores: dict[Probe, GroupedScores]
    fold: NDArray[np.int64]
    groups: NDArray[np.int64]
    alpha: float
    device: torch.device
    product: torch.dtype
    rooms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def at_once(self) -> int:
        return AT_ONCE.get(self.device.type, AT_ONCE["cuda"])

    def score(
        self, questions: Sequence[Question], places: Sequence[ReadFeatures], data: Mapping[int, ProbeData]
    ) -> None:
        """Fit and score all questions at all of these places."""
        order = np.argsort(self.fold, kind="stable")  # the runs of a fold lie together
        predicted = self._predict(questions, places, order)
        for q, question in enumerate(questions):
            codes, answers = question.codes[order], predicted[q].reshape(len(places), *question.codes.shape)
            scores = scores_by_group(
                codes,
                answers,
                self.groups[order],
                question.kind == "regression",
                int(self.groups.max()) + 1,
                len(question.classes),
            )
            for (place, _), of_place in zip(places, scores, strict=True):
                probes = probes_of(place, question.name, question.control, list(data[place.step].features))
                self.scores.update(dict.fromkeys(probes, of_place))

    def _predict(
        self, questions: Sequence[Question], places: Sequence[ReadFeatures], order: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Held-out answers (questions, P, rows), the rows in ``order``."""
        x, means = self._features(places, order)
        y = targets(questions)[torch.from_numpy(order)].flatten(0, 1).to(self.device)
        rows = len(y) // len(order)
        ends = np.cumsum(np.bincount(self.fold)) * rows
        parts = [slice(int(a), int(b)) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        of_folds = [
            Moments.zeros(len(x), x.shape[-1], y.shape[-1], self.device, self.product).add(
                x[:, part], y[part], taken_off=means
            )
            for part in parts
        ]
        predicted = torch.empty(len(questions), len(x), len(y), dtype=self.product, device=self.device)
        for part, train in zip(parts, complements(of_folds), strict=True):
            linear = train.solve(self.alpha)
            scores, middle = linear(x[:, part]), train.midpoints(linear)
            for q, question in enumerate(questions):
                predicted[q, :, part] = question.answer(scores, train, linear, middle, x[:, part])
        return predicted.cpu().numpy()

    def _features(self, places: Sequence[ReadFeatures], order: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features of some places (P, rows, D) less their means, the runs in ``order``, and those means (P, D).

        Without their means, because float32 scores would else be differences of large numbers.
        """
        runs, rows, width = places[0][1].shape
        x = self._room("features", (len(places), runs * rows, width), self.product)
        means = torch.empty(len(places), width, dtype=torch.float64, device=self.device)
        for one, about, (place, features) in zip(x, means, places, strict=True):
            taken = self._room("taken", features.shape, torch.from_numpy(np.empty(0, features.dtype)).dtype, "cpu")
            np.take(features, order, axis=0, out=taken.numpy(), mode="clip")
            flat = taken.flatten(0, 1).to(self.device)
            # About is enough: the moments know what is left of the mean, and a float64 mean of float32 takes a copy.
            mean = flat.mean(0) if flat.dtype in (torch.float32, torch.float64) else flat.mean(0, dtype=torch.float32)
            if not torch.isfinite(mean).all():
                bad = int((~torch.isfinite(flat)).sum())
                raise EvidenceError(f"{bad} NaN or infinite features at {place}")
            about.copy_(mean)
            if flat.dtype.itemsize < one.dtype.itemsize:  # narrow rows would round what is left without the mean
                flat = one.copy_(flat)
            torch.sub(flat, mean.to(flat.dtype), out=one)
        return x, means

    def _room(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None
    ) -> Tensor:
        """Memory that every batch works in: fresh memory for each costs more than what is done there."""
        if name not in self.rooms or (self.rooms[name].shape, self.rooms[name].dtype) != (shape, dtype):
            self.rooms[name] = torch.empty(shape, dtype=dtype, device=device or self.device)
        return self.rooms[name]
