"""What a frame says of the answer, on frames whose answer is known because they were drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dit_lens.errors import EvidenceError, TaskError
from dit_lens.tasks import TASKS, Maze, Permanence, task_named
from dit_lens.tasks.maze import render
from dit_lens.tasks.maze.alive import read_ink
from dit_lens.tasks.puzzles.shares import read_shares
from dit_lens.tasks.reading import ANSWER_RULES, read_answers, read_ends

NAMES = [*TASKS, "two-goal maze:4"]
#: Tasks whose pictures can be taken apart into their candidates' last frames.
LISTED = ["pattern", "permanence", "sort", "tictactoe"]


def frozen(videos: Any) -> Any:
    return np.repeat(videos[:, :1], videos.shape[1], axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_is_a_right_answer_and_a_frozen_frame_none(name: str) -> None:
    task = task_named(name)
    instances = task.sample(30, seed=1)
    truth = task.render(instances)
    assert read_answers(task, truth, instances).right.all()
    assert read_answers(task, truth, instances).drawn.all()
    assert not read_answers(task, frozen(truth), instances).drawn.any()
    noise = np.random.default_rng(0).integers(0, 256, truth.shape, dtype=np.uint8)
    assert not read_answers(task, noise, instances).drawn.any()


@pytest.mark.parametrize("name", NAMES)
def test_the_other_side_of_a_pair_is_an_answer_and_wrong(name: str) -> None:
    task = task_named(name)
    # The first kind that leaves the picture as it is changes the answer alone.
    kinds = [k for k in task.kinds if _same_picture(task, k)]
    if not kinds:
        pytest.skip("no pair of this task differs in the prompt alone")
    originals, others = zip(*task.pairs(20, seed=2, kind=kinds[0]), strict=True)
    answers = read_answers(task, task.render(others), list(originals))
    assert answers.drawn.all()
    assert not answers.right.any()


def _same_picture(task: Any, kind: str) -> bool:
    pair = task.pair(0, kind)
    return np.array_equal(pair.original.video[0], pair.counterfactual.video[0])


def test_every_task_has_a_reader_and_its_rules_exist() -> None:
    assert set(ANSWER_RULES) == set(TASKS)
    for name, rules in ANSWER_RULES.items():
        assert set(rules) <= set(TASKS[name].weights)


@pytest.mark.parametrize("name", LISTED)
def test_blends_are_taken_apart_into_what_was_blended(name: str) -> None:
    task = task_named(name)
    for instance in task.sample(12, seed=3):
        last, first = instance.video[-1].astype(float), instance.video[0].astype(float)
        half = ((first + last) / 2).round().astype(np.uint8)
        shares = read_shares(task, np.stack([instance.video[0], half, instance.video[-1]]), instance)
        assert shares.readable.all()
        assert shares.weights.sum(axis=1) == pytest.approx([0, 0.5, 1], abs=0.02)
        assert shares.weights[-1].max() == pytest.approx(1, abs=0.01)


def test_two_objects_blended_are_two_candidates() -> None:
    task = Permanence()
    original, other = task.pair(0, "object")
    assert other.variables["out"]
    blend = (original.video[-1].astype(float) + other.video[-1]) / 2
    shares = read_shares(task, blend.round().astype(np.uint8)[None], original)
    assert np.sort(shares.weights[0]) == pytest.approx([0, 0.5, 0.5], abs=0.02)


def test_noise_is_no_mixture_of_candidates() -> None:
    task = Permanence()
    instance = task.sample(1)[0]
    noise = np.random.default_rng(0).integers(0, 256, instance.video.shape, dtype=np.uint8)
    assert not read_shares(task, noise, instance).readable.any()


def test_ink_is_the_share_of_trail_or_agent_whatever_lies_below() -> None:
    task = Maze(4, lengths=(3, 6))
    mazes = task.sample(10, seed=4)
    videos = task.render(mazes).astype(float)
    empty = np.stack([render.render_board(m.board)[0] for m in mazes]).astype(float)
    for share in (0.0, 0.3, 0.6, 1.0):
        ink = read_ink(task, (share * videos[:, -1] + (1 - share) * empty).round().astype(np.uint8), mazes)
        trail = task.read_answer(task.render(mazes)[:, -1])
        assert ink[trail] == pytest.approx(share, abs=0.02)
        assert ink[~trail] == pytest.approx(0, abs=0.02)


def test_walls_are_no_ink() -> None:
    task = Maze(4)
    maze = task.sample(1)[0]
    assert read_ink(task, np.full((1, 32, 32, 3), 40, dtype=np.uint8), [maze]).max() == 0


def test_ends_are_read_where_they_are() -> None:
    task = Maze(4, goals=2)
    mazes = task.sample(6, seed=5)
    last = task.render(mazes)[:, -1]
    ends = read_ends(task, last, mazes)
    assert set(ends) == {"start", "goal_red", "goal_purple"}
    assert all(drawn.all() for drawn in ends.values())
    assert not any(drawn.any() for drawn in read_ends(task, np.full_like(last, 238), mazes).values())


def test_what_cannot_be_read_is_refused_by_name() -> None:
    maze, task = Maze(4).sample(1)[0], task_named("move")
    with pytest.raises(EvidenceError, match="'move' has no candidates"):
        read_shares(task, task.sample(1)[0].video, task.sample(1)[0])
    with pytest.raises(EvidenceError, match="'maze' has no candidates"):
        read_shares(Maze(4), maze.video, maze)
    with pytest.raises(TaskError, match="expected uint8 videos"):
        read_answers(task, np.zeros((1, 9, 8, 8, 3), dtype=np.uint8), task.sample(1))

    class Riddle:
        name = "riddle"

    with pytest.raises(EvidenceError, match="answers of task 'riddle'"):
        read_answers(Riddle(), maze.video[None], [maze])
