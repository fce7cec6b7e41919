"""Scores as sums over groups, against scores of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score

from dit_lens.probing.fit.scores import GroupedScores, scores_by_group

RNG = np.random.default_rng(0)
GROUPS, ONE = np.repeat(np.arange(6), 10), np.ones((1, 6))


def of_rows(
    target: NDArray[Any], answer: NDArray[Any], groups: NDArray[Any], regression: bool, count: int, classes: int = 2
) -> GroupedScores:
    """Scores of one probe, whose runs are of one row each."""
    return scores_by_group(target[:, None], answer[None, :, None], groups, regression, count, classes)[0]


@pytest.mark.parametrize("classes", [None, 2, 4])
def test_skill_is_one_for_truth_and_zero_for_a_constant(classes: int | None) -> None:
    target = RNG.normal(size=60) if classes is None else RNG.integers(0, classes, 60)
    constant = np.full(60, target.mean() if classes is None else 0)
    for answer, skill in ((target, 1), (constant, 0)):
        scores = of_rows(target, answer, GROUPS, classes is None, 6, classes or 2)
        assert scores.skill(ONE)[0] == pytest.approx(skill)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_skill_is_scikit_learns_balanced_accuracy_rescaled(classes: int) -> None:
    target = RNG.choice(classes, 60, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    guess = np.where(RNG.random(60) < 0.6, target, RNG.integers(0, classes, 60))
    scores = of_rows(target, guess, GROUPS, False, 6, classes)
    assert scores.skill(ONE)[0] == pytest.approx(balanced_accuracy_score(target, guess, adjusted=True))
    assert scores.accuracy(ONE)[0] == pytest.approx(accuracy_score(target, guess))
    assert scores.majority(ONE)[0] == pytest.approx(np.bincount(target).max() / 60)
    np.testing.assert_array_equal(scores.rows, np.bincount(target, minlength=classes))


def test_skill_of_a_regression_is_r_squared() -> None:
    target = RNG.normal(size=60) + 3
    guess = target + RNG.normal(size=60) / 2
    scores = of_rows(target, guess, GROUPS, True, 6)
    assert scores.skill(ONE)[0] == pytest.approx(r2_score(target, guess))
    assert np.isnan(scores.accuracy(ONE)[0])
    assert scores.rows.tolist() == [60]


@pytest.mark.parametrize("classes", [2, 3])
def test_skill_under_weights_equals_skill_of_the_repeated_rows(classes: int) -> None:
    target, guess = RNG.integers(0, classes, 60), RNG.integers(0, classes, 60)
    weights = np.array([[2.0, 0, 1, 1, 3, 0]])
    rows = np.repeat(np.arange(60), weights[0].astype(int).repeat(10))
    scores = of_rows(target, guess, GROUPS, False, 6, classes)
    expected = balanced_accuracy_score(target[rows], guess[rows], adjusted=True)
    assert scores.skill(weights)[0] == pytest.approx(expected)


def test_a_class_that_a_replicate_does_not_draw_is_left_out_there() -> None:
    target = np.repeat([0, 0, 1, 1, 2, 2], 10)
    guess = np.roll(target, 3)
    scores = of_rows(target, guess, GROUPS, False, 6, 3)
    only_two = scores.skill(np.array([[1.0, 1, 1, 1, 0, 0]]))[0]
    assert only_two == pytest.approx(np.mean([(guess[target == c] == c).mean() for c in (0, 1)]) * 2 - 1)
    assert np.isnan(scores.skill(np.array([[1.0, 1, 0, 0, 0, 0]]))[0])


def test_unlabelled_rows_do_not_count() -> None:
    target, guess = RNG.integers(0, 3, 60), RNG.integers(0, 3, 60)
    gaps = np.where(np.arange(60) % 4 == 0, -1, target)
    kept = gaps >= 0
    scores = of_rows(gaps, guess, GROUPS, False, 6, 3)
    assert scores.accuracy(ONE)[0] == pytest.approx((target == guess)[kept].mean())
    values, answers = RNG.normal(size=(2, 60))
    values[5:20] = np.nan
    known = ~np.isnan(values)
    skill = of_rows(values, answers, GROUPS, True, 6).skill(ONE)[0]
    assert skill == pytest.approx(r2_score(values[known], answers[known]))


def test_runs_of_the_same_group_are_added_up() -> None:
    target, guess = RNG.integers(0, 2, (12, 5)), RNG.integers(0, 2, (3, 12, 5))
    groups = np.arange(12) % 6
    for probe, scores in enumerate(scores_by_group(target, guess, groups, False, 6)):
        alone = of_rows(target.ravel(), guess[probe].ravel(), np.repeat(groups, 5), False, 6)
        np.testing.assert_array_equal(scores.sums, alone.sums)
