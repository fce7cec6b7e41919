"""Tic-tac-toe: play the winning move.

On an n x n board n marks in a row win. Both players could win with exactly one move each, on different squares; the
prompt says who plays: "play x and win" or "play o and win". From the middle frame on the true video shows the mark on
the winning square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from dit_lens.tasks.base import Bools, Ints
from dit_lens.tasks.glyphs import NUMBER, SLOT
from dit_lens.tasks.puzzle import Puzzle, Scenes

_EMPTY, _X, _O = range(3)
_GLYPH = np.array([SLOT, NUMBER["x"], NUMBER["o"]])


@dataclass(frozen=True)
class TicTacToe(Puzzle):
    """Play the winning move of the player that the prompt names."""

    size: int = 3

    name: ClassVar[str] = "tictactoe"
    layout: ClassVar[tuple[str, ...]] = ("board",)
    sizes: ClassVar[tuple[int, int]] = (3, 5)

    def draw(self, rng: np.random.Generator, count: int) -> Scenes:
        boards = _boards(self.size)
        return {"board": boards[rng.integers(0, len(boards), count)], "player": rng.integers(_X, _O + 1, count)}

    def codes(self, scenes: Scenes) -> Ints:
        board, here = scenes["board"], np.arange(len(scenes["board"]))
        video = np.repeat(_GLYPH[board][:, None], self.frames, axis=1)
        wins = winning_squares(board)[here, scenes["player"] - 1].reshape(len(here), -1).argmax(axis=1)
        rows, columns = np.divmod(wins, self.size)
        for t in range(self.frames // 2, self.frames):
            video[here, t, rows, columns] = _GLYPH[scenes["player"]]
        return video

    def prompt(self, scene: Mapping[str, Any]) -> str:
        return f"play {'x' if scene['player'] == _X else 'o'} and win"


@cache
def lines(size: int) -> Ints:
    """Square numbers of every row, column and diagonal: int (2 n + 2, n)."""
    squares = np.arange(size**2).reshape(size, size)
    return np.stack([*squares, *squares.T, squares.diagonal(), squares[:, ::-1].diagonal()])


def winning_squares(boards: Ints) -> Bools:
    """Empty squares on which each player would win at once: bool (B, 2, n, n)."""
    count, size = boards.shape[:2]
    flat = boards.reshape(count, -1)
    of_line = flat[:, lines(size)]
    found = np.zeros((count, 2, size * size), dtype=bool)
    for player in (_X, _O):
        open_line = ((of_line == player).sum(-1) == size - 1) & ((of_line == _EMPTY).sum(-1) == 1)
        for number, squares in enumerate(lines(size)):
            found[:, player - 1, squares] |= open_line[:, number, None] & (flat[:, squares] == _EMPTY)
    return found.reshape(count, 2, size, size)


def is_problem(boards: Ints) -> Bools:
    """Nobody has won, the marks are as many or one apart, each player has one winning square, and these differ."""
    count, size = boards.shape[:2]
    of_line = boards.reshape(count, -1)[:, lines(size)]
    over = np.zeros(count, dtype=bool)
    for player in (_X, _O):
        over |= (of_line == player).all(-1).any(-1)
    marks = [(boards == player).sum(axis=(1, 2)) for player in (_X, _O)]
    wins = winning_squares(boards)
    single = (wins.sum(axis=(2, 3)) == 1).all(axis=1)
    return np.asarray(~over & (np.abs(marks[0] - marks[1]) <= 1) & single & ~(wins[:, 0] & wins[:, 1]).any(axis=(1, 2)))


@cache
def _boards(size: int) -> Ints:
    """Boards to draw from, (K, n, n): all for n = 3, else the problems among 100,000 built around two open lines."""
    if size == 3:
        every = np.stack(np.meshgrid(*[np.arange(3)] * 9, indexing="ij"), axis=-1).reshape(-1, 3, 3)
        return every[is_problem(every)]
    rng = np.random.default_rng(size)
    boards = _with_open_lines(rng, 100_000, size)
    return np.unique(boards[is_problem(boards)], axis=0)


def _with_open_lines(rng: np.random.Generator, count: int, size: int) -> Ints:
    """Random boards in which a line of each player lacks one mark."""
    flat = np.where(rng.random((count, size**2)) < 0.3, rng.integers(_X, _O + 1, (count, size**2)), _EMPTY)
    here = np.arange(count)
    for player in (_X, _O):
        chosen = lines(size)[rng.integers(0, len(lines(size)), count)]
        np.put_along_axis(flat, chosen, player, axis=1)
        flat[here, chosen[here, rng.integers(0, size, count)]] = _EMPTY
    return flat.reshape(count, size, size)
