"""Keep activations, reduced where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import InputError
from dit_lens.interventions.base import At
from dit_lens.interventions.reduce import NAMED, Reduce, is_of_this_module, takes_at
from dit_lens.interventions.shapes import one_of_each, part_shape, shares_memory
from dit_lens.runs.inputs import Row
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites


@dataclass(frozen=True)
class Capture:
    """Keep what is at ``sites``.

    Parameters
    ----------
    sites : Sites
    reduce : callable or str, optional
        From an activation (B, ...), or an activation and ``at``, to a tensor whose first axis is B; or the name of one
        in `dit_lens.reduce`: "token_mean", "frame_mean", "norm". Applied on the model's device before anything moves;
        without it the whole activation is copied.
    name : str
        Kept under this name in ``Run.captures``; the unnamed capture is also read by ``run[site]``.
    to : str or None
        Device to move captures to. From a CUDA device to "cpu" they go to pinned memory while the model runs on, and
        are complete when the run ends.

    Examples
    --------
    >>> Capture(Sites("resid", steps=0), reduce="token_mean", name="mean").name
    'mean'
    """

    sites: Sites
    reduce: Reduce | str | None = None
    name: str = ""
    to: str | None = None
    reads_only: ClassVar[bool] = True

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if isinstance(self.reduce, str) and self.reduce not in NAMED:
            raise InputError(f"Capture(reduce={self.reduce!r}): one of {', '.join(NAMED)}, or a callable")
        if self.reduce is not None and not isinstance(self.reduce, str) and not callable(self.reduce):
            raise InputError(f"Capture(reduce={self.reduce!r}): need a callable, or one of {', '.join(NAMED)}")
        try:
            torch.device(self.to or "cpu")
        except (RuntimeError, TypeError) as error:
            raise InputError(f"Capture(to={self.to!r}) is no device; a device reads like 'cpu' or 'cuda:0'") from error

    def __call__(self, activation: Tensor, at: At) -> None:
        kept = activation if self.reduce is None else self._reduced(activation, at)
        kept = kept.detach() if kept.requires_grad else kept
        kept = kept if self.to is None else _moved(kept, self.to)
        # An activation is the live tensor; without a copy a later edit in place would reach into the capture.
        at.keep(self.name, kept.clone() if shares_memory(kept, activation) else kept)

    def check(self, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
        """Try the reductions of this package on tensors without data."""
        if not is_of_this_module(self._reducer):
            return
        for site in one_of_each(sites):
            shape = part_shape(self.sites, site, geometry)
            if shape is not None:
                at = At(site, rows, lambda name, tensor: None, geometry)
                self._reduced(torch.empty(len(rows), *shape, device="meta"), at)

    @cached_property
    def _reducer(self) -> Reduce | None:
        return NAMED[self.reduce] if isinstance(self.reduce, str) else self.reduce

    @cached_property
    def _takes_at(self) -> bool:
        reduce = self._reducer
        return reduce is not None and takes_at(reduce)

    def _reduced(self, activation: Tensor, at: At) -> Tensor:
        reduce = self._reducer
        if reduce is None:
            return activation
        reduced = reduce(activation, at) if self._takes_at else reduce(activation)
        if not isinstance(reduced, Tensor) or not reduced.ndim or len(reduced) != len(activation):
            given = tuple(reduced.shape) if isinstance(reduced, Tensor) else type(reduced).__name__
            raise InputError(
                f"Capture(reduce=) gave {given} at {at.site}; need a tensor whose first axis is the "
                f"{len(activation)} rows"
            )
        return reduced


def _moved(tensor: Tensor, to: str) -> Tensor:
    """A tensor on another device; from CUDA to the CPU without waiting for the copy."""
    if tensor.is_cuda and torch.device(to).type == "cpu":
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)
    return tensor.to(to)
