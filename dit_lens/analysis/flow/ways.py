"""The way from one answer to the other, and how far clean estimates go along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools, Floats
from dit_lens.sweeps.metrics import Moved

#: Two ways whose cosine is larger are one way, or one and its opposite.
ALIKE = 0.99


@dataclass(frozen=True, eq=False)
class Ways:
    """The ways of 2 P rows: from what each should answer to what its partner should, at the cells of the target.

    Attributes
    ----------
    ways : float32 Tensor of shape (2 P, C, F, H, W)
        Zero outside the target; partners' ways are opposite.
    """

    ways: Tensor

    __repr__ = short_repr

    @classmethod
    def of(cls, way: Tensor, cells: Bools) -> Ways:
        """From the ways (P, C, F, H, W) of originals, and the target's cells (P, F, H, W)."""
        masked = way.float().cpu() * torch.from_numpy(cells)[:, None]
        return cls(torch.stack([masked, -masked], dim=1).flatten(0, 1))

    @cached_property
    def _columns(self) -> Tensor:
        """Entries that are in the target of some pair."""
        return self.ways.flatten(1).any(dim=0).nonzero().flatten()

    @cached_property
    def _compact(self) -> Tensor:
        return self.ways.flatten(1)[:, self._columns].double()

    def along(self, step: Tensor, first: int) -> tuple[Floats, Floats]:
        """How far rows moved, in units of a way: along their own, and on average along all other pairs' ways.

        Parameters
        ----------
        step : Tensor of shape (R, C, F, H, W)
            Of the rows from ``first`` on.

        Returns
        -------
        float arrays of shape (R,); the second is NaN where no other pair has another way
        """
        moved, ways = step.cpu().flatten(1)[:, self._columns].double(), self._compact
        every = moved @ (ways / ways.square().sum(dim=1, keepdim=True)).T
        rows = torch.arange(first, first + len(moved))
        own = every[torch.arange(len(moved)), rows]
        # Ways of the same direction, from originals or to them, that are no copy of the row's own.
        others = ((rows[:, None] - torch.arange(len(ways))) % 2 == 0) & ~self._alike[rows]
        return own.numpy(), (torch.where(others, every, 0.0).sum(dim=1) / others.sum(dim=1)).numpy()

    @cached_property
    def _alike(self) -> Tensor:
        """Which ways are nearly the same or opposite, each its own among them: bool (2 P, 2 P)."""
        unit = torch.nn.functional.normalize(self._compact, dim=1)
        return (unit @ unit.T).abs() > ALIKE


@dataclass(frozen=True, eq=False)
class Along:
    """A metric: how far a cell moves x0hat along each row's own way, or on average along the others'."""

    ways: Ways
    others: bool = False

    __repr__ = short_repr

    def __call__(self, moved: Moved) -> Floats:
        own, others = self.ways.along(moved.x0hat.double() - moved.clean.double(), moved.first)
        return np.nan_to_num(others) if self.others else own


def truths(model: VideoDiT, videos: Video, latent: Sequence[int], name: str) -> tuple[Tensor, Tensor]:
    """The ways of P pairs between their true videos, and between these with their first frame repeated.

    Parameters
    ----------
    videos : uint8 array of shape (2 P, T, height, width, 3), both sides of each pair one after the other
    latent : (C, F, H, W) of the sampler's state
    name : of the task, for the error

    Returns
    -------
    two Tensors of shape (P, C, F, H, W)

    Raises
    ------
    EvidenceError
        True videos of another size than the model's.
    """
    frozen = np.repeat(videos[:, :1], videos.shape[1], axis=1)
    found = []
    for shown in (videos, np.ascontiguousarray(frozen)):
        encoded = model.encode(shown)
        if tuple(encoded.shape[1:]) != tuple(latent):
            raise EvidenceError(
                f"the true videos of task {name!r} have {videos.shape[1]} frames of {videos.shape[2]} x "
                f"{videos.shape[3]} pixels, latents {tuple(encoded.shape[1:])}; the model makes {tuple(latent)}"
            )
        found.append(encoded[1::2] - encoded[::2])
    return found[0], found[1]


def shapes_of(pictures: Sequence[Any]) -> set[tuple[int, int] | None]:
    """Sizes of pictures; None is that of no picture."""
    return {None if picture is None else tuple(picture.size) for picture in pictures}
