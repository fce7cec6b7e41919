"""The scorer of the puzzle move: each rule broken alone, and the same scores in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_lens.tasks import Move
from dit_lens.tasks.puzzles.glyphs import COLOURS, FLOOR, NUMBER, SHAPES, WALL, paint
from dit_lens.tasks.puzzles.scenes import rows, take
from tests.tasks.puzzles.moves import CIRCLE, PROBLEM, SQUARE, TASK, Cell, film, reference, truth


def show(codes: Any, t: int, cell: Cell, glyph: str) -> Any:
    """The video with another glyph in one cell of one frame."""
    codes[0, t][cell] = NUMBER[glyph]
    return codes


def walk_back(codes: Any) -> Any:
    """The circle steps off its target in the last frame, and something else takes its place."""
    return show(show(codes, -1, (0, 3), "red circle"), -1, (1, 3), "green triangle")


MUTATIONS: dict[str, tuple[Callable[[], Any], str, float]] = {
    "each on the other's target": (
        lambda: film([(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)], [(3, 3), (2, 3), (1, 3)]),
        "placed",
        1.0,
    ),
    "another object on one target": (lambda: walk_back(truth()), "placed", 1 / 2),
    "one jump": (lambda: film([(0, 0), (0, 2), (0, 3), (1, 3)], SQUARE), "moves", 1 / 8),
    "one diagonal step": (lambda: film([(0, 0), (0, 1), (0, 2), (1, 3)], SQUARE), "moves", 1 / 8),
    "one gone for a frame": (lambda: show(truth(), 5, (1, 3), "yellow ring"), "moves", 2 / 8),
    "one twice in a frame": (lambda: show(truth(), 6, (1, 0), "blue square"), "moves", 2 / 8),
    "another start": (lambda: film([(0, 1), *CIRCLE[1:]], SQUARE), "moves", 1 / 8),
    "the third ring gone in the end": (lambda: show(truth(), -1, (2, 0), "floor"), "targets", 1 / 3),
    "the third ring of another colour": (lambda: show(truth(), -1, (2, 0), "red ring"), "targets", 1 / 3),
    "something on the third ring": (lambda: show(truth(), -1, (2, 0), "green triangle"), "targets", 1 / 3),
    # 8 later frames of 16 cells, less 16 in which an object is seen, less the third ring of the last frame.
    "something on the floor": (lambda: show(truth(), 3, (3, 0), "wall"), "kept", 1 / 111),
    "a ring gone for a frame": (lambda: show(truth(), 3, (2, 0), "floor"), "kept", 1 / 111),
    "something left in the end": (lambda: show(truth(), -1, (0, 0), "red bar"), "kept", 1 / 111),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_costs_what_it_is_worth_and_no_other(name: str) -> None:
    make, broken, loss = MUTATIONS[name]
    scores = TASK.score(paint(make()), PROBLEM)
    expected = {rule: 1 - loss * (rule == broken) for rule in Move.weights}
    assert {rule: x[0] for rule, x in scores.rules.items()} == pytest.approx(expected)
    assert 1 - scores.total[0] == pytest.approx(Move.weights[broken] * loss)
    assert not scores.strict.any()


def test_every_rule_is_broken_by_some_mutation() -> None:
    assert {broken for _, broken, _ in MUTATIONS.values()} == set(Move.weights)
    assert sum(Move.weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("circle", "square"),
    [
        (CIRCLE[:1] * 4 + CIRCLE, SQUARE),  # waits, and arrives in the last frame
        ([(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (1, 2), (1, 3)], SQUARE),  # down first, over the third ring
        ([*CIRCLE, (1, 2), (1, 3)], [(3, 3), (2, 3), (2, 2)]),  # steps off and on again
    ],
)
def test_any_legal_walk_will_do(circle: list[Cell], square: list[Cell]) -> None:
    assert TASK.score(paint(film(circle, square)), PROBLEM).strict.all()


def test_objects_that_exchange_their_cells_do_not_move_legally() -> None:
    circle = [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (1, 3)]
    square = [(3, 3), (2, 3), (1, 3), (1, 3), (1, 2), (2, 2)]
    rules = TASK.score(paint(film(circle, square)), PROBLEM).rules
    assert rules["moves"][0] == pytest.approx(7 / 8)
    assert rules["placed"][0] == rules["targets"][0] == rules["kept"][0] == 1


def test_what_no_object_moved_to_earns_nothing() -> None:
    cut = np.concatenate([truth()[:, :1].repeat(4, axis=1), truth()[:, -1:].repeat(5, axis=1)], axis=1)
    rules = TASK.score(paint(cut), PROBLEM).rules
    assert rules["placed"][0] == rules["kept"][0] == 1
    assert rules["moves"][0] == rules["targets"][0] == 0


def test_one_object_that_moves_earns_its_half_of_the_places() -> None:
    rules = TASK.score(paint(film(CIRCLE, SQUARE[:1])), PROBLEM).rules
    assert {rule: x[0] for rule, x in rules.items()} == pytest.approx(
        {"placed": 1 / 2, "moves": 1, "targets": 2 / 3, "kept": 1}
    )


@pytest.mark.parametrize("task", [TASK, Move(6, 13)])
@pytest.mark.parametrize("changes", [0, 1, 3, 20, 10_000])
def test_scores_are_those_of_plain_python(task: Move, changes: int) -> None:
    rng = np.random.default_rng(changes)
    scenes = task.sample_scenes(rng, 40, "test")
    own = [NUMBER[f"{c} {s}"] for c in COLOURS for s in SHAPES]
    codes = task.codes(scenes)
    for b in range(len(codes)):
        cells = rng.integers(0, codes[b].size, changes)
        codes[b].reshape(-1)[cells] = rng.choice([-1, FLOOR, WALL, *own, NUMBER["red ring"]], changes)
    found = task.judge(codes, scenes)
    for b, row in enumerate(rows(scenes)):
        assert {rule: x[b] for rule, x in found.items()} == pytest.approx(reference(codes[b], task, row))


def test_scores_of_reordered_frames_are_those_of_plain_python() -> None:
    rng = np.random.default_rng(0)
    scenes = TASK.sample_scenes(rng, 100, "test")
    codes = np.stack([video[rng.permutation(9)] for video in TASK.codes(scenes)])
    found = TASK.judge(codes, scenes)
    for b, row in enumerate(rows(scenes)):
        assert {rule: x[b] for rule, x in found.items()} == pytest.approx(reference(codes[b], TASK, row))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 256]))
def test_any_video_has_a_score(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    video = (rng.integers(0, levels, (2, 9, 32, 32, 3)) * (255 // max(levels - 1, 1))).astype(np.uint8)
    scores = TASK.score(video, PROBLEM)
    assert all(((x >= 0) & (x <= 1)).all() for x in scores.rules.values())
    assert not scores.strict.any()


def test_floors() -> None:
    table: Any = TASK.floors(80).set_index(["video", "kind"])
    assert table.loc[("truth", ""), ["total", "strict"]].tolist() == pytest.approx([1, 1])
    assert table.loc[("frozen", ""), "total"] == pytest.approx(0.1)
    assert table.loc[("noise", ""), "total"] == 0
    assert (table.loc[["frozen", "noise", "counterfactual"], "strict"] == 0).all()
    # A short walk may survive a shuffle: only the frames at rest, all alike, change places.
    assert table.loc[("shuffled", ""), "strict"] <= 0.05
    assert table.loc["counterfactual"].index.tolist() == list(Move.kinds)
    # The wrong target costs half of *placed*, and its own and the third one's share of *targets*.
    assert table.loc[("counterfactual", "word"), "total"] == pytest.approx(1 - 0.4 / 2 - 0.2 * 2 / 3)


def test_changed_problems_that_would_collide_are_refused() -> None:
    rng = np.random.default_rng(0)
    scenes = TASK.draw(rng, 400)
    for kind in Move.kinds:
        changed, possible = TASK.vary(scenes, kind, rng)
        np.testing.assert_array_equal(possible, ~TASK._collide(changed))
        assert not possible.all()
        kept = take(changed, possible)
        for codes, row in zip(TASK.codes(kept), rows(kept), strict=True):
            assert set(reference(codes, TASK, row).values()) == {1.0}
