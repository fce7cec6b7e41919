"""Generation, distances, paths and splits of mazes, against plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_lens.errors import TaskError
from dit_lens.tasks import Maze
from dit_lens.tasks.maze.boards import (
    UNREACHED,
    Boards,
    distances,
    in_split,
    layout_keys,
    path_counts,
    random_layouts,
    sample_paths,
    shortest_path_cells,
)
from tests.tasks import reference

SPLITS = ("train", "val", "test")
sizes = st.integers(2, 7)
seeds = st.integers(0, 10_000)


def a_board(size: int, seed: int, loops: float = 0.3) -> Boards:
    """A board with random ends, of any split."""
    rng = np.random.default_rng(seed)
    right, down = random_layouts(rng, 1, size, loops)
    start, goal = (np.array([divmod(int(c), size)]) for c in rng.choice(size * size, 2, replace=False))
    return Boards(right, down, start, goal)


# -- layouts and distances ---------------------------------------------------------------------------------------------


@given(sizes, seeds, st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_every_cell_is_reached_and_without_loops_in_one_way(size: int, seed: int, loops: float) -> None:
    board = a_board(size, seed, loops)
    distance, paths = reference.search(board, (0, 0))
    assert len(distance) == size * size
    walls = int(board.right[0, :, :-1].sum() + board.down[0, :-1].sum())
    assert board.right[0, :, -1].all()
    assert board.down[0, -1].all()
    if loops == 0.0:
        assert walls == (size - 1) ** 2
        assert set(paths.values()) == {1}
    if loops == 1.0:
        assert walls == 0


@given(sizes, seeds)
@settings(max_examples=60, deadline=None)
def test_distances_and_path_counts_are_those_of_a_plain_search(size: int, seed: int) -> None:
    board = a_board(size, seed)
    start, _ = reference.ends(board)
    distance, paths = reference.search(board, start)
    found = distances(board.moves, board.start)
    counts = path_counts(board.moves, found)
    for i, j in np.ndindex(size, size):
        assert found[0, i, j] == distance[i, j]
        assert counts[0, i, j] == paths[i, j]
    marked = {(int(i), int(j)) for i, j in np.argwhere(shortest_path_cells(board)[0])}
    assert marked == reference.cells_on_paths(board)


def test_what_is_walled_off_is_unreached() -> None:
    right = np.ones((1, 2, 2), dtype=bool)
    down = np.array([[[False, False], [True, True]]])
    found = distances(Boards(right, down, np.zeros((1, 2), int), np.ones((1, 2), int)).moves, np.zeros((1, 2), int))
    assert found[0].tolist() == [[0, UNREACHED], [1, UNREACHED]]


# -- paths -------------------------------------------------------------------------------------------------------------


@given(sizes, seeds)
@settings(max_examples=60, deadline=None)
def test_a_sampled_path_is_one_of_the_shortest(size: int, seed: int) -> None:
    board = a_board(size, seed)
    walk = sample_paths(board, np.random.default_rng(seed))[0]
    assert tuple(divmod(int(c), size) for c in walk) in reference.shortest_paths(board)


def test_paths_of_a_batch_idle_at_their_goals() -> None:
    boards = Maze(6).sample_boards(np.random.default_rng(0), 50, "train")
    walks = sample_paths(boards, np.random.default_rng(1))
    for b, walk in enumerate(walks):
        board = boards[b : b + 1]
        cells = [divmod(int(c), 6) for c in walk]
        length = reference.search(board, reference.ends(board)[0])[0][reference.ends(board)[1]]
        assert tuple(cells[: length + 1]) in reference.shortest_paths(board)
        assert set(cells[length:]) == {reference.ends(board)[1]}


def test_a_path_is_drawn_uniformly_among_the_shortest() -> None:
    # Without walls from corner to corner of 3 x 3 there are six, and a walk that chose its moves evenly would draw
    # the two along the edge twice as often as the others.
    open_board = Boards(*random_layouts(np.random.default_rng(0), 1, 3, 1.0), np.array([[0, 0]]), np.array([[2, 2]]))
    many = open_board[np.zeros(6000, dtype=int)]
    counts = Counter(map(tuple, sample_paths(many, np.random.default_rng(0)).tolist()))
    assert len(counts) == len(reference.shortest_paths(open_board)) == 6
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_square < 20.5  # five degrees of freedom, p = .001


def test_some_mazes_have_several_shortest_paths_and_none_without_loops() -> None:
    for loops, several in ((0.1, True), (0.0, False)):
        instances = Maze(6, loops=loops).sample(100)
        counts = [len(reference.shortest_paths(i.board)) for i in instances]
        assert (max(counts) > 1) == several
        assert min(counts) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_lengths_are_those_asked_for_and_all_of_them_occur(split: str) -> None:
    instances = Maze(5, lengths=(4, 7)).sample(200, split=split)
    lengths = []
    for instance in instances:
        start, goal = reference.ends(instance.board)
        lengths.append(reference.search(instance.board, start)[0][goal])
        assert instance.length == lengths[-1]
        assert tuple(divmod(c, 5) for c in instance.path) in reference.shortest_paths(instance.board)
    counts = Counter(lengths)
    assert set(counts) == {4, 5, 6, 7}
    assert min(counts.values()) > 15


def test_paths_that_wind_farther_than_from_corner_to_corner_can_be_asked_for() -> None:
    instances = Maze(6, lengths=(12, 14)).sample(20)
    assert {instance.length for instance in instances} == {12, 13, 14}


def test_sampling_is_a_function_of_its_seed_and_split() -> None:
    maze = Maze(5)
    draws = [maze.sample(5, seed, split) for seed in (0, 1) for split in SPLITS]
    ids = [tuple(i.id for i in draw) for draw in draws]
    assert len(set(ids)) == len(ids)
    assert ids[0] == tuple(i.id for i in maze.sample(5, 0, "train"))


# -- splits ------------------------------------------------------------------------------------------------------------


@given(sizes, seeds)
@settings(max_examples=40, deadline=None)
def test_the_key_of_a_layout_is_that_of_its_eight_symmetries(size: int, seed: int) -> None:
    board = a_board(size, seed)
    expected = reference.canonical(board.right[0], board.down[0])
    keys = set()
    for quarter_turns in range(4):
        for mirrored in (False, True):
            right, down = turned(board, quarter_turns, mirrored)
            assert reference.canonical(right[0], down[0]) == expected
            keys.add(int(layout_keys(right, down)[0]))
    assert len(keys) == 1


def turned(board: Boards, quarter_turns: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """A layout rotated and mirrored as a picture: walls are drawn between pixels and the picture is turned."""
    n = board.size
    picture = np.zeros((2 * n - 1, 2 * n - 1), dtype=bool)
    picture[::2, 1::2] = board.right[0, :, :-1]
    picture[1::2, ::2] = board.down[0, :-1]
    picture = np.rot90(picture, quarter_turns)
    picture = picture[:, ::-1] if mirrored else picture
    right, down = np.ones((1, n, n), dtype=bool), np.ones((1, n, n), dtype=bool)
    right[0, :, :-1], down[0, :-1] = picture[::2, 1::2], picture[1::2, ::2]
    return right, down


def test_different_layouts_have_different_keys() -> None:
    right, down = random_layouts(np.random.default_rng(0), 2000, 4, 0.2)
    forms = [reference.canonical(r, d) for r, d in zip(right.tolist(), down.tolist(), strict=True)]
    assert len(set(layout_keys(right, down).tolist())) == len(set(forms))


@pytest.mark.parametrize(("size", "count"), [(3, 600), (4, 400), (6, 150)])
def test_splits_share_no_wall_layout_not_even_turned_or_mirrored(size: int, count: int) -> None:
    maze = Maze(size, lengths=(2, 4))
    forms = {
        split: {
            reference.canonical(i.board.right[0].tolist(), i.board.down[0].tolist())
            for i in maze.sample(count, split=split)
        }
        for split in SPLITS
    }
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not forms[one] & forms[other]
    # The claim is empty unless layouts recur: on small boards every split's do, over and over.
    if size == 3:
        assert len(forms["test"]) < count / 4
    assert all(len(f) > 1 for f in forms.values())


def test_every_layout_is_in_exactly_one_split_and_most_train() -> None:
    right, down = random_layouts(np.random.default_rng(0), 3000, 6, 0.1)
    member = np.stack([in_split(right, down, split) for split in SPLITS])
    assert (member.sum(axis=0) == 1).all()
    shares = member.mean(axis=1)
    assert np.abs(shares - (0.8, 0.1, 0.1)).max() < 0.03


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"size": 1}, "2 to 16"),
        ({"size": 17}, "2 to 16"),
        ({"frames": 8}, r"1 \+ 4 k"),
        ({"frames": 1}, r"1 \+ 4 k"),
        ({"lengths": (0, 3)}, "1 <= shortest"),
        ({"lengths": (5, 4)}, "shortest <= longest"),
        ({"size": 3, "lengths": (9, 9)}, "shortest <= 8"),
        ({"lengths": (3, 17)}, "at most 16"),
        ({"loops": 1.5}, "0 to 1"),
    ],
)
def test_a_maze_that_cannot_be_is_refused(arguments: dict[str, object], names: str) -> None:
    with pytest.raises(TaskError, match=names):
        Maze(**arguments)  # type: ignore[arg-type]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(TaskError, match="train, val, test"):
        Maze().sample(1, split="all")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="at least 1"):
        Maze().sample(0)
    with pytest.raises(TaskError, match="goal, wall"):
        Maze().pairs(1, kind="start")
    with pytest.raises(TaskError, match="widen"):
        Maze(3, lengths=(4, 4), loops=1.0).pairs(1, kind="wall", split="train")
    with pytest.raises(TaskError, match="no 2 x 2 maze of split 'test'"):
        Maze(2, lengths=(1, 2)).sample(1, split="test")
    with pytest.raises(TaskError, match=r"no 3 x 3 maze .* 8 to 8 moves"):
        Maze(3, lengths=(8, 8), loops=1.0).sample(1, split="train")
