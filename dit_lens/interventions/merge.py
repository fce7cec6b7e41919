"""Merge the trajectories of several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import InputError
from dit_lens.interventions.base import At
from dit_lens.interventions.shapes import require_choice, require_number, require_same_tokens, wide
from dit_lens.runs.inputs import Row
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites

_HOW = ("mean", "median", "weighted")


@dataclass(frozen=True)
class Merge:
    """Put the mean, or another middle, of rows that are seeds of one instance in the place of one of them or of all.

    Parameters
    ----------
    sites : Sites
    group : int
        Consecutive rows that belong together: rows 0..group-1 are seeds of the first instance, and so on.
    receiver : int or "all"
        Which row of each group receives the mean. The other rows are donors and run unmodified, so that a window of
        layers means something; with "all" the rows are identical after the first merged residual.
    how : "mean", "median" or "weighted"
        The median is of every element by itself; of an even number it is the mean of the two in the middle.
    weights : tuple of ``group`` numbers, or callable (step) -> such a tuple
        For "weighted" only. They are divided by their sum, which must be positive; one of them may be negative, and
        then the merge leaves the span of the rows.

    Notes
    -----
    "Demystifying Video Reasoning" (arXiv 2603.16870), trajectory ensemble. A merge costs ``group`` forwards wherever it
    runs: compare it at equal compute, with `Ledger`.

    Examples
    --------
    >>> fading = Merge(Sites("resid"), group=2, how="weighted", weights=lambda step: (1, 1 / (step + 1)))
    >>> fading.shares(1)
    (0.666..., 0.333...)
    """

    sites: Sites
    group: int = 3
    receiver: int | str = 0
    how: str = "mean"
    weights: Sequence[float] | Callable[[int], Sequence[float]] | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        require_choice("Merge", "how", self.how, _HOW)
        if (self.weights is not None) != (self.how == "weighted"):
            raise InputError(f"Merge(how={self.how!r}, weights={self.weights}): how='weighted' takes weights, no other")
        if self.weights is not None and not callable(self.weights):
            object.__setattr__(self, "weights", tuple(self.weights))
            self.shares(0)

    def shares(self, step: int) -> tuple[float, ...]:
        """The weights at a step, of sum 1.

        Raises
        ------
        InputError
            Not ``group`` finite numbers of a positive sum.
        """
        weights = self.weights(step) if callable(self.weights) else self.weights
        weights = tuple(weights) if isinstance(weights, Sequence) else ()
        if len(weights) != self.group:
            raise InputError(f"Merge(weights={weights}) at step {step}: need {self.group} numbers, one per row")
        for weight in weights:
            require_number("Merge", f"weights at step {step}", weight)
        total = sum(weights)
        if total <= 0:
            raise InputError(f"Merge(weights={weights}) at step {step}: their sum must be positive, it is {total:g}")
        return tuple(weight / total for weight in weights)

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        grouped: Tensor = activation.unflatten(0, (-1, self.group))
        middle = self._middle(grouped, at.site.step)
        if self.receiver == "all":
            return middle.expand_as(grouped).flatten(0, 1)
        merged = grouped.clone()
        merged[:, int(self.receiver)] = middle[:, 0]
        return merged.flatten(0, 1)

    def _middle(self, grouped: Tensor, step: int) -> Tensor:
        """What a group (..., group, ...) on axis 1 is merged to, with that axis kept."""
        if self.how == "mean":
            return grouped.mean(dim=1, keepdim=True)
        if self.how == "median":
            inner = slice((self.group - 1) // 2, self.group // 2 + 1)
            return grouped.sort(dim=1).values[:, inner].mean(dim=1, keepdim=True)
        shares = wide(grouped).new_tensor(self.shares(step)).reshape(1, -1, *[1] * (grouped.ndim - 2))
        return (wide(grouped) * shares).sum(dim=1, keepdim=True).to(grouped.dtype)

    def check(self, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
        """Refuse groups that do not divide the rows or that mix instances, and weights that a step does not have."""
        if self.group < 2 or len(rows) % self.group:
            raise InputError(f"Merge(group={self.group}): {len(rows)} rows do not make groups of two or more")
        if self.receiver != "all" and self.receiver not in range(self.group):
            raise InputError(f"Merge(receiver={self.receiver!r}): 'all' or a row of the group, 0..{self.group - 1}")
        for first in range(0, len(rows), self.group):
            members = {row.instance for row in rows[first : first + self.group]}
            if len(members) > 1:
                raise InputError(
                    f"Merge: rows {first}..{first + self.group - 1} are of {len(members)} instances, not one"
                )
        firsts = [row - row % self.group for row in range(len(rows))]
        require_same_tokens("Merge", self.sites, firsts)
        if self.how == "weighted":
            for step in sorted({site.step for site in sites}):
                self.shares(step)
