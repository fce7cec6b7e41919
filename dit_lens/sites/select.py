"""How a range of steps, layers, frames, heads or positions is chosen."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dit_lens.display.short import short
from dit_lens.errors import SiteError

#: Everything ("all"), one (negative counts from the end), a slice, several, or a predicate on the index.
Select = str | int | slice | range | Sequence[int] | Callable[[int], bool]


def indices(select: Select, size: int, what: str) -> list[int]:
    """The indices that a `Select` picks out of 0..size-1, in order.

    Raises
    ------
    SiteError
        An index out of range, or nothing selected; the message names the valid range.
    """
    valid = f"this run has {what}s 0..{size - 1}"
    if isinstance(select, str):
        if select != "all":
            raise SiteError(f"unknown {what} {select!r}; 'all', an index, a slice, a list or a predicate; {valid}")
        return list(range(size))
    if isinstance(select, slice):
        chosen = sorted(list(range(size))[select])
    elif callable(select):
        chosen = [i for i in range(size) if select(i)]
    else:
        several = select if isinstance(select, Iterable) else [select]
        chosen = sorted({_index(i, size, what, valid) for i in several})
    if not chosen:
        raise SiteError(f"{what}s {show(select)} select nothing; {valid}")
    return chosen


def whole(value: Any) -> int:
    """A whole number, be it of Python, numpy or torch; a truth is none.

    Raises
    ------
    TypeError
    """
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        raise TypeError(f"{value!r} is no number")
    return operator.index(value)


def plain(select: Any, what: str) -> Any:
    """A selection in which arrays of whole numbers are tuples and numpy's whole numbers are Python's.

    Raises
    ------
    SiteError
        An array of something else.
    """
    if isinstance(select, np.integer):
        return int(select)
    if not isinstance(select, np.ndarray | Tensor):
        return select
    array = np.asarray(select.cpu() if isinstance(select, Tensor) else select)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise SiteError(f"{what}={short(select)}: need a list of whole numbers; where a mask holds are its flatnonzero")
    return tuple(array.tolist()) if array.ndim else int(array)


def _index(index: Any, size: int, what: str, valid: str) -> int:
    try:
        number = whole(index)
    except TypeError as error:
        raise SiteError(f"{what} {index!r} is no whole number; {valid}") from error
    if not -size <= number < size:
        raise SiteError(f"no {what} {index}; {valid}")
    return number % size


def show(select: Select) -> str:
    """A selection in a few characters."""
    if isinstance(select, slice):
        start, stop, step = ("" if x is None else str(x) for x in (select.start, select.stop, select.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")
    if isinstance(select, str | int):
        return str(select)
    if callable(select):
        return getattr(select, "__name__", "predicate")
    return ",".join(map(str, select)) if isinstance(select, Iterable) else str(select)


def is_all(select: Select) -> bool:
    """Whether a selection is the word "all"."""
    return isinstance(select, str) and select == "all"


def to_json(select: Select) -> Any:
    """JSON types; predicates have none and raise `SiteError`."""
    if isinstance(select, slice):
        return {"slice": [select.start, select.stop, select.step]}
    if callable(select):
        raise SiteError("a selection by predicate cannot be written to JSON; list the indices")
    if isinstance(select, str):
        return select
    return [int(i) for i in select] if isinstance(select, Iterable) else int(select)


def from_json(data: Any) -> Select:
    """Inverse of `to_json`."""
    if isinstance(data, dict):
        return slice(*data["slice"])
    selected: Select = data
    return selected
