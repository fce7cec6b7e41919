"""Tic-tac-toe in plain Python: boards as rows of text, every move tried. The oracle of its tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from dit_lens.tasks import PuzzleInstance, TicTacToe
from dit_lens.tasks.puzzles.glyphs import NUMBER

SIZES = (3, 4, 5)
CROSS, NOUGHT = NUMBER["x"], NUMBER["o"]
Codes = np.ndarray
Board = tuple[str, ...]
Square = tuple[int, int]

#: x wins in row 0, o in row 1.
BY_HAND: Board = (
    "xx.",
    "oo.",
    "...",
)


def complete(board: Board, player: str) -> bool:
    """Whether a player has a row, a column or a diagonal."""
    n = len(board)
    rows = any(row == player * n for row in board)
    columns = any(all(board[i][j] == player for i in range(n)) for j in range(n))
    down = all(board[i][i] == player for i in range(n))
    up = all(board[n - 1 - i][i] == player for i in range(n))
    return rows or columns or down or up


def put(board: Board, square: Square, mark: str) -> Board:
    i, j = square
    return (*board[:i], board[i][:j] + mark + board[i][j + 1 :], *board[i + 1 :])


def squares(board: Board, mark: str) -> list[Square]:
    return [(i, j) for i, row in enumerate(board) for j, shown in enumerate(row) if shown == mark]


@cache
def wins(board: Board, player: str) -> frozenset[Square]:
    """Empty squares on which the player completes a line; none where one is complete."""
    if complete(board, player):
        return frozenset()
    return frozenset(square for square in squares(board, ".") if complete(put(board, square, player), player))


@cache
def problem(board: Board) -> bool:
    """Whether each of the two has one winning move, another one, on a board that is not over and is evenly played."""
    even = abs(len(squares(board, "x")) - len(squares(board, "o"))) <= 1
    if not even or complete(board, "x") or complete(board, "o"):
        return False
    by_x, by_o = wins(board, "x"), wins(board, "o")
    return len(by_x) == len(by_o) == 1 and by_x != by_o


@cache
def every_board() -> tuple[Board, ...]:
    return tuple((row[:3], row[3:6], row[6:]) for row in map("".join, product(".xo", repeat=9)))


def moved(board: Board, player: str) -> set[Board]:
    """Problems that differ in the place of one mark and in the player's winning square, both of them empty on both."""
    (win,) = wins(board, player)
    found = set()
    for mark in "xo":
        for source, target in product(squares(board, mark), squares(board, ".")):
            other = put(put(board, source, "."), target, mark)
            if problem(other):
                (new,) = wins(other, player)
                if new != win and new in squares(board, ".") and win in squares(other, "."):
                    found.add(other)
    return found


# From text to the package and back.


def to_array(boards: Sequence[Board]) -> Any:
    return np.array([[[".xo".index(mark) for mark in row] for row in board] for board in boards])


def to_text(board: Any) -> Board:
    return tuple("".join(".xo"[mark] for mark in row) for row in board)


def instance(board: Board, player: str) -> PuzzleInstance:
    scene = {"board": to_array([board]), "player": np.array([".xo".index(player)])}
    return PuzzleInstance(TicTacToe(len(board)), scene)


def by_hand() -> PuzzleInstance:
    return instance(BY_HAND, "x")


def sides(one: PuzzleInstance) -> tuple[Board, str]:
    return to_text(one.variables["board"]), ".xo"[one.variables["player"]]


@cache
def sampled(size: int) -> list[PuzzleInstance]:
    return TicTacToe(size).sample(40, seed=1)


def truth(one: PuzzleInstance) -> Codes:
    return np.asarray(one.task.codes(one.scene)[0])


def answer(one: PuzzleInstance) -> Square:
    (square,) = wins(*sides(one))
    return square


def own(one: PuzzleInstance) -> int:
    return NUMBER[sides(one)[1]]
