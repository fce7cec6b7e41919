"""JSON that is taken literally or not at all: no key twice, no NaN, no field of another type, none that is unknown."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

#: Sizes are below this, as the file system and torch count them.
HUGE = 2**63

#: The field of a line that holds the checksum of the rest of it.
CHECK = "sha256"


class Malformed(ValueError):
    """What is wrong with a text; who reads it adds where it stands."""


def load(text: bytes) -> dict[str, Any]:
    """An object of JSON.

    Raises
    ------
    Malformed
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:  # also of a number with more digits than Python reads
        raise Malformed(f"no valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise Malformed(f"a {type(data).__name__} where an object is expected")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        raise Malformed(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return data


def _no_constant(name: str) -> Any:
    raise Malformed(f"the value {name}")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise Malformed(f"the value {text:.40}, which is infinite")
    return value


def get(data: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """A field of the expected type."""
    value = data.get(name)
    if name not in data or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        given = f"is {value!r:.60}" if name in data else "is missing"
        raise Malformed(f"field {name!r} {given}; need a {kind.__name__}")
    return value


def count(data: Mapping[str, Any], name: str) -> int:
    """A field that is a size: a whole number of at least 0."""
    value = get(data, name, int)
    if not 0 <= value < HUGE:
        raise Malformed(f"field {name!r} is {value!r:.60}; need a whole number from 0 to 2**63 - 1")
    return value


def shape(data: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A field that is the shape of an array: whole numbers of at least 0, and fewer values than 2**63."""
    sizes = get(data, name, list)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes):
        raise Malformed(f"field {name!r} is {sizes!r:.60}; need whole numbers of at least 0")
    # An axis of length 0 does not make the others harmless: strides are counted without it.
    if math.prod(max(n, 1) for n in sizes) >= HUGE:
        raise Malformed(f"field {name!r} is {sizes!r:.60}; that is too large")
    return tuple(sizes)


def optional(data: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    return None if data.get(name, "") is None else get(data, name, kind)


def line(data: dict[str, Any]) -> bytes:
    """An object as a line that ends with the checksum of what stands before."""
    return _text({**data, CHECK: hashlib.sha256(_text(data)).hexdigest()}) + b"\n"


def parse_line(text: bytes) -> dict[str, Any]:
    """Inverse of `line`.

    Raises
    ------
    Malformed
        No JSON, or not what was written.
    """
    data = load(text)
    given = data.pop(CHECK, None)
    if given != hashlib.sha256(_text(data)).hexdigest():
        raise Malformed("the line does not have the checksum that it names: it was changed after it was written")
    return data


def _text(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def typed(value: Any, kind: Any, name: str) -> Any:
    """A value of JSON as a type annotation describes it: a dataclass of its fields, lists as the tuples they stand for.

    No field is left out, not even one with a default, and none is unknown.

    Parameters
    ----------
    kind : annotation
        Of None, bool, int (a size: from 0 to 2**63 - 1), float (also a whole number), str (not empty), Any, literals,
        unions, lists, tuples, dicts of texts, typed dicts and dataclasses.
    name : str
        Where the value stands, for the message.

    Raises
    ------
    Malformed
        Names the field that is missing, unknown or of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _one_of(value, arguments, name)
    if origin is Literal and any(value == a and type(value) is type(a) for a in arguments):
        return value
    if origin in (list, tuple) and isinstance(value, list):
        return _sequence(value, origin, arguments, name)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: typed(item, arguments[1], f"{name}.{key}") for key, item in value.items()}
    if isinstance(kind, type) and isinstance(value, dict) and hasattr(kind, "__annotations__"):
        return _record(value, kind, name)
    if kind in (None, type(None)) and value is None:
        return None
    if kind is float and type(value) in (int, float) and abs(value) < HUGE:
        return float(value)
    if kind is int and type(value) is int and 0 <= value < HUGE:
        return value
    if kind in (bool, str) and type(value) is kind and value != "":
        return value
    raise Malformed(f"field {name!r} is {value!r:.60}; need {_named(kind)}")


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    inner = None
    # A whole number is tried as one before it is taken for a float.
    for kind in sorted(kinds, key=lambda kind: kind is float):
        try:
            return typed(value, kind, name)
        except Malformed as error:
            # What is wrong within a list or an object says more than that it is none of the others.
            inner = error if isinstance(value, list | dict) and (get_args(kind) or is_dataclass(kind)) else inner
    raise inner or Malformed(f"field {name!r} is {value!r:.60}; need {' or '.join(map(_named, kinds))}")


def _sequence(value: list[Any], origin: Any, kinds: tuple[Any, ...], name: str) -> Any:
    same = origin is list or kinds[1:] == (...,)
    if not same and len(kinds) != len(value):
        raise Malformed(f"field {name!r} has {len(value)} items; need {len(kinds)}")
    each = [kinds[0]] * len(value) if same else kinds
    return origin(typed(item, kind, f"{name}.{i}") for i, (item, kind) in enumerate(zip(value, each, strict=True)))


def _record(value: dict[str, Any], kind: Any, name: str) -> Any:
    hints = get_type_hints(kind)
    if is_dataclass(kind):
        hints = {f.name: hints[f.name] for f in fields(kind)}
    for what, names in (("is missing", hints.keys() - value.keys()), ("is unknown", value.keys() - hints.keys())):
        if names:
            raise Malformed(f"field {f'{name}.{min(names)}'!r} {what}")
    found = {key: typed(item, hints[key], f"{name}.{key}") for key, item in value.items()}
    return kind(**found)


def _named(kind: Any) -> str:
    plain = {int: "whole number from 0", float: "number", str: "text that is not empty", type(None): "null"}
    return str(plain.get(kind) or getattr(kind, "__name__", kind))
