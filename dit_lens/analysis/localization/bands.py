"""From curves over depth to layer bands. docs/localization.md states every definition in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dit_lens.display.short import short_repr
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import Interval

NAMES = ("perception", "reasoning", "consolidation")


@dataclass(frozen=True)
class Thresholds:
    """All numbers of the definitions; fixed before any result was looked at, and the same for every model.

    Attributes
    ----------
    onset, plateau : float
        A curve begins to rise where it has gone this share of the way from foot to top, and has arrived at the other.
    least_excess : float
        Skill above the best control that labels must reach to count as decodable.
    least_share : float
        Share of the donor's x0hat by which a layer's update must move the answer.
    least_gain : float
        Legality that the depth lens must gain after the answer is decodable.
    presence : float
        Share of bootstrap replicates in which a band must exist to be reported.
    """

    onset: float = 0.2
    plateau: float = 0.8
    least_excess: float = 0.1
    least_share: float = 0.1
    least_gain: float = 0.1
    presence: float = 0.95


@dataclass(frozen=True)
class Curves:
    """Curves over depth, each with its bootstrap replicates: row 0 is the estimate.

    Attributes
    ----------
    perception, reasoning : float arrays of shape (R, L + 1)
        Mean excess skill of the role's labels over their best control, before block 0 and after each block.
    path : float array of shape (R, L + 1)
        The same of the answer's own label alone.
    share, unrelated : float arrays of shape (R, L)
        Movement of x0hat towards the donor's answer, and the same read along an unrelated pair's direction.
    legality : float array of shape (R, L)
        Legality of what the depth lens shows after each block.
    """

    perception: Floats
    reasoning: Floats
    path: Floats
    share: Floats
    unrelated: Floats
    legality: Floats

    __repr__ = short_repr


@dataclass(frozen=True)
class Band:
    """Layers onset..end (both included), with the 95 % interval of each end over bootstrap replicates."""

    name: str
    onset: Interval
    end: Interval
    presence: float

    @property
    def layers(self) -> list[int]:
        return list(range(int(self.onset.value), int(self.end.value) + 1))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "layers": self.layers,
            "onset": dict(self.onset._asdict()),
            "end": dict(self.end._asdict()),
            "presence": self.presence,
        }


@dataclass(frozen=True)
class Verdict:
    """Bands that exist, and for those that do not, why.

    Attributes
    ----------
    bands : dict from name to Band
    reasons : dict from name to the sentence that says what was missing
    """

    bands: Mapping[str, Band]
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Names of the bands that exist joined by "+", or "none"."""
        return "+".join(self.bands) or "none"


def find_bands(curves: Curves, thresholds: Thresholds | None = None) -> Verdict:
    """Find the three bands in every bootstrap replicate and report those that are nearly always there."""
    limits = thresholds or Thresholds()
    found: dict[str, list[tuple[int, int] | None]] = {name: [] for name in NAMES}
    for r in range(len(curves.share)):
        found["perception"].append(perception(curves.perception[r], limits))
        found["reasoning"].append(reasoning(curves.reasoning[r], curves.share[r], curves.unrelated[r], limits))
        found["consolidation"].append(consolidation(curves.path[r], curves.legality[r], limits))
    bands, reasons = {}, {}
    for name, replicates in found.items():
        presence = float(np.mean([b is not None for b in replicates[1:]]))
        if replicates[0] is None:
            reasons[name] = MISSING[name]
        elif presence < limits.presence:
            reasons[name] = (
                f"found in {presence:.0%} of the bootstrap replicates only, {limits.presence:.0%} are needed"
            )
        else:
            bands[name] = _band(name, replicates, presence)
    return Verdict(bands, reasons)


MISSING = {
    "perception": "no layers over which perception labels rise above their controls",
    "reasoning": "no layer whose update moves the answer while reasoning labels rise above their controls",
    "consolidation": "no layers after the answer is decodable over which the depth lens makes it legal",
}


def perception(excess: Floats, limits: Thresholds) -> tuple[int, int] | None:
    """Blocks from the onset to the plateau of the perception labels' rise; ``excess`` has shape (L + 1,)."""
    return rise(excess, limits)


def reasoning(excess: Floats, share: Floats, unrelated: Floats, limits: Thresholds) -> tuple[int, int] | None:
    """First and last block within the rise of the reasoning labels whose update moves the answer."""
    rising = rise(excess, limits)
    if rising is None:
        return None
    moving = np.flatnonzero(share - np.abs(unrelated) > limits.least_share)
    inside = moving[(moving >= rising[0]) & (moving <= rising[1])]
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def consolidation(path: Floats, legality: Floats, limits: Thresholds) -> tuple[int, int] | None:
    """Blocks after the one where the answer is decodable, over which the depth lens becomes legal."""
    rising = rise(path, limits)
    if rising is None or rising[1] + 1 >= len(legality):
        return None
    decodable = rising[1]
    after = legality[decodable:]
    gain = after.max() - after[0]
    if gain < limits.least_gain:
        return None
    gone = (after - after[0]) / gain
    onset = int(np.argmax(gone >= limits.onset))
    end = int(np.argmax(gone >= limits.plateau))
    return decodable + onset, decodable + end


def rise(excess: Floats, limits: Thresholds) -> tuple[int, int] | None:
    """Blocks over which a curve of shape (L + 1,), value 0 before block 0, rises from its foot to its top.

    None where the top stays below ``least_excess`` or where the curve is at its plateau before the first block.
    """
    foot, top = max(float(excess[0]), 0.0), float(excess.max())
    if not np.isfinite(excess).all() or top < limits.least_excess or top - foot < limits.least_excess:
        return None
    gone = (excess[1:] - foot) / (top - foot)
    return int(np.argmax(gone >= limits.onset)), int(np.argmax(gone >= limits.plateau))


def _band(name: str, replicates: list[tuple[int, int] | None], presence: float) -> Band:
    estimate = replicates[0]
    assert estimate is not None
    ends = []
    for side in (0, 1):
        drawn = [b[side] for b in replicates[1:] if b is not None]
        low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
        ends.append(Interval(float(estimate[side]), float(low), float(high)))
    return Band(name, ends[0], ends[1], presence)
