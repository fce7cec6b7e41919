"""A description is the same for the same value, in every process, and another for every other."""

from __future__ import annotations

import functools
import random
import re
import subprocess
import sys
import threading
import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dit_lens as dl
from dit_lens.runs.describe import describe
from tests.subjects import Edit

FACTOR = 2.0


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


def nested(factor: float) -> Callable[[Tensor], Tensor]:
    def outer(x: Tensor) -> Tensor:
        def inner(y: Tensor) -> Tensor:
            return y * factor

        return inner(x)

    return outer


def defaulted(factor: float) -> Callable[..., Any]:
    return lambda x, by=factor: x * by


def keyword(factor: float) -> Callable[..., Any]:
    return lambda x, *, by=factor: x * by


def multiply(factor: float, x: Tensor) -> Tensor:
    return x * factor


def partially(factor: float) -> Callable[..., Any]:
    return functools.partial(multiply, factor)


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor

    def apply(self, x: Tensor) -> Tensor:
        return x * self.factor


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor


def method(factor: float) -> Callable[[Tensor], Tensor]:
    return Scale(factor).apply


def using_global(factor: float) -> Any:
    """A function of another module, whose global it names."""
    module = types.ModuleType("a_notebook")
    exec(f"FACTOR = {factor}\ndef helper(x): return x * FACTOR\ndef edit(x): return helper(x)", vars(module))
    return module.edit


def written(factor: float) -> Any:
    """A class as a notebook defines it again, with another body."""
    module = types.ModuleType("a_notebook")
    exec(f"class Edit:\n    def __call__(self, x):\n        return x * {factor}", vars(module))
    return module.Edit()


def attribute_of_a_class(factor: float) -> Any:
    return type(
        "Scale", (), {"factor": factor, "__call__": lambda self, x: x * self.factor, "__module__": "a_notebook"}
    )()


class Scaling(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor


@dataclass(frozen=True)
class Further(dl.Patch):
    """A subclass whose instances have more than its fields."""


def further(factor: float) -> Any:
    patch = Further(torch.zeros(1, 1), dl.Sites("delta"))
    object.__setattr__(patch, "factor", factor)
    return patch


def with_attribute(factor: float) -> Any:
    def edit(x: Tensor) -> Tensor:
        return x * edit.factor  # type: ignore[attr-defined, no-any-return]

    edit.factor = factor  # type: ignore[attr-defined]
    return edit


def cached(factor: float) -> Any:
    return functools.cache(lambda x: x * factor)


class Hidden:
    __slots__ = ("__factor",)

    def __init__(self, factor: float) -> None:
        self.__factor = factor


def palette(factor: float) -> Image.Image:
    picture = Image.new("P", (2, 2))
    picture.putpalette([int(factor), 0, 0])
    return picture


def linear(factor: float) -> nn.Module:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, factor)
    nn.init.zeros_(layer.bias)
    return layer


MAKERS: dict[str, Callable[[float], Any]] = {
    "closure": scaled, "nested closure": nested, "default": defaulted, "keyword default": keyword,
    "partial": partially, "callable": Scale, "method": method, "slots": Slotted, "global": using_global,
    "class of a notebook": written, "module": linear, "tensor": lambda f: torch.full((2,), f),
    "float64": lambda f: torch.tensor([1.0, 1.0 + f * 1e-12], dtype=torch.float64),
    "array": lambda f: np.full(2, f), "nested": lambda f: {"a": [{"b": (f, {f})}]},
    "picture": lambda f: Image.new("L", (2, 2), int(f)), "edit": lambda f: Edit(dl.Sites("delta"), scaled(f)),
    "intervention": lambda f: dl.intervention(dl.Sites("delta"))(scaled(f)),
    "capture": lambda f: dl.Capture(dl.Sites("delta"), reduce=scaled(f)),
    "predicate": lambda f: dl.Sites("delta", layers=lambda layer: layer > f),
    "generator": lambda f: torch.Generator().manual_seed(int(f)),
    "attribute of a class": attribute_of_a_class, "attribute of a module": Scaling,
    "kind of an inner module": lambda f: nn.Sequential(nn.Tanh() if f == 2 else nn.ReLU()),
    "setting of an inner module": lambda f: nn.Sequential(nn.LeakyReLU(f)), "more than fields": further,
    "attribute of a function": with_attribute, "cached function": cached, "hidden slot": Hidden,
    "bound builtin": lambda f: {0: f}.get, "iterator": lambda f: iter([f]),
    "random": lambda f: random.Random(int(f)), "numpy's random": lambda f: np.random.default_rng(int(f)),
    "deque": lambda f: deque([torch.tensor(1.0 + f * 1e-6)]), "series": lambda f: pd.Series([f]),
    "object array": lambda f: np.array([torch.tensor(f), None], dtype=object),
    "masked array": lambda f: np.ma.masked_equal([2.0, 3.0], f), "sparse": lambda f: torch.full((2,), f).to_sparse(),
    "pattern": lambda f: re.compile("a" * 300 + str(f)), "path": lambda f: Path("folder") / str(f),
    "enum": lambda f: Enum("Made", {"RED": f})["RED"], "palette": palette,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_another_factor_is_another_description(name: str) -> None:
    make = MAKERS[name]
    assert describe(make(2.0)) == describe(make(2.0))
    assert describe(make(2.0)) != describe(make(3.0))


@dataclass
class Same:
    value: Any


class Colour(Enum):
    RED = 1
    BLUE = 2


def test_values_that_look_alike_are_told_apart() -> None:
    values = [
        1, 1.0, True, "1", b"1", None, [1], {1}, {"a": 1}, Same(1), Same(1.0), Colour.RED, Colour.BLUE,
        torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.zeros(6, dtype=torch.int32), np.zeros((2, 3)),
        np.zeros(6), np.zeros(6, np.float32), Image.new("L", (2, 3)), Image.new("L", (3, 2)), Image.new("RGB", (1, 2)),
        slice(1, 2), range(1, 2), torch.float32, torch.device("cpu"), sorted, len, Scale, Slotted, np,
    ]  # fmt: skip
    for one, two in combinations(values, 2):
        assert describe(one) != describe(two), (one, two)


def test_looking_at_a_value_does_not_change_its_description() -> None:
    """What is computed once and kept, or used up, is no part of it."""
    path, capture, values = Path("folder/file"), dl.Capture(dl.Sites("delta"), reduce="norm"), iter([1, 2])
    tokens = dl.Tokens(frames=0)
    before = list(map(describe, (path, capture, values, tokens)))
    hash(path), path.parts, capture._takes_at, tokens.is_all
    assert list(map(describe, (path, capture, values, tokens))) == before
    assert next(values) == 1
    assert describe(values) != before[2]
    conjugate = torch.tensor([1 + 1j]).conj()
    assert describe(conjugate) == describe(conjugate.resolve_conj()) != describe(torch.tensor([1 + 1j]))
    assert "0x" not in describe(threading.Lock())


def test_where_a_function_stands_is_no_part_of_it() -> None:
    here, there = {}, {}  # type: ignore[var-annotated]
    exec("def edit(x): return x * 2", here)
    exec("\n\n# further down\ndef edit(x): return x * 2", there)
    assert describe(here["edit"]) == describe(there["edit"])


def test_circles_end_and_what_is_installed_is_not_entered() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert describe(circle) == "[1, ...]"

    def fact(n: int) -> int:
        return n * fact(n - 1) if n else 1

    assert describe(fact) == describe(fact)
    assert describe(functools.reduce) != describe(functools.partial)
    assert describe(nn.functional.gelu) == "gelu"
    assert len(describe(dl.depth_lens)) < 60


def test_no_value_of_a_mapping_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """To print a tensor takes a hundred times as long as to hash it."""
    given = {"b": torch.arange(3.0), "a": 1, dl.Site(0, "cond", 1, "resid"): torch.zeros(2)}
    expected = describe(dict(reversed(given.items())))
    monkeypatch.setattr(Tensor, "__repr__", lambda self: pytest.fail("a tensor was printed"))
    assert describe(given) == expected


SCRIPT = """
import dit_lens as dl
from dit_lens.runs.describe import describe
from tests.runs.test_describe import MAKERS
print([describe(make(2.0)) for make in MAKERS.values()], describe({"b", "a", "c"}))
"""


def test_descriptions_are_the_same_in_every_process() -> None:
    told = {subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(told) == 1
    assert b"0x" not in told.pop()
