"""A ``repr`` that a terminal can show: what a tensor, a mapping or a run is, not what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

#: Characters that a value within another may take.
_WIDTH = 80
#: Items of a list that are shown.
_ITEMS = 4


def short(value: Any) -> str:
    """One line that says what a value is.

    Examples
    --------
    >>> short({"a": np.zeros((2, 3)), "b": list(range(9))})
    "{'a': array(2, 3) float64, 'b': [0, 1, 2, 3, ... 9 in all]}"
    """
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        return f"{kind}{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, pd.DataFrame):
        return f"table of {len(value)} rows: {_cut(', '.join(map(str, value.columns)))}"
    if isinstance(value, Mapping):
        return "{" + _some([f"{_cut(repr(k))}: {short(v)}" for k, v in list(value.items())[:_ITEMS]], len(value)) + "}"
    if type(value) in (list, tuple):
        ends = "()" if type(value) is tuple else "[]"
        shown = _some([short(item) for item in value[:_ITEMS]], len(value))
        return ends[0] + shown + ("," if type(value) is tuple and len(value) == 1 else "") + ends[1]
    return _cut(repr(value))


def short_repr(self: Any) -> str:
    """The ``repr`` of a dataclass or a named tuple, every field of it `short`."""
    names = [f.name for f in fields(self) if f.repr] if is_dataclass(self) else self._fields
    return f"{type(self).__name__}({', '.join(f'{name}={_cut(short(getattr(self, name)))}' for name in names)})"


def _some(items: list[str], count: int) -> str:
    return ", ".join(items) + (f", ... {count} in all" if count > len(items) else "")


def _cut(text: str) -> str:
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4]} ..."
