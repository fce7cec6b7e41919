"""What an intervention is: a function applied at sites."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dit_lens.display.short import short_repr
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import LATENT_COMPONENTS

if TYPE_CHECKING:
    from dit_lens.runs.inputs import Row
    from dit_lens.runs.schedule import Schedule


@dataclass(frozen=True)
class At:
    """Where an activation was met.

    Attributes
    ----------
    site : Site
        With its sigma, alpha and expert.
    rows : tuple of Row
        The (instance, seed) of every row of the activation.
    keep : callable (name, tensor)
        Stores a tensor in ``Run.captures[name]`` under this site.
    geometry : Geometry
    schedule : Schedule or None
        alpha and sigma of every step; None at the first state of a pipeline that sets its timesteps later.
    model : nn.Module or None
        The denoiser of this call; None around the denoiser.
    token_sigma : Tensor of shape (F, H, W) or None
        Where the family conditions every token on a noise level of its own.
    text_valid : bool Tensor of shape (B, N) or None
        In a text stream: which of its positions are selected here and may be read by attention; the others are
        padding. None where attention reads all.
    own : bool Tensor of shape (B, n) or None
        Where rows select tokens of their own: which of the n are no padding. None where all rows have the same tokens.
    x0hat : Tensor of shape (B, C, F, H, W) or None
        At ``latents``: the clean estimate of the step before, whole whatever ``sites.tokens`` selects; None at step 0.
    """

    site: Site
    rows: tuple[Row, ...]
    keep: Callable[[str, Tensor], None]
    geometry: Geometry
    schedule: Schedule | None = None
    model: nn.Module | None = None
    token_sigma: Tensor | None = None
    x0hat: Tensor | None = None
    text_valid: Tensor | None = None
    own: Tensor | None = None

    __repr__ = short_repr

    @property
    def valid(self) -> Tensor | None:
        """Which of the selected tokens count, bool (B, n): neither padding of a text nor of a row's own tokens.

        None where all do.
        """
        if self.own is None or self.text_valid is None:
            return self.text_valid if self.own is None else self.own
        return self.text_valid & self.own.to(self.text_valid.device)

    def noise(self, like: Tensor, seed: int = 0, *, per_step: bool = True) -> Tensor:
        """Standard normal noise of the shape, dtype and device of ``like`` (B, ...).

        Every row is drawn on the CPU by a generator of its own, seeded by ``seed``, the row's seed and the site, so
        that a row is what it would be alone and a run can be repeated. With ``per_step=False`` all steps share a draw.
        """
        site = str(self.site) if per_step else str(self.site).partition("/")[2]
        rows: list[Tensor] = []
        for row in self.rows:
            digest = hashlib.sha256(f"{seed}/{row.seed}/{site}".encode()).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
            rows.append(self._drawn(tuple(like.shape[1:]), len(rows), generator))
        return torch.stack(rows).to(like.device, like.dtype)

    def _drawn(self, shape: tuple[int, ...], row: int, generator: torch.Generator) -> Tensor:
        """The noise of one row; of its own tokens alone where rows have such, so that no other row matters."""
        if self.own is None:
            return torch.randn(shape, generator=generator)
        drawn, count = torch.zeros(shape), int(self.own[row].sum())
        part = drawn[:, :count] if self.site.component in LATENT_COMPONENTS else drawn[:count]
        part[:] = torch.randn(part.shape, generator=generator)
        return drawn


@runtime_checkable
class Intervention(Protocol):
    """A function at sites: it is given each activation and returns a replacement, or None to leave it.

    The activation is of one branch and one stream: (B, F, H, W, D) of a video stream and (B, N, D) of a text stream,
    (B, C, F, H, W) for ``latents``, ``model_input``, ``velocity`` and ``guided``, and of it only what ``sites.tokens``
    selects. It must not be changed in place: that is noticed and refused. A replacement has its shape and is cast to
    its dtype. An intervention may also have

    - ``check(sites, geometry, rows)``, called before the run, to refuse what cannot work;
    - ``reads_only = True`` where it never returns a replacement, which is what ``guided`` demands; one that does is
      refused. Where all that stands in a denoiser call only reads, the model waits for none of it.
    """

    @property
    def sites(self) -> Sites: ...

    def __call__(self, activation: Tensor, at: At) -> Tensor | None: ...


def check(intervention: Intervention, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
    """Run the intervention's own check where it has one."""
    own = getattr(intervention, "check", None)
    if own is not None:
        own(sites, geometry, rows)


@dataclass(frozen=True)
class FromFunction:
    """An intervention from a function (activation, at) -> activation or None."""

    sites: Sites
    function: Callable[[Tensor, At], Tensor | None]
    reads_only: bool = False

    def __call__(self, activation: Tensor, at: At) -> Tensor | None:
        return self.function(activation, at)


def intervention(sites: Sites, *, reads_only: bool = False) -> Callable[[Callable[..., Any]], FromFunction]:
    """Make a function (activation, at) -> activation or None an intervention at ``sites``.

    Examples
    --------
    >>> @intervention(Sites("delta", layers=3))
    ... def halve(activation, at):
    ...     return activation / 2
    >>> print(halve.sites)
    delta, steps all, layer 3
    """

    def decorate(function: Callable[..., Any]) -> FromFunction:
        return FromFunction(sites, function, reads_only)

    return decorate
