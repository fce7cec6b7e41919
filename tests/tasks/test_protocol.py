"""What must hold of every task, whatever it asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dit_lens.errors import TaskError
from dit_lens.families.tiny.text import WORDS
from dit_lens.tasks import TASKS, Maze, Problem, Puzzle, task_named
from dit_lens.tasks.base import SPLITS
from dit_lens.tasks.puzzles.glyphs import ATLAS, paint

NAMES = [*TASKS, "two-goal maze:4"]
KINDS = [(name, kind) for name in NAMES for kind in task_named(name).kinds]
NULLS = ["frozen", "noise", "shuffled"]
#: Words of a prompt that the organisms' text encoder takes, the end of the text not counted.
LONGEST_PROMPT = 15

every_task = pytest.mark.parametrize("name", NAMES)
every_kind = pytest.mark.parametrize(("name", "kind"), KINDS)


@cache
def sampled(name: str, split: str = "test", seed: int = 0) -> list[Any]:
    return task_named(name).sample(60, seed, split)


@cache
def pairs(name: str, kind: str) -> list[Any]:
    return task_named(name).pairs(25, seed=1, kind=kind)


def shape(task: Any, count: int) -> tuple[int, ...]:
    return (count, task.frames, 8 * task.side, 8 * task.side, 3)


# -- truth and floors --------------------------------------------------------------------------------------------------


@every_task
def test_true_videos_keep_every_rule(name: str) -> None:
    task = task_named(name)
    scores = task.score(task.render(sampled(name)), sampled(name))
    assert set(scores.rules) == set(task.weights)
    assert scores.strict.all()
    assert scores.total == pytest.approx(1)
    assert sum(task.weights.values()) == pytest.approx(1)


@every_task
def test_videos_that_cannot_have_solved_it_earn_little(name: str) -> None:
    task = task_named(name)
    floors = task.floors(60, seed=2).set_index(["video", "kind"])
    assert set(floors.index) == {(video, "") for video in ("truth", *NULLS)} | {
        ("counterfactual", kind) for kind in task.kinds
    }
    assert (floors["n"] == 60).all()
    assert floors.loc[("truth", ""), "strict"] == 1
    assert floors.loc[("noise", ""), "total"] < 0.05
    assert floors.loc[("frozen", ""), "total"] <= 0.1 + 1e-9
    assert (floors.loc[NULLS, "strict"] <= 0.05).all()
    assert (floors.loc["counterfactual", "strict"] == 0).all()
    assert (floors["total"] <= 1).all()


@every_task
@pytest.mark.parametrize("change", ["size", "frames"])
def test_other_sizes_and_longer_videos_are_solved_by_their_truth(name: str, change: str) -> None:
    task = task_named(name)
    other = replace(task, **{change: getattr(task, change) + {"size": 1, "frames": 4}[change]})
    instances = other.sample(10, split="train")
    videos = other.render(instances)
    assert videos.shape == shape(other, 10)
    assert videos.shape[2] % 16 == 0
    assert other.score(videos, instances).strict.all()
    with pytest.raises(TaskError):
        task.score(videos, instances)


# -- instances ---------------------------------------------------------------------------------------------------------


@every_task
def test_an_instance_has_what_the_analyses_need(name: str) -> None:
    task = task_named(name)
    for instance in sampled(name)[:20]:
        assert isinstance(instance, Problem)
        assert instance.video.dtype == np.uint8
        assert instance.video.shape == shape(task, 1)[1:]
        assert np.array_equal(np.asarray(instance.image), instance.video[0])
        assert not np.array_equal(instance.video[0], instance.video[-1])
        assert isinstance(instance.steps, int)
        assert instance.steps >= 1


@every_task
def test_videos_rendered_together_are_those_rendered_alone(name: str) -> None:
    instances = sampled(name)[:10]
    assert np.array_equal(task_named(name).render(instances), np.stack([i.video for i in instances]))


@every_task
def test_the_answer_is_one_of_the_candidates_and_these_differ(name: str) -> None:
    for instance in sampled(name):
        assert instance.answer in instance.candidates
        assert len(set(instance.candidates)) == len(instance.candidates)


@every_task
def test_prompts_hold_only_words_that_the_organisms_know(name: str) -> None:
    for instance in sampled(name):
        words = instance.prompt.split()
        assert 1 <= len(words) <= LONGEST_PROMPT
        assert set(words) <= set(WORDS)


@every_task
def test_samples_are_the_same_by_seed_and_others_by_another(name: str) -> None:
    task = task_named(name)
    again = task.sample(60, 0, "test")
    assert [i.id for i in again] == [i.id for i in sampled(name)]
    assert np.array_equal(task.render(again), task.render(sampled(name)))
    for other in (sampled(name, seed=1), sampled(name, "val")):
        assert [i.id for i in other] != [i.id for i in again]
    assert len({i.id for i in again}) > 40


@every_task
def test_ids_are_those_of_the_problem(name: str) -> None:
    """Equal problems have equal ids, the two sides of a pair never."""
    task = task_named(name)
    for kind in task.kinds:
        assert [p.original.id for p in task.pairs(5, 1, kind)] == [p.original.id for p in task.pairs(5, 1, kind)]
        assert all(p.original.id != p.counterfactual.id for p in pairs(name, kind))


# -- splits ------------------------------------------------------------------------------------------------------------


def layout(instance: Any) -> bytes:
    """What no two splits may share: the walls of a maze, of the others the picture."""
    if isinstance(instance.task, Maze):
        return bytes(instance.variables["walls"].tobytes())
    return bytes(instance.video[0].tobytes())


@every_task
def test_splits_share_no_layout(name: str) -> None:
    train, val, test = ({layout(i) for i in sampled(name, split)} for split in SPLITS)
    assert not train & val
    assert not train & test
    assert not val & test


@pytest.mark.parametrize(("name", "kind"), [x for x in KINDS if isinstance(task_named(x[0]), Puzzle)])
def test_both_sides_of_a_pair_are_of_its_split(name: str, kind: str) -> None:
    """Of mazes, whose walls alone decide, `test_maze_pairs` says the same."""
    task = task_named(name)
    for pair in pairs(name, kind):
        for side in pair:
            assert [bool(task.in_split(side.scene, split)[0]) for split in SPLITS] == [False, False, True]


# -- counterfactual pairs ----------------------------------------------------------------------------------------------


@every_kind
def test_pairs_differ_in_the_variable_of_their_kind_alone_and_in_their_answers(name: str, kind: str) -> None:
    found = pairs(name, kind)
    assert len(found) == 25
    for pair in found:
        assert pair.variable == task_named(name).kinds[kind]
        assert set(pair.original.variables) == set(pair.counterfactual.variables)
        assert pair.original.answer != pair.counterfactual.answer
        assert not np.array_equal(pair.original.video, pair.counterfactual.video)


@every_kind
def test_what_the_model_is_given_tells_the_sides_of_a_pair_apart(name: str, kind: str) -> None:
    for one, other in pairs(name, kind):
        assert one.prompt != other.prompt or not np.array_equal(one.video[0], other.video[0])


@every_task
def test_the_default_kind_changes_the_prompt_alone_where_any_does(name: str) -> None:
    by_prompt = {
        kind: all(np.array_equal(one.video[0], other.video[0]) for one, other in pairs(name, kind))
        for kind in task_named(name).kinds
    }
    assert any(by_prompt.values()) == next(iter(by_prompt.values()))


@every_kind
def test_pairs_are_the_same_by_seed(name: str, kind: str) -> None:
    task = task_named(name)
    one, other = task.pairs(5, seed=3, kind=kind), task.pairs(5, seed=3, kind=kind)
    assert [(p.original.id, p.counterfactual.id) for p in one] == [(p.original.id, p.counterfactual.id) for p in other]
    assert task.pair(3, kind).original.id == task.pair(3, kind).original.id


# -- labels ------------------------------------------------------------------------------------------------------------


@every_task
@pytest.mark.parametrize("latent_frames", [3, 5])
def test_labels_are_told_for_every_latent_frame_and_cell(name: str, latent_frames: int) -> None:
    task = task_named(name)
    labels = task.labels(sampled(name), latent_frames)
    for key, label in labels.items():
        assert label.name == key
        assert label.values.shape == (60, latent_frames, task.size, task.size)
        assert label.values.dtype == (np.float64 if label.is_regression else np.bool_)
        assert np.isfinite(label.values).all()
        assert label.values.min() < label.values.max(), f"{key} is the same everywhere"
    assert {label.role for label in labels.values()} == {"perception", "reasoning"}


# -- scores of any video -----------------------------------------------------------------------------------------------


def any_video(task: Any) -> st.SearchStrategy[np.ndarray]:
    """Videos of the task's shape: of plain cells, of glyphs, of noise, of extremes, and true ones with damage."""
    _, frames, height, width, _ = shape(task, 1)
    seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
    cells = npst.arrays(np.uint8, (frames, task.side, task.side, 3)).map(
        lambda x: x.repeat(8, axis=1).repeat(8, axis=2)
    )
    glyphs = seeds.map(lambda rng: paint(rng.integers(0, len(ATLAS), (frames, task.size, task.size))))
    noise = seeds.map(lambda rng: rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8))
    extremes = seeds.map(lambda rng: 255 * rng.integers(0, 2, (frames, height, width, 3), dtype=np.uint8))
    true = st.sampled_from(sampled(task_name(task))).map(lambda i: i.video)
    damaged = st.tuples(true, seeds).map(lambda x: np.where(x[1].random(x[0].shape) < 0.2, 255 - x[0], x[0]))
    return st.one_of(cells, glyphs, noise, extremes, true, damaged)


def task_name(task: Any) -> str:
    return "two-goal maze:4" if getattr(task, "goals", 1) == 2 else str(task.name)


@every_task
@settings(max_examples=30)
@given(data=st.data())
def test_every_video_has_a_score(name: str, data: st.DataObject) -> None:
    task = task_named(name)
    instance = data.draw(st.sampled_from(sampled(name)))
    scores = task.score(data.draw(any_video(task))[None], instance)
    rules = np.stack([scores.rules[rule] for rule in task.weights])
    assert rules.shape == (len(task.weights), 1)
    assert ((rules >= 0) & (rules <= 1)).all()
    assert scores.total == pytest.approx(np.array([*task.weights.values()]) @ rules)
    assert scores.strict == (rules == 1).all()


@every_task
def test_videos_scored_together_are_those_scored_alone(name: str) -> None:
    task, instances = task_named(name), sampled(name)[:8]
    videos = task.render(instances)
    videos[::2] = np.roll(videos[::2], 1, axis=1)
    together = task.score(videos, instances)
    alone = [task.score(video[None], instance) for video, instance in zip(videos, instances, strict=True)]
    assert together.total.tolist() == [s.total[0] for s in alone]
    assert together.strict.tolist() == [s.strict[0] for s in alone]


# -- bad input ---------------------------------------------------------------------------------------------------------


@every_task
def test_videos_of_another_shape_or_type_are_refused_with_the_shape_that_was_expected(name: str) -> None:
    task, instances = task_named(name), sampled(name)[:2]
    videos = task.render(instances)
    expected = str(shape(task, 2)).replace("(", r"\(").replace(")", r"\)")
    wrong = [
        videos[:, :-1],
        videos[:, :, :-8],
        videos[:, :, :, :-1],
        videos[..., :1],
        videos[:1],
        videos[0],
        videos.astype(np.float32),
        videos.tolist(),
        None,
    ]
    for video in wrong:
        with pytest.raises(TaskError, match=f"expected uint8 videos of shape {expected}"):
            task.score(video, instances)
    with pytest.raises(TaskError, match="expected uint8 videos of shape"):
        task.score(None, instances[0])


@every_task
def test_instances_of_another_task_are_refused(name: str) -> None:
    task = task_named(name)
    video = task.render(sampled(name)[:1])
    for other in NAMES:
        if other == name:
            continue
        for foreign in (sampled(other)[:1], sampled(other)[0]):
            with pytest.raises(TaskError, match="other"):
                task.score(video, foreign)
        for call in (task.render, lambda x: task.labels(x, 5)):
            with pytest.raises(TaskError, match="other"):
                call(sampled(other)[:1])
    for call in (task.render, lambda x: task.labels(x, 5)):
        with pytest.raises(TaskError, match="given"):
            call([])


@every_task
def test_what_cannot_be_asked_for_is_refused_with_what_can(name: str) -> None:
    task = task_named(name)
    for size in (0, 1, 17):
        with pytest.raises(TaskError, match=r"size must be \d+ to \d+ cells"):
            replace(task, size=size)
    for frames in (1, 8, 10):
        with pytest.raises(TaskError, match=r"1 \+ 4 k, such as 5, 9 or 13"):
            replace(task, frames=frames)
    for ask in (task.sample, task.pairs, task.floors):
        with pytest.raises(TaskError, match="at least 1"):
            ask(0)
    with pytest.raises(TaskError, match=f"one of {', '.join(task.kinds)}"):
        task.pair(kind="mirror")
    for ask in (task.sample, task.pairs):
        with pytest.raises(TaskError, match="one of train, val, test"):
            ask(1, split="exam")
    with pytest.raises(TaskError, match="9 pixel frames cannot be 4"):
        task.labels(sampled(name)[:1], 4)


# -- names and descriptions --------------------------------------------------------------------------------------------


def test_tasks_are_found_by_name() -> None:
    for name, kind in TASKS.items():
        assert task_named(name) == kind()
    assert task_named("maze:6") == Maze(6)
    assert task_named("two-goal maze") == Maze(goals=2)
    assert task_named("two-goal maze:4", frames=13) == Maze(4, frames=13, goals=2)


@pytest.mark.parametrize("name", ["", "sokoban", "maze:x", "maze:-4", "maze 5", "Maze", "two-goal move", "2"])
def test_names_that_no_task_has_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(TaskError, match=f"there are {', '.join(TASKS)}"):
        task_named(name)


def test_a_name_with_a_size_that_the_task_has_not_is_refused() -> None:
    with pytest.raises(TaskError, match="size must be 3 to 5 cells"):
        task_named("tictactoe:6")


@every_task
def test_a_task_describes_itself_in_json(name: str) -> None:
    task = task_named(name)
    told = task.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["name"] == task.name
    assert told["summary"].endswith(".")
    assert told["rules"] == dict(task.weights)
    assert told["kinds"] == dict(task.kinds)
    assert told["candidates"] >= 1
    assert 1 <= told["steps"][0] <= told["steps"][1]
    assert set(told["labels"].values()) == {"perception", "reasoning"}
