"""What every result can do, on a small one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from torch import Tensor

from dit_lens.errors import StoreError
from dit_lens.results.intervals import mean_interval, over_instances
from dit_lens.results.plots import axes
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result


@dataclass(frozen=True, repr=False)
class Small(Result):
    values: Tensor
    steps: tuple[int, ...]

    @cached_property
    def table(self) -> pd.DataFrame:
        rows = [
            (s, "skill", float(v), float("nan"), float("inf"), 1) for s, v in zip(self.steps, self.values, strict=True)
        ]
        return pd.DataFrame(rows, columns=["step", *VALUE_COLUMNS])

    def plot(self, axis: Axes | None = None) -> Axes:
        axis = axes(axis)
        axis.plot(self.steps, self.values)
        return axis


class Other(Small):
    pass


SMALL = Small(torch.tensor([0.5, 0.25]), (0, 3))


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    loaded = Small.load(SMALL.save(tmp_path / "small"))
    assert torch.equal(loaded.values, SMALL.values)
    assert loaded.steps == (0, 3)
    pd.testing.assert_frame_equal(loaded.table, SMALL.table)


def test_a_result_of_another_kind_or_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SMALL.save(tmp_path / "small")
    with pytest.raises(StoreError, match="Small"):
        Other.load(folder)
    monkeypatch.setattr(Small, "schema", 2)
    with pytest.raises(StoreError, match=r"schema 1.*schema 2"):
        Small.load(folder)


def test_json_has_no_number_that_is_none() -> None:
    data = json.loads(json.dumps(SMALL.to_json(), allow_nan=False))
    assert (data["kind"], data["schema"]) == ("Small", 1)
    assert data["table"][1] == {"step": 3, "measure": "skill", "value": 0.25, "low": None, "high": None, "n": 1}


def test_a_notebook_shows_the_picture_and_the_table() -> None:
    page = SMALL._repr_html_()
    assert page.startswith('<img alt="Small" src="data:image/png;base64,')
    assert "<th>measure</th>" in page


def test_its_repr_is_a_line_whatever_it_holds() -> None:
    assert repr(SMALL) == "Small(values=tensor(2,) float32, steps=(0, 3))"
    classes = [Result, *Result.__subclasses__()]
    assert all(kind.__repr__ is Result.__repr__ or "__repr__" in vars(kind) for kind in classes)


def test_columns_have_one_order() -> None:
    assert not set(SITE_COLUMNS) & set(VALUE_COLUMNS)


def one_by_one(samples: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Every group for itself."""
    rows = []
    for names, part in samples.groupby(by, sort=False, dropna=False):
        means = part.groupby("instance")["value"].mean().dropna().to_numpy()
        rows.append((*names, *mean_interval(means), len(means)))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n"])


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from("abc"), st.sampled_from(["x", None]), st.floats(-1, 1) | st.just(np.nan)
        ),
        min_size=1,
        max_size=30,
    )
)
def test_means_over_instances_of_all_groups_are_those_of_each(rows: list[tuple[int, str, str | None, float]]) -> None:
    samples = pd.DataFrame(
        [(layer, kind, name, i, "skill", value) for i, (layer, name, kind, value) in enumerate(rows)],
        columns=["layer", "kind", "instance", "seed", "measure", "value"],
    ).astype({"value": float})
    together = over_instances(samples)
    each = one_by_one(samples, ["layer", "kind", "measure"])
    for table in (together, each):  # one keeps None, the other makes it NaN
        table["kind"] = table["kind"].map(lambda kind: "x" if kind == "x" else "-")
    pd.testing.assert_frame_equal(together, each, check_dtype=False)
