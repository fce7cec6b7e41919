"""Tic-tac-toe: play the winning move.

On an n x n board n marks in a row win. Both players could win with exactly one move each, on different squares; the
prompt says who plays: "play x and win" or "play o and win". From the middle frame on the true video shows the mark on
the winning square.

Score:

- *win* (.60): the last frame shows the mark of the named player on its winning square.
- *single* (.30): share of frame transitions that are legal, of the squares that are empty at first: nothing changes, or
  the first mark of the video appears on an empty one. A video that ends with no mark more than it began earns nothing.
- *kept* (.10): share of the squares that are marked at first that are as there, over all later frames.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.puzzles.glyphs import NUMBER, SLOT, UNREADABLE
from dit_lens.tasks.puzzles.puzzle import Facts, Maps, PuzzleInstance
from dit_lens.tasks.puzzles.scenes import Scenes, length
from dit_lens.tasks.puzzles.shares import Candidates

_EMPTY, _X, _O = range(3)
#: What a square shows, by the number of its state.
_GLYPH = np.array([SLOT, NUMBER["x"], NUMBER["o"]])


@dataclass(frozen=True)
class TicTacToe(Candidates):
    """Play the winning move of the player that the prompt names.

    Examples
    --------
    >>> from dit_lens.tasks import TicTacToe
    >>> original, counterfactual = TicTacToe().pair(seed=0)
    >>> original.prompt, original.answer
    ('play x and win', (2, 2))
    >>> counterfactual.prompt, counterfactual.answer
    ('play o and win', (2, 1))
    """

    size: int = 3

    name: ClassVar[str] = "tictactoe"
    weights: ClassVar[Mapping[str, float]] = {"win": 0.6, "single": 0.3, "kept": 0.1}
    kinds: ClassVar[Mapping[str, str]] = {"player": "player", "mark": "board"}
    layout: ClassVar[tuple[str, ...]] = ("board",)
    answer_rules: ClassVar[tuple[str, ...]] = ("win",)
    sizes: ClassVar[tuple[int, int]] = (3, 5)

    def draw(self, rng: np.random.Generator, count: int) -> Scenes:
        boards = _boards(self.size)
        return {"board": boards[rng.integers(0, len(boards), count)], "player": rng.integers(_X, _O + 1, count)}

    def vary(self, scenes: Scenes, kind: str, rng: np.random.Generator) -> tuple[Scenes, Bools]:
        """*player*: the other one plays; *mark*: one mark stands on another square, so that another square wins.

        Both winning squares are empty on both boards: moved onto the winning square, a mark would complete the line
        that it opens elsewhere, and both videos would end alike.
        """
        if kind == "player":
            return scenes | {"player": _X + _O - scenes["player"]}, np.ones(length(scenes), dtype=bool)
        here, n = np.arange(length(scenes)), self.size
        flat, player, win = scenes["board"].reshape(-1, n * n), scenes["player"], self._win(scenes)
        # A mark of the other player could only move onto the winning square, and open a line where it stood.
        scene, source, square = np.nonzero((flat == player[:, None])[:, :, None] & (flat == _EMPTY)[:, None])
        each, moved = np.arange(len(scene)), flat[scene]
        moved[each, source], moved[each, square] = _EMPTY, player[scene]
        boards = moved.reshape(-1, n, n)
        new = self._win({"board": boards, "player": player[scene]})
        valid = is_problem(boards) & (new != win[scene]) & (flat[scene, new] == _EMPTY)
        chosen = np.full(len(here), -1)
        shuffled = rng.permutation(np.flatnonzero(valid))
        chosen[scene[shuffled]] = shuffled
        possible = chosen >= 0
        board = scenes["board"].copy()
        board[possible] = boards[chosen[possible]]
        return scenes | {"board": board}, possible

    def _win(self, scenes: Scenes) -> Ints:
        """Number of the square on which the named player wins: int (B,)."""
        wins = winning_squares(scenes["board"])[np.arange(length(scenes)), scenes["player"] - 1]
        return np.asarray(wins.reshape(len(wins), -1).argmax(axis=1))

    def codes(self, scenes: Scenes) -> Ints:
        here = np.arange(length(scenes))
        video = np.repeat(_GLYPH[scenes["board"]][:, None], self.frames, axis=1)
        rows, columns = np.divmod(self._win(scenes), self.size)
        for t in range(self.frames // 2, self.frames):
            video[here, t, rows, columns] = _GLYPH[scenes["player"]]
        return video

    def judge(self, codes: Ints, scenes: Scenes) -> dict[str, Floats]:
        here, frames = np.arange(length(scenes)), codes.shape[1]
        flat = codes.reshape(len(here), frames, -1)
        first = _GLYPH[scenes["board"]].reshape(len(here), 1, -1)
        marked = first != SLOT
        kept = (flat[:, 1:] == first) & marked
        return {
            "win": (flat[here, -1, self._win(scenes)] == _GLYPH[scenes["player"]]).astype(np.float64),
            "single": _single(flat, ~marked),
            "kept": kept.sum(axis=(1, 2)) / (marked.sum(axis=(1, 2)) * (frames - 1)),
        }

    def drawn(self, codes: Ints, scenes: Scenes) -> Bools:
        """Whether the squares that were empty are readable and exactly one of them shows a mark."""
        squares = np.where(scenes["board"] == _EMPTY, codes, SLOT)
        return np.asarray(
            (squares != UNREADABLE).all(axis=(1, 2)) & (np.isin(squares, _GLYPH[1:]).sum(axis=(1, 2)) == 1)
        )

    def maps(self, scenes: Scenes) -> Maps:
        """Perception: ``x``, ``o`` and ``empty`` squares. Reasoning: ``answer`` (the square to play), ``wins_x`` and
        ``wins_o`` (where that player would win).
        """
        codes, wins = self.codes(scenes), winning_squares(scenes["board"])
        found: Maps = {
            name: ("perception", codes == glyph) for name, glyph in zip(("empty", "x", "o"), _GLYPH, strict=True)
        }
        found["answer"] = ("reasoning", wins[np.arange(len(codes)), scenes["player"] - 1])
        return found | {"wins_x": ("reasoning", wins[:, 0]), "wins_o": ("reasoning", wins[:, 1])}

    def facts(self, scenes: Scenes) -> Facts:
        """Reasoning, of the clip: the ``square`` to play, and whether ``o_plays``."""
        squares = tuple(str(self._square(number)) for number in range(self.size**2))
        return {"square": ("reasoning", self._win(scenes), squares), "o_plays": ("reasoning", scenes["player"] == _O)}

    def prompt(self, scene: Mapping[str, Any]) -> str:
        return f"play {'x' if scene['player'] == _X else 'o'} and win"

    def answer(self, scene: Mapping[str, Any]) -> Hashable:
        """Row and column of the winning square."""
        return self._square(int(self._win({name: np.asarray(value)[None] for name, value in scene.items()})[0]))

    def candidates(self, scene: Mapping[str, Any]) -> tuple[Hashable, ...]:
        """The empty squares."""
        return tuple(self._square(square) for square in np.flatnonzero(scene["board"] == _EMPTY).tolist())

    def outcomes(self, instance: PuzzleInstance) -> Ints:
        """The candidates of `Candidates.outcomes`: the named player's mark on each empty square."""
        board, mark = instance.scene["board"][0], _GLYPH[int(instance.scene["player"][0])]
        squares = np.flatnonzero(board == 0)
        codes = np.repeat(_GLYPH[board][None], 1 + len(squares), axis=0)
        codes.reshape(len(codes), -1)[1 + np.arange(len(squares)), squares] = mark
        return codes

    def necessary_steps(self, scene: Mapping[str, Any]) -> int:
        """One: the move wins."""
        return 1

    def _square(self, number: int) -> tuple[int, int]:
        return number // self.size, number % self.size


def _single(squares: Ints, empty: Bools) -> Floats:
    """The rule *single*, of glyph numbers (B, T, n * n) and the squares that are empty at first, (B, 1, n * n)."""
    squares = np.where(empty, squares, SLOT)
    mark = np.isin(squares, _GLYPH[1:])
    readable = np.asarray(np.isin(squares, _GLYPH).all(axis=2))
    seen = np.logical_or.accumulate(mark.any(axis=2), axis=1)
    changed = (squares[:, 1:] != squares[:, :-1]).sum(axis=2)
    # Where no mark was seen so far and all is readable, the one square that changed can only have gained a mark.
    legal = readable[:, 1:] & readable[:, :-1] & ((changed == 0) | ((changed == 1) & ~seen[:, :-1]))
    gained = (mark[:, -1] & ~mark[:, 0]).any(axis=1)
    return np.asarray(legal.mean(axis=1) * gained)


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
