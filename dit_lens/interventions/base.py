"""What an intervention is: a function applied at sites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from dit_lens.sites import Geometry, Site, Sites

if TYPE_CHECKING:
    from dit_lens.run import Row


@dataclass(frozen=True)
class At:
    """Where an activation was met.

    Attributes
    ----------
    site : Site
        With its sigma and expert.
    rows : tuple of Row
        The (instance, seed) of every row of the activation.
    keep : callable (name, tensor)
        Stores a tensor in ``Run.captures[name]`` under this site.
    """

    site: Site
    rows: tuple[Row, ...]
    keep: Callable[[str, Tensor], None]


@runtime_checkable
class Intervention(Protocol):
    """A function at sites: it is given each activation and returns a replacement, or None to leave it.

    The activation has shape (B, F, H, W, D) on the residual stream (only the tokens that ``sites.tokens`` selects) and
    (B, C, F, H, W) for ``latents``, ``model_input``, ``velocity`` and ``guided``; it is of one branch and one stream.
    It must not be changed in place. An intervention may also have

    - ``check(sites, geometry, rows)``, called before the run, to refuse what cannot work;
    - ``reads_only = True`` where it never returns a replacement, which is what ``guided`` demands.
    """

    @property
    def sites(self) -> Sites: ...

    def __call__(self, activation: Tensor, at: At) -> Tensor | None: ...


def check(intervention: Intervention, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
    """Run the intervention's own check where it has one."""
    own = getattr(intervention, "check", None)
    if own is not None:
        own(sites, geometry, rows)
