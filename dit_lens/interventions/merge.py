"""Merge the trajectories of several seeds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_lens.errors import InputError
from dit_lens.interventions.base import At
from dit_lens.run import Row
from dit_lens.sites import Geometry, Site, Sites


@dataclass(frozen=True)
class Merge:
    """Average the activations of rows that are seeds of one instance.

    Parameters
    ----------
    sites : Sites
    group : int
        Consecutive rows that belong together: rows 0..group-1 are seeds of the first instance, and so on.
    receiver : int or "all"
        Which row of each group receives the mean. The other rows are donors and run unmodified, so that a window of
        layers means something; with "all" the rows are identical after the first merged residual.

    Notes
    -----
    "Demystifying Video Reasoning" (arXiv 2603.16870), trajectory ensemble. A merge costs ``group`` forwards wherever it
    runs: compare it at equal compute, with `Ledger`.
    """

    sites: Sites
    group: int = 3
    receiver: int | str = 0

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        grouped: Tensor = activation.unflatten(0, (-1, self.group))
        mean = grouped.mean(dim=1, keepdim=True)
        if self.receiver == "all":
            return mean.expand_as(grouped).flatten(0, 1)
        merged = grouped.clone()
        merged[:, int(self.receiver)] = mean[:, 0]
        return merged.flatten(0, 1)

    def check(self, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
        """Refuse groups that do not divide the rows or that mix instances."""
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
