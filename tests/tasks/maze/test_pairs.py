"""Counterfactual pairs differ in one thing and have another answer; labels are what a plain search says."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import numpy as np
import pytest

from dit_lens.errors import TaskError
from dit_lens.tasks import BoardTask, Maze, MazeInstance, Pair, Problem
from dit_lens.tasks.evidence import labels_of
from dit_lens.tasks.maze.boards import in_split
from tests.tasks import reference

SPLITS = ("train", "val", "test")


@cache
def pairs(kind: str, split: str, size: int = 6) -> list[Pair]:
    return Maze(size, lengths=(3, 10)).pairs(20, kind=kind, split=split)


def length(maze: MazeInstance) -> int:
    start, goal = reference.ends(maze.board)
    return reference.search(maze.board, start)[0][goal]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [4, 6])
def test_a_goal_pair_shares_walls_and_start_and_neither_goal_is_on_the_others_way(split: str, size: int) -> None:
    for one, other in pairs("goal", split, size):
        assert np.array_equal(one.board.right, other.board.right)
        assert np.array_equal(one.board.down, other.board.down)
        (start, goal), (same, moved) = reference.ends(one.board), reference.ends(other.board)
        assert start == same
        assert goal != moved
        assert moved not in reference.cells_on_paths(one.board)
        assert goal not in reference.cells_on_paths(other.board)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [4, 6])
def test_a_wall_pair_differs_in_one_wall_and_no_shortest_path_of_one_is_one_of_the_other(split: str, size: int) -> None:
    for one, other in pairs("wall", split, size):
        assert reference.ends(one.board) == reference.ends(other.board)
        differing = (one.board.right != other.board.right).sum() + (one.board.down != other.board.down).sum()
        assert differing == 1
        assert not set(reference.shortest_paths(one.board)) & set(reference.shortest_paths(other.board))
        for maze in (one, other):
            assert in_split(maze.board.right, maze.board.down, split)[0]


@pytest.mark.parametrize("kind", ["goal", "wall"])
def test_both_of_a_pair_are_mazes_of_the_task_with_another_answer(kind: str) -> None:
    for one, other in pairs(kind, "test"):
        assert one.path != other.path
        for maze in (one, other):
            assert 3 <= length(maze) == maze.length <= 10
            assert maze.task.score(maze.video[None], maze).strict[0]
        assert not one.task.score(other.video[None], one).strict[0]
        assert not one.task.score(one.video[None], other).strict[0]


@pytest.mark.parametrize("kind", ["goal", "wall"])
def test_a_pair_differs_in_the_one_variable_of_its_kind_and_in_its_answer(kind: str) -> None:
    for pair in pairs(kind, "test"):
        assert pair.variable == pair.original.task.kinds[kind]
        assert pair.original.answer != pair.counterfactual.answer
        assert pair.original.prompt == pair.counterfactual.prompt
        assert not np.array_equal(pair.original.image, pair.counterfactual.image)
    assert list(pairs(kind, "test")[0].original.variables) == ["walls", "start", "goal"]


def test_a_pair_is_of_the_first_kind_unless_told() -> None:
    assert [m.id for m in Maze(5).pair(3)] == [m.id for m in Maze(5).pair(3, "goal")]
    assert [m.id for m in Maze(5).pair(3)] != [m.id for m in Maze(5).pair(3, "wall")]


def test_walls_are_both_opened_and_closed() -> None:
    change = [length(other) - length(one) for one, other in pairs("wall", "test")]
    assert min(change) < 0 < max(change)


def test_pairs_are_a_function_of_their_seed() -> None:
    task = Maze(5)
    ids = [tuple(m.id for pair in task.pairs(3, seed) for m in pair) for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert tuple(m.id for m in task.pair(0)) == ids[0][:2]


# -- labels ------------------------------------------------------------------------------------------------------------

LATENT_FRAMES = 5


@cache
def mazes() -> tuple[MazeInstance, ...]:
    return tuple(Maze(5, loops=0.2).sample(12))


@pytest.fixture(scope="module")
def labels() -> dict[str, np.ndarray]:
    found = labels_of(Maze(5, loops=0.2), mazes(), LATENT_FRAMES, np.stack([m.video for m in mazes()]))
    return {name: label.values for name, label in found.items()}


def test_labels_have_their_shape_role_and_type() -> None:
    found = Maze(5, loops=0.2).labels(mazes(), LATENT_FRAMES)
    assert {label.values.shape for label in found.values()} == {(12, LATENT_FRAMES, 5, 5)}
    perception = {"wall_right", "wall_down", "wall_left", "wall_up", "start", "goal"}
    assert {n for n, label in found.items() if label.role == "perception"} == perception
    reasoning = {"dead_end", "on_path", "distance", "agent"}
    assert {n for n, label in found.items() if label.role == "reasoning"} == reasoning
    assert {n for n, label in found.items() if label.is_regression} == {"distance"}
    assert all(label.name == name for name, label in found.items())


def test_labels_are_what_a_plain_search_says(labels: dict[str, np.ndarray]) -> None:
    directions = {"wall_right": (0, 1), "wall_down": (1, 0), "wall_left": (0, -1), "wall_up": (-1, 0)}
    for b, maze in enumerate(mazes()):
        start, goal = reference.ends(maze.board)
        to_goal, _ = reference.search(maze.board, goal)
        on_path = reference.cells_on_paths(maze.board)
        for i, j in np.ndindex(5, 5):
            reachable = set(reference.neighbours(maze.board, (i, j)))
            for name, (di, dj) in directions.items():
                assert (labels[name][b, :, i, j] == ((i + di, j + dj) not in reachable)).all()
            assert (labels["start"][b, :, i, j] == ((i, j) == start)).all()
            assert (labels["goal"][b, :, i, j] == ((i, j) == goal)).all()
            assert (labels["dead_end"][b, :, i, j] == (len(reachable) == 1)).all()
            assert (labels["on_path"][b, :, i, j] == ((i, j) in on_path)).all()
            assert (labels["distance"][b, :, i, j] == to_goal[i, j]).all()
            assert (labels["drawn"][b, :, i, j] == (5 * i + j in maze.path)).all()


def test_the_agent_label_is_where_the_pixel_frames_of_a_latent_frame_show_it(labels: dict[str, np.ndarray]) -> None:
    for b, maze in enumerate(mazes()):
        here = np.zeros((LATENT_FRAMES, 5, 5), dtype=bool)
        for t in range(9):
            i, j = divmod(maze.path[min(2 * t, len(maze.path) - 1)], 5)
            # The VAE's first latent frame covers one pixel frame, each later one two.
            here[0 if t == 0 else (t + 1) // 2, i, j] = True
        assert np.array_equal(labels["agent"][b], here)


def test_drawn_is_what_the_given_frames_show_and_not_the_truth() -> None:
    one, other = Maze(5).pair()
    found = labels_of(Maze(5), [one], LATENT_FRAMES, other.video[None])["drawn"].values
    assert {5 * int(i) + int(j) for i, j in np.argwhere(found[0, 0])} == set(other.path)


def test_frames_of_another_number_than_the_mazes_are_refused() -> None:
    with pytest.raises(TaskError, match="expected uint8 pictures"):
        labels_of(Maze(5), list(Maze(5).pair()), LATENT_FRAMES, Maze(5).pair()[0].video[None])


# -- instances ---------------------------------------------------------------------------------------------------------


def test_the_id_of_an_instance_is_of_its_walls_start_and_goal() -> None:
    one, other = Maze(5).pair()
    again, _ = Maze(5).pair()
    assert one.id == again.id
    assert one.id != other.id
    assert one.id.startswith("maze5-")


def test_an_instance_is_what_a_run_takes() -> None:
    assert isinstance(Maze(5).sample(1)[0], Problem)


def test_the_answer_is_the_cells_of_all_shortest_paths_and_the_only_candidate_of_one_goal() -> None:
    for maze in mazes():
        assert maze.answer == reference.cells_on_paths(maze.board)
        assert maze.candidates == (maze.answer,)
        assert maze.steps == maze.length == length(maze)


def test_the_mazes_that_seeds_and_ids_of_published_results_stand_for_stay_what_they_are() -> None:
    assert [maze.id for maze in Maze().sample(2)] == ["maze5-f13d80445555", "maze5-c18ba161bee1"]
    assert [maze.id for maze in Maze(6).sample(2, 1, "val")] == ["maze6-f071db8b8659", "maze6-46be9b5cad18"]
    assert [maze.id for maze in Maze(6).pair(1, "goal")] == ["maze6-4f06a3b0b633", "maze6-926d7a79b319"]
    assert [maze.id for maze in Maze(6).pair(1, "wall")] == ["maze6-aa777119e07a", "maze6-f46a6ba9839f"]
    assert hashlib.sha256(np.asarray(Maze().sample(1)[0].image).tobytes()).hexdigest()[:12] == "bcbf89cb9469"


def test_a_maze_is_a_task() -> None:
    members = [name for name in dir(BoardTask) if not name.startswith("_")]
    assert {"kinds", "weights", "name", "sample", "render", "describe"} <= set(members)
    assert [name for name in members if not hasattr(Maze(), name)] == []
    described = json.loads(json.dumps(Maze(6).describe()))
    assert described["kinds"] == {"goal": "goal", "wall": "walls"}
    assert sum(described["rules"].values()) == pytest.approx(1)
    assert described["labels"]["on_path"] == "reasoning"
    assert described["prompt"] == "draw the path from green to red"


def test_rendered_together_mazes_are_what_each_shows_alone() -> None:
    assert len({maze.length for maze in mazes()}) > 1
    assert np.array_equal(Maze(5, loops=0.2).render(mazes()), np.stack([maze.video for maze in mazes()]))


def test_latent_frames_that_do_not_divide_the_video_are_refused() -> None:
    with pytest.raises(TaskError, match="9 pixel frames cannot be 4"):
        Maze(5, loops=0.2).labels(mazes(), 4)
