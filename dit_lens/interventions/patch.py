"""Activation patching: put a donor's activations in the place of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import DonorError, InputError
from dit_lens.interventions.base import At
from dit_lens.interventions.shapes import (
    SIGMA_TOLERANCE,
    fitted,
    part_of_donor,
    require_broadcast,
    require_captured,
    require_choice,
    require_grid,
    require_number,
    require_rows,
    require_same_tokens,
    require_sigma,
    require_text,
    require_whole,
    row_numbers,
)
from dit_lens.runs.donor import Donor
from dit_lens.runs.inputs import Row
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site, name_some
from dit_lens.sites.sites import Sites

#: A site without its step: branch, layer, component, stream, head.
_SiteOfStep = tuple[str | None, int | None, str, str, int | None]

_MODES = ("replace", "add", "interpolate")


@dataclass(frozen=True, eq=False)
class Patch:
    """Replace the activations at ``sites`` by a donor's, or move them there.

    Parameters
    ----------
    donor : Run, Replay, Tensor, "rows" or "pair"
        A run or a replay that captured (whole, unnamed) the same sites, paired by step, branch, layer, stream, head and
        row; one tensor whose first axis is rows, that goes to every site and broadcasts to the selected tokens; "rows",
        the other rows of the very activation that is patched; or, in a `sweep` alone, "pair": the other side of each
        row's pair, as it is without the patch.
    sites : Sites
    rows : int or tuple of int, optional
        The donor's row for each row of this run, or one for all. Without it rows are paired one to one; a donor of a
        single row serves all. With the donor "rows" it must be given.
    mode : "replace", "add" or "interpolate"
        The donor; activation + weight donor; or (1 - weight) activation + weight donor, which is exactly the activation
        at weight 0 and exactly the donor at 1.
    weight : float
    pair : "step" or "sigma"
        With "sigma" a site takes the donor's capture whose noise level is nearest to its own, so the two runs may have
        different numbers of steps.
    sigma_tolerance : float
        How far the donor's noise level may be away, in units of sigma; with "step" too.

    Notes
    -----
    Patching ``resid`` at all tokens hands over the donor's whole state and localises nothing (its velocity is the
    donor's at any layer): use ``delta``, or a part of the tokens. Patching with one's own activation is the identity,
    bit for bit. Which metric and which donor are telling: Zhang & Nanda 2023 (arXiv 2309.16042).

    Examples
    --------
    >>> Patch.from_row(0, Sites("delta", steps=0, layers=3)).rows
    0
    """

    donor: Donor | Tensor | str
    sites: Sites
    rows: Sequence[int] | int | None = None
    mode: str = "replace"
    weight: float = 1.0
    pair: str = "step"
    sigma_tolerance: float = SIGMA_TOLERANCE

    __repr__ = short_repr

    @classmethod
    def from_row(cls, row: int, sites: Sites, *, mode: str = "replace", weight: float = 1.0) -> Patch:
        """Give every row of a run the activation of one of its rows."""
        return cls("rows", sites, rows=row, mode=mode, weight=weight)

    def __post_init__(self) -> None:
        if self.rows is not None:
            several = isinstance(self.rows, Iterable)
            numbers = row_numbers("Patch", self.rows if several else [self.rows])
            object.__setattr__(self, "rows", numbers if several else numbers[0])
        require_choice("Patch", "mode", self.mode, _MODES)
        require_choice("Patch", "pair", self.pair, ("step", "sigma"))
        require_number("Patch", "weight", self.weight)
        require_number("Patch", "sigma_tolerance", self.sigma_tolerance, low=0)
        if self.mode == "replace" and self.weight != 1:
            raise InputError(f"Patch(mode='replace', weight={self.weight}): only 'add' and 'interpolate' take a weight")
        if self.pair == "sigma" and not isinstance(self.donor, Donor):
            raise InputError("Patch(pair='sigma') pairs the sites of two runs: the donor must be a Run or a Replay")
        if self._is_batch and self.rows is None:
            raise InputError("Patch('rows', ...): rows= must say which row of this run each row is given")

    @property
    def of_pairs(self) -> bool:
        """Whether the donor of every row is the other side of its pair, which a sweep knows."""
        return isinstance(self.donor, str) and self.donor == "pair"

    @property
    def _is_batch(self) -> bool:
        """Whether the donors are rows of the activation itself."""
        return isinstance(self.donor, str) and self.donor == "rows"

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        donated = fitted(self._donated(activation, at), activation, "donor", at.site)
        if self.mode == "add":
            return torch.add(activation, donated, alpha=self.weight)
        # lerp is exact at both ends, and anywhere between an activation and itself.
        return donated if self.mode == "replace" else torch.lerp(activation, donated, self.weight)

    def _donated(self, activation: Tensor, at: At) -> Tensor:
        """The donor's rows for the rows of an activation: (B or 1, ...)."""
        chosen = [self.rows] if isinstance(self.rows, int) else None if self.rows is None else list(self.rows)
        if isinstance(self.donor, Donor):
            captured = self._paired(self.donor, at.site)
            given, words = part_of_donor(self.donor, captured, self.sites, at.site, at.geometry, chosen)
        else:
            given, words = (self.donor, None) if isinstance(self.donor, Tensor) else (activation, at.text_valid)
            if chosen is not None:
                given, words = given[chosen], None if words is None else words[chosen]
        require_text("donor", words, at.text_valid, at.site)
        return given

    def _paired(self, donor: Donor, site: Site) -> Site:
        """The donor's site for a site of this run."""
        if self.pair == "step":
            require_sigma("donor", donor, site, self.sigma_tolerance, ", or pair='sigma'")
            return site
        known = [
            (abs(s.sigma - site.sigma), s)
            for s in self._captured.get(_place(site), ())
            if s.sigma is not None and site.sigma is not None
        ]
        distance, nearest = min(known, default=(float("inf"), None))
        if nearest is None or distance > self.sigma_tolerance:
            found = "none" if nearest is None else f"{nearest} at sigma {nearest.sigma:.4g}"
            raise DonorError(
                f"{site} is at sigma {site.sigma}; the donor's nearest capture is {found}, further away than "
                f"sigma_tolerance={self.sigma_tolerance}"
            )
        return nearest

    @cached_property
    def _captured(self) -> dict[_SiteOfStep, list[Site]]:
        """The donor's captures by place."""
        places: dict[_SiteOfStep, list[Site]] = {}
        for site in self.donor.captures.get("", {}) if isinstance(self.donor, Donor) else ():
            places.setdefault(_place(site), []).append(site)
        return places

    def check(self, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
        """Refuse a donor that lacks a site or does not fit, before the run."""
        if self.of_pairs:
            raise DonorError("Patch('pair', ...) is for a sweep over pairs; a run has none: give a donor, or 'rows'")
        if not self._is_batch:
            require_rows("donor", self.donor)
        if not isinstance(self.rows, int | None) and len(self.rows) != len(rows):
            raise DonorError(f"Patch(rows={self.rows}) names {len(self.rows)} donor rows for {len(rows)} rows")
        count = len(rows) if isinstance(self.donor, str) else self._count(self.donor, sites, geometry)
        asked = [self.rows] if isinstance(self.rows, int) else self.rows
        if asked is not None and not all(-count <= r < count for r in asked):
            raise DonorError(f"Patch(rows={self.rows}): the donor has rows 0..{count - 1}")
        if self._is_batch and asked is not None:
            require_same_tokens("Patch('rows', ...)", self.sites, [*asked] * (len(rows) if len(asked) == 1 else 1))
        if asked is None and count not in (1, len(rows)):
            raise DonorError(f"a donor of {count} rows cannot be paired with {len(rows)}; give rows=")
        self._check_shapes(sites, geometry)

    def _count(self, donor: Donor | Tensor, sites: tuple[Site, ...], geometry: Geometry) -> int:
        """Number of the donor's rows, of a run that has what the sites need."""
        if isinstance(donor, Tensor):
            return len(donor)
        if self.pair == "step":
            require_captured("donor", donor, sites, geometry)
        for site in sites if self.pair == "sigma" else ():
            if _place(site) not in self._captured:
                had = name_some(donor.captures.get("", {}))
                raise DonorError(f"the donor captured no step of {site} (whole and unnamed); {had}")
        require_grid("donor", donor, geometry)
        return len(donor.rows)

    def _check_shapes(self, sites: tuple[Site, ...], geometry: Geometry) -> None:
        for site in sites:
            if isinstance(self.donor, Tensor):
                require_broadcast("donor", self.donor, self.sites, site, geometry)
            elif isinstance(self.donor, Donor):
                for captured in [site] if self.pair == "step" else self._captured[_place(site)]:
                    require_whole("donor", self.donor[captured], site, geometry)


def _place(site: Site) -> _SiteOfStep:
    return site.branch, site.layer, site.component, site.stream, site.head
