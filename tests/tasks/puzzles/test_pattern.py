"""The gap of a periodic sequence: what belongs there, pairs, labels and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dit_lens.errors import TaskError
from dit_lens.tasks import Pattern, PuzzleInstance
from dit_lens.tasks.puzzles.glyphs import COLOURS, FLOOR, GAP, NAMES, NUMBER, SIZES, paint, read
from dit_lens.tasks.puzzles.scenes import concatenate, take

ALL_SIZES = (3, 4, 5, 16)
Codes = np.ndarray

RED, GREEN, BLUE = ("red small", "green small", "blue small")
#: Period red, green, blue; the gap in row 1, column 1 is the sixth cell, the third of the second period.
BEFORE = (
    (RED, GREEN, BLUE, RED),
    (GREEN, "gap", RED, GREEN),
    (BLUE, RED, GREEN, BLUE),
    (RED, GREEN, BLUE, RED),
)


def instance(by_size: bool, constant: int, symbols: Sequence[int], gap: int, size: int = 4) -> PuzzleInstance:
    scene = {
        "by_size": np.array([by_size]),
        "constant": np.array([constant]),
        "period": np.array([len(symbols)]),
        "symbols": np.array([[*symbols, *[-1] * (4 - len(symbols))]]),
        "gap": np.array([gap]),
    }
    return PuzzleInstance(Pattern(size), scene)


def by_hand() -> PuzzleInstance:
    """The drawing: small squares, of the colours 0, 1 and 2."""
    return instance(False, SIZES.index("small"), (0, 1, 2), gap=5)


@cache
def sampled(size: int) -> list[PuzzleInstance]:
    return Pattern(size).sample(40, seed=1)


def codes_of(problem: PuzzleInstance) -> Codes:
    """The true video as glyph numbers, (T, n, n)."""
    return np.asarray(problem.task.codes(problem.scene)[0])


def scores(problem: PuzzleInstance, codes: Codes) -> tuple[dict[str, float], float]:
    """Rules and total of one video."""
    found = problem.task.score(paint(codes, problem.task.side)[None], problem)
    return {rule: float(values[0]) for rule, values in found.rules.items()}, float(found.total[0])


def fillings(cells: Sequence[str]) -> set[str]:
    """Every symbol that makes the cells repeat themselves, by trying all: the oracle."""
    gap, found = cells.index("gap"), set()
    for symbol in (f"{colour} {size}" for colour in COLOURS for size in SIZES):
        filled = [*cells[:gap], symbol, *cells[gap + 1 :]]
        for period in (2, 3, 4):
            start = filled[:period]
            repeats = all(cell == start[i % period] for i, cell in enumerate(filled))
            colours, sizes = zip(*(cell.split() for cell in start), strict=True)
            one_changes = sorted((len(set(colours)), len(set(sizes)))) == [1, period]
            if repeats and one_changes:
                found.add(symbol)
    return found


def test_the_true_video_of_a_scene_written_by_hand() -> None:
    video = by_hand().video
    shown = [[[NAMES[code] for code in row] for row in frame] for frame in read(video, 4)]
    after = [list(row) for row in BEFORE]
    after[1][1] = BLUE
    assert shown == [[list(row) for row in BEFORE]] * 4 + [after] * 5
    assert video.shape == (9, 32, 32, 3)


def test_answers_written_by_hand() -> None:
    problem = by_hand()
    assert problem.answer == "blue small"
    assert problem.candidates == ("red small", "green small", "blue small", "yellow small", "purple small")
    assert problem.prompt == "fill the gap in the pattern"
    assert problem.steps == 1
    sizes = instance(True, list(COLOURS).index("yellow"), (2, 0), gap=8, size=3)
    assert sizes.answer == "yellow bar"
    assert sizes.candidates == ("yellow small", "yellow square", "yellow bar")


@pytest.mark.parametrize("size", ALL_SIZES)
def test_one_symbol_alone_fits_and_it_is_the_answer(size: int) -> None:
    for problem in sampled(size):
        first, last = (read(problem.video[t], size).ravel() for t in (0, -1))
        assert fillings([NAMES[code] for code in first]) == {problem.answer}
        (gap,) = np.flatnonzero(first == GAP)
        assert NAMES[last[gap]] == problem.answer
        assert problem.answer in problem.candidates
        np.testing.assert_array_equal(np.delete(first, gap), np.delete(last, gap))


@pytest.mark.parametrize("size", ALL_SIZES)
def test_every_kind_of_sequence_is_drawn(size: int) -> None:
    scenes = Pattern(size).draw(np.random.default_rng(0), 2000)
    seen = set(zip(scenes["by_size"].tolist(), scenes["period"].tolist(), strict=True))
    assert seen == {(False, 2), (False, 3), (False, 4), (True, 2), (True, 3)}
    for by_size, period, symbols in zip(scenes["by_size"], scenes["period"], scenes["symbols"].tolist(), strict=True):
        held = symbols[:period]
        assert len(set(held)) == period
        assert set(held) <= set(range(3 if by_size else 5))
        assert symbols[period:] == [-1] * (4 - period)


# Pairs.


@pytest.mark.parametrize("size", ALL_SIZES)
@pytest.mark.parametrize("kind", ["symbol", "gap"])
def test_pairs_differ_in_one_variable_and_in_their_answers(kind: str, size: int) -> None:
    task = Pattern(size)
    for pair in task.pairs(25, seed=2, kind=kind):
        assert pair.variable == task.kinds[kind]
        assert pair.original.answer != pair.counterfactual.answer
        assert {pair.original.answer, pair.counterfactual.answer} <= set(pair.original.candidates)
        assert pair.original.candidates == pair.counterfactual.candidates
        assert pair.original.prompt == pair.counterfactual.prompt
        assert (pair.original.video[0] != pair.counterfactual.video[0]).any()
        first = read(pair.counterfactual.video[0], size).ravel()
        assert fillings([NAMES[code] for code in first]) == {pair.counterfactual.answer}


def test_the_default_kind_changes_the_symbol() -> None:
    assert Pattern().pair(3).variable == "symbols"


def test_the_new_symbol_was_not_in_the_period() -> None:
    for pair in Pattern().pairs(40, kind="symbol"):
        old, new = (side.variables["symbols"] for side in pair)
        (changed,) = np.flatnonzero(old != new)
        assert changed == pair.original.variables["gap"] % pair.original.variables["period"]
        assert new[changed] not in old


def test_a_period_of_all_three_sizes_has_no_other_symbol() -> None:
    task, rng = Pattern(), np.random.default_rng(0)
    scenes = task.draw(rng, 500)
    full = scenes["by_size"] & (scenes["period"] == 3)
    _, possible = task.vary(scenes, "symbol", rng)
    np.testing.assert_array_equal(possible, ~full)
    assert 0 < full.sum() < 500
    assert task.vary(scenes, "gap", rng)[1].all()


def test_every_other_symbol_and_every_other_gap_is_drawn() -> None:
    task, many = Pattern(), concatenate([by_hand().scene] * 300)
    symbols, _ = task.vary(many, "symbol", np.random.default_rng(0))
    assert {tuple(row) for row in symbols["symbols"].tolist()} == {(0, 1, 3, -1), (0, 1, 4, -1)}
    gaps, _ = task.vary(many, "gap", np.random.default_rng(0))
    assert set(gaps["gap"].tolist()) == set(range(16)) - {2, 5, 8, 11, 14}


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(TaskError, match="'colour'; one of symbol, gap"):
        Pattern().pair(kind="colour")


# Splits and seeds.


def picture(problem: PuzzleInstance) -> bytes:
    return bytes(problem.video[0])


@pytest.mark.parametrize("size", [3, 4])
def test_splits_share_no_picture(size: int) -> None:
    train, val, test = (
        {picture(problem) for problem in Pattern(size).sample(300, split=split)} for split in ("train", "val", "test")
    )
    assert not train & val
    assert not train & test
    assert not val & test


def test_both_sides_of_a_pair_are_of_its_split() -> None:
    task = Pattern()
    for kind in task.kinds:
        for pair in task.pairs(20, kind=kind, split="val"):
            assert all(task.in_split(side.scene, "val")[0] for side in pair)


def test_seeds_are_reproducible() -> None:
    one, same, other = ([p.id for p in Pattern().sample(10, seed)] for seed in (5, 5, 6))
    assert one == same != other
    ids = [[(p.original.id, p.counterfactual.id) for p in Pattern().pairs(5, seed, "gap")] for seed in (5, 5, 6)]
    assert ids[0] == ids[1] != ids[2]


# Labels.


def test_labels_of_the_scene_written_by_hand() -> None:
    """Three latent frames: pixel frame 0, frames 1 to 4, in the last of which the gap is filled, and frames 5 to 8."""
    found = by_hand().task.labels([by_hand()], latent_frames=3)
    cell = np.zeros((4, 4), dtype=bool)
    cell[1, 1] = True
    names = np.array(BEFORE)

    def frames(*wanted: Any) -> np.ndarray:
        return np.array([wanted])

    nowhere = np.zeros((4, 4), dtype=bool)
    expected = {
        "gap": frames(cell, cell, nowhere),
        "red": frames(*[names == RED] * 3),
        "green": frames(*[names == GREEN] * 3),
        "blue": frames(names == BLUE, (names == BLUE) | cell, (names == BLUE) | cell),
        "yellow": frames(*[nowhere] * 3),
        "purple": frames(*[nowhere] * 3),
        "small": frames(~cell, ~nowhere, ~nowhere),
        "square": frames(*[nowhere] * 3),
        "bar": frames(*[nowhere] * 3),
        "answer": frames(*[cell] * 3),
        "phase": frames(*[[[0.0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2], [0, 1, 2, 0]]] * 3),
        **{f"answer_{name}": frames(*[cell] * 3) for name in ("blue", "small")},
        **{f"answer_{name}": frames(*[nowhere] * 3) for name in (*COLOURS, *SIZES) if name not in ("blue", "small")},
    }
    assert set(found) == set(expected)
    for name, label in found.items():
        np.testing.assert_array_equal(label.values, expected[name], err_msg=name)
    reasoning = {name for name, label in found.items() if label.role == "reasoning"}
    assert reasoning == {"phase", "answer"} | {name for name in expected if name.startswith("answer_")}
    assert [name for name, label in found.items() if label.is_regression] == ["phase"]


def test_answer_labels_name_the_answer() -> None:
    problems = sampled(5)
    found = Pattern(5).labels(problems, latent_frames=3)
    for b, problem in enumerate(problems):
        named = [name for name in (*COLOURS, *SIZES) if found[f"answer_{name}"].values[b].any()]
        assert " ".join(named) == problem.answer


# Scores.


def edited(problem: PuzzleInstance, glyph: int, frames: slice) -> Codes:
    """The true video with another glyph in the gap's cell in some frames."""
    codes = codes_of(problem)
    codes.reshape(len(codes), -1)[frames, problem.variables["gap"]] = glyph
    return codes


def other(problem: PuzzleInstance, colour: bool, size: bool) -> int:
    """A symbol whose colour, size or both are wrong."""
    parts = str(problem.answer).split()
    for i, (wrong, names) in enumerate(((colour, tuple(COLOURS)), (size, SIZES))):
        if wrong:
            parts[i] = names[names.index(parts[i]) - 1]
    return NUMBER[" ".join(parts)]


def right(problem: PuzzleInstance) -> int:
    return NUMBER[str(problem.answer)]


def displaced(problem: PuzzleInstance, frames: slice) -> Codes:
    """The true video with floor in one cell beside the gap."""
    codes = codes_of(problem)
    codes.reshape(len(codes), -1)[frames, problem.variables["gap"] - 1] = FLOOR
    return codes


LATE = slice(4, None)
#: What is broken, in which rule, and what the rule falls to: nine frames have eight transitions.
MUTATIONS: dict[str, tuple[Callable[[PuzzleInstance], Codes], str, Callable[[int], float]]] = {
    "wrong colour": (lambda p: edited(p, other(p, True, False), LATE), "symbol", lambda n: 0.5),
    "wrong size": (lambda p: edited(p, other(p, False, True), LATE), "symbol", lambda n: 0.5),
    "both wrong": (lambda p: edited(p, other(p, True, True), LATE), "symbol", lambda n: 0.0),
    "a gap again": (lambda p: edited(p, GAP, slice(6, 7)), "settled", lambda n: 7 / 8),
    "another symbol first": (lambda p: edited(p, other(p, True, False), slice(4, 6)), "settled", lambda n: 7 / 8),
    "another symbol between": (lambda p: edited(p, other(p, False, True), slice(6, 7)), "settled", lambda n: 6 / 8),
    "no symbol between": (lambda p: edited(p, NUMBER["red circle"], slice(2, 3)), "settled", lambda n: 6 / 8),
    "floor at first": (lambda p: edited(p, FLOOR, slice(1)), "settled", lambda n: 7 / 8),
    "a cell once": (lambda p: displaced(p, slice(6, 7)), "kept", lambda n: 1 - 1 / (8 * (n * n - 1))),
    "a cell at the end": (lambda p: displaced(p, slice(8, 9)), "kept", lambda n: 1 - 1 / (8 * (n * n - 1))),
    "a cell throughout": (lambda p: displaced(p, slice(9)), "kept", lambda n: 1 - 1 / (n * n - 1)),
}


@pytest.mark.parametrize("size", [3, 4, 5])
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_rule_costs_what_it_is_worth(mutation: str, size: int) -> None:
    mutate, rule, value = MUTATIONS[mutation]
    for problem in sampled(size)[:10]:
        rules, total = scores(problem, mutate(problem))
        expected = {name: 1.0 for name in Pattern.weights} | {rule: value(size)}
        assert rules == pytest.approx(expected, abs=1e-12)
        assert total == pytest.approx(1 - Pattern.weights[rule] * (1 - value(size)), abs=1e-12)
        assert not problem.task.score(paint(mutate(problem), problem.task.side)[None], problem).strict[0]


@pytest.mark.parametrize("frame", range(1, 9))
def test_the_gap_may_be_filled_at_any_time(frame: int) -> None:
    codes = edited(by_hand(), GAP, slice(frame))
    codes[frame:, 1, 1] = right(by_hand())
    found = by_hand().task.score(paint(codes)[None], by_hand())
    assert found.strict[0]
    assert found.total[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("glyph", [GAP, FLOOR, NUMBER["blue circle"]])
def test_a_video_that_ends_without_a_symbol_has_filled_nothing(glyph: int) -> None:
    rules, total = scores(by_hand(), edited(by_hand(), glyph, slice(8, 9)))
    assert rules == {"symbol": 0.0, "settled": 0.0, "kept": 1.0}
    assert total == pytest.approx(0.1)


def test_an_unreadable_end_has_filled_nothing() -> None:
    video = by_hand().video.copy()
    video[-1, 8:16, 8:16] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    rules = by_hand().task.score(video[None], by_hand()).rules
    assert {rule: values[0] for rule, values in rules.items()} == {"symbol": 0.0, "settled": 0.0, "kept": 1.0}


def test_a_symbol_that_was_there_at_first_was_not_filled_in() -> None:
    rules, _ = scores(by_hand(), edited(by_hand(), right(by_hand()), slice(9)))
    assert rules == {"symbol": 1.0, "settled": 0.0, "kept": 1.0}


@pytest.mark.parametrize("size", [3, 4, 5])
def test_floors(size: int) -> None:
    table = Pattern(size).floors(40).set_index(["video", "kind"])
    total, strict = table["total"].to_dict(), table["strict"].to_dict()
    assert total["truth", ""] == pytest.approx(1, abs=1e-12)
    assert total["frozen", ""] == pytest.approx(0.1, abs=1e-12)
    assert total["noise", ""] == 0
    # The other side of a pair of kind "gap" shows the original's symbol from the start, and its own gap in the frames 1
    # to 3: the whole of *symbol*, nothing of *settled*.
    assert total["counterfactual", "gap"] == pytest.approx(0.6 + 0.1 * (1 - 3 / (8 * (size**2 - 1))), abs=1e-12)
    # The other side of kind "symbol" has one attribute right, fills its gap, and differs in other cells.
    assert 0.6 < total["counterfactual", "symbol"] < 0.7
    assert {key for key, share in strict.items() if share} == {("truth", "")}


@pytest.mark.parametrize("size", ALL_SIZES)
def test_the_truth_is_strict(size: int) -> None:
    task = Pattern(size)
    assert task.score(task.render(sampled(size)), sampled(size)).strict.all()


@settings(max_examples=30, deadline=None)
@given(npst.arrays(np.uint8, (1, 9, 32, 32, 3), elements=st.integers(0, 255), fill=st.integers(0, 255)))
def test_any_video_has_a_score(video: np.ndarray) -> None:
    found = by_hand().task.score(video, by_hand())
    assert all(0 <= values[0] <= 1 for values in found.rules.values())


@settings(max_examples=60, deadline=None)
@given(npst.arrays(np.int64, (9, 4, 4), elements=st.integers(0, len(NAMES) - 1)))
def test_any_video_of_glyphs_has_a_score(codes: Codes) -> None:
    rules, total = scores(by_hand(), codes)
    assert all(0 <= value <= 1 for value in rules.values())
    assert 0 <= total <= 1


def test_scores_of_many_are_the_scores_of_each() -> None:
    problems = sampled(4)
    task, shift = Pattern(), 7
    videos = task.render([*problems[shift:], *problems[:shift]])
    together = task.score(videos, problems)
    for rule, values in together.rules.items():
        alone = [task.score(v[None], p).rules[rule][0] for v, p in zip(videos, problems, strict=True)]
        np.testing.assert_array_equal(values, alone)


# Bad input.


@pytest.mark.parametrize("size", [2, 17])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(TaskError, match="size must be 3 to 16"):
        Pattern(size)


@pytest.mark.parametrize("frames", [1, 8])
def test_other_lengths_are_refused(frames: int) -> None:
    with pytest.raises(TaskError, match="frames must be 1 \\+ 4 k"):
        Pattern(frames=frames)


def test_videos_of_another_length_or_picture_are_refused() -> None:
    for video in (by_hand().video[None, :8], by_hand().video[None, :, :16], by_hand().video):
        with pytest.raises(TaskError, match=r"expected uint8 videos of shape \(\d+, 9, 32, 32, 3\)"):
            by_hand().task.score(video, by_hand())


@pytest.mark.parametrize("frames", [5, 13])
def test_other_lengths_are_solved_from_the_middle_on(frames: int) -> None:
    task = Pattern(frames=frames)
    (problem,) = task.sample(1)
    codes = codes_of(problem).reshape(frames, -1)[:, problem.variables["gap"]]
    assert codes.tolist() == [GAP] * (frames // 2) + [right(problem)] * (frames - frames // 2)
    assert task.score(problem.video[None], problem).strict[0]


def test_take_keeps_the_arrays() -> None:
    """One scene of many is that scene alone."""
    scenes = Pattern().draw(np.random.default_rng(0), 5)
    np.testing.assert_array_equal(Pattern().codes(take(scenes, slice(3, 4)))[0], Pattern().codes(scenes)[3])
