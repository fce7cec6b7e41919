"""What a frame says of the answer, on frames whose answer is known because they were drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dit_lens.errors import TaskError
from dit_lens.tasks import TASKS, Maze, Permanence, task_named
from dit_lens.tasks.answers import hold
from dit_lens.tasks.maze import render
from dit_lens.tasks.maze.alive import read_ink

NAMES = [*TASKS, "two-goal maze:4"]
#: Tasks whose pictures can be taken apart into their candidates' last frames.
LISTED = ["pattern", "permanence", "sort", "tictactoe"]


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_is_a_right_answer_and_a_frozen_frame_none(name: str) -> None:
    task = task_named(name)
    instances = task.sample(30, seed=1)
    truth = task.render(instances)
    found = task.read_answer(truth[:, -1], instances)
    assert found.right.all()
    assert found.drawn.all()
    assert (found.marks > 0).any(axis=(1, 2)).all()
    assert not task.read_answer(truth[:, 0], instances).drawn.any()
    noise = np.random.default_rng(0).integers(0, 256, truth.shape, dtype=np.uint8)
    assert not task.read_answer(noise[:, -1], instances).drawn.any()


@pytest.mark.parametrize("name", NAMES)
def test_the_other_side_of_a_pair_is_an_answer_and_wrong(name: str) -> None:
    task = task_named(name)
    # The first kind that leaves the picture as it is changes the answer alone.
    kinds = [k for k in task.kinds if _same_picture(task, k)]
    if not kinds:
        pytest.skip("no pair of this task differs in the prompt alone")
    originals, others = zip(*task.pairs(20, seed=2, kind=kinds[0]), strict=True)
    answers = task.read_answer(task.render(others)[:, -1], list(originals))
    assert answers.drawn.all()
    assert not answers.right.any()


def _same_picture(task: Any, kind: str) -> bool:
    pair = task.pair(0, kind)
    return np.array_equal(pair.original.video[0], pair.counterfactual.video[0])


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_judged_by_the_rules_of_the_score_that_read_the_last_frame(name: str) -> None:
    task = task_named(name)
    instances = task.sample(20, seed=1)
    videos = np.roll(task.render(instances), 1, axis=0)
    rules = task.judge_answer(videos[:, -1], instances)
    scored = task.score(videos, instances).rules
    assert rules
    for rule, values in rules.items():
        assert values.tolist() == scored[rule].tolist()
    answers = task.read_answer(videos[:, -1], instances)
    assert answers.right.tolist() == (answers.drawn & hold(rules)).tolist()


@pytest.mark.parametrize("name", LISTED)
def test_blends_are_taken_apart_into_what_was_blended(name: str) -> None:
    task = task_named(name)
    for instance in task.sample(12, seed=3):
        last, first = instance.video[-1].astype(float), instance.video[0].astype(float)
        half = ((first + last) / 2).round().astype(np.uint8)
        shares = task.shares(np.stack([instance.video[0], half, instance.video[-1]]), instance)
        assert shares.readable.all()
        assert shares.weights.sum(axis=1) == pytest.approx([0, 0.5, 1], abs=0.02)
        assert shares.weights[-1].max() == pytest.approx(1, abs=0.01)


def test_two_objects_blended_are_two_candidates() -> None:
    task = Permanence()
    original, other = task.pair(0, "object")
    assert other.variables["out"]
    blend = (original.video[-1].astype(float) + other.video[-1]) / 2
    shares = task.shares(blend.round().astype(np.uint8)[None], original)
    assert np.sort(shares.weights[0]) == pytest.approx([0, 0.5, 0.5], abs=0.02)


def test_noise_is_no_mixture_of_candidates() -> None:
    task = Permanence()
    instance = task.sample(1)[0]
    noise = np.random.default_rng(0).integers(0, 256, instance.video.shape, dtype=np.uint8)
    assert not task.shares(noise, instance).readable.any()


def test_ink_is_the_share_of_trail_or_agent_whatever_lies_below() -> None:
    task = Maze(4, lengths=(3, 6))
    mazes = task.sample(10, seed=4)
    videos = task.render(mazes).astype(float)
    empty = np.stack([render.render_board(m.board)[0] for m in mazes]).astype(float)
    for share in (0.0, 0.3, 0.6, 1.0):
        ink = read_ink(task, (share * videos[:, -1] + (1 - share) * empty).round().astype(np.uint8), mazes)
        trail = task.read_answer(task.render(mazes)[:, -1], mazes).marks > 0
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
    ends = task.read_given(last, mazes)
    assert set(ends) == {"start", "goal_red", "goal_purple"}
    assert all(drawn.all() for drawn in ends.values())
    assert not any(drawn.any() for drawn in task.read_given(np.full_like(last, 238), mazes).values())


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_another_shape_are_refused_with_the_shape_that_was_expected(name: str) -> None:
    task = task_named(name)
    instances = task.sample(2)
    images = task.render(instances)[:, -1]
    for wrong in (images[:1], images[:, :-8], images.astype(float), images[:, None], None):
        for read in (task.read_answer, task.judge_answer):
            with pytest.raises(TaskError, match=r"expected uint8 pictures of shape \(2, "):
                read(wrong, instances)
