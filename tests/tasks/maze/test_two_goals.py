"""Mazes with a red and a purple goal, of which the prompt names one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dit_lens.errors import TaskError
from dit_lens.files.video import Video
from dit_lens.tasks import Maze, MazeInstance, Pair
from dit_lens.tasks.maze.boards import Boards, in_split, lengths, name_other
from dit_lens.tasks.maze.render import (
    AGENT,
    FLOOR,
    GOAL,
    PALETTE,
    SECOND,
    START,
    UNREADABLE,
    read_centres,
    read_rings,
    render_video,
)
from dit_lens.tasks.puzzles.glyphs import COLOURS
from tests.tasks import reference
from tests.tasks.maze.test_scorer import LAYOUT_DOWN, LAYOUT_RIGHT, PATH, RULES, paint, paint_wall, ring

SPLITS = ("train", "val", "test")
KINDS = ("prompt", "goal", "wall")
LENGTHS = (3, 10)

#: The serpentine of the scorer's tests: red at cell 4, at the end of the way back, and purple two rows below the way.
#:
#:   S  >  >  v
#:   R  <  .  <        red is 7 moves away
#:   .  v  .  .
#:   .  P  .  .        purple is 8 moves away and shares the first six
TO_PURPLE = (*PATH[:-1], 9, 13)


@cache
def serpentine(named: int) -> MazeInstance:
    """The maze of the drawing when its prompt names red (0) or purple (1)."""
    red, purple = np.array([[1, 0]]), np.array([[3, 1]])
    board = Boards(LAYOUT_RIGHT[None], LAYOUT_DOWN[None], np.array([[0, 0]]), red, purple, np.array([0]))
    task = Maze(4, lengths=(3, 14), goals=2)
    return MazeInstance(task, name_other(board), TO_PURPLE) if named else MazeInstance(task, board, PATH)


def video_of(*cells: int) -> Video:
    """The video of an agent that walks any cells, legal or not."""
    return render_video(serpentine(0).board, np.array([cells]), 9, speed=2)[0]


@cache
def sampled(split: str, size: int) -> list[MazeInstance]:
    return Maze(size, lengths=LENGTHS, goals=2).sample(60, split=split)


@cache
def pairs(kind: str, split: str) -> list[Pair]:
    return Maze(5, lengths=LENGTHS, goals=2).pairs(15, kind=kind, split=split)


def check_two_goals(maze: MazeInstance) -> None:
    """Both goals are at allowed distances and neither is on a shortest path to the other."""
    start, _ = reference.ends(maze.board)
    named, other = reference.goals(maze.board)
    distance, _ = reference.search(maze.board, start)
    assert len({start, named, other}) == 3
    assert LENGTHS[0] <= distance[named] == maze.length <= LENGTHS[1]
    assert LENGTHS[0] <= distance[other] <= LENGTHS[1]
    assert other not in reference.cells_on_paths(maze.board)
    assert named not in reference.cells_on_paths(maze.board, other)


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [4, 5])
def test_neither_goal_is_on_the_way_to_the_other_and_both_are_as_far_as_asked(split: str, size: int) -> None:
    for maze in sampled(split, size):
        check_two_goals(maze)
        assert in_split(maze.board.right, maze.board.down, split)[0]
        assert tuple(divmod(c, size) for c in maze.path) in reference.shortest_paths(maze.board)


def test_the_prompt_names_the_goal_at_which_the_true_video_ends() -> None:
    assert PALETTE["second"] == COLOURS["purple"]
    for maze in sampled("test", 5):
        i, j = (8 * x for x in divmod(maze.path[-1], 5))
        colour = {PALETTE["goal"]: "red", PALETTE["second"]: "purple"}[tuple(maze.video[-1, i, j].tolist())]
        assert maze.prompt == f"draw the path from green to {colour}"
        assert maze.variables["named"] == colour
        assert maze.task.score(maze.video[None], maze).strict[0]


def test_colour_does_not_tell_which_goal_is_named_nor_which_is_nearer() -> None:
    boards = Maze(5, goals=2).sample_boards(np.random.default_rng(0), 1000, "train")
    assert boards.other is not None
    seen: Counter[tuple[bool, int]] = Counter()
    for b in range(len(boards)):
        distance, _ = reference.search(boards[b : b + 1], reference.ends(boards[b : b + 1])[0])
        named, other = reference.goals(boards[b : b + 1])
        seen[distance[named] < distance[other], int(boards.named[b])] += distance[named] != distance[other]
    apart = sum(seen.values())
    assert len(seen) == 4
    assert sum((count - apart / 4) ** 2 / (apart / 4) for count in seen.values()) < 16.3  # 3 degrees, p = .001


def test_all_lengths_occur_for_either_goal() -> None:
    boards = Maze(5, lengths=(3, 7), goals=2).sample_boards(np.random.default_rng(0), 600, "train")
    assert boards.other is not None
    for goals in (boards.goal, boards.other):
        ways = (replace(boards[b : b + 1], goal=goals[b : b + 1]) for b in range(len(boards)))
        counts = Counter(len(reference.shortest_paths(board)[0]) - 1 for board in ways)
        assert set(counts) == {3, 4, 5, 6, 7}
        assert min(counts.values()) > 40


def test_the_second_goal_is_no_nearer_than_its_drawn_length_where_there_is_room() -> None:
    # A second goal anywhere in reach would be mostly near: 23 % of the ways would have 9 to 11 moves, not 28 %.
    boards = Maze(6, goals=2).sample_boards(np.random.default_rng(0), 2000, "train")
    both = np.concatenate([lengths(boards), lengths(name_other(boards))])
    assert ((both >= 9) & (both <= 11)).mean() > 0.26


@pytest.mark.parametrize("goals", [1, 2])
def test_training_videos_come_with_the_prompts_of_what_they_show(goals: int) -> None:
    videos, prompts = Maze(4, lengths=(3, 8), goals=goals).sample_videos(np.random.default_rng(0), 40, "train")
    assert videos.shape == (40, 9, 32, 32, 3)
    assert set(prompts) == {f"draw the path from green to {colour}" for colour in ("red", "purple")[:goals]}
    names = {PALETTE["goal"]: "red", PALETTE["second"]: "purple"}
    for video, prompt in zip(videos, prompts, strict=True):
        at_agent = (video[-1] == PALETTE["agent"]).all(axis=-1)
        row, column = (int(x) // 8 * 8 for x in np.argwhere(at_agent)[0])
        assert prompt.endswith(names[tuple(video[-1, row, column].tolist())])


def test_sampling_is_a_function_of_its_seed() -> None:
    ids = [tuple((m.id, m.prompt, m.path) for m in Maze(5, goals=2).sample(5, seed)) for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


# -- pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_both_of_a_pair_are_mazes_of_the_task_and_differ_in_one_variable(kind: str, split: str) -> None:
    for pair in pairs(kind, split):
        one, other = pair
        assert pair.variable == one.task.kinds[kind]
        assert one.answer != other.answer
        assert one.id != other.id
        assert not one.task.score(other.video[None], one).strict[0]
        assert not one.task.score(one.video[None], other).strict[0]
        for maze in pair:
            check_two_goals(maze)
            assert in_split(maze.board.right, maze.board.down, split)[0]
            assert one.task.score(maze.video[None], maze).strict[0]


def test_a_prompt_pair_is_one_picture_with_two_prompts_and_the_default() -> None:
    for one, other in pairs("prompt", "test"):
        assert np.array_equal(one.image, other.image)
        assert {one.prompt, other.prompt} == {f"draw the path from green to {c}" for c in ("red", "purple")}
        assert reference.goals(one.board) == reference.goals(other.board)[::-1]
        assert one.candidates == other.candidates
    task = Maze(5, lengths=LENGTHS, goals=2)
    assert [m.id for m in task.pair(4)] == [m.id for m in task.pair(4, "prompt")]


def test_a_goal_pair_moves_the_named_goal_alone_to_where_neither_is_on_the_way_to_the_other() -> None:
    for one, other in pairs("goal", "test"):
        (old, kept), (new, same) = reference.goals(one.board), reference.goals(other.board)
        assert kept == same
        assert old != new
        assert one.prompt == other.prompt
        assert new not in reference.cells_on_paths(one.board)
        assert old not in reference.cells_on_paths(other.board)


def test_a_wall_pair_changes_one_wall_and_every_shortest_path_to_the_named_goal() -> None:
    for one, other in pairs("wall", "test"):
        assert (one.variables["walls"] != other.variables["walls"]).sum() == 1
        assert one.prompt == other.prompt
        assert not set(reference.shortest_paths(one.board)) & set(reference.shortest_paths(other.board))


def test_answers_and_candidates_are_the_cells_on_the_ways_to_red_and_purple() -> None:
    for maze in sampled("test", 5):
        named, other = reference.goals(maze.board)
        red, purple = (named, other) if maze.variables["named"] == "red" else (other, named)
        assert maze.variables["goals"].tolist() == [list(red), list(purple)]
        assert maze.candidates == tuple(reference.cells_on_paths(maze.board, goal) for goal in (red, purple))
        assert maze.answer == reference.cells_on_paths(maze.board)
        assert maze.steps == len(reference.shortest_paths(maze.board)[0]) - 1


# -- labels ------------------------------------------------------------------------------------------------------------


def test_labels_say_where_both_goals_are_and_mean_the_named_one() -> None:
    mazes = sampled("test", 5)[:12]
    found = mazes[0].task.labels(mazes, 5)
    roles = {name: found[name].role for name in ("goal", "goal_red", "goal_purple", "on_path", "distance")}
    assert roles == {
        "goal": "reasoning", "goal_red": "perception", "goal_purple": "perception",
        "on_path": "reasoning", "distance": "reasoning",
    }  # fmt: skip
    for b, maze in enumerate(mazes):
        named, other = reference.goals(maze.board)
        colour, rest = ("red", "purple") if maze.prompt.endswith("red") else ("purple", "red")
        expected = {"goal": {named}, f"goal_{colour}": {named}, f"goal_{rest}": {other}}
        expected["on_path"] = reference.cells_on_paths(maze.board)
        for name, cells in expected.items():
            for frame in found[name].values[b]:
                assert {(int(i), int(j)) for i, j in np.argwhere(frame)} == cells
        to_goal, _ = reference.search(maze.board, named)
        assert all(found["distance"].values[b, 0][cell] == to_goal[cell] for cell in to_goal)


def test_a_maze_with_one_goal_has_no_labels_of_colours() -> None:
    assert not {"goal_red", "goal_purple"} & set(Maze(5).labels(Maze(5).sample(1), 5))


# -- scores ------------------------------------------------------------------------------------------------------------


def test_the_hand_made_maze_is_what_its_drawing_says() -> None:
    for named, path in ((0, PATH), (1, TO_PURPLE)):
        maze = serpentine(named)
        assert reference.shortest_paths(maze.board) == [tuple(divmod(c, 4) for c in path)]
        assert maze.task.score(video_of(*path)[None], maze).strict[0]
        assert maze.task.score(video_of(*path)[None], maze).total[0] == pytest.approx(1)


#: What is wrong -> (the video, the rule that notices, its value by hand). Red is named, 7 moves away on 8 cells; the
#: rule *walls* looks at 16 right walls, 16 lower ones and 16 rings.
BROKEN: dict[str, tuple[Callable[[], Video], str, float]] = {
    "a spot away from the trail": (lambda: paint(video_of(*PATH), 15, "trail", slice(4, None)), "legal", 8 / 9),
    "a spot on the other goal": (lambda: paint(video_of(*PATH), 13, "trail", slice(4, None)), "legal", 8 / 9),
    "the trail stops short": (lambda: video_of(*PATH[:-1]), "complete", 6 / 7),
    "the trail leads to the other goal": (lambda: video_of(*TO_PURPLE), "complete", 6 / 7),
    "the trail blinks": (lambda: paint(video_of(*PATH), 1, "floor", slice(4, 5)), "continuous", 7 / 8),
    "a wall is removed": (lambda: paint_wall(video_of(*PATH), 0, "down", "floor"), "walls", 47 / 48),
    "the named goal is erased": (lambda: ring(video_of(*PATH), 4, "floor"), "walls", 47 / 48),
    "the other goal is erased": (lambda: unring(video_of(*PATH)), "walls", 47 / 48),
    "the other goal turns red": (lambda: ring(video_of(*PATH), 13, "goal"), "walls", 47 / 48),
    "the goals change colours": (
        lambda: ring(ring(video_of(*PATH), 13, "goal"), 4, "second"), "walls", 46 / 48),
    "a third goal appears": (lambda: ring(video_of(*PATH), 15, "second"), "walls", 47 / 48),
}  # fmt: skip


def unring(video: Video) -> Video:
    """Erase the purple goal, ring and centre."""
    return ring(paint(video, 13, "floor"), 13, "floor")


@pytest.mark.parametrize("what", list(BROKEN))
def test_one_broken_rule_costs_its_weight_times_its_loss_and_strict_success(what: str) -> None:
    make, broken, value = BROKEN[what]
    scores = serpentine(0).task.score(make()[None], serpentine(0))
    assert {rule: float(scores.rules[rule][0]) for rule in RULES} == pytest.approx(
        dict.fromkeys(RULES, 1) | {broken: value}
    )
    assert scores.total[0] == pytest.approx(1 - Maze.weights[broken] * (1 - value))
    assert not scores.strict[0]


def test_every_rule_is_broken_alone() -> None:
    assert {rule for _, rule, _ in BROKEN.values()} == set(RULES)


def test_a_trail_that_goes_on_to_the_other_goal_is_not_legal() -> None:
    right, down = np.array([[[0, 0, 0, 1]] * 4], dtype=bool), np.array([[[0] * 4] * 3 + [[1] * 4]], dtype=bool)
    board = Boards(right, down, np.array([[0, 0]]), np.array([[0, 2]]), np.array([[2, 2]]), np.array([1]))
    maze = MazeInstance(Maze(4, lengths=(2, 8), goals=2), board, (0, 1, 2))
    beyond = render_video(board, np.array([(0, 1, 2, 6, 10)]), 9, speed=2)
    scores = maze.task.score(beyond, maze)
    assert {rule: float(scores.rules[rule][0]) for rule in RULES} == dict.fromkeys(RULES, 1) | {"legal": 0.5}
    # The way through the other goal to the named one is longer, but it is a way.
    named_last = MazeInstance(maze.task, name_other(board), (0, 4, 8, 9, 10))
    assert maze.task.score(beyond, named_last).strict[0]


def test_the_answer_to_the_other_prompt_is_judged_as_incomplete_alone() -> None:
    # Towards purple the way to red leaves off two moves before it, of eight; the other way round one of seven.
    for named, path, complete in ((1, PATH, 6 / 8), (0, TO_PURPLE, 6 / 7)):
        maze = serpentine(named)
        last = video_of(*path)[-1:]
        assert {int(c) for c in np.flatnonzero(maze.task.read_answer(last, [maze]).marks[0])} == set(path)
        rules = maze.task.judge_answer(last, [maze])
        assert rules["legal"][0] == 1
        assert rules["complete"][0] == pytest.approx(complete)


def test_purple_is_read_only_where_there_are_two_goals() -> None:
    still = video_of(0)[0]
    two, one = read_rings(still, 4, goals=2), read_rings(still, 4)
    assert two.ravel()[[0, 1, 4, 13]].tolist() == [START, FLOOR, GOAL, SECOND]
    assert one.ravel()[[0, 1, 4, 13]].tolist() == [START, FLOOR, GOAL, UNREADABLE]
    assert read_centres(still, 4, goals=2).ravel()[[0, 1, 4, 13]].tolist() == [AGENT, FLOOR, GOAL, SECOND]
    assert read_centres(still, 4).ravel()[[0, 1, 4, 13]].tolist() == [AGENT, FLOOR, GOAL, UNREADABLE]


def test_scores_survive_the_noise_that_a_decoder_leaves() -> None:
    mazes = sampled("test", 5)
    truth = np.stack([maze.video for maze in mazes])
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    assert mazes[0].task.score(np.clip(truth + noise, 0, 255).astype(np.uint8), mazes).strict.all()


@given(npst.arrays(np.uint8, (2, 9, 32, 32, 3)), st.integers(0, 1))
@settings(max_examples=25, deadline=None)
def test_any_video_whatever_is_scored_between_0_and_1(videos: Video, named: int) -> None:
    scores = serpentine(named).task.score(videos, serpentine(named))
    for values in (*scores.rules.values(), scores.total):
        assert values.shape == (2,)
        assert ((values >= 0) & (values <= 1)).all()
    assert scores.strict.dtype == bool


@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from(list(PALETTE))), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_rings_other_than_the_boards_are_never_strictly_right(strokes: list[tuple[int, str]]) -> None:
    video = video_of(*PATH)
    for cell, colour in strokes:
        ring(video, cell, colour)
    same = np.array_equal(read_rings(video[-1], 4, 2), read_rings(video_of(*PATH)[-1], 4, 2))
    assert bool(serpentine(0).task.score(video[None], serpentine(0)).strict[0]) == same


def test_what_knows_nothing_or_another_answer_is_never_strictly_right() -> None:
    table = Maze(4, lengths=(3, 8), goals=2).floors(40)
    assert table[table["video"] == "counterfactual"]["kind"].tolist() == list(KINDS)
    floors = table.groupby("video")[["total", "strict"]].max()
    assert floors.loc["truth"].tolist() == pytest.approx([1, 1])
    assert (floors["strict"].drop("truth") == 0).all()
    assert floors.loc["frozen", "total"] == pytest.approx(Maze.weights["walls"])
    assert floors.loc["noise", "total"] < 0.1


# -- what the task says of itself, and bad input -----------------------------------------------------------------------


def test_the_task_describes_itself() -> None:
    described = json.loads(json.dumps(Maze(5, goals=2).describe()))
    assert described["kinds"] == {"prompt": "named", "goal": "goals", "wall": "walls"}
    assert described["goals"] == described["candidates"] == 2


def test_what_cannot_be_is_refused() -> None:
    for goals in (0, 3):
        with pytest.raises(TaskError, match="1 or 2 goals"):
            Maze(goals=goals)
    with pytest.raises(TaskError, match="one of goal, wall"):
        Maze().pair(kind="prompt")
    with pytest.raises(TaskError, match="one of prompt, goal, wall"):
        Maze(goals=2).pair(kind="start")
    with pytest.raises(TaskError, match="at least 1"):
        Maze(goals=2).pairs(0)
    with pytest.raises(TaskError, match="two goals"):
        Maze(3, lengths=(8, 8), goals=2).sample(1, split="train")
    with pytest.raises(TaskError, match="one goal"):
        name_other(Maze().sample(1)[0].board)
    with pytest.raises(TaskError, match=r"other \(size, goals\)"):
        Maze(5, goals=2).score(Maze(5).sample(1)[0].video[None], Maze(5).sample(1))
