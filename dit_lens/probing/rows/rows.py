"""What one row of a design matrix is: a cell of the task's grid, a token, a latent frame, or the whole clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import At
from dit_lens.sites.geometry import Geometry, Pixels
from dit_lens.sites.select import indices
from dit_lens.sites.tokens import Tokens
from dit_lens.tasks.base import Label, Level, Task
from dit_lens.tasks.evidence import declares, require

Pool = Callable[[Tensor], Tensor]

#: From tokens (B, n, D) to one vector (B, D).
POOLS: dict[str, Pool] = {"mean": lambda x: x.mean(1), "max": lambda x: x.amax(1)}
_MEAN = POOLS["mean"]
LEVELS: tuple[Level, ...] = ("clip", "frame", "cell", "token")
#: More positions than these are one-hot by pairs of frame, row and column, instead of each for itself.
_MOST_POSITIONS = 1024


@dataclass(frozen=True)
class Rows:
    """How activations, inputs and labels of B instances become N rows each.

    Rows of cells and tokens come frame by frame, each frame row by row.

    Attributes
    ----------
    level : "cell", "token", "frame" or "clip"
        A cell's features are the mean over the tokens in its pixels, by area. A frame's and a clip's are pooled over
        all their tokens.
    frames : tuple of int
        Latent frames (of the token grid) that are read.
    grid : (F, H, W) of the tokens
    latent : (F, H, W) of the model's input
    cells : int
        Cells n a side; the board lies in the upper left of the picture. 0 where the task has no board.
    cell : int
        Pixels a side of a cell.
    pixels : Pixels
    pool : callable from (B, n, D) to (B, D)
    """

    level: Level
    frames: tuple[int, ...]
    grid: tuple[int, int, int]
    latent: tuple[int, int, int]
    cells: int
    cell: int
    pixels: Pixels
    pool: Pool = _MEAN

    @classmethod
    def of(
        cls, geometry: Geometry, task: Task, level: Level = "cell", tokens: Tokens | None = None, pool: Pool = _MEAN
    ) -> Rows:
        """Rows of a task's runs.

        Parameters
        ----------
        tokens : Tokens, optional
            Of the video: latent frames.

        Raises
        ------
        EvidenceError
            A video that is not the task's, tokens that are no whole frames, or cells that share a token.
        """
        pixels, latent = geometry.pixels, geometry.latent_grid
        frames = getattr(task, "frames", None)
        if pixels is None or frames not in (None, pixels.frames):
            count = "an unknown number of" if pixels is None else pixels.frames
            raise EvidenceError(f"the model makes {count} frames and {task.name} has {frames}: labels do not fit")
        chosen = (tokens or Tokens()).resolve(geometry)
        if replace(chosen, frames="all") != Tokens():
            raise EvidenceError(f"tokens {tokens}: a probe of the video reads whole latent frames, Tokens(frames=...)")
        read = tuple(indices(chosen.frames, geometry.grid[0], "latent frame"))
        made = (latent[0], latent[1], latent[2])
        has_board = level == "cell" or declares(task, "size", "cell")
        board = require(task, "size", "cell", who="a probe with level='cell'") if has_board else None
        cells, cell = (board.size, board.cell) if board is not None else (0, 1)
        rows = cls(level, read, geometry.grid, made, cells, cell, pixels, pool)
        rows._check()
        return rows

    def _check(self) -> None:
        height, width = self._token
        if self.cell * self.cells > min(self.pixels.height, self.pixels.width):
            raise EvidenceError(f"a board of {self.cells} cells of {self.cell} pixels leaves the picture")
        if self.level == "cell" and max(height, width) > self.cell:
            raise EvidenceError(
                f"a token of {height} x {width} pixels holds several cells of {self.cell} x {self.cell}: their "
                "features are the same; ask for level='token'"
            )

    @property
    def _token(self) -> tuple[int, int]:
        """Height and width of a token in pixels."""
        return self.pixels.height // self.grid[1], self.pixels.width // self.grid[2]

    @property
    def _board(self) -> tuple[int, int]:
        """Rows and columns of the tokens that touch the board, or of all where there is none."""
        if not self.cells:
            return self.grid[1], self.grid[2]
        return -(-self.cell * self.cells // self._token[0]), -(-self.cell * self.cells // self._token[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of the rows of one instance; their product is N."""
        if self.level == "clip":
            return (1,)
        count = len(self.frames)
        if self.level == "frame":
            return (count,)
        return (count, self.cells, self.cells) if self.level == "cell" else (count, *self._board)

    @property
    def count(self) -> int:
        """Rows N of an instance."""
        return prod(self.shape)

    def read(self, activation: Tensor, at: At) -> Tensor:
        """What was met at a site as features (B, N, D)."""
        return self.inputs(activation) if at.site.component == "model_input" else self.features(activation)

    def features(self, activation: Tensor) -> Tensor:
        """Activation (B, F, H, W, D) to features (B, N, D), in float32 at least."""
        chosen = activation[:, list(self.frames)].to(torch.promote_types(activation.dtype, torch.float32))
        if self.level == "clip":
            return self.pool(chosen.flatten(1, 3))[:, None]
        if self.level == "frame":
            tokens = chosen.flatten(2, 3)
            pooled: Tensor = self.pool(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
            return pooled
        if self.level == "token":
            height, width = self._board
            return chosen[:, :, :height, :width].flatten(1, 3)
        down, across = (
            _shares(self.cells, self.cell, size, count).to(chosen)
            for size, count in zip(self._token, self.grid[1:], strict=True)
        )
        return torch.einsum("bfhwd,ih,jw->bfijd", chosen, down, across).flatten(1, 3)

    def inputs(self, given: Tensor) -> Tensor:
        """Model input (B, C, F, H, W) of the latent grid to features (B, N, D): all that a token is made of."""
        each = [-(-size // count) for size, count in zip(self.latent, self.grid, strict=True)]
        missing = [n * count - size for n, count, size in zip(each, self.grid, self.latent, strict=True)]
        padded = torch.nn.functional.pad(given, [0, missing[2], 0, missing[1], 0, missing[0]])
        b, c = given.shape[:2]
        parts = padded.reshape(b, c, *(x for pair in zip(self.grid, each, strict=True) for x in pair))
        return self.features(parts.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4))

    def positions(self) -> NDArray[np.float32]:
        """Which row it is, one-hot: (N, N).

        Of very many rows of several frames it is which frame and row, which frame and column, and which place in the
        picture, each one-hot. That cannot capture effects specific to one place in one frame.
        """
        if self.count <= _MOST_POSITIONS or sum(size > 1 for size in self.shape) < 3:
            return np.eye(self.count, dtype=np.float32)
        places = np.unravel_index(np.arange(self.count), self.shape)
        pairs = combinations(zip(places, self.shape, strict=True), 2)
        hot = [np.eye(a * b, dtype=np.float32)[i * b + j] for (i, a), (j, b) in pairs]
        return np.concatenate(hot, axis=1)

    def targets(self, label: Label) -> NDArray[Any]:
        """A label's values as values of the rows: (B, N).

        Of a token that covers several cells a boolean holds where it holds in one of them, a float is their mean by
        area, a class that of the cell with most of it. A label of the clip or of frames goes to all their rows.

        Raises
        ------
        EvidenceError
            A label of smaller things than the rows.
        """
        values = self._fitting(label)
        count = len(values)
        if label.level == "clip":
            return np.broadcast_to(values[:, None], (count, self.count))
        values = self._by_token_frame(values)[:, list(self.frames)]
        if label.level == "frame":
            each = self.count // len(self.frames)
            return np.repeat(values, each, axis=1)
        if label.level == "token":
            height, width = self._board
            return values[:, :, :height, :width].reshape(count, -1)
        if self.level == "token":
            values = self._by_token(values)
        return values.reshape(count, -1)

    def _fitting(self, label: Label) -> NDArray[Any]:
        """The values of a label that these rows can be asked for.

        Raises
        ------
        EvidenceError
            A label of smaller things than the rows, or of other cells or tokens.
        """
        level, values = label.level, label.values
        if level is None or _FINENESS[level] > _FINENESS[self.level] or (level, self.level) == ("token", "cell"):
            raise EvidenceError(f"label {label.name!r} is of the {level} and cannot be asked of each {self.level}")
        if level == "cell" and not self.cells:
            raise EvidenceError(f"label {label.name!r} is of cells, and its task has none: declare size and cell")
        places = {"cell": (self.cells, self.cells), "token": self.grid[1:]}.get(level)
        if places not in (None, values.shape[2:]):
            told = " x ".join(map(str, values.shape[2:]))
            raise EvidenceError(f"label {label.name!r} has {told} values a frame, not one of each {level} of {places}")
        return values

    @property
    def latent_frames(self) -> int:
        """Latent frames that hold the video: those that a label must be made for."""
        return self.latent[0] - self.pixels.padding

    def _by_token_frame(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of latent frames (B, latent_frames, ...) as values of the token grid's frames (B, F, ...)."""
        each, pad = -(-self.latent[0] // self.grid[0]), self.pixels.padding
        if each == 1 and pad == 0:
            return values
        parts = [values[:, max(0, f * each - pad) : (f + 1) * each - pad] for f in range(self.grid[0])]
        if np.issubdtype(values.dtype, np.integer):
            return np.stack([part[:, -1] for part in parts], axis=1)
        pool = np.any if values.dtype == np.bool_ else np.mean
        return np.stack([pool(part, axis=1) for part in parts], axis=1)

    def _by_token(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of cells (B, F, n, n) as values of the tokens that touch the board (B, F, h, w)."""
        # Of each token, how much of the board's part of it every cell holds.
        down, across = (
            share / share.sum(axis=0)
            for size, count, kept in zip(self._token, self.grid[1:], self._board, strict=True)
            for share in [_shares(self.cells, self.cell, size, count).numpy()[:, :kept].astype(np.float64)]
        )
        if np.issubdtype(values.dtype, np.integer):
            of_cells: NDArray[Any] = values[:, :, down.argmax(axis=0)[:, None], across.argmax(axis=0)]
            return of_cells
        held: NDArray[np.float64] = np.einsum("bfij,ih,jw->bfhw", values.astype(np.float64), down, across)
        return held > 0 if values.dtype == np.bool_ else held


_FINENESS: dict[str, int] = {"clip": 0, "frame": 1, "cell": 2, "token": 2}


def _shares(cells: int, cell: int, token: int, count: int) -> Tensor:
    """Along one axis, the share of each cell of ``cell`` pixels in each token of ``token`` pixels: (cells, count)."""
    number, place = torch.arange(cells)[:, None], torch.arange(count)
    low, high = torch.maximum(cell * number, token * place), torch.minimum(cell * (number + 1), token * (place + 1))
    return (high - low).clamp(min=0) / cell
