"""Bands of noise levels, one translator for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from typing import Any, TypedDict

import numpy as np

from dit_lens.errors import InputError
from dit_lens.files import strict

#: A noise level and the expert that is called at it, None in models of one.
NoiseLevel = tuple[float, str | None]


class _Json(TypedDict):
    low: float
    high: float | None
    expert: str | None


@dataclass(frozen=True)
class NoiseBand:
    """Noise levels low <= sigma < high of one expert.

    Examples
    --------
    >>> print(NoiseBand(0.5, 0.9))
    sigma 0.5 to 0.9
    >>> print(NoiseBand(0.875, float("inf"), "high_noise"))
    high_noise, sigma from 0.875
    """

    low: float
    high: float
    expert: str | None = None

    def holds(self, sigma: float, expert: str | None = None) -> bool:
        return self.low <= sigma < self.high and self.expert == expert

    def __str__(self) -> str:
        of = f"{self.expert}, " if self.expert else ""
        return f"{of}sigma from {self.low:g}" if self.high == inf else f"{of}sigma {self.low:g} to {self.high:g}"

    def to_json(self) -> dict[str, Any]:
        """JSON types; the open end of the noisiest band is null."""
        return {"low": self.low, "high": None if self.high == inf else self.high, "expert": self.expert}

    @classmethod
    def from_json(cls, data: Any) -> NoiseBand:
        """Inverse of `to_json`.

        Raises
        ------
        Malformed
            A field that is missing, unknown or of another type, or a band of no width.
        """
        given: _Json = strict.typed(data, _Json, "band")
        band = cls(given["low"], inf if given["high"] is None else given["high"], given["expert"])
        if not 0 <= band.low < band.high:
            raise strict.Malformed(f"a band from {band.low} to {band.high} holds no noise level")
        return band


def make_bands(levels: Iterable[NoiseLevel], bands: int | Sequence[float]) -> tuple[NoiseBand, ...]:
    """Bands, the noisiest first, that cover all noise levels of every expert; none holds levels of two experts.

    Parameters
    ----------
    levels : (sigma, expert) of the steps of a run
    bands : int or sequence of float
        So many for each expert, with as many steps in one as in another; or the noise levels at which to divide.

    Raises
    ------
    InputError
        No band, or edges that are no noise levels.
    """
    check_bands(bands)
    edges = None if isinstance(bands, int) else sorted({float(edge) for edge in bands})
    found: list[NoiseBand] = []
    by_expert: dict[str | None, set[float]] = {}
    for sigma, expert in levels:
        by_expert.setdefault(expert, set()).add(sigma)
    for expert, sigmas in by_expert.items():
        cuts = _even(sorted(sigmas), bands) if isinstance(bands, int) else _used(sorted(sigmas), edges or [])
        ends = [0.0, *cuts, inf]
        found += [NoiseBand(low, high, expert) for low, high in pairwise(ends)]
    order = list(by_expert)
    return tuple(sorted(found, key=lambda band: (order.index(band.expert), -band.low)))


def check_bands(bands: Any) -> None:
    """Refuse what is no number of bands and no noise levels at which to divide.

    Raises
    ------
    InputError
    """
    if isinstance(bands, int) and not isinstance(bands, bool) and bands >= 1:
        return
    edges = list(bands) if isinstance(bands, Iterable) and not isinstance(bands, str) else []
    if not edges or not all(isinstance(edge, int | float) and isfinite(edge) and edge > 0 for edge in edges):
        raise InputError(f"bands={bands!r}: need at least one band, or finite noise levels above 0 at which to divide")


def band_of(bands: Sequence[NoiseBand], sigma: float, expert: str | None) -> int:
    """Which band holds a noise level.

    Raises
    ------
    InputError
        None does: the noise level is no number, or the expert is unknown.
    """
    for i, band in enumerate(bands):
        if band.holds(sigma, expert):
            return i
    names = "; ".join(map(str, bands))
    raise InputError(f"no band holds sigma {sigma:g}{f' of {expert}' if expert else ''}; there are: {names}")


def _even(sigmas: Sequence[float], count: int) -> list[float]:
    """Edges halfway between groups of as many levels each."""
    groups = np.array_split(np.array(sigmas), min(count, len(sigmas)))
    return [float(one[-1] + other[0]) / 2 for one, other in pairwise(groups)]


def _used(sigmas: Sequence[float], edges: Sequence[float]) -> list[float]:
    """The edges that have levels on both sides, and not the same ones as the edge below."""
    kept, below = [], 0
    for edge in edges:
        count = sum(sigma < edge for sigma in sigmas)
        if below < count < len(sigmas):
            kept.append(edge)
            below = count
    return kept
