"""Problems of the puzzle move: hand-written ones, counterfactual pairs, splits, labels, bad input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dit_lens.errors import TaskError
from dit_lens.tasks import Move
from dit_lens.tasks.base import SPLITS
from dit_lens.tasks.puzzles.glyphs import COLOURS, SHAPES
from dit_lens.tasks.puzzles.puzzle import PuzzleInstance
from dit_lens.tasks.puzzles.scenes import length, rows
from tests.tasks.puzzles.moves import CIRCLE, PROBLEM, RINGS, SCENE, SQUARE, TASK, Cell, truth


def grid(*cells: Cell) -> Any:
    shown = np.zeros((4, 4), dtype=bool)
    for cell in cells:
        shown[cell] = True
    return shown


# What is drawn.


def test_a_problem_written_by_hand() -> None:
    np.testing.assert_array_equal(TASK.codes(SCENE), truth())
    assert PROBLEM.prompt == "move the circle to yellow and the square to purple"
    assert PROBLEM.answer == ((1, 3), (2, 2))
    assert PROBLEM.steps == 4
    green, yellow, purple = (2, 0), (1, 3), (2, 2)
    assert set(PROBLEM.candidates) == {
        (green, yellow),
        (green, purple),
        (yellow, green),
        (yellow, purple),
        (purple, green),
        (purple, yellow),
    }
    scores = TASK.score(PROBLEM.video[None], PROBLEM)
    assert scores.strict.all()
    assert scores.total == pytest.approx(1)


def test_the_answer_lists_shapes_by_name_whatever_the_prompt_names_first() -> None:
    # Objects 0 and 1 listed the other way round: the same picture and the same demand in other words.
    turned = SCENE | {name: SCENE[name][:, ::-1] for name in ("cells", "shapes", "colours", "assign")}
    other = PuzzleInstance(TASK, turned)
    assert other.prompt == "move the square to purple and the circle to yellow"
    assert other.answer == PROBLEM.answer
    assert set(other.candidates) == set(PROBLEM.candidates)
    np.testing.assert_array_equal(other.video, PROBLEM.video)
    triangle = PuzzleInstance(TASK, SCENE | {"shapes": np.array([[2, 1]])})
    assert triangle.answer == ((2, 2), (1, 3))  # the square, then the triangle


@pytest.mark.parametrize(("size", "frames"), [(4, 9), (5, 9), (6, 13), (16, 33)])
def test_true_videos_are_strict_at_any_size(size: int, frames: int) -> None:
    task = Move(size, frames)
    instances = task.sample(60, seed=2)
    scores = task.score(task.render(instances), instances)
    assert scores.strict.all()
    np.testing.assert_allclose(scores.total, 1)
    for one in instances:
        assert one.answer in one.candidates
        assert len(set(one.candidates)) == 6
        assert 1 <= one.steps <= 2 * (size - 1)
        codes = task.codes(one.scene)
        changes = np.flatnonzero((codes[0, 1:] != codes[0, :-1]).any(axis=(1, 2)))
        assert changes.tolist() == list(range(one.steps))  # the longer walk has a move in each of the first frames


def test_draws_hold_what_the_rules_of_the_puzzle_say() -> None:
    scenes = TASK.draw(np.random.default_rng(0), 500)
    assert length(scenes) == 500
    for row in rows(scenes):
        assert len({*row["cells"], *row["rings"]}) == 5
        for name in ("shapes", "colours", "ring_colours", "assign"):
            assert len(set(row[name])) == len(row[name])
    for name, among in (("shapes", 3), ("colours", 5), ("ring_colours", 5), ("assign", 3), ("cells", 16)):
        assert set(scenes[name].ravel()) == set(range(among))


def test_walks_that_meet_or_pass_through_each_other_are_not_drawn() -> None:
    def collides(cells: list[int], rings: list[int]) -> bool:
        scene = SCENE | {"cells": np.array([cells]), "rings": np.array([rings]), "assign": np.array([[0, 1]])}
        return bool(TASK._collide(scene)[0])

    assert collides([0, 1], [3, 4, 15])  # next to each other, they would exchange their cells
    assert collides([0, 2], [3, 4, 15])  # they would meet in cell 1
    assert collides([0, 3], [2, 1, 15])  # at an odd distance they would exchange cells 1 and 2
    assert collides([0, 7], [3, 2, 15])  # one would rest where the other passes
    assert not collides([0, 15], [7, 10, 8])


# Pairs.


@pytest.mark.parametrize("task", [TASK, Move(5, 13)])
@pytest.mark.parametrize("kind", Move.kinds)
def test_pairs_differ_in_one_variable_and_in_their_answers(task: Move, kind: str) -> None:
    pairs = task.pairs(60, seed=4, kind=kind)
    assert len(pairs) == 60
    for pair in pairs:
        one, other = pair
        assert pair.variable == Move.kinds[kind]
        assert one.answer != other.answer
        assert not task.score(other.video[None], one).strict.any()
        assert not task.score(one.video[None], other).strict.any()
        # The changed problem is a problem: the objects do not collide, and its video is right.
        assert task.score(other.video[None], other).strict.all()
        assert len({*other.variables["cells"], *other.variables["rings"]}) == 5
        assert task.in_split(other.scene, "test").all()


def test_word_pairs_change_one_word_of_the_prompt_to_the_third_target() -> None:
    for one, other in TASK.pairs(60, seed=1):
        words = [(a, b) for a, b in zip(one.prompt.split(), other.prompt.split(), strict=True) if a != b]
        assert len(words) == 1
        v = one.variables
        unused = ({0, 1, 2} - set(v["assign"])).pop()
        assert words[0][1] == list(COLOURS)[v["ring_colours"][unused]]
        np.testing.assert_array_equal(one.video[0], other.video[0])
        assert other.answer in one.candidates
        assert sum(a != b for a, b in zip(one.answer, other.answer, strict=True)) == 1


def test_ring_pairs_move_one_named_ring_to_a_free_cell() -> None:
    changed = set()
    for one, other in TASK.pairs(100, seed=1, kind="ring"):
        a, b = one.variables, other.variables
        (moved,) = np.flatnonzero(a["rings"] != b["rings"])
        assert moved in a["assign"]
        assert b["rings"][moved] not in {*a["cells"], *a["rings"]}
        assert one.prompt == other.prompt
        first = TASK.codes(one.scene)[0, 0] != TASK.codes(other.scene)[0, 0]
        assert set(np.flatnonzero(first)) == {a["rings"][moved], b["rings"][moved]}
        changed.add(list(a["assign"]).index(moved))
    assert changed == {0, 1}


# Splits, labels, bad input.


def test_splits_share_no_layout_and_hold_the_prompts_of_one_together() -> None:
    def layouts(split: Any) -> set[bytes]:
        scenes = TASK.sample_scenes(np.random.default_rng(7), 3000, split)
        return {b"".join(row[name].tobytes() for name in Move.layout) for row in rows(scenes)}

    train, val, test = (layouts(split) for split in SPLITS)
    assert len(train | val | test) == len(train) + len(val) + len(test)
    assert "assign" not in Move.layout


def test_seeds_are_reproducible() -> None:
    assert [i.id for i in TASK.sample(5, seed=3)] == [i.id for i in TASK.sample(5, seed=3)]
    assert {i.id for i in TASK.sample(5, seed=3)}.isdisjoint(i.id for i in TASK.sample(5, seed=4))
    for kind in Move.kinds:
        one, two = (TASK.pair(seed=3, kind=kind) for _ in range(2))
        assert [i.id for i in one] == [i.id for i in two]


def test_labels_written_by_hand() -> None:
    labels = TASK.labels([PROBLEM], latent_frames=5)
    assert all(label.values.shape == (1, 5, 4, 4) and label.values.dtype == np.bool_ for label in labels.values())

    def at(name: str, frame: int) -> Any:
        return labels[name].values[0, frame]

    # Latent frame 1 covers pixel frames 1 and 2, latent frame 2 covers 3 and 4.
    np.testing.assert_array_equal(at("circle", 0), grid((0, 0)))
    np.testing.assert_array_equal(at("circle", 1), grid((0, 1), (0, 2)))
    np.testing.assert_array_equal(at("circle", 2), grid((0, 3), (1, 3)))
    np.testing.assert_array_equal(at("square", 1), grid((3, 2), (2, 2)))
    assert not labels["triangle"].values.any()
    np.testing.assert_array_equal(at("object", 1), at("circle", 1) | at("square", 1))
    np.testing.assert_array_equal(at("ring", 0), grid(*RINGS))
    np.testing.assert_array_equal(at("ring", 1), grid(*RINGS))  # (2, 2) is covered in the second of the frames only
    np.testing.assert_array_equal(at("ring", 4), grid((2, 0)))
    np.testing.assert_array_equal(at("red", 0), grid((0, 0)))
    np.testing.assert_array_equal(at("yellow", 0), grid((1, 3)))
    np.testing.assert_array_equal(at("blue", 4), grid((2, 2)))
    assert not at("purple", 4).any()
    for frame in range(5):
        np.testing.assert_array_equal(at("answer", frame), grid((1, 3), (2, 2)))
        np.testing.assert_array_equal(at("answer_circle", frame), grid((1, 3)))
        np.testing.assert_array_equal(at("answer_square", frame), grid((2, 2)))
        assert not at("answer_triangle", frame).any()
        np.testing.assert_array_equal(at("way", frame), grid(*CIRCLE, *SQUARE))
    roles = {name: label.role for name, label in labels.items()}
    reasoning = {"answer", "way", "answer_circle", "answer_square", "answer_triangle"}
    assert {name for name, role in roles.items() if role == "reasoning"} == reasoning
    assert {name for name, role in roles.items() if role == "perception"} == {"object", "ring", *COLOURS, *SHAPES}


def test_labels_of_many_are_those_of_each() -> None:
    task = Move(5, 9)
    instances = task.sample(20)
    together = task.labels(instances, latent_frames=3)
    for b, one in enumerate(instances):
        for name, label in task.labels([one], latent_frames=3).items():
            np.testing.assert_array_equal(label.values[0], together[name].values[b])
        goals = {(int(i), int(j)) for i, j in np.argwhere(together["answer"].values[b, 0])}
        ends: Any = one.answer
        assert goals == set(ends)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 3}, "size must be 4 to 16"),
        ({"size": 17}, "size must be 4 to 16"),
        ({"frames": 8}, "frames must be 1 [+] 4 k"),
        ({"frames": 5}, "too few for walks of 6 moves; ask for at least 9"),
        ({"size": 6}, "too few for walks of 10 moves; ask for at least 13"),
        ({"size": 7}, "too few for walks of 12 moves; ask for at least 13"),
    ],
)
def test_sizes_and_lengths_that_do_not_exist(settings: dict[str, int], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Move(**settings)


@pytest.mark.parametrize("size", range(4, 17))
def test_the_shortest_length_that_the_message_names_is_enough(size: int) -> None:
    least = 1 + 4 * (size // 2)
    assert Move(size, least).frames == least
    with pytest.raises(TaskError, match=f"at least {least}" if least > 9 else "frames"):
        Move(size, least - 4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(TaskError, match="unknown kind of pair 'colour'; one of word, ring"):
        TASK.pair(kind="colour")
    with pytest.raises(TaskError, match="at least 1"):
        TASK.sample(0)
    with pytest.raises(TaskError, match="expected uint8 videos of shape"):
        TASK.score(PROBLEM.video[None, :5], PROBLEM)
    with pytest.raises(TaskError, match="another task"):
        Move(5).labels([PROBLEM], latent_frames=5)


def test_it_describes_itself_in_json() -> None:
    told = json.loads(json.dumps(TASK.describe()))
    assert told["rules"] == dict(Move.weights)
    assert told["kinds"] == dict(Move.kinds)
    assert told["candidates"] == 6
