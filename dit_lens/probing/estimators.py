"""The linear probe: many targets from one design matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge
from sklearn.utils.validation import check_is_fitted, validate_data

Floats = NDArray[np.float64]


class LinearProbe(BaseEstimator):  # type: ignore[misc]
    """Ridge regression to several targets at once, on standardised features.

    For a two-class target the direction is that of linear discriminant analysis; the threshold lies halfway between the
    two classes' mean scores on the training rows, so that rare classes are not drowned.

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
    """

    def __init__(self, alpha: float = 1e-3) -> None:
        self.alpha = alpha

    def fit(self, X: ArrayLike, y: ArrayLike) -> LinearProbe:
        """Fit to X of shape (n_samples, n_features) and y of shape (n_samples, n_targets) or (n_samples,)."""
        features, targets = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        targets = targets.reshape(len(features), -1)
        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale[scale < 1e-12] = 1.0
        ridge = Ridge(alpha=self.alpha * len(features), solver="cholesky").fit((features - mean) / scale, targets)
        self.coef_ = np.atleast_2d(ridge.coef_) / scale
        self.intercept_ = np.atleast_1d(ridge.intercept_) - self.coef_ @ mean
        scores = self.decision_function(features)
        self.threshold_ = np.array([_midpoint(s, y) for s, y in zip(scores.T, targets.T, strict=True)])
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Linear scores of shape (n_samples, n_targets)."""
        check_is_fitted(self, "coef_")
        features = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(features @ self.coef_.T + self.intercept_)

    def predict(self, X: ArrayLike) -> Floats:
        """Classes (0 or 1) of two-valued targets, values of the others: shape (n_samples, n_targets)."""
        scores = self.decision_function(X)
        return np.where(np.isnan(self.threshold_), scores, scores > self.threshold_)


def _midpoint(scores: Floats, target: NDArray[Any]) -> float:
    """Halfway between the mean scores of the two classes; NaN where there are not two."""
    values = np.unique(target)
    if len(values) != 2:
        return float("nan")
    return float((scores[target == values[0]].mean() + scores[target == values[1]].mean()) / 2)
