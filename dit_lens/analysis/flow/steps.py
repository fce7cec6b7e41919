"""What the pairs are at some steps: whether the answer is decided, and where the inputs differ to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dit_lens.analysis.flow.gates import Gate
from dit_lens.analysis.flow.looks import Door, Look, doors_of
from dit_lens.analysis.flow.pairs import Prepared
from dit_lens.display.short import short_repr
from dit_lens.results.arrays import Bools, Floats


@dataclass(frozen=True, eq=False)
class Seen:
    """P pairs at one step.

    Attributes
    ----------
    step : int
    sigma : float
    moved, unrelated : float arrays of shape (P,)
        See `Gate`.
    embedded : float array of shape (P, F, H, W)
        Squared difference of the embeddings.
    words : bool array of shape (P, N), or None
        Positions of the text stream that differ and that blocks may attend to; None where the model has no such stream.
    readable : bool array of shape (P, N), or None
        Positions of the text stream that blocks may attend to on either side.
    doors : tuple of Door
        Those at which some pair is told different things.
    """

    step: int
    sigma: float
    moved: Floats
    unrelated: Floats
    embedded: Floats
    words: Bools | None
    readable: Bools | None
    doors: tuple[Door, ...]

    __repr__ = short_repr

    @property
    def enters(self) -> Bools:
        """Pairs of which something that is embedded differs, bool (P,)."""
        words = np.zeros(len(self.embedded), dtype=bool) if self.words is None else self.words.any(axis=1)
        return np.asarray(self.embedded.any(axis=(1, 2, 3)) | words)

    def gate(self, of: Prepared) -> Gate:
        return Gate(of.solves, of.solved, of.floor, self.moved, self.unrelated, of.frozen)


@dataclass(frozen=True, eq=False)
class _Part:
    """What one batch adds."""

    sigma: float
    moved: Floats
    unrelated: Floats
    embedded: Floats
    words: Bools | None
    readable: Bools | None
    doors: tuple[Door, ...]


def seen_at(of: Prepared, steps: Sequence[int], branch: str | None) -> dict[int, Seen]:
    """The pairs at each of some steps."""
    parts: dict[int, list[_Part]] = {step: [] for step in steps}
    for look in of.pairs.looks(steps, branch):
        first = 2 * sum(len(part.moved) for part in parts[look.step])
        parts[look.step].append(_part(of, look, first))
    return {step: _joined(step, found) for step, found in parts.items()}


def _part(of: Prepared, look: Look, first: int) -> _Part:
    own = look.estimates
    moved, unrelated = of.ways.along(own.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) - own, first)
    told = doors_of(of.geometry)
    doors = [door for door in told if look.differs(door)]
    # The audio of a block is told of the text by blocks before it.
    doors += [door for door in told if doors and door == ("context", "audio") and door not in doors]
    return _Part(
        sigma=look.run.sigmas[look.step],
        moved=moved.reshape(-1, 2).mean(axis=1),
        unrelated=unrelated.reshape(-1, 2).mean(axis=1),
        embedded=look.embedded(),
        **_of_text(of, look),
        doors=tuple(doors),
    )


def _of_text(of: Prepared, look: Look) -> dict[str, Bools | None]:
    """Which positions of the text stream may be read, and which of these differ."""
    if "text" not in of.geometry.streams:
        return {"words": None, "readable": None}
    differs = look.embedded("text") > 0
    valid = look.read_by_attention()
    readable = np.ones_like(differs) if valid is None else valid
    # An encoder that reads both ways changes every position, so all that can be read belong to the source or none.
    return {"words": readable & differs.any(axis=1, keepdims=True), "readable": readable}


def _joined(step: int, parts: Sequence[_Part]) -> Seen:
    words = [part.words for part in parts if part.words is not None]
    readable = [part.readable for part in parts if part.readable is not None]
    unrelated = np.concatenate([part.unrelated for part in parts])
    return Seen(
        step=step,
        sigma=parts[0].sigma,
        moved=np.concatenate([part.moved for part in parts]),
        unrelated=unrelated[np.isfinite(unrelated)],
        embedded=np.concatenate([part.embedded for part in parts]),
        words=np.concatenate(words) if words else None,
        readable=np.concatenate(readable) if readable else None,
        doors=tuple(dict.fromkeys(door for part in parts for door in part.doors)),
    )
