"""How much of each candidate answer a picture of a puzzle shows.

This is the *soft* reading. The hard one, `Puzzle.read_answer`, gives each cell the glyph nearest to it or none; this
one says how much of each candidate is in the pixels, so a blend of two answers is seen as both and not as neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.base import ALIVE, check_pixels
from dit_lens.tasks.puzzles.glyphs import CELL, TOLERANCE, paint
from dit_lens.tasks.puzzles.puzzle import Puzzle, PuzzleInstance
from dit_lens.tasks.puzzles.scenes import Scenes, concatenate


class Shares(NamedTuple):
    """The soft reading of S pictures of one instance.

    Attributes
    ----------
    weights : float array of shape (S, K)
        How much of each of K candidates is drawn: 0 nothing, 1 all of it.
    readable : bool array of shape (S,)
        Whether the pictures are such a mixture: what is left over is no larger than the tolerance of the hard reading.
    """

    weights: Floats
    readable: Bools


@dataclass(frozen=True)
class Candidates(Puzzle):
    """A puzzle whose pictures can be taken apart into the last frames of its candidate answers."""

    def outcomes(self, instance: PuzzleInstance) -> Ints:
        """Glyph numbers of the first frame, then of the last frame under each candidate answer: int (1 + K, n, n)."""
        raise NotImplementedError

    def shares(self, images: Video, instance: PuzzleInstance) -> Shares:
        """How much of each candidate answer is in S pictures of one instance, uint8 (S, height, width, 3).

        The picture is taken apart into the first frame and, for each candidate, what its true last frame changes, with
        weights that are not negative and best in squared error; only cells count that some candidate changes.
        """
        check_pixels(self, images, (len(images), CELL * self.side, CELL * self.side, 3), "pictures")
        codes = self.outcomes(instance)
        drawn = paint(codes, self.side).astype(np.float64)
        first, changes = drawn[0], drawn[1:] - drawn[0]
        kept = np.kron((codes[1:] != codes[:1]).any(axis=0), np.ones((CELL, CELL), dtype=bool))
        inside = np.pad(kept, (0, first.shape[0] - len(kept)))
        basis = changes[:, inside].reshape(len(changes), -1)
        fits = [nnls(basis.T, (image - first)[inside].ravel()) for image in images.astype(np.float64)]
        left = np.array([norm for _, norm in fits]) / np.sqrt(basis.shape[1])
        return Shares(np.stack([weights for weights, _ in fits]), np.asarray(left <= TOLERANCE))

    def alive(self, images: Video, instances: Sequence[PuzzleInstance]) -> dict[str, Floats]:
        """How many candidate answers pictures show at once, each float (S, B): "alive", and whether it is "readable".

        A candidate is alive where more than `ALIVE` of it is drawn, none where the picture is no mixture of them.

        Parameters
        ----------
        images : uint8 array of shape (S, B, height, width, 3)
            Last frames of the instances at S steps.
        """
        shares = [self.shares(images[:, b], instance) for b, instance in enumerate(instances)]
        alive = [(s.weights > ALIVE).sum(axis=1) * s.readable for s in shares]
        readable = np.stack([s.readable for s in shares], axis=1)
        return {"alive": np.stack(alive, axis=1).astype(np.float64), "readable": readable.astype(np.float64)}

    def ends_of(self, instance: PuzzleInstance, ways: Sequence[Scenes]) -> Ints:
        """The first frame of an instance and the last ones of what becomes of its scene with some variables changed."""
        videos = self.codes(concatenate([instance.scene | way for way in ways]))
        return np.concatenate([videos[:1, 0], videos[:, -1]])
