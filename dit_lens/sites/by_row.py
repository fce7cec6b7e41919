"""Tokens that differ from row to row: taken out of an activation into rows of one length, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_lens.display.short import short_repr


@dataclass(frozen=True, eq=False)
class RowTokens:
    """Which of N tokens each of B rows selects.

    Attributes
    ----------
    places : int64 Tensor of shape (B, n)
        Of the selected tokens in rising order, n the largest number of any row. Where a row has fewer, its last entries
        are padding: other tokens, which are neither read nor written.
    own : bool Tensor of shape (B, n)
        Which entries are no padding.
    """

    places: Tensor
    own: Tensor

    __repr__ = short_repr

    @classmethod
    def of(cls, mask: Tensor) -> RowTokens:
        """From a mask, bool (B, N)."""
        counts = mask.sum(dim=1)
        places = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        return cls(places, torch.arange(places.shape[1]) < counts[:, None])

    @property
    def counts(self) -> list[int]:
        """How many tokens each row selects."""
        return [int(count) for count in self.own.sum(dim=1)]

    def take(self, tokens: Tensor) -> Tensor:
        """The selected ones of tokens (B or 1, N, D): (B, n, D), zero where there is padding."""
        places, own = self.places.to(tokens.device), self.own.to(tokens.device)
        spread = tokens.expand(len(places), -1, -1)
        taken = spread.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
        return torch.where(own[..., None], taken, torch.zeros((), dtype=taken.dtype, device=taken.device))

    def put(self, tokens: Tensor, part: Tensor) -> Tensor:
        """A copy of tokens (B, N, D) with the selected ones replaced by ``part``, (B, n, D)."""
        changed = tokens.clone()
        rows, columns = self.own.to(tokens.device).nonzero(as_tuple=True)
        changed[rows, self.places.to(tokens.device)[rows, columns]] = part[rows, columns]
        return changed


def mask_of_positions(positions: Sequence[Sequence[int]], count: int) -> Tensor:
    """Positions of each row as a mask, bool (B, count); they must lie in 0..count-1."""
    mask = torch.zeros(len(positions), count, dtype=torch.bool)
    for row, chosen in enumerate(positions):
        mask[row, list(chosen)] = True
    return mask
