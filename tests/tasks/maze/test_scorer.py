"""The scorer: full marks for the truth, and for every way of being wrong the rule that must notice it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dit_lens.errors import TaskError
from dit_lens.files.video import Video
from dit_lens.tasks import Maze, MazeInstance, MazeScores
from dit_lens.tasks.answers import hold
from dit_lens.tasks.maze.boards import Boards
from dit_lens.tasks.maze.render import PALETTE, read_centres, read_walls, render_video
from tests.tasks import reference

RULES = ("legal", "complete", "continuous", "walls")
CELL = 8

#: A hand-made 4 x 4 maze: a serpentine path along the top, down, and back, with the walls that make it one.
#:
#:   S  >  >  v        row 0 is open, the way down is at its right end
#:   G  <  <  <        row 1 leads back to the goal
#:   .  .  .  .        rows 2 and 3 are open and joined to row 1 below column 1
#:   .  .  .  .
LAYOUT_DOWN = np.array([[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
LAYOUT_RIGHT = np.array([[0, 0, 0, 1]] * 4, dtype=bool)
PATH = (0, 1, 2, 3, 7, 6, 5, 4)


@cache
def serpentine() -> MazeInstance:
    task = Maze(4, lengths=(3, 14))
    board = Boards(LAYOUT_RIGHT[None], LAYOUT_DOWN[None], np.array([[0, 0]]), np.array([[1, 0]]))
    return MazeInstance(task, board, PATH)


def video_of(*cells: int, frames: int = 9) -> Video:
    """The video of an agent that walks any cells, legal or not."""
    board = serpentine().board
    return render_video(board, np.array([cells]), frames, speed=2)[0]


def paint(video: Video, cell: int, colour: str, frames: slice = slice(None)) -> Video:
    """Paint the 4 x 4 centre of one cell."""
    i, j = (CELL * x for x in divmod(cell, 4))
    video[frames, i + 1 : i + 5, j + 1 : j + 5] = PALETTE[colour]
    return video


def paint_wall(video: Video, cell: int, side: str, colour: str) -> Video:
    i, j = (CELL * x for x in divmod(cell, 4))
    where = (slice(i, i + 6), slice(j + 6, j + 8)) if side == "right" else (slice(i + 6, i + 8), slice(j, j + 6))
    video[:, *where] = PALETTE[colour]
    return video


def ring(video: Video, cell: int, colour: str) -> Video:
    """Paint the ring around the centre of one cell."""
    i, j = (CELL * x for x in divmod(cell, 4))
    centre = video[:, i + 1 : i + 5, j + 1 : j + 5].copy()
    video[:, i : i + 6, j : j + 6] = PALETTE[colour]
    video[:, i + 1 : i + 5, j + 1 : j + 5] = centre
    return video


def score(video: Video) -> MazeScores:
    return serpentine().task.score(video[None], serpentine())


def other_answer() -> Video:
    """The right answer of another maze: the same board with its goal elsewhere."""
    board = serpentine().board
    moved = Boards(board.right, board.down, board.start, np.array([[3, 3]]))
    path = [4 * i + j for i, j in reference.shortest_paths(moved)[0]]
    return video_of(*path)


def trail_erased() -> Video:
    video = video_of(*PATH)
    return paint(video, 1, "floor", slice(5, None))


def trail_blinks() -> Video:
    video = video_of(*PATH)
    return paint(video, 1, "floor", slice(4, 5))


def teleport() -> Video:
    """The trail is right at the end, but the agent jumps over three moves and back over none."""
    video = video_of(*PATH)
    jumping = video_of(*PATH)
    jumping[1] = video[0]
    return jumping


#: What is wrong -> (the video, rules that must lose points, rules that must keep them all).
WRONG: dict[str, tuple[Callable[[], Video], set[str], set[str]]] = {
    "the trail crosses a wall": (lambda: video_of(0, 4), {"legal"}, {"walls"}),
    "the trail crosses a wall on its way": (
        lambda: video_of(0, 1, 5, 4), {"legal", "complete", "continuous"}, {"walls"}),
    "a gap in the trail": (
        lambda: paint(video_of(*PATH), 2, "floor"), {"legal", "complete"}, {"walls"}),
    "a branch off the trail": (
        lambda: paint(video_of(*PATH), 9, "trail", slice(4, None)), {"legal"}, {"complete", "continuous", "walls"}),
    "a spot away from the trail": (
        lambda: paint(video_of(*PATH), 15, "trail", slice(4, None)), {"legal"}, {"complete", "continuous", "walls"}),
    "the trail stops short": (lambda: video_of(*PATH[:-1]), {"complete"}, {"legal", "continuous", "walls"}),
    "the trail hardly starts": (lambda: video_of(*PATH[:2]), {"complete"}, {"legal", "continuous", "walls"}),
    "the goal shows no trail": (
        lambda: paint(video_of(*PATH), 4, "goal"), {"complete", "continuous"}, {"walls"}),
    "the trail is another maze's answer": (other_answer, {"complete"}, {"legal", "walls"}),
    "the trail ends in a square loop": (
        lambda: video_of(*PATH[:-1], 9, 8, 12, 13), {"legal", "complete"}, {"walls"}),
    "the agent teleports": (teleport, {"continuous"}, {"legal", "complete", "walls"}),
    "the agent is missing at times": (
        lambda: paint(video_of(*PATH), 2, "trail", slice(1, 2)), {"continuous"}, {"legal", "complete", "walls"}),
    "the agent is missing for good": (
        lambda: np.concatenate([video_of(*PATH)[:1]] + [paint(video_of(*PATH)[-1:], 4, "trail")] * 8),
        {"continuous"}, {"legal", "complete", "walls"}),
    "there are two agents": (
        lambda: paint(video_of(*PATH), 0, "agent"), {"continuous"}, {"legal", "complete", "walls"}),
    "the trail is erased later": (trail_erased, {"legal", "continuous"}, {"walls"}),
    "the trail blinks": (trail_blinks, {"continuous"}, {"legal", "complete", "walls"}),
    "a wall is removed": (
        lambda: paint_wall(video_of(*PATH), 0, "down", "floor"), {"walls"}, {"legal", "complete", "continuous"}),
    "a wall is added": (
        lambda: paint_wall(video_of(*PATH), 9, "right", "wall"), {"walls"}, {"legal", "complete", "continuous"}),
    "a wall is smeared": (
        lambda: paint_wall(video_of(*PATH), 0, "down", "start"), {"walls"}, {"legal", "complete", "continuous"}),
    "the goal is erased": (lambda: ring(video_of(*PATH), 4, "floor"), {"walls"}, {"legal", "complete", "continuous"}),
    "the goal is moved": (
        lambda: ring(ring(video_of(*PATH), 4, "floor"), 7, "goal"), {"walls"}, {"legal", "complete", "continuous"}),
    "the start is erased": (lambda: ring(video_of(*PATH), 0, "floor"), {"walls"}, {"legal", "complete", "continuous"}),
    "start and goal change places": (
        lambda: ring(ring(video_of(*PATH), 4, "start"), 0, "goal"), {"walls"}, {"legal", "complete", "continuous"}),
    "nothing moves": (
        lambda: np.repeat(video_of(*PATH)[:1], 9, axis=0), {"legal", "complete", "continuous"}, {"walls"}),
    "the answer stands there from the first": (
        lambda: np.repeat(video_of(*PATH)[-1:], 9, axis=0), {"continuous"}, {"legal", "complete", "walls"}),
    "time runs backwards": (
        lambda: video_of(*PATH)[::-1], {"legal", "complete", "continuous"}, {"walls"}),
    "the screen goes gray": (lambda: np.full_like(video_of(*PATH), 128), set(RULES), set()),
    "the screen goes dark": (lambda: np.zeros_like(video_of(*PATH)), {"legal", "complete", "continuous"}, set()),
}  # fmt: skip


@pytest.mark.parametrize("what", list(WRONG))
def test_a_wrong_video_loses_points_under_its_rule_and_strict_success(what: str) -> None:
    make, lost, kept = WRONG[what]
    scores = score(make())
    assert {rule: getattr(scores, rule)[0] for rule in lost if getattr(scores, rule)[0] == 1} == {}
    assert {rule: getattr(scores, rule)[0] for rule in kept if getattr(scores, rule)[0] != 1} == {}
    assert not scores.strict[0]
    assert 0 <= scores.total[0] < 1


@pytest.mark.parametrize(
    ("goal", "walked"),
    [
        ((1, 1), PATH),
        ((2, 0), (*PATH[:-1], 9, 8, 12)),
        ((2, 0), (*PATH[:-1], 9, 13, 12, 8)),
        ((2, 0), (*PATH[:-1], 9, 8, 12, 13)),
    ],
    ids=["one cell beyond the goal", "a turn beyond the goal", "a way round with a chord", "a loop behind the goal"],
)
def test_a_trail_that_reaches_the_goal_but_is_no_induced_path_to_it_loses_points_as_not_legal_alone(
    goal: tuple[int, int], walked: tuple[int, ...]
) -> None:
    board = Boards(LAYOUT_RIGHT[None], LAYOUT_DOWN[None], np.array([[0, 0]]), np.array([goal]))
    shortest = tuple(4 * i + j for i, j in reference.shortest_paths(board)[0])
    maze = MazeInstance(serpentine().task, board, shortest)
    assert maze.task.score(maze.video[None], maze).strict[0]
    scores = maze.task.score(render_video(board, np.array([walked]), 9, speed=2), maze)
    assert scores.legal[0] < 1
    assert not scores.strict[0]
    assert scores.complete[0] == scores.continuous[0] == scores.walls[0] == 1


def test_every_rule_has_a_video_that_only_it_finds_wrong() -> None:
    alone = {next(iter(lost)) for _, lost, kept in WRONG.values() if len(lost) == 1 and len(kept) == 3}
    assert alone == set(RULES)


def test_the_hand_made_maze_is_what_its_drawing_says() -> None:
    board = serpentine().board
    assert reference.shortest_paths(board) == [tuple(divmod(c, 4) for c in PATH)]
    assert score(video_of(*PATH)).strict[0]


@given(st.integers(3, 6), st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_the_rendered_truth_has_full_marks(size: int, seed: int) -> None:
    maze = Maze(size, lengths=(3, 8)).sample(1, seed, split="train")[0]
    scores = maze.task.score(maze.video[None], maze)
    assert scores.strict[0]
    assert scores.total[0] == pytest.approx(1.0)
    cells = {(int(i), int(j)) for i, j in np.argwhere(scores.trail[0])}
    assert cells == {divmod(c, size) for c in maze.path}


@given(st.integers(3, 6), st.integers(0, 100_000))
@settings(max_examples=15, deadline=None)
def test_every_shortest_path_is_right_and_another_mazes_is_not(size: int, seed: int) -> None:
    task = Maze(size, lengths=(3, 8), loops=0.3)
    one, other = task.sample(2, seed, split="train")
    for path in reference.shortest_paths(one.board)[:6]:
        numbers = np.array([[size * i + j for i, j in path]])
        video = render_video(one.board, numbers, 9, 2)
        assert task.score(video, one).strict[0]
        assert not task.score(video, other).strict[0]


@given(npst.arrays(np.uint8, (2, 9, 32, 32, 3)))
@settings(max_examples=25, deadline=None)
def test_any_video_whatever_is_scored_between_0_and_1(videos: Video) -> None:
    scores = serpentine().task.score(videos, serpentine())
    for rule in (*RULES, "total"):
        values = getattr(scores, rule)
        assert values.shape == (2,)
        assert ((values >= 0) & (values <= 1)).all()
    assert scores.strict.dtype == bool


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 15), st.sampled_from(list(PALETTE))), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_painted_over_truth_is_never_strictly_right_unless_it_shows_the_same(
    strokes: list[tuple[int, int, str]],
) -> None:
    video = video_of(*PATH)
    for t, cell, colour in strokes:
        paint(video, cell, colour, slice(t, t + 1))
    centres, truth = (read_centres(v, 4) for v in (video, video_of(*PATH)))
    moving = np.isin(centres, (4, 5))
    same = np.array_equal(moving, np.isin(truth, (4, 5))) and np.array_equal(centres == 5, truth == 5)
    strict = bool(score(video).strict[0])
    assert strict or not same
    if strict:
        # Strict success still shows one agent in every frame and the one path at the end.
        assert ((centres == 5).sum(axis=(1, 2)) == 1).all()
        assert set(np.flatnonzero(moving[-1].ravel())) == set(PATH)


def test_scores_survive_the_noise_that_a_decoder_leaves() -> None:
    mazes = Maze(6).sample(20)
    truth = np.stack([maze.video for maze in mazes])
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    noisy = np.clip(truth + noise, 0, 255).astype(np.uint8)
    assert mazes[0].task.score(noisy, mazes).strict.all()


@pytest.mark.parametrize("size", [4, 5, 6])
def test_videos_that_know_nothing_score_low_and_are_never_strictly_right(size: int) -> None:
    floors = Maze(size, lengths=(3, 8)).floors(60).set_index("video")
    assert list(floors) == ["kind", "total", "strict", "n"]
    assert floors.loc["counterfactual", "kind"].tolist() == ["goal", "wall"]
    assert floors.loc["counterfactual", "strict"].tolist() == [0.0, 0.0]
    assert floors.loc["shuffled", "strict"] == 0.0
    assert floors.loc["truth", ["total", "strict"]].tolist() == pytest.approx([1.0, 1.0])
    assert floors.loc[["frozen", "noise"], "strict"].tolist() == [0.0, 0.0]
    assert floors.loc["frozen", "total"] < 0.3
    assert floors.loc["noise", "total"] < 0.1
    assert set(floors["n"]) == {60}


def test_the_rules_are_given_by_name_with_the_tasks_weights() -> None:
    scores = score(trail_blinks())
    assert dict(MazeScores.weights) == dict(Maze.weights)
    assert list(scores.rules) == list(RULES)
    assert all(scores.rules[rule] is getattr(scores, rule) for rule in RULES)
    assert scores.total[0] == pytest.approx(sum(Maze.weights[rule] * scores.rules[rule][0] for rule in RULES))


def test_mazes_of_another_size_or_number_of_goals_are_refused() -> None:
    task, video = Maze(4, lengths=(3, 8)), serpentine().video[None]
    for other in (Maze(3, lengths=(2, 4)), Maze(4, lengths=(3, 8), goals=2)):
        with pytest.raises(TaskError, match=r"other \(size, goals\)"):
            task.score(video, other.sample(1))
        with pytest.raises(TaskError, match=r"other \(size, goals\)"):
            task.judge_answer(video[:, -1], other.sample(1))
    with pytest.raises(TaskError, match="no mazes"):
        task.render([])


def test_the_total_is_the_weighted_sum_of_the_benchmarks_rules() -> None:
    one = np.ones(1)
    for rule, weight in {"legal": 0.45, "complete": 0.30, "continuous": 0.20, "walls": 0.05}.items():
        parts = {name: one * (name == rule) for name in RULES}
        assert MazeScores(**parts, trail=np.zeros((1, 4, 4), bool)).total[0] == pytest.approx(weight)


def test_each_video_is_scored_against_its_own_maze() -> None:
    mazes = Maze(4, lengths=(3, 8)).sample(6)
    videos = np.stack([maze.video for maze in mazes])
    assert mazes[0].task.score(videos, mazes).strict.all()
    assert not mazes[0].task.score(videos[::-1], mazes).strict.any()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v.astype(np.float32),
        lambda v: v[:, :5],
        lambda v: v[:, :, :16],
        lambda v: np.concatenate([v, v]),
        lambda v: v[0],
    ],
    ids=["type", "frames", "height", "number", "axes"],
)
def test_videos_that_are_not_this_tasks_are_refused(spoil: Callable[[Video], Video]) -> None:
    mazes = Maze(4, lengths=(3, 8)).sample(2)
    with pytest.raises(TaskError, match=r"\(2, 9, 32, 32, 3\)"):
        mazes[0].task.score(spoil(np.stack([maze.video for maze in mazes])), mazes)


# -- rendering ---------------------------------------------------------------------------------------------------------


@given(st.integers(2, 7), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_rendered_board_reads_back_as_it_is(size: int, seed: int) -> None:
    maze = Maze(size, lengths=(2, 2)).sample(1, seed, split="train")[0]
    right, down = read_walls(maze.video[0], size)
    assert np.array_equal(right == 1, maze.board.right[0])
    assert np.array_equal(down == 1, maze.board.down[0])
    assert maze.video.shape[1] % 16 == 0


def test_the_first_frame_shows_the_agent_on_the_start_and_no_trail() -> None:
    maze = Maze(6).sample(1)[0]
    centres = read_centres(maze.video[0], 6)
    start, goal = reference.ends(maze.board)
    assert [tuple(c) for c in np.argwhere(centres == 5)] == [start]
    assert not (centres == 4).any()
    assert np.array_equal(np.asarray(maze.image), maze.video[0])
    assert [tuple(c) for c in np.argwhere(read_centres(maze.video[-1], 6) == 5)] == [goal]


def test_an_answer_read_off_one_frame_is_judged_as_the_scorer_judges_it() -> None:
    mazes = Maze(6).sample(8)
    last = np.stack([maze.video[-1] for maze in mazes])
    rules = mazes[0].task.judge_answer(last, mazes)
    assert list(rules) == ["legal", "complete"]
    assert hold(rules).all()
    assert not hold(mazes[0].task.judge_answer(last[::-1], mazes)).any()
