"""Rows of a stream other than the video: positions of a text, or the whole of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import At
from dit_lens.probing.rows.rows import POOLS, Pool
from dit_lens.tasks.base import Label, Level


@dataclass(frozen=True)
class Words:
    """How activations of B texts become N rows each.

    Attributes
    ----------
    level : "token" or "clip"
        A row is one position, or all of them pooled, without those that attention does not read.
    count : int
        Rows N: the selected positions, 1 for clips.
    latent_frames : int
        Latent frames that hold the video: those that a label must be made for.
    pool : callable from (B, n, D) to (B, D)
    """

    level: Level
    count: int
    latent_frames: int
    pool: Pool = POOLS["mean"]

    def __post_init__(self) -> None:
        if self.level not in ("clip", "token"):
            raise EvidenceError(f"level={self.level!r}: rows of a text are of level 'token' or 'clip'")

    def read(self, activation: Tensor, at: At) -> Tensor:
        """Selected positions (B, n, D) of one site to features (B, N, D), in float32 at least."""
        words = activation.to(torch.promote_types(activation.dtype, torch.float32))
        valid = at.text_valid
        if self.level == "clip":
            return torch.stack([self.pool(x[None] if v is None else x[None, v]) for x, v in _rows(words, valid)])
        if words.shape[1] != self.count or (valid is not None and not valid.all()):
            raise EvidenceError(
                f"{at.site}: {words.shape[1]} positions, some of them padding in some rows, where {self.count} words "
                "are expected; choose positions that hold a word in every row, Tokens(positions=...), or level='clip'"
            )
        return words

    def positions(self) -> NDArray[np.float32]:
        """Which position it is, one-hot: (N, N)."""
        return np.eye(self.count, dtype=np.float32)

    def targets(self, label: Label) -> NDArray[Any]:
        """A label's values as values of the rows, (B, N): one of the clip goes to all, one of tokens is (B, N).

        Raises
        ------
        EvidenceError
            A label of frames, cells or the video's tokens, or of another number of positions.
        """
        values = label.values
        if label.level == "clip":
            return np.broadcast_to(values[:, None], (len(values), self.count))
        if (self.level, label.level, values.ndim) != ("token", "token", 2):
            raise EvidenceError(
                f"label {label.name!r} is of the {label.level} and cannot be asked of a text's {self.level}s"
            )
        if values.shape[1] != self.count:
            raise EvidenceError(f"label {label.name!r} is of {values.shape[1]} positions; {self.count} are read")
        return values


def _rows(words: Tensor, valid: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Each row (n, D) with which of its positions hold a word."""
    return list(zip(words, [None] * len(words) if valid is None else valid, strict=True))
