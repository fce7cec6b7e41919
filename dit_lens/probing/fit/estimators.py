"""The two linear probes as scikit-learn estimators: logistic classes, and ridge regression to several targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from dit_lens.errors import EvidenceError
from dit_lens.probing.fit.moments import CONSTANT
from dit_lens.results.arrays import Floats


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression to two or more classes (multinomial), on standardised features.

    Parameters
    ----------
    alpha : float
        Penalty in units of the number of rows, as in `RidgeProbe`: scikit-learn's C is ``1 / (alpha * n_samples)``.
    class_weight : "balanced", dict or None
        By default every class weighs the same, however rare it is.
    max_iter : int
        Iterations of L-BFGS.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    coef_ : array of shape (n_classes, n_features), or (1, n_features) for two classes
        In units of the raw features.
    intercept_ : array of shape (n_classes,) or (1,)
    """

    def __init__(self, alpha: float = 1e-3, class_weight: Any = "balanced", max_iter: int = 1000) -> None:
        self.alpha = alpha
        self.class_weight = class_weight
        self.max_iter = max_iter

    def fit(self, X: ArrayLike, y: ArrayLike) -> LinearProbe:
        """Fit to X of shape (n_samples, n_features) and classes y of shape (n_samples,).

        Raises
        ------
        EvidenceError
            One class only, or an alpha that is not above 0.
        """
        if not 0 < self.alpha < np.inf:
            raise EvidenceError(f"alpha must be a number above 0, got {self.alpha}")
        features, target = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(target)
        if len(np.unique(target)) < 2:
            raise EvidenceError(f"a probe needs two classes, the data holds one class only: {target[0]!r}")
        mean, scale = _standard(features)
        model = LogisticRegression(
            C=1 / (self.alpha * len(features)), class_weight=self.class_weight, max_iter=self.max_iter
        ).fit((features - mean) / scale, target)
        self.classes_ = model.classes_
        self.coef_ = model.coef_ / scale
        self.intercept_ = model.intercept_ - self.coef_ @ mean
        self.n_iter_ = model.n_iter_
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Logits of shape (n_samples, n_classes); of two classes those of the second, (n_samples,)."""
        check_is_fitted(self, "coef_")
        features = validate_data(self, X, dtype=np.float64, reset=False)
        scores = features @ self.coef_.T + self.intercept_
        return np.asarray(scores[:, 0] if len(self.classes_) == 2 else scores)

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities of shape (n_samples, n_classes)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest class of each row: shape (n_samples,)."""
        scores = self.decision_function(X)
        best = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[best])


class RidgeProbe(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Ridge regression to several targets at once, on standardised features; classes by least squares.

    For a two-valued target the direction is that of linear discriminant analysis; the threshold lies halfway between
    the two classes' mean scores on the training rows, so that rare classes are not drowned.

    Parameters
    ----------
    alpha : float
        Ridge penalty, in units of the number of training rows: ``alpha * n_samples`` is added to the standardised Gram
        matrix's diagonal.

    Attributes
    ----------
    coef_ : array of shape (n_targets, n_features)
        In units of the raw features.
    intercept_, threshold_ : arrays of shape (n_targets,)
        ``threshold_`` is NaN for targets that are not two-valued.
    values_ : array of shape (n_targets, 2)
        The two values of two-valued targets, NaN for the others.
    """

    def __init__(self, alpha: float = 1e-3) -> None:
        self.alpha = alpha

    def fit(self, X: ArrayLike, y: ArrayLike) -> RidgeProbe:
        """Fit to X of shape (n_samples, n_features) and y of shape (n_samples, n_targets) or (n_samples,)."""
        features, targets = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        self._single = targets.ndim == 1
        targets = targets.reshape(len(features), -1)
        mean, scale = _standard(features)
        ridge = Ridge(alpha=self.alpha * len(features), solver="cholesky").fit((features - mean) / scale, targets)
        self.coef_ = ridge.coef_.reshape(targets.shape[1], -1) / scale
        self.intercept_ = np.atleast_1d(ridge.intercept_) - self.coef_ @ mean
        scores = features @ self.coef_.T + self.intercept_
        self.values_ = np.array([_two_values(y) for y in targets.T])
        self.threshold_ = np.array([_midpoint(*given) for given in zip(scores.T, targets.T, self.values_, strict=True)])
        return self

    def linear_scores(self, X: ArrayLike) -> Floats:
        """Linear scores of shape (n_samples, n_targets), or (n_samples,) where y was."""
        check_is_fitted(self, "coef_")
        features = validate_data(self, X, dtype=np.float64, reset=False)
        scores = np.asarray(features @ self.coef_.T + self.intercept_)
        return scores[:, 0] if self._single else scores

    def predict(self, X: ArrayLike) -> Floats:
        """One of the two values of two-valued targets, values of the others: shaped as y was."""
        scores = self.linear_scores(X)
        low, high, threshold = (x[0] if self._single else x for x in (*self.values_.T, self.threshold_))
        return np.where(np.isnan(threshold), scores, np.where(scores > threshold, high, low))


def _standard(features: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each feature, infinite for the constant ones: their coefficients become 0."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale <= CONSTANT * np.abs(features).max(axis=0)] = np.inf
    return mean, scale


def _two_values(target: Floats) -> Floats:
    values = np.unique(target)
    return values if len(values) == 2 else np.full(2, np.nan)


def _midpoint(scores: Floats, target: Floats, values: Floats) -> float:
    """Halfway between the mean scores of the two classes; NaN where there are not two."""
    if np.isnan(values).any():
        return float("nan")
    return float((scores[target == values[0]].mean() + scores[target == values[1]].mean()) / 2)
