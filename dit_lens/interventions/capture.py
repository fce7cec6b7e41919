"""Keep activations, reduced where they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dit_lens.interventions.base import At
from dit_lens.sites import Sites


@dataclass(frozen=True)
class Capture:
    """Keep what is at ``sites``.

    Parameters
    ----------
    sites : Sites
    reduce : callable from an activation (B, F, H, W, D) to a tensor whose first axis is B, optional
        Applied on the model's device before anything moves; without it the whole activation is copied.
    name : str
        Kept under this name in ``Run.captures``; the unnamed capture is also read by ``run[site]``.
    to : str or None
        Device to move captures to.

    Examples
    --------
    >>> Capture(Sites("resid", steps=0), reduce=lambda x: x.mean(dim=(1, 2, 3)), name="mean").name
    'mean'
    """

    sites: Sites
    reduce: Callable[[Tensor], Tensor] | None = None
    name: str = ""
    to: str | None = None
    reads_only: ClassVar[bool] = True

    def __call__(self, activation: Tensor, at: At) -> None:
        kept = activation if self.reduce is None else self.reduce(activation)
        # A saved activation is the live tensor; without a copy a later edit in place would reach into the capture.
        kept = kept.detach().clone() if kept.data_ptr() == activation.data_ptr() else kept.detach()
        at.keep(self.name, kept if self.to is None else kept.to(self.to))
