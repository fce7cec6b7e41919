"""How much of each candidate answer a picture of a puzzle shows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]

from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats
from dit_lens.tasks.base import check_videos
from dit_lens.tasks.puzzles.glyphs import CELL, TOLERANCE, paint

NO_CANDIDATES = "has no candidates that a picture can be taken apart into"


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


def read_shares(task: Any, images: Video, instance: Any) -> Shares:
    """How much of each candidate answer is in S pictures of one instance, uint8 (S, height, width, 3).

    The picture is taken apart into the first frame and, for each candidate, what its true last frame changes, with
    weights that are not negative and best in squared error; only cells count that some candidate changes. Candidates:
    in *pattern* the symbols of the period (five colours would not be independent), in *tic-tac-toe* the empty squares
    with the named player's mark, in *permanence* either object outside or the mover gone, in *sort* up and down.

    Raises
    ------
    EvidenceError
        The task has no list of candidates that pictures can be taken apart into.
    """
    if not hasattr(task, "outcomes"):
        raise EvidenceError(f"{getattr(task, 'name', task)!r} {NO_CANDIDATES}")
    codes = task.outcomes(instance)
    check_videos(task, images[:, None].repeat(task.frames, axis=1), len(images), CELL * task.side, CELL * task.side)
    drawn = paint(codes, task.side).astype(np.float64)
    first, changes = drawn[0], drawn[1:] - drawn[0]
    kept = np.kron((codes[1:] != codes[:1]).any(axis=0), np.ones((CELL, CELL), dtype=bool))
    inside = np.pad(kept, (0, first.shape[0] - len(kept)))
    basis = changes[:, inside].reshape(len(changes), -1)
    fits = [nnls(basis.T, (image - first)[inside].ravel()) for image in images.astype(np.float64)]
    left = np.array([norm for _, norm in fits]) / np.sqrt(basis.shape[1])
    return Shares(np.stack([weights for weights, _ in fits]), np.asarray(left <= TOLERANCE))
