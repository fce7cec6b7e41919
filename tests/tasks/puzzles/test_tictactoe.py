"""The winning move: boards against a brute-force reference, pairs, splits, labels, bad input."""

from __future__ import annotations

import numpy as np
import pytest

from dit_lens.errors import TaskError
from dit_lens.tasks import TicTacToe
from dit_lens.tasks.puzzles.glyphs import NAMES, SLOT, read
from dit_lens.tasks.puzzles.scenes import concatenate, length
from dit_lens.tasks.puzzles.tictactoe import is_problem, winning_squares
from tests.tasks.puzzles.noughts import (
    BY_HAND,
    CROSS,
    NOUGHT,
    SIZES,
    Board,
    Square,
    answer,
    by_hand,
    complete,
    every_board,
    instance,
    moved,
    own,
    problem,
    put,
    sampled,
    sides,
    squares,
    to_array,
    to_text,
    truth,
    wins,
)

# Boards.


def test_all_boards_of_three_by_three_are_judged_as_the_reference_does() -> None:
    boards = to_array(every_board())
    found, problems = winning_squares(boards), is_problem(boards)
    assert len(boards) == 3**9
    for number, board in enumerate(every_board()):
        assert problems[number] == problem(board), board
        for player, mark in enumerate("xo"):
            if not complete(board, mark):
                assert set(map(tuple, np.argwhere(found[number, player]))) == wins(board, mark), board


def test_every_problem_of_three_by_three_is_drawn_and_nothing_else() -> None:
    scenes = TicTacToe().draw(np.random.default_rng(0), 20_000)
    drawn = {(to_text(board), player) for board, player in zip(scenes["board"], scenes["player"].tolist(), strict=True)}
    assert drawn == {(board, player) for board in filter(problem, every_board()) for player in (1, 2)}


@pytest.mark.parametrize("size", [4, 5])
def test_larger_boards_are_judged_as_the_reference_does(size: int) -> None:
    """Problems, and the same boards with one square at random set to something else."""
    rng = np.random.default_rng(size)
    boards = TicTacToe(size).draw(rng, 300)["board"]
    spoiled = boards.copy()
    spoiled[np.arange(300), rng.integers(0, size, 300), rng.integers(0, size, 300)] = rng.integers(0, 3, 300)
    boards = np.concatenate([boards, spoiled])
    found, problems = winning_squares(boards), is_problem(boards)
    assert problems[:300].all()
    assert 0 < problems[300:].sum() < 300
    for number, board in enumerate(map(to_text, boards)):
        assert problems[number] == problem(board), board
        for player, mark in enumerate("xo"):
            if not complete(board, mark):
                assert set(map(tuple, np.argwhere(found[number, player]))) == wins(board, mark), board


def test_a_board_that_is_over_is_no_problem() -> None:
    """x has the first row, and all else is as it should be: nine marks and eight, one winning square each."""
    board = to_array([("xxxxx", "xxxx.", "oo.o.", "o....", "oooo.")])
    assert np.argwhere(winning_squares(board)[0]).tolist() == [[0, 1, 4], [1, 4, 4]]
    assert not is_problem(board)[0]


@pytest.mark.parametrize("size", [4, 5])
def test_larger_boards_differ(size: int) -> None:
    boards = TicTacToe(size).draw(np.random.default_rng(0), 500)["board"]
    assert len({board.tobytes() for board in boards}) > 450


# True videos and answers.


def test_the_true_video_of_a_board_written_by_hand() -> None:
    shown = [[[NAMES[code] for code in row] for row in frame] for frame in read(by_hand().video, 3)]
    before = [["x", "x", "slot"], ["o", "o", "slot"], ["slot"] * 3]
    after = [["x", "x", "x"], ["o", "o", "slot"], ["slot"] * 3]
    assert shown == [before] * 4 + [after] * 5
    assert by_hand().video.shape == (9, 32, 32, 3)


def test_answers_written_by_hand() -> None:
    x, o = by_hand(), instance(BY_HAND, "o")
    assert (x.prompt, x.answer) == ("play x and win", (0, 2))
    assert (o.prompt, o.answer) == ("play o and win", (1, 2))
    assert x.candidates == o.candidates == ((0, 2), (1, 2), (2, 0), (2, 1), (2, 2))
    assert x.steps == 1
    assert instance(("x..o", ".xo.", "..x.", "o..."), "x").answer == (3, 3)
    assert instance(("x..o", ".xo.", "..x.", "o..."), "o").answer == (2, 1)


@pytest.mark.parametrize("size", SIZES)
def test_the_answer_is_the_move_that_wins(size: int) -> None:
    for one in sampled(size):
        board, player = sides(one)
        assert {one.answer} == wins(board, player)
        assert set(one.candidates) == set(squares(board, "."))
        assert problem(board)
        codes = read(one.video, size)
        after = put(board, one.answer, player)  # type: ignore[arg-type]
        assert to_text(np.searchsorted([SLOT, CROSS, NOUGHT], codes[0])) == board
        assert to_text(np.searchsorted([SLOT, CROSS, NOUGHT], codes[-1])) == after


# Pairs.


@pytest.mark.parametrize("size", SIZES)
def test_pairs_of_players_share_the_picture(size: int) -> None:
    for pair in TicTacToe(size).pairs(25, seed=2):
        assert pair.variable == "player"
        assert pair.original.answer != pair.counterfactual.answer
        assert {pair.original.prompt, pair.counterfactual.prompt} == {"play x and win", "play o and win"}
        np.testing.assert_array_equal(pair.original.video[0], pair.counterfactual.video[0])


@pytest.mark.parametrize("size", SIZES)
def test_pairs_of_marks_share_the_prompt(size: int) -> None:
    for pair in TicTacToe(size).pairs(25, seed=2, kind="mark"):
        (board, player), (other, same) = map(sides, pair)
        assert pair.variable == "board"
        assert player == same
        assert pair.original.prompt == pair.counterfactual.prompt
        assert other in moved(board, player)
        assert pair.original.answer != pair.counterfactual.answer
        assert {pair.original.answer, pair.counterfactual.answer} <= set(pair.original.candidates)
        assert {pair.original.answer, pair.counterfactual.answer} <= set(pair.counterfactual.candidates)
        assert (pair.original.video[-1] != pair.counterfactual.video[-1]).any()


def test_a_mark_can_be_moved_where_the_reference_finds_a_move() -> None:
    """All problems of three by three, with either player."""
    boards = [board for board in every_board() if problem(board)]
    scenes = {"board": to_array(boards * 2), "player": np.repeat([1, 2], len(boards))}
    changed, possible = TicTacToe().vary(scenes, "mark", np.random.default_rng(0))
    assert 0 < possible.sum() < length(scenes)
    for number, (board, player) in enumerate(zip(boards * 2, scenes["player"], strict=True)):
        allowed = moved(board, ".xo"[player])
        assert possible[number] == bool(allowed), board
        assert to_text(changed["board"][number]) in (allowed or {board})
    np.testing.assert_array_equal(changed["player"], scenes["player"])


@pytest.mark.parametrize(
    ("size", "count", "board"), [(3, 4, ("...", ".ox", "xox")), (4, 6, ("xxx.", "...o", "xx..", ".ooo"))]
)
def test_every_move_of_a_mark_is_drawn(size: int, count: int, board: Board) -> None:
    many = concatenate([instance(board, "x").scene] * 400)
    changed, _ = TicTacToe(size).vary(many, "mark", np.random.default_rng(0))
    expected = moved(board, "x")
    assert len(expected) == count
    assert {to_text(one) for one in changed["board"]} == expected


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(TaskError, match="'board'; one of player, mark"):
        TicTacToe().pair(kind="board")


# Splits and seeds.


@pytest.mark.parametrize("size", SIZES)
def test_splits_share_no_picture(size: int) -> None:
    train, val, test = (
        {bytes(one.video[0]) for one in TicTacToe(size).sample(200, split=split)} for split in ("train", "val", "test")
    )
    assert not train & val
    assert not train & test
    assert not val & test


@pytest.mark.parametrize("kind", TicTacToe.kinds)
def test_both_sides_of_a_pair_are_of_its_split(kind: str) -> None:
    task = TicTacToe()
    for pair in task.pairs(20, kind=kind, split="val"):
        assert all(task.in_split(side.scene, "val")[0] for side in pair)


@pytest.mark.parametrize("size", [3, 5])
def test_seeds_are_reproducible(size: int) -> None:
    one, same, other = ([p.id for p in TicTacToe(size).sample(10, seed)] for seed in (5, 5, 6))
    assert one == same != other
    ids = [[(p.original.id, p.counterfactual.id) for p in TicTacToe(size).pairs(4, s, "mark")] for s in (5, 5, 6)]
    assert ids[0] == ids[1] != ids[2]


# Labels.


def test_labels_of_the_board_written_by_hand() -> None:
    """Three latent frames: pixel frame 0, frames 1 to 4, in the last of which x is played, and frames 5 to 8."""
    found = by_hand().task.labels([by_hand()], latent_frames=3)

    def grid(*cells: Square) -> np.ndarray:
        shown = np.zeros((3, 3), dtype=bool)
        for cell in cells:
            shown[cell] = True
        return shown

    low, xs, win = [(1, 2), (2, 0), (2, 1), (2, 2)], [(0, 0), (0, 1)], (0, 2)
    expected = {
        "x": (grid(*xs), grid(*xs, win), grid(*xs, win)),
        "o": (grid((1, 0), (1, 1)),) * 3,
        "empty": (grid(win, *low), grid(win, *low), grid(*low)),
        "answer": (grid(win),) * 3,
        "wins_x": (grid(win),) * 3,
        "wins_o": (grid((1, 2)),) * 3,
    }
    assert set(found) == set(expected)
    for name, label in found.items():
        np.testing.assert_array_equal(label.values, [expected[name]], err_msg=name)
        assert label.role == ("perception" if name in ("x", "o", "empty") else "reasoning")
        assert not label.is_regression


def test_the_answer_label_follows_the_player() -> None:
    o = instance(BY_HAND, "o")
    found = o.task.labels([by_hand(), o], latent_frames=3)
    np.testing.assert_array_equal(found["answer"].values[0], found["wins_x"].values[0])
    np.testing.assert_array_equal(found["answer"].values[1], found["wins_o"].values[1])


# Bad input.


@pytest.mark.parametrize("size", [2, 6])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(TaskError, match="size must be 3 to 5"):
        TicTacToe(size)


@pytest.mark.parametrize("frames", [1, 8])
def test_other_lengths_are_refused(frames: int) -> None:
    with pytest.raises(TaskError, match="frames must be 1 \\+ 4 k"):
        TicTacToe(frames=frames)


def test_videos_of_another_length_or_picture_are_refused() -> None:
    for video in (by_hand().video[None, :8], by_hand().video[None, :, :16], by_hand().video):
        with pytest.raises(TaskError, match=r"expected uint8 videos of shape \(\d+, 9, 32, 32, 3\)"):
            by_hand().task.score(video, by_hand())


@pytest.mark.parametrize("frames", [5, 13])
def test_other_lengths_are_solved_from_the_middle_on(frames: int) -> None:
    task = TicTacToe(frames=frames)
    (one,) = task.sample(1)
    row, column = answer(one)
    assert truth(one)[:, row, column].tolist() == [SLOT] * (frames // 2) + [own(one)] * (frames - frames // 2)
    assert task.score(one.video[None], one).strict[0]
