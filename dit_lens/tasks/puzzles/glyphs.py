"""What the cells of the puzzles can show: a fixed set of 8 x 8 pixel glyphs, painted by number and read back.

A picture is a grid of cells, a video an int array of glyph numbers of shape (B, T, n, n). Reading is the way back: the
glyph whose pixels are nearest to the cell's, or ``UNREADABLE`` where none is near.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dit_lens.files.video import Video
from dit_lens.results.arrays import Ints

CELL = 8
UNREADABLE = -1
#: A cell whose root mean square distance from every glyph is larger (0-255 RGB) is unreadable. The two nearest glyphs
#: are 36 apart, uniform noise is about 100 from all.
TOLERANCE = 28.0

FLOOR_COLOUR, DARK = (238, 238, 232), (40, 40, 48)
COLOURS = {
    "red": (225, 60, 60),
    "green": (50, 180, 90),
    "blue": (60, 100, 235),
    "yellow": (250, 180, 20),
    "purple": (205, 65, 205),
}
#: Rows of bits of a 6 x 6 interior; the cell's outer pixels show the floor.
_SHAPES = {
    "circle": ("001100", "011110", "111111", "111111", "011110", "001100"),
    "square": ("111111", "111111", "111111", "111111", "111111", "111111"),
    "triangle": ("000000", "100000", "110000", "111000", "111100", "111111"),
    "small": ("000000", "011110", "011110", "011110", "011110", "000000"),
}
_MARKS = {
    "x": ("110011", "111111", "011110", "011110", "111111", "110011"),
    "o": ("011110", "111111", "110011", "110011", "111111", "011110"),
}
SHAPES = ("circle", "square", "triangle")
#: Squares of 4, 6 and 8 pixels.
SIZES = ("small", "square", "bar")


def _bits(rows: Sequence[str]) -> NDArray[np.bool_]:
    inner = np.array([[bit == "1" for bit in row] for row in rows])
    return np.pad(inner, 1)


def _glyph(mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> Video:
    return np.where(mask[..., None], np.array(colour), np.array(FLOOR_COLOUR)).astype(np.uint8)


def _atlas() -> dict[str, Video]:
    """Every glyph by name: uint8 (8, 8, 3)."""
    everywhere = np.ones((CELL, CELL), dtype=bool)
    border = ~np.pad(np.ones((CELL - 4, CELL - 4), dtype=bool), 2)
    glyphs = {
        "floor": _glyph(~everywhere, DARK),
        "wall": _glyph(everywhere, DARK),
        "slot": _glyph(border, (170, 170, 165)),
        "gap": _glyph(border, DARK),
        **{name: _glyph(_bits(rows), DARK) for name, rows in _MARKS.items()},
    }
    for colour, rgb in COLOURS.items():
        for shape, rows in _SHAPES.items():
            glyphs[f"{colour} {shape}"] = _glyph(_bits(rows), rgb)
        glyphs |= {f"{colour} bar": _glyph(everywhere, rgb), f"{colour} ring": _glyph(border, rgb)}
    return glyphs


_GLYPHS = _atlas()
NAMES = tuple(_GLYPHS)
#: uint8 of shape (K, 8, 8, 3).
ATLAS = np.stack(list(_GLYPHS.values()))
NUMBER = {name: number for number, name in enumerate(NAMES)}
FLOOR, WALL, SLOT, GAP = (NUMBER[name] for name in ("floor", "wall", "slot", "gap"))


def numbers(kind: str) -> Ints:
    """Numbers of a kind of glyph ("circle", "bar", ...) in the order of ``COLOURS``: shape (5,)."""
    return np.array([NUMBER[f"{colour} {kind}"] for colour in COLOURS])


def paint(codes: Ints, side: int | None = None) -> Video:
    """Glyph numbers (..., n, n) to pixels, uint8 of shape (..., 8 side, 8 side, 3).

    Parameters
    ----------
    side : int, optional
        Cells a side of the picture; by default n rounded up to an even number, since the pipelines want sides that
        divide by 16. Cells beyond the grid are floor.
    """
    *lead, n, _ = codes.shape
    side = n + n % 2 if side is None else side
    margin = side - n
    padded = np.pad(codes, [(0, 0)] * len(lead) + [(0, margin), (0, margin)], constant_values=FLOOR)
    return np.ascontiguousarray(np.moveaxis(ATLAS[padded], -3, -4)).reshape(*lead, side * CELL, side * CELL, 3)


def read(video: Video, size: int) -> Ints:
    """Pixels (..., height, width, 3) to the nearest glyph of each of the n x n upper left cells: int (..., n, n)."""
    *lead, height, width, _ = video.shape
    grid = video.reshape(*lead, height // CELL, CELL, width // CELL, CELL, 3)
    cells = np.moveaxis(grid, -3, -4)[..., :size, :size, :, :, :].reshape(*lead, size, size, -1)
    return _nearest(cells.astype(np.float32))


def _nearest(cells: NDArray[np.float32]) -> Ints:
    """Number of the nearest glyph of cells (..., 192), ``UNREADABLE`` beyond the tolerance."""
    atlas = ATLAS.reshape(len(ATLAS), -1).astype(np.float32)
    squares = (cells**2).sum(-1, keepdims=True) - 2 * cells @ atlas.T + (atlas**2).sum(-1)
    best = squares.argmin(axis=-1)
    near = squares.min(axis=-1) <= TOLERANCE**2 * atlas.shape[1]
    return np.where(near, best, UNREADABLE).astype(np.int64)
