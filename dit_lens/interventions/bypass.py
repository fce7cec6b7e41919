"""Leave out blocks, or what one kind of sub-module adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import SiteError
from dit_lens.interventions.base import At
from dit_lens.sites.site import TERM_COMPONENTS
from dit_lens.sites.sites import Sites

#: What a block or a sub-module of it adds to a stream.
_UPDATES = ("delta", *TERM_COMPONENTS)


@dataclass(frozen=True)
class Bypass:
    """Let the stream pass unchanged: what is added to it at ``sites`` becomes zero.

    Parameters
    ----------
    sites : Sites
        Of "delta", a whole block, or of "attn", "cross_attn", "ffn" and the family's further terms. In families whose
        blocks carry several streams a whole block is bypassed with ``stream="all"``.

    Notes
    -----
    A block that is bypassed in all streams, tokens and branches of a call is not computed, and `Ledger` does not count
    it. Bypassing blocks one by one tells the vital layers of a model (Avrahami et al. 2024, "Stable Flow", arXiv
    2411.14430); the prediction with some blocks bypassed is the weak model of spatiotemporal skip guidance (Hyung et
    al. 2024, arXiv 2411.18664). `Ablate` with mode "zero" writes the same zeros at any component, and the block is
    computed.

    Examples
    --------
    >>> Bypass(Sites("resid"))
    Traceback (most recent call last):
        ...
    dit_lens.errors.SiteError: Bypass cannot leave out resid; only delta, pos, attn, cross_attn, a2v, ffn, bias
    """

    sites: Sites
    skips: ClassVar[bool] = True

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if not isinstance(self.sites, Sites):
            raise SiteError(f"Bypass({self.sites!r:.80}): need a Sites, such as Sites('delta', layers=[2])")
        wrong = [c for c in self.sites.components if c not in _UPDATES]
        if wrong:
            raise SiteError(f"Bypass cannot leave out {', '.join(wrong)}; only {', '.join(_UPDATES)}")

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        return torch.zeros_like(activation)
