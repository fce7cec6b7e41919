"""Intervals with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from dit_lens.results.intervals import bootstrap_weights, mean_interval, wilson


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(counts: tuple[int, int]) -> None:
    own, reference = wilson(*counts), binomtest(*counts).proportion_ci(method="wilson")
    assert (own.low, own.high) == pytest.approx((reference.low, reference.high), abs=1e-6)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0)[1:] == (0.0, 1.0)


def test_first_bootstrap_row_is_the_sample_and_each_row_draws_as_many() -> None:
    weights = bootstrap_weights(7, 20, seed=0)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 7).all()


def test_bootstrap_interval_of_a_mean_has_the_textbook_width() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = mean_interval(values, replicates=4000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
