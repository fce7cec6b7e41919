"""JSON that a type annotation describes is read literally or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest

from dit_lens.files.strict import Malformed, load, typed


@dataclass(frozen=True)
class Inner:
    places: tuple[int, ...]
    pair: tuple[int, float]
    name: str = "named"


class Outer(TypedDict):
    inner: Inner
    kind: Literal["a", "b"]
    scores: dict[str, float | None]
    number: int | float
    flag: bool
    some: tuple[int, ...] | None


RIGHT: dict[str, Any] = {
    "inner": {"places": [1, 2], "pair": [3, 4], "name": "x"}, "kind": "a", "scores": {"s": None, "t": 1},
    "number": 3, "flag": False, "some": None,
}  # fmt: skip


def test_what_is_described_is_built() -> None:
    found = typed(RIGHT, Outer, "card")
    assert found == {**RIGHT, "inner": Inner((1, 2), (3, 4.0), "x")}
    assert type(found["inner"].pair[1]) is float
    assert type(found["number"]) is int
    assert type(typed({**RIGHT, "number": 0.5}, Outer, "card")["number"]) is float


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"flag": 1}, "field 'card.flag' is 1; need bool"),
    ({"flag": None}, "field 'card.flag' is None; need bool"),
    ({"kind": "c"}, "field 'card.kind' is 'c'; need .*Literal"),
    ({"kind": True}, "field 'card.kind'"),
    ({"number": True}, "field 'card.number' is True; need whole number from 0 or number"),
    ({"number": 10**400}, "field 'card.number' is 1000"),
    ({"scores": {"s": "1"}}, "field 'card.scores.s' is '1'; need number or null"),
    ({"scores": []}, "field 'card.scores'"),
    ({"inner": {"places": [1], "pair": [1, 2]}}, "field 'card.inner.name' is missing"),
    ({"inner": {**RIGHT["inner"], "more": 1}}, "field 'card.inner.more' is unknown"),
    ({"inner": {**RIGHT["inner"], "places": [1, -1]}}, "field 'card.inner.places.1' is -1; need whole number from 0"),
    ({"inner": {**RIGHT["inner"], "pair": [1]}}, "field 'card.inner.pair' has 1 items; need 2"),
    ({"inner": {**RIGHT["inner"], "name": ""}}, "field 'card.inner.name' is ''; need text that is not empty"),
    ({"inner": [1]}, "field 'card.inner' is"),
    ({"some": [1, "x"]}, "field 'card.some.1' is 'x'; need whole number from 0"),
    ({"some": 1}, "field 'card.some' is 1; need .* or null"),
    ({"other": 1}, "field 'card.other' is unknown"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[m for _, m in WRONG])
def test_anything_else_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Malformed, match=message):
        typed({**RIGHT, **change}, Outer, "card")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_no_json(text: str) -> None:
    with pytest.raises(Malformed, match="the value"):
        load(f'{{"a": {text}}}'.encode())
