"""Scores of the winning move: each rule broken alone, games scored by a reference, floors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dit_lens.tasks import PuzzleInstance, TicTacToe
from dit_lens.tasks.puzzles.glyphs import FLOOR, SLOT, paint
from tests.tasks.puzzles.noughts import (
    BY_HAND,
    CROSS,
    NOUGHT,
    SIZES,
    Board,
    Codes,
    Square,
    answer,
    by_hand,
    own,
    put,
    sampled,
    sides,
    squares,
    truth,
)


def scores(one: PuzzleInstance, codes: Codes) -> tuple[dict[str, float], float]:
    """Rules and total of one video."""
    found = one.task.score(paint(codes, one.task.side)[None], one)
    return {rule: float(values[0]) for rule, values in found.rules.items()}, float(found.total[0])


def edited(one: PuzzleInstance, *changes: tuple[slice, Square, int]) -> Codes:
    """The true video with other glyphs in some frames and squares."""
    codes = truth(one)
    for frames, (row, column), glyph in changes:
        codes[frames, row, column] = glyph
    return codes


def enemy(one: PuzzleInstance) -> int:
    return CROSS + NOUGHT - own(one)


def free(one: PuzzleInstance) -> Square:
    """An empty square on which the named player does not win."""
    return next(square for square in squares(sides(one)[0], ".") if square != one.answer)


def taken(one: PuzzleInstance) -> Square:
    return squares(sides(one)[0], ".xo"[one.variables["player"]])[0]


def marks(one: PuzzleInstance) -> int:
    board, _ = sides(one)
    return len(squares(board, "x")) + len(squares(board, "o"))


LATE, ONCE, END = slice(4, None), slice(6, 7), slice(8, None)
Mutation = tuple[Callable[[PuzzleInstance], Codes], str, Callable[[PuzzleInstance], float]]
#: What is broken, in which rule, and what the rule falls to: nine frames have eight transitions.
MUTATIONS: dict[str, Mutation] = {
    "the other player's mark": (lambda p: edited(p, (LATE, answer(p), enemy(p))), "win", lambda p: 0.0),
    "another square": (
        lambda p: edited(p, (LATE, answer(p), SLOT), (LATE, free(p), own(p))),
        "win",
        lambda p: 0.0,
    ),
    "a second mark": (lambda p: edited(p, (slice(6, None), free(p), enemy(p))), "single", lambda p: 7 / 8),
    "a second mark at once": (lambda p: edited(p, (LATE, free(p), own(p))), "single", lambda p: 7 / 8),
    "a second mark for one frame": (lambda p: edited(p, (ONCE, free(p), own(p))), "single", lambda p: 6 / 8),
    "taken back and played again": (lambda p: edited(p, (ONCE, answer(p), SLOT)), "single", lambda p: 6 / 8),
    "the other mark in between": (lambda p: edited(p, (ONCE, answer(p), enemy(p))), "single", lambda p: 6 / 8),
    "a mark that walks": (
        lambda p: edited(p, (slice(4, 6), answer(p), SLOT), (slice(4, 6), free(p), own(p))),
        "single",
        lambda p: 7 / 8,
    ),
    "a mark before its time": (lambda p: edited(p, (slice(2, 3), free(p), own(p))), "single", lambda p: 6 / 8),
    "no square": (lambda p: edited(p, (slice(2, 3), free(p), FLOOR)), "single", lambda p: 6 / 8),
    "a mark gone for one frame": (
        lambda p: edited(p, (ONCE, taken(p), SLOT)),
        "kept",
        lambda p: 1 - 1 / (8 * marks(p)),
    ),
    "a mark replaced at the end": (
        lambda p: edited(p, (END, taken(p), enemy(p))),
        "kept",
        lambda p: 1 - 1 / (8 * marks(p)),
    ),
    "a mark gone throughout": (lambda p: edited(p, (slice(9), taken(p), FLOOR)), "kept", lambda p: 1 - 1 / marks(p)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_rule_costs_what_it_is_worth(mutation: str, size: int) -> None:
    mutate, rule, value = MUTATIONS[mutation]
    for one in sampled(size)[:10]:
        rules, total = scores(one, mutate(one))
        expected = {name: 1.0 for name in TicTacToe.weights} | {rule: value(one)}
        assert rules == pytest.approx(expected, abs=1e-12)
        assert total == pytest.approx(1 - TicTacToe.weights[rule] * (1 - value(one)), abs=1e-12)
        assert not one.task.score(paint(mutate(one), one.task.side)[None], one).strict[0]


@pytest.mark.parametrize("frame", range(1, 9))
def test_the_move_may_be_played_at_any_time(frame: int) -> None:
    codes = edited(by_hand(), (slice(frame), (0, 2), SLOT), (slice(frame, None), (0, 2), CROSS))
    found = by_hand().task.score(paint(codes)[None], by_hand())
    assert found.strict[0]
    assert found.total[0] == pytest.approx(1, abs=1e-12)


def test_a_move_taken_back_is_none() -> None:
    rules, total = scores(by_hand(), edited(by_hand(), (END, (0, 2), SLOT)))
    assert rules == {"win": 0.0, "single": 0.0, "kept": 1.0}
    assert total == pytest.approx(0.1)


def test_a_mark_that_was_there_at_first_was_not_played() -> None:
    rules, _ = scores(by_hand(), edited(by_hand(), (slice(9), (0, 2), CROSS)))
    assert rules == {"win": 1.0, "single": 0.0, "kept": 1.0}


def test_a_mark_beside_one_that_was_there_at_first_is_a_second_one() -> None:
    """x is played in frame 4, but the o of frame 0 was the first mark on an empty square."""
    rules, _ = scores(by_hand(), edited(by_hand(), (slice(9), (2, 2), NOUGHT)))
    assert rules == {"win": 1.0, "single": 7 / 8, "kept": 1.0}


def test_unreadable_squares_make_no_legal_transition() -> None:
    video = by_hand().video.copy()
    video[6, 16:24, 16:24] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    rules = by_hand().task.score(video[None], by_hand()).rules
    assert {rule: values[0] for rule, values in rules.items()} == {"win": 1.0, "single": 6 / 8, "kept": 1.0}


@pytest.mark.parametrize("size", SIZES)
def test_floors(size: int) -> None:
    table = TicTacToe(size).floors(30).set_index(["video", "kind"])
    total, strict = table["total"].to_dict(), table["strict"].to_dict()
    assert total["truth", ""] == pytest.approx(1, abs=1e-12)
    assert total["frozen", ""] == pytest.approx(0.1, abs=1e-12)
    assert total["noise", ""] == 0
    # One legal move that does not win; on the other board one mark is missing besides, where it was.
    assert total["counterfactual", "player"] == pytest.approx(0.4, abs=1e-12)
    assert total["counterfactual", "mark"] < 0.4
    assert {key for key, share in strict.items() if share} == {("truth", "")}


@pytest.mark.parametrize("size", SIZES)
def test_the_truth_is_strict(size: int) -> None:
    task = TicTacToe(size)
    assert task.score(task.render(sampled(size)), sampled(size)).strict.all()


@settings(max_examples=30, deadline=None)
@given(npst.arrays(np.uint8, (1, 9, 32, 32, 3), elements=st.integers(0, 255), fill=st.integers(0, 255)))
def test_any_video_has_a_score(video: np.ndarray) -> None:
    found = by_hand().task.score(video, by_hand())
    assert all(0 <= values[0] <= 1 for values in found.rules.values())


def legal_by_reference(video: list[Board]) -> float:
    """The rule *single* frame by frame, on the squares that are empty at first."""
    played, legal = any(mark in "xo" for row in video[0] for mark in row), 0
    for before, after in pairwise(video):
        clean = all(mark in ".xo" for board in (before, after) for row in board for mark in row)
        changes = [(a, b) for r, s in zip(before, after, strict=True) for a, b in zip(r, s, strict=True) if a != b]
        first = len(changes) == 1 and changes[0][0] == "." and not played
        legal += clean and (not changes or first)
        played |= any(mark in "xo" for row in after for mark in row)
    gained = any(b in "xo" and a not in "xo" for a, b in zip("".join(video[0]), "".join(video[-1]), strict=True))
    return legal / (len(video) - 1) if gained else 0.0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from([(0, 2), (1, 2), (2, 0)]), st.integers(0, 3)), max_size=6))
def test_any_game_is_scored_as_the_reference_does(changes: list[tuple[int, Square, int]]) -> None:
    """From some frames on, squares that are empty at first show nothing, a mark, or something else."""
    glyphs = [SLOT, CROSS, NOUGHT, FLOOR]
    codes = edited(by_hand(), *((slice(frame, None), square, glyphs[number]) for frame, square, number in changes))
    names = {SLOT: ".", CROSS: "x", NOUGHT: "o", FLOOR: "?"}
    video = [tuple("".join(names[code] for code in row) for row in frame) for frame in codes]
    for i, j in (*squares(BY_HAND, "x"), *squares(BY_HAND, "o")):
        video = [put(board, (i, j), ".") for board in video]
    rules, _ = scores(by_hand(), codes)
    assert rules["single"] == pytest.approx(legal_by_reference(video), abs=1e-12)
    assert rules["win"] == (codes[-1, 0, 2] == CROSS)
    assert rules["kept"] == 1


def test_scores_of_many_are_the_scores_of_each() -> None:
    task, problems, shift = TicTacToe(), sampled(3), 7
    videos = task.render([*problems[shift:], *problems[:shift]])
    together = task.score(videos, problems)
    for rule, values in together.rules.items():
        alone = [task.score(v[None], p).rules[rule][0] for v, p in zip(videos, problems, strict=True)]
        np.testing.assert_array_equal(values, alone)
