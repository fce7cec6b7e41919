"""The two probes against scikit-learn's own estimators, and as scikit-learn's estimators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dit_lens.errors import EvidenceError
from dit_lens.probing.fit.estimators import LinearProbe, RidgeProbe

RNG = np.random.default_rng(0)


@parametrize_with_checks([LinearProbe(), RidgeProbe()])
def test_probes_are_scikit_learn_estimators(estimator: object, check: object) -> None:
    check(estimator)  # type: ignore[operator]


def classes(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal scales around 4, and three classes of unequal size in them."""
    y = RNG.choice(3, size=count, p=[0.7, 0.2, 0.1])
    X = RNG.normal(size=(count, 5)) + np.eye(5)[y]
    return X * [1, 10, 0.1, 3, 2] + 4, np.array(["red", "green", "blue"])[y]


def test_logistic_probe_equals_logistic_regression_on_standardised_features() -> None:
    X, y = classes()
    for target in (y, y == "red"):
        model = LogisticRegression(C=1 / (0.01 * len(X)), class_weight="balanced", max_iter=1000)
        reference = make_pipeline(StandardScaler(), model).fit(X, target)
        probe = LinearProbe(alpha=0.01).fit(X, target)
        np.testing.assert_allclose(probe.predict_proba(X), reference.predict_proba(X), atol=1e-9)
        assert (probe.predict(X) == reference.predict(X)).all()
        assert (probe.classes_ == reference.classes_).all()
        assert probe.score(X, target) == reference.score(X, target)


def test_logistic_coefficients_are_in_raw_units() -> None:
    X, y = classes()
    probe = LinearProbe().fit(X, y)
    assert probe.coef_.shape == (3, 5)
    np.testing.assert_allclose(X @ probe.coef_.T + probe.intercept_, probe.decision_function(X))
    scaled = LinearProbe().fit(X * 100, y)
    np.testing.assert_allclose(scaled.coef_ * 100, probe.coef_, rtol=1e-4, atol=1e-6)


def test_logistic_probe_does_not_drown_rare_classes() -> None:
    y = RNG.random(600) < 0.05
    X = RNG.normal(size=(600, 3)) + 1.5 * y[:, None]
    assert LinearProbe().fit(X, y).predict(X)[y].mean() > 0.8
    assert LinearProbe(class_weight=None).fit(X, y).predict(X)[y].mean() < 0.8


def test_one_class_is_refused() -> None:
    with pytest.raises(EvidenceError, match=r"one class only.*7"):
        LinearProbe().fit(np.eye(4), np.full(4, 7))


def test_regression_equals_ridge_on_standardised_features() -> None:
    X, y = RNG.normal(size=(200, 5)) * [1, 10, 0.1, 3, 2] + 4, RNG.normal(size=200)
    standard = (X - X.mean(0)) / X.std(0)
    ridge = Ridge(alpha=0.01 * 200).fit(standard, y)
    np.testing.assert_allclose(RidgeProbe(alpha=0.01).fit(X, y).predict(X), ridge.predict(standard), atol=1e-9)


def test_two_classes_are_told_apart_as_by_discriminant_analysis_with_equal_priors() -> None:
    y = RNG.random(400) < 0.2
    X = RNG.normal(size=(400, 4)) + y[:, None] * [1.0, 0.5, 0, 0]
    lda = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(X, y)
    assert (RidgeProbe(alpha=0.0).fit(X, y.astype(float)).predict(X) == lda.predict(X)).mean() > 0.99


def test_two_values_come_back_as_they_are() -> None:
    X = RNG.normal(size=(50, 3))
    y = np.where(X[:, 0] > 0, 5.0, 2.0)
    assert set(RidgeProbe().fit(X, y).predict(X)) == {2.0, 5.0}


def test_many_targets_at_once_equal_each_alone() -> None:
    X, Y = RNG.normal(size=(100, 6)), RNG.normal(size=(100, 3))
    Y[:, 0] = Y[:, 0] > 0
    probe = RidgeProbe().fit(X, Y)
    assert probe.coef_.shape == (3, 6)
    for k in range(3):
        np.testing.assert_allclose(probe.predict(X)[:, k], RidgeProbe().fit(X, Y[:, k]).predict(X), atol=1e-9)


@pytest.mark.parametrize("probe", [LinearProbe(), RidgeProbe()])
def test_a_constant_feature_is_harmless(probe: LinearProbe | RidgeProbe) -> None:
    X = np.column_stack([RNG.normal(size=50), np.full(50, 0.1)])
    probe.fit(X, (X[:, 0] > 0).astype(int))
    assert np.isfinite(probe.coef_).all()
    assert (probe.predict(X) == (X[:, 0] > 0)).mean() > 0.8


@pytest.mark.parametrize("probe", [LinearProbe(), RidgeProbe()])
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15])
def test_what_is_constant_is_told_by_the_features_own_scale(probe: LinearProbe | RidgeProbe, scale: float) -> None:
    X = RNG.normal(size=(50, 2))
    X[:, 1] = 1e9 * (1 + np.finfo(float).eps * np.sign(X[:, 1]))  # rounding alone, though it is far from 0
    y = (X[:, 0] > 0).astype(int)
    probe.fit(X * scale, y)
    assert (probe.predict(X * scale) == y).mean() > 0.8
    assert probe.coef_.ravel()[0] != 0 == probe.coef_.ravel()[1]
