"""Interventions of some rows of a run: the cells of a sweep stand side by side in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import DonorError
from dit_lens.interventions.base import At, Intervention, check
from dit_lens.interventions.patch import Patch
from dit_lens.interventions.shapes import require_text
from dit_lens.runs.inputs import Row
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites


@dataclass(frozen=True)
class Identity:
    """Every activation put back as it was: what a cell does when it does nothing."""

    sites: Sites

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        return activation.clone()


@dataclass(frozen=True, eq=False)
class OnRows:
    """An intervention that meets some consecutive rows of a run alone, as if there were no others.

    Attributes
    ----------
    intervention : Intervention
    rows : slice
    total : int
        Rows of the run.
    """

    intervention: Any
    rows: slice
    total: int

    __repr__ = short_repr

    @cached_property
    def sites(self) -> Sites:
        sites: Sites = self.intervention.sites
        if sites.tokens.rows_named is None:
            return sites
        none = [None] * self.total
        none[self.rows] = range(self.rows.stop - self.rows.start)  # type: ignore[assignment]
        return sites.at(tokens=sites.tokens.of_rows(none))

    @property
    def reads_only(self) -> bool:
        return bool(getattr(self.intervention, "reads_only", False))

    def check(self, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
        check(self.intervention, sites, geometry, rows[self.rows])

    def __call__(self, activation: Tensor, at: At) -> Tensor | None:
        valid = None if at.text_valid is None else at.text_valid[self.rows]
        x0hat = None if at.x0hat is None else at.x0hat[self.rows]
        tokens = None if at.own is None else at.own[self.rows]
        own = replace(at, rows=at.rows[self.rows], text_valid=valid, x0hat=x0hat, own=tokens)
        new = self.intervention(activation[self.rows], own)
        if new is None:
            return None
        part = activation[self.rows]
        if not isinstance(new, Tensor) or new.shape != part.shape or not new.is_floating_point():
            given = f"{new.dtype} {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
            name = type(self.intervention).__name__
            raise DonorError(f"{name} returned {given} at {at.site}; expected floating point {tuple(part.shape)}")
        changed = activation.clone()
        changed[self.rows] = new.to(changed.dtype)
        return changed


@dataclass(frozen=True, eq=False)
class FromPartners:
    """A `Patch` whose donor of every row is another row of the run without it.

    Attributes
    ----------
    patch : Patch
    parts : dict from Site to Tensor
        The selected tokens of every row, as that run had them: those that its partner needs.
    partners : tuple of int
    any_text : bool
        Patch a text whose words stand at other positions, too.
    """

    patch: Patch
    parts: Mapping[Site, Tensor]
    partners: tuple[int, ...]
    any_text: bool = False

    __repr__ = short_repr

    @property
    def sites(self) -> Sites:
        return self.patch.sites

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        if at.text_valid is not None and not self.any_text:
            require_text("donor", at.text_valid[list(self.partners)], at.text_valid, at.site)
        return replace(self.patch, donor=self.parts[at.site], rows=self.partners)(activation, at)


def on_rows(intervention: Intervention, start: int, count: int, total: int) -> Intervention:
    """An intervention of ``count`` rows from ``start`` on of a run that has ``total``."""
    return intervention if count == total else OnRows(intervention, slice(start, start + count), total)


@runtime_checkable
class FromPair(Protocol):
    """What is made of both sides of each pair, as they are without it.

    Attributes
    ----------
    sites : Sites
    needs : Sites
        What must be kept of both sides; where rows have tokens of their own, partners have the same.
    """

    @property
    def sites(self) -> Sites: ...

    @property
    def needs(self) -> Sites: ...

    def bound_to(self, own: Mapping[Site, Tensor], donated: Mapping[Site, Tensor]) -> Intervention:
        """The intervention itself, given each row's own activations at the sites of ``needs``, and its donor's."""
        ...


def needs_of(intervention: Any) -> Sites | None:
    """What an intervention needs of both sides of each pair."""
    if isinstance(intervention, Patch):
        return intervention.sites if intervention.of_pairs else None
    return intervention.needs if isinstance(intervention, FromPair) else None
