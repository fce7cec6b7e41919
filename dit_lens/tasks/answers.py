"""What pictures show of an answer, whichever task it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dit_lens.display.short import short_repr
from dit_lens.results.arrays import Bools, Floats, Ints


class Answers(NamedTuple):
    """The hard reading of B pictures.

    Attributes
    ----------
    marks : int array of shape (B, n, n)
        What each cell shows of the answer; 0 where it shows nothing of it or cannot be read.
    drawn : bool array of shape (B,)
        The picture shows one readable answer, right or wrong.
    right : bool array of shape (B,)
        It is drawn, and every rule of the answer holds in full.
    """

    marks: Ints
    drawn: Bools
    right: Bools

    def __repr__(self) -> str:
        return short_repr(self)


def hold(rules: Mapping[str, Floats]) -> Bools:
    """Whether all rules hold in full: bool of the shape of each rule."""
    return np.asarray(np.logical_and.reduce([rule == 1 for rule in rules.values()]))


def agreement(one: Ints, other: Ints) -> Floats:
    """Cells in which two answers are marked alike, as a share of those in which either is: float (B,) of (B, n, n)."""
    alike, either = (one == other) & (one > 0), (one > 0) | (other > 0)
    return np.asarray(alike.sum(axis=(1, 2)) / np.maximum(either.sum(axis=(1, 2)), 1))
