"""Accumulated moments against scikit-learn's Ridge on the rows themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from dit_lens.errors import EvidenceError
from dit_lens.probing.fit.moments import CONSTANT, Linear, Moments, complements

PLACES, ROWS, WIDTH = 3, 120, 7


def made(seed: int = 0, mean: float = 0.0, targets: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (P, n, D) of unequal scales around ``mean``, and targets (n, K) that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(PLACES, ROWS, WIDTH)) * [1, 3, 0.1, 1, 10, 1, 0.5] + mean
    y = (x[0] - mean) @ rng.normal(size=(WIDTH, targets)) + rng.normal(size=(ROWS, targets))
    return torch.from_numpy(x), torch.from_numpy(y)


def filled(x: torch.Tensor, y: torch.Tensor, batches: int = 1, **options: Any) -> Moments:
    moments = Moments.zeros(len(x), x.shape[-1], y.shape[-1], **options)
    for part in torch.arange(x.shape[1]).chunk(batches):
        moments.add(x[:, part], y[..., part, :])
    return moments


def ridge(x: torch.Tensor, y: torch.Tensor, alpha: float, standardize: bool) -> np.ndarray:
    """Predictions (n, K) of scikit-learn at one place, on the rows it was fitted to."""
    X = x.double().numpy()
    X = X[:, X.std(axis=0) > CONSTANT * np.abs(X).max(axis=0)]
    if not X.shape[1]:
        return np.broadcast_to(y.numpy().mean(axis=0), y.shape)
    if standardize:
        X = (X - X.mean(axis=0)) / X.std(axis=0)
    return np.asarray(Ridge(alpha=alpha * len(X), solver="cholesky").fit(X, y.numpy()).predict(X))


def assert_same_fit(linear: Linear, x: torch.Tensor, y: torch.Tensor, alpha: float, standardize: bool) -> None:
    for place, fitted in enumerate(linear(x.double())):
        np.testing.assert_allclose(fitted, ridge(x[place], y, alpha, standardize), atol=1e-5 * float(y.std()))


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_equals_scikit_learns_ridge(alpha: float, standardize: bool, mean: float) -> None:
    x, y = made(mean=mean)
    assert_same_fit(filled(x, y, batches=7).solve(alpha, standardize), x, y, alpha, standardize)


def test_coefficients_equal_scikit_learns() -> None:
    x, y = made(mean=5.0)
    linear = filled(x, y).solve(0.2, standardize=False)
    expected = Ridge(alpha=0.2 * ROWS).fit(x[1].numpy(), y.numpy())
    np.testing.assert_allclose(linear.coef[1], expected.coef_, atol=1e-9)
    np.testing.assert_allclose(linear.intercept[1], expected.intercept_, atol=1e-8)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_float32_features_and_products_stay_close(mean: float) -> None:
    """What is compared is Ridge on the very values that float32 holds, so that only the sums can differ."""
    x, y = made(mean=mean)
    single = x.float()
    assert_same_fit(filled(single, y, 5).solve(0.01), single, y, 0.01, True)
    assert_same_fit(filled(single, y, 5, product=torch.float32).solve(0.01), single, y, 0.01, True)


def test_a_naive_sum_of_squares_would_fail_where_this_does_not() -> None:
    """The reason for centring: with mean 1e6 the raw Gram matrix in float32 has lost the variance."""
    x, y = made(mean=1e6)
    single = x.float()
    raw = torch.einsum("pnd,pnd->pd", single, single) / ROWS - single.mean(1) ** 2
    truth = single.double().var(1, correction=0)
    kept = filled(single, y, 5, product=torch.float32).gram[:, 0].diagonal(dim1=-2, dim2=-1) / ROWS
    assert ((raw - truth).abs() > truth).any()
    torch.testing.assert_close(kept, truth, rtol=1e-5, atol=1e-5)


def test_bfloat16_features_are_taken_at_their_value() -> None:
    x, y = made()
    half = x.bfloat16()
    assert_same_fit(filled(half, y).solve(0.1), half, y, 0.1, True)


@pytest.mark.parametrize("folds", [2, 3, 4, 5, 7])
def test_complements_are_moments_of_the_rows_of_the_others(folds: int) -> None:
    x, y = made(mean=100.0)
    parts = torch.arange(ROWS).chunk(folds)
    of_folds = [filled(x[:, part], y[part]) for part in parts]
    for part, found in zip(parts, complements(of_folds), strict=True):
        others = torch.tensor([i for i in range(ROWS) if i not in part])
        expected = filled(x[:, others], y[others])
        for name in ("count", "mean", "gram", "target_mean", "cross"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-7, msg=name)
    for part, moments in zip(parts, of_folds, strict=True):  # what was given is as it was
        torch.testing.assert_close(moments.count, torch.full((PLACES, 1), float(len(part)), dtype=torch.float64))


#: What a feature is like in one fold (``here``) and in the others, in units of its scale, from normal noise.
KINDS: dict[str, Callable[[NDArray[Any], NDArray[Any]], Any]] = {
    "varies": lambda noise, here: noise,
    "constant": lambda noise, here: 0 * noise,
    "constant in one fold": lambda noise, here: np.where(here, 0.0, noise),
    "constant in the others": lambda noise, here: np.where(here, noise, 0.0),
    "hardly varies in one fold": lambda noise, here: np.where(here, 1e-6, 1.0) * noise,
    "hardly varies in the others": lambda noise, here: np.where(here, 1.0, 1e-6) * noise,
    "huge in one fold": lambda noise, here: np.where(here, 1e8, 1.0) * noise,
    "one outlier": lambda noise, here: noise + 1e8 * here * (np.cumsum(here) == 1),
    "rounding": lambda noise, here: 1 + np.finfo(float).eps * np.sign(noise),
}
#: Beside what hardly varies an offset leaves too few digits to be right about.
OFFSETS = {kind: [0.0] if "hardly" in kind else [0.0, 1.0, -1e3, 1e6] for kind in KINDS}

feature = st.sampled_from(list(KINDS)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.integers(-40, 40), st.sampled_from(OFFSETS[kind]), st.integers(0, 4))
)


def wild(features: list[Any], fold: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Features (n, D), each a kind, a power of ten, an offset, and the fold that is unlike the others."""
    rng, folds = np.random.default_rng(seed), fold.max() + 1
    columns = [
        10.0**power * (KINDS[kind](rng.normal(size=len(fold)), fold == which % folds) + offset)
        for kind, power, offset, which in features
    ]
    return np.stack(columns, axis=1)


@given(st.lists(feature, min_size=1, max_size=7), st.integers(2, 5), st.booleans(), st.integers(0, 99))
def test_complements_fit_as_two_passes_over_the_rows_do(features: list[Any], folds: int, gaps: bool, seed: int) -> None:
    """Whatever the scales: what is constant, or a million times smaller, in the rows that are left loses no digit."""
    fold = np.arange(30 * folds) % folds
    x = torch.from_numpy(wild(features, fold, seed))
    y = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(len(fold), 3)))
    y[::3, 1] = torch.nan if gaps else 0.5
    parts = [np.flatnonzero(fold == f) for f in range(folds)]
    of_folds = [filled(x[None, part], y[part], batches=2) for part in parts]
    for part, moments in zip(parts, complements(of_folds), strict=True):
        linear, rows = moments.solve(1e-3), np.delete(np.arange(len(fold)), part)
        for k in range(y.shape[1]):
            kept = rows[~y[rows, k].isnan().numpy()]
            expected = ridge(x[kept], y[kept, k], 1e-3, True)
            np.testing.assert_allclose(linear(x[None, kept])[0, :, k], expected, atol=1e-6)


def test_order_and_size_of_batches_do_not_matter() -> None:
    x, y = made(mean=1e3)
    x[:, :60] += 50  # batches with means of their own
    one, many = filled(x, y, 1).solve(0.01), filled(x, y, 40).solve(0.01)
    torch.testing.assert_close(one.coef, many.coef, rtol=1e-8, atol=1e-10)


def test_a_row_without_a_label_is_left_out_for_this_target_only() -> None:
    x, y = made()
    y[::3, 1] = torch.nan
    y[5:40, 3] = torch.nan
    moments = filled(x, y, batches=6)
    linear = moments.solve(0.05)
    assert moments.gram.shape[1] == 3
    assert moments.patterns == (0, 1, 0, 2)
    for k in range(y.shape[1]):
        kept = ~y[:, k].isnan()
        expected = ridge(x[2][kept], y[kept, k], 0.05, True)
        np.testing.assert_allclose(linear(x)[2][kept, k], expected, atol=1e-9)


def test_targets_that_miss_the_same_rows_share_a_gram_matrix() -> None:
    x, y = made()
    y[::4] = torch.nan
    moments = filled(x, y, 3)
    assert moments.gram.shape == (PLACES, 1, WIDTH, WIDTH)
    np.testing.assert_array_equal(moments.count, 90)


def test_missing_rows_survive_sums() -> None:
    x, y = made()
    gaps = y.clone()
    gaps[70:90, 2] = torch.nan
    whole, without, rest = filled(x, gaps), filled(x[:, :60], y[:60]), filled(x[:, 60:], gaps[60:])
    torch.testing.assert_close((without + rest).solve(0.1).coef, whole.solve(0.1).coef)
    torch.testing.assert_close((rest + without).solve(0.1).coef, whole.solve(0.1).coef)


def test_each_place_may_have_targets_of_its_own() -> None:
    x, y = made()
    own = torch.stack([y, -2 * y, y + 1])
    linear = filled(x, own, 3).solve(0.01)
    for place in range(PLACES):
        np.testing.assert_allclose(linear(x)[place], ridge(x[place], own[place], 0.01, True), atol=1e-9)


def test_places_have_the_shape_they_were_given() -> None:
    x, y = made()
    six = torch.stack([x, 2 * x])
    linear = Moments.zeros((2, PLACES), WIDTH, y.shape[1]).add(six, y).solve(0.01)
    assert linear.coef.shape == (2, PLACES, y.shape[1], WIDTH)
    torch.testing.assert_close(linear(six)[0], linear(six)[1])


@pytest.mark.parametrize("product", [torch.float64, torch.float32])
@pytest.mark.parametrize("taken_off", [None, 0.0, 0.1, 1e4])
def test_constant_features_are_harmless_also_where_only_some_folds_vary(
    taken_off: float | None, product: torch.dtype
) -> None:
    x, y = made()
    x[:, :, 2] = 0.1
    x[:, 30:, 4] = 0.3  # constant outside of the first thirty rows
    if product == torch.float32:
        x = x.float().double()
    off = None if taken_off is None else torch.full((PLACES, WIDTH), taken_off, dtype=torch.float64)
    parts = torch.arange(ROWS).chunk(4)
    of_folds = [
        Moments.zeros(PLACES, WIDTH, 4, product=product).add(x[:, part], y[part], taken_off=off) for part in parts
    ]
    rest = next(complements(of_folds))
    for alpha in (0.0, 1e-3):
        linear = rest.solve(alpha)
        assert (linear.coef[:, :, [2, 4]] == 0).all()
        others = [0, 1, 3, 5, 6]
        alone = filled(x[:, 30:, others], y[30:]).solve(alpha)
        exact = product == torch.float64
        torch.testing.assert_close(
            linear.coef[:, :, others], alone.coef, rtol=1e-7 if exact else 1e-3, atol=1e-7 if exact else 1e-4
        )


def test_midpoints_are_those_of_the_rows() -> None:
    x, y = made()
    y = torch.cat([y[:, :2], (y[:, 2:] > 1).double()], dim=1)
    moments = filled(x, y, 4)
    linear = moments.solve(0.1)
    scores = linear(x)
    for k in (2, 3):
        middle = (scores[:, y[:, k] == 1, k].mean(1) + scores[:, y[:, k] == 0, k].mean(1)) / 2
        torch.testing.assert_close(moments.midpoints(linear)[:, k], middle)


def test_bad_rows_are_refused_and_name_their_place() -> None:
    x, y = made()
    x[1, 4, 2], x[1, 5, 2] = torch.nan, torch.inf
    with pytest.raises(EvidenceError, match="2 NaN or infinite features at place 1"):
        filled(x, y)
    with pytest.raises(EvidenceError, match=r"targets \(119, 4\).*expected"):
        Moments.zeros(PLACES, WIDTH, 4).add(x, y[1:])
    with pytest.raises(EvidenceError, match="do not go together"):
        Moments.zeros(2, WIDTH, 4) + Moments.zeros(2, WIDTH, 5)
    for alpha in (-1e-3, float("nan")):
        with pytest.raises(EvidenceError, match="alpha must be a number from 0 on"):
            filled(*made()).solve(alpha)
    few = made()[0][:, :4]
    with pytest.raises(EvidenceError, match="linearly dependent: 7 of them on 4 rows"):
        filled(few, y[:4]).solve(0.0, standardize=False)
