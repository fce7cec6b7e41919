"""The two kinds of pictures that tables become."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dit_lens.results.plots import axes, curves, heatmap

TABLE = pd.DataFrame({
    "layer": [1, 0, 0, 1],
    "step": [0, 0, 1, 1],
    "skill": [0.5, 0.25, 0.0, 1.0],
    "low": [0.4, 0.2, 0.0, 0.9],
    "high": [0.6, 0.3, 0.1, 1.0],
})  # fmt: skip


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_axes_are_the_given_ones_or_new():
    _, given = plt.subplots()
    assert axes(given) is given
    assert axes() is not axes()


def test_a_heatmap_has_the_tables_values_in_order_of_rows_and_columns():
    axis = heatmap(TABLE, "step", "layer", "skill")
    np.testing.assert_array_equal(axis.collections[0].get_array().reshape(2, 2), [[0.25, 0.5], [0.0, 1.0]])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("layer", "step")


def test_curves_are_sorted_by_x_with_their_intervals_around_them():
    axis = curves(TABLE, "layer", "skill", hue="step")
    assert [line.get_ydata().tolist() for line in axis.lines] == [[0.25, 0.5], [0.0, 1.0]]
    assert len(axis.collections) == 2
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["0", "1"]


def test_curves_without_intervals_have_no_bands():
    axis = curves(TABLE[TABLE["step"] == 0][["layer", "skill"]], "layer", "skill")
    assert len(axis.lines) == 1
    assert not axis.collections
