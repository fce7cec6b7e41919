"""What every result of an analysis must be: a tidy table, a picture, JSON, and a folder that gives it back."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result


def check_result(result: Result, folder: Path) -> None:
    """Columns in their order, JSON that can be written, a picture, and the same result from its folder."""
    columns = list(result.table.columns)
    assert tuple(columns[-len(VALUE_COLUMNS) :]) == VALUE_COLUMNS
    known = [name for name in columns if name in SITE_COLUMNS]
    assert columns[: len(known)] == [name for name in SITE_COLUMNS if name in known]
    assert not result.table.drop(columns=["value", "low", "high", "n"]).duplicated().any()
    json.dumps(result.to_json(), allow_nan=False)
    assert result.plot().figure is not None
    loaded = type(result).load(result.save(folder / "saved"))
    pd.testing.assert_frame_equal(loaded.table, result.table)
