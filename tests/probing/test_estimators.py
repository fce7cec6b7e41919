"""The linear probe against scikit-learn's own estimators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from dit_lens.probing import LinearProbe
from dit_lens.probing.scores import grouped_scores

RNG = np.random.default_rng(0)


@parametrize_with_checks([LinearProbe()])
def test_linear_probe_is_a_scikit_learn_estimator(estimator: LinearProbe, check: object) -> None:
    check(estimator)  # type: ignore[operator]


def test_regression_equals_ridge_on_standardised_features() -> None:
    X, y = RNG.normal(size=(200, 5)) * [1, 10, 0.1, 3, 2] + 4, RNG.normal(size=200)
    standard = (X - X.mean(0)) / X.std(0)
    ridge = Ridge(alpha=0.01 * 200).fit(standard, y)
    np.testing.assert_allclose(LinearProbe(alpha=0.01).fit(X, y).predict(X).ravel(), ridge.predict(standard), atol=1e-9)


def test_two_classes_are_told_apart_as_by_discriminant_analysis_with_equal_priors() -> None:
    y = RNG.random(400) < 0.2
    X = RNG.normal(size=(400, 4)) + y[:, None] * [1.0, 0.5, 0, 0]
    lda = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(X, y)
    probe = LinearProbe(alpha=0.0).fit(X, y.astype(float))
    assert (probe.predict(X).ravel() == lda.predict(X)).mean() > 0.99


def test_many_targets_at_once_equal_each_alone() -> None:
    X, Y = RNG.normal(size=(100, 6)), RNG.normal(size=(100, 3))
    Y[:, 0] = Y[:, 0] > 0
    together = LinearProbe().fit(X, Y).predict(X)
    for k in range(3):
        np.testing.assert_allclose(together[:, k], LinearProbe().fit(X, Y[:, k]).predict(X).ravel(), atol=1e-9)


def test_a_constant_feature_is_harmless() -> None:
    X = np.column_stack([RNG.normal(size=50), np.ones(50)])
    assert np.isfinite(LinearProbe().fit(X, X[:, 0]).predict(X)).all()


@pytest.mark.parametrize("regression", [False, True])
def test_skill_is_one_for_truth_and_zero_for_a_constant(regression: bool) -> None:
    target = RNG.normal(size=60) if regression else (RNG.random(60) < 0.3).astype(float)
    groups, one = np.repeat(np.arange(6), 10), np.ones((1, 6))
    constant = np.full(60, target.mean() if regression else 0.0)
    assert grouped_scores(target, target, groups, regression, 6).skill(one)[0] == pytest.approx(1)
    assert grouped_scores(target, constant, groups, regression, 6).skill(one)[0] == pytest.approx(0)


def test_skill_under_weights_equals_skill_of_the_repeated_rows() -> None:
    target, guess = RNG.random(60) < 0.4, RNG.random(60) < 0.5
    groups, weights = np.repeat(np.arange(6), 10), np.array([[2.0, 0, 1, 1, 3, 0]])
    rows = np.repeat(np.arange(60), weights[0].astype(int).repeat(10))
    weighted = grouped_scores(target * 1.0, guess * 1.0, groups, False, 6).skill(weights)[0]
    hit = [(guess[rows] == target[rows])[target[rows] == c].mean() for c in (True, False)]
    assert weighted == pytest.approx(sum(hit) - 1)
