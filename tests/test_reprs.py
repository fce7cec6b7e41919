"""What a terminal shows of any public object is a few lines, whatever it holds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

import dit_lens as dl

#: Annotations of fields that may hold much.
LARGE = ("Array", "Floats", "Ints", "Bools", "Video", "Tensor", "Mapping", "dict[", "DataFrame")
#: Classes whose ``repr`` reads what is within their fields, and so needs whole ones.
READING = ("MazeInstance", "Planted", "ProbeGrid", "ProbeSet", "PuzzleInstance", "Resume", "Run", "TunedLens")


def records() -> Iterator[type]:
    """Public dataclasses and named tuples."""
    modules = [dl, *(part for name in dl.__all__ if inspect.ismodule(part := getattr(dl, name)))]
    found = [getattr(module, name) for module in modules for name in getattr(module, "__all__", ())]
    for kind in sorted({x for x in found if inspect.isclass(x)}, key=lambda kind: kind.__qualname__):
        if (is_dataclass(kind) or hasattr(kind, "_fields")) and kind.__name__ not in READING:
            yield kind


def annotations(kind: Any) -> dict[str, str]:
    if is_dataclass(kind):
        return {field.name: str(field.type) for field in fields(kind)}
    return {name: str(kind.__annotations__[name]) for name in kind._fields}


def filled(kind: Any) -> Any:
    """An object of a class, made without its constructor, whose large fields are large."""
    large = {f"key {i}": np.zeros((300, 300)) + i for i in range(300)}
    values = {
        name: (large if "Mapping" in kind_of or "dict[" in kind_of else np.zeros((300, 300, 3)))
        if any(part in kind_of for part in LARGE) and "Callable" not in kind_of
        else "a text"
        for name, kind_of in annotations(kind).items()
    }
    if issubclass(kind, tuple):
        return tuple.__new__(kind, values.values())
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


@pytest.mark.parametrize("kind", list(records()))
def test_every_public_record_is_shown_in_a_few_lines(kind: type) -> None:
    text = repr(filled(kind))
    assert len(text.splitlines()) <= 5, text[:2000]
    assert len(text) < 3000
    assert kind.__name__ in text or kind.__name__ in ("Site", "Sites", "Tokens", "Interval"), text


def test_instances_of_tasks_are_shown_in_a_line() -> None:
    for task in (dl.tasks.Maze(size=4), dl.tasks.Sort()):
        for side in task.pair(seed=0):
            assert len(repr(side)) < 200
            assert "\n" not in repr(side)
