"""Plain values as JSON and tensors, and back, as type annotations describe them.

The types of what is read come from the annotations of the class that reads it. A file names no class, and nothing in it
is run.
"""

from __future__ import annotations

import collections.abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import DitLensError
from dit_lens.files.strict import Malformed

#: What a type is given in brackets.
Arguments = tuple[Any, ...]
#: What an annotation may call a type besides its own name.
_SAME: dict[Any, Any] = {
    None: NoneType,
    UnionType: Union,
    collections.abc.Mapping: dict,
    collections.abc.MutableMapping: dict,
}
_ORDERED = (collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class Form(Protocol):
    """How values of one type are written and read."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        """A value as JSON; `Malformed` if it is not of the type."""

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        """The value; `Malformed` if the JSON is not what `pack` makes."""


class Packer:
    """Takes values apart into JSON and a list of tensors, to which the JSON refers by number.

    Attributes
    ----------
    tensors : list of Tensor
        As they were given. One that comes again is there once.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def pack(self, value: Any, kind: Any, name: str) -> Any:
        """A value as JSON.

        Raises
        ------
        Malformed
            Names the field that is not what its annotation says, or is not plain data.
        """
        form, kinds = _form_of(kind, name)
        return form.pack(value, kinds, name, self)

    def number(self, tensor: Tensor) -> int:
        """The place of a tensor in the list."""
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return self._numbers[id(tensor)]

    def forget(self, count: int) -> None:
        """Keep only the first ``count`` tensors: a type that was tried does not fit."""
        for tensor in self.tensors[count:]:
            del self._numbers[id(tensor)]
        del self.tensors[count:]


class Unpacker:
    """Puts values together again.

    Parameters
    ----------
    tensors : sequence of Tensor
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def unpack(self, data: Any, kind: Any, name: str) -> Any:
        """A value that `Packer.pack` took apart.

        Raises
        ------
        Malformed
            Names the field that is missing, unknown or of another type.
        """
        form, kinds = _form_of(kind, name)
        return form.unpack(data, kinds, name, self)

    def tensor(self, number: Any, name: str) -> Tensor:
        """The tensor at a place of the list."""
        if type(number) is not int or not 0 <= number < len(self._tensors):
            raise Malformed(f"field {name!r} is tensor {number!r:.60}; there are {len(self._tensors)}")
        return self._tensors[number]


class _Scalar:
    """A value that JSON has itself; a numpy scalar becomes one."""

    def __init__(self, kind: type, *also: type) -> None:
        self._kind, self._given = kind, (kind, *also)

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if not isinstance(value, self._given):
            raise mismatch(value, self._kind, name)
        return value if value is None else self._kind(value)

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        if type(data) is not self._kind:
            raise mismatch(data, self._kind, name)
        return data


class _Float:
    """A number, also NaN and the infinite ones; a whole number stays one."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if isinstance(value, int | np.integer):
            return int(value)
        if not isinstance(value, float | np.floating):
            raise mismatch(value, float, name)
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        if type(data) in (int, float):
            return data
        if isinstance(data, dict) and list(data) == ["float"] and data["float"] in list(_FLOATS):
            return _FLOATS[data["float"]]
        raise mismatch(data, float, name)


class _Dtype:
    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if not isinstance(value, torch.dtype):
            raise mismatch(value, torch.dtype, name)
        return str(value)

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        if not isinstance(data, str) or data not in _DTYPES:
            raise mismatch(data, torch.dtype, name)
        return _DTYPES[data]


class _Literal:
    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if not any(value == kind and type(value) is type(kind) for kind in kinds):
            raise Malformed(f"field {name!r} is {value!r:.60}; need one of {', '.join(map(repr, kinds))}")
        return value

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        return self.pack(data, kinds, name, Packer())


class _Union:
    """One type of several; where more than one is left besides None, the JSON says which."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        others = [kind for kind in kinds if kind is not NoneType]
        if value is None and len(others) < len(kinds):
            return None
        if len(others) == 1:
            return packer.pack(value, others[0], name)
        tensors = len(packer.tensors)
        for kind in sorted(others, key=partial(_is_other, type(value))):
            try:
                return [label(kind), packer.pack(value, kind, name)]
            except Malformed:
                packer.forget(tensors)
        raise Malformed(f"field {name!r} is {value!r:.60}; need {' or '.join(map(label, kinds))}")

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        others = {label(kind): kind for kind in kinds if kind is not NoneType}
        if data is None and len(others) < len(kinds):
            return None
        if len(others) == 1:
            return unpacker.unpack(data, next(iter(others.values())), name)
        if not isinstance(data, list) or len(data) != 2 or data[0] not in list(others):
            raise Malformed(f"field {name!r} is {data!r:.60}; need a pair of one of {', '.join(others)} and a value")
        return unpacker.unpack(data[1], others[data[0]], name)


class _Sequence:
    """A list, tuple or set, each item of it."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if not isinstance(value, list | tuple | set | frozenset) or type(value) is not self._kind:
            raise mismatch(value, self._kind, name)
        items = list(value)
        return [packer.pack(item, kind, place) for item, kind, place in self._each(items, kinds, name)]

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        if not isinstance(data, list):
            raise mismatch(data, self._kind, name)
        found = [unpacker.unpack(item, kind, place) for item, kind, place in self._each(data, kinds, name)]
        made = _made(partial(self._kind, found), name)
        if len(made) != len(found):
            raise Malformed(f"field {name!r} has an item twice")
        return made

    def _each(self, items: list[Any], kinds: Arguments, name: str) -> Iterator[tuple[Any, Any, str]]:
        if self._kind is tuple and kinds and kinds[1:] != (...,):
            kinds = () if kinds == ((),) else kinds
            if len(kinds) != len(items):
                raise Malformed(f"field {name!r} has {len(items)} items; need {len(kinds)}")
        else:
            kinds = (kinds[0] if kinds else Any,) * len(items)
        for i, (item, kind) in enumerate(zip(items, kinds, strict=True)):
            yield item, kind, f"{name}.{i}"


class _Ordered:
    """A list or a tuple, where the annotation says only that it is a sequence."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        return packer.pack(value, self._either(kinds), name)

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        return unpacker.unpack(data, self._either(kinds), name)

    @staticmethod
    def _either(kinds: Arguments) -> Any:
        of = (kinds or (Any,))[0]
        return Union[GenericAlias(list, (of,)), GenericAlias(tuple, (of, ...))]  # noqa: UP007


class _Dict:
    """Pairs of key and value in their order: JSON has only texts for keys."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if not isinstance(value, Mapping):
            raise mismatch(value, dict, name)
        key_kind, kind = kinds or (Any, Any)
        keys = ((key, packer.pack(key, key_kind, f"{name}: key {key!s:.40}")) for key in value)
        return [[packed, packer.pack(value[key], kind, f"{name}.{key!s:.40}")] for key, packed in keys]

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        if not isinstance(data, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in data):
            raise mismatch(data, dict, name)
        key_kind, kind = kinds or (Any, Any)
        keys = [unpacker.unpack(key, key_kind, f"{name}: key {i}") for i, (key, _) in enumerate(data)]
        values = [
            unpacker.unpack(value, kind, f"{name}.{key!s:.40}") for key, (_, value) in zip(keys, data, strict=True)
        ]
        found: dict[Any, Any] = _made(partial(dict, zip(keys, values, strict=True)), name)
        if len(found) != len(data):
            raise Malformed(f"field {name!r} has a key twice")
        return found


class _Record:
    """A dataclass or a named tuple by the names of its fields: all of them, also those with a default.

    Only a field with the metadata ``{"saved": False}`` is left out, and has its default afterwards.
    """

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        kind: Any = kinds[0]
        hints = _fields(kind)
        if type(value) is not kind:
            raise mismatch(value, kind, name)
        return {key: packer.pack(getattr(value, key), hint, f"{name}.{key}") for key, hint in hints.items()}

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        kind: Any = kinds[0]
        if not isinstance(data, dict):
            raise mismatch(data, kind, name)
        hints = _fields(kind)
        for what, names in (("is missing", hints.keys() - data.keys()), ("is unknown", data.keys() - hints.keys())):
            if names:
                raise Malformed(f"field {f'{name}.{min(names)}'!r} {what}")
        found = {key: unpacker.unpack(data[key], hint, f"{name}.{key}") for key, hint in hints.items()}
        return _made(partial(kind, **found), name)


class _Any:
    """Plain data of any type: what JSON has no name for is an object with the name of its type."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, float) or type(value) in (NoneType, bool, int, str):
            return packer.pack(value, float if isinstance(value, float) else type(value), name)
        for called, kind in TAGGED.items():
            if type(value) is kind:
                return {called: packer.pack(value, kind, name)}
        for called, base in BASES.items():
            if isinstance(value, base):
                return {called: packer.pack(value, base, name)}
        raise Malformed(f"field {name!r} is a {type(value).__name__}, which is not plain data")

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Any:
        if type(data) in (NoneType, bool, int, float, str):
            return data
        if isinstance(data, dict) and len(data) == 1:
            ((called, inner),) = data.items()
            if called == "float":
                return unpacker.unpack(data, float, name)
            if (kind := TAGGED.get(called) or BASES.get(called)) is not None:
                return unpacker.unpack(inner, kind, name)
        raise Malformed(f"field {name!r} is {data!r:.60}; need plain data and the name of its type")


#: Types that `Any` may stand for, by their names in a file: exactly these, and those whose subclasses are taken too.
TAGGED: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict}
BASES: dict[str, type] = {"dtype": torch.dtype}

FORMS: dict[Any, Form] = {
    NoneType: _Scalar(NoneType),
    bool: _Scalar(bool, np.bool_),
    int: _Scalar(int, np.integer),
    str: _Scalar(str),
    float: _Float(),
    torch.dtype: _Dtype(),
    Literal: _Literal(),
    Union: _Union(),
    Any: _Any(),
    object: _Any(),
    dict: _Dict(),
    **{kind: _Sequence(kind) for kind in (list, tuple, set, frozenset)},
    **{kind: _Ordered() for kind in _ORDERED},
}
_RECORD = _Record()


def _form_of(kind: Any, name: str) -> tuple[Form, Arguments]:
    origin, kinds = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return _form_of(kinds[0], name)
    origin = Any if isinstance(origin, TypeVar) else _SAME.get(origin, origin)
    if isinstance(origin, type) and (is_dataclass(origin) or hasattr(origin, "_fields")):
        return _RECORD, (origin,)
    if origin not in FORMS:
        raise Malformed(f"field {name!r} is declared as {label(kind)}, which is not plain data")
    return FORMS[origin], kinds


def _is_other(given: type, kind: Any) -> bool:
    return given is not (get_origin(kind) or kind)


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """The fields of a record and their types."""
    hints = get_type_hints(kind)
    names = (
        [f.name for f in fields(kind) if f.init and f.metadata.get("saved", True)]
        if is_dataclass(kind)
        else kind._fields
    )
    return {name: hints.get(name, Any) for name in names}


def _made(make: Callable[[], Any], name: str) -> Any:
    """A value of what was read; what its own class refuses was not written by it."""
    try:
        return make()
    except (ValueError, TypeError, DitLensError) as error:
        raise Malformed(f"field {name!r}: {error}") from error


def mismatch(value: Any, kind: Any, name: str) -> Malformed:
    """A value that is not of the type that its field has."""
    return Malformed(f"field {name!r} is {value!r:.60}; need {label(kind)}")


def label(kind: Any) -> str:
    """How a type is named in messages, and in a file where a value may be of several."""
    if get_args(kind) or not isinstance(kind, type):
        return str(kind).replace("typing.", "")
    return {NoneType: "None", str: "text"}.get(kind, kind.__name__)
