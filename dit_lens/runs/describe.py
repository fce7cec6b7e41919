"""What a value is, in a text that is the same for the same value and for no other: what ids of runs are hashed from."""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dit_lens.runs.run import Run
from dit_lens.runs.weights import contents, tensors

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, np.generic)
_NAMED = (types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)


def describe(value: Any) -> str:
    """Runs by their id, tensors, arrays and pictures by a hash of their bytes, functions by their code and its data.

    Of a function that is its bytecode and constants, its defaults, what it encloses and the globals that it names; of
    another object its class and attributes. Functions and classes of installed packages count by their names alone.
    """
    return _Description().text(value)


class _Description:
    """One description; what it meets twice, a circle included, it enters once."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[Any, str]] = {}

    def text(self, value: Any) -> str:
        if isinstance(value, _PLAIN) and not isinstance(value, Enum):
            return repr(value)
        if id(value) not in self._met:
            self._met[id(value)] = value, "..."
            self._met[id(value)] = value, self._data(value) or self._code(value) or self._object(value)
        return self._met[id(value)][1]

    def _data(self, value: Any) -> str | None:
        if isinstance(value, Enum):
            return f"{type(value).__qualname__}.{value.name}"
        if isinstance(value, Run):
            return f"run:{value.id}"
        if isinstance(value, Tensor):
            return f"tensor:{_hash(contents({'': value}, whole=True))}"
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return f"array:{_hash([f'{value.dtype} {value.shape}'.encode(), np.ascontiguousarray(value).tobytes()])}"
        if isinstance(value, Image.Image):
            return f"picture:{_hash([f'{value.mode} {value.size}'.encode(), value.tobytes()])}"
        if isinstance(value, torch.Generator):
            return f"generator:{self.text(value.get_state())}"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{k}: {self.text(v)}' for k, v in sorted(value.items(), key=str))}}}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self.text, value))}]"
        if isinstance(value, Set):
            return f"{{{', '.join(sorted(map(self.text, value)))}}}"
        return None

    def _code(self, value: Any) -> str | None:
        if isinstance(value, functools.partial):
            return f"partial({self.text(value.func)}, {self.text(value.args)}, {self.text(value.keywords)})"
        if isinstance(value, types.MethodType):
            return f"{self.text(value.__func__)} of {self.text(value.__self__)}"
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, _NAMED):
            return str(getattr(value, "__qualname__", value.__name__))
        return self._class(value) if isinstance(value, type) else None

    def _function(self, function: types.FunctionType) -> str:
        if _is_installed(function):
            return f"{function.__module__}.{function.__qualname__}"
        code, cells = function.__code__, function.__closure__ or ()
        enclosed = dict(zip(code.co_freevars, map(_contents, cells), strict=True))
        named = {name: function.__globals__[name] for name in _names(code) if name in function.__globals__}
        used = [_bytecode(code), function.__defaults__, function.__kwdefaults__, enclosed, named]
        return f"{function.__qualname__}<{_hash([self.text(used).encode()])}>"

    def _class(self, kind: type) -> str:
        """Its name; and of one that the user wrote the code of its methods, for a notebook may define it again."""
        own = [base for base in kind.__mro__ if not _is_installed(base)]
        methods = [self.text(f) for base in own for _, member in sorted(vars(base).items()) for f in _functions(member)]
        return f"{kind.__qualname__}<{_hash([' '.join(methods).encode()])}>" if methods else kind.__qualname__

    def _object(self, value: Any) -> str:
        kind = self.text(type(value))
        if isinstance(value, nn.Module):
            return f"{kind}:{_hash(contents(tensors(value)))}"
        if is_dataclass(value):
            attributes = {f.name: getattr(value, f.name) for f in fields(value)}
        else:
            slots = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
            attributes = getattr(value, "__dict__", {}) | slots
            if not attributes and "__repr__" in {n for base in type(value).__mro__[:-1] for n in vars(base)}:
                return f"{kind}({value!r})"
        return f"{kind}({', '.join(f'{name}={self.text(attributes[name])}' for name in sorted(attributes))})"


def _functions(member: Any) -> Iterator[types.FunctionType]:
    """The function of a method, of a property, or of either kind of method without an instance."""
    inner = next((x for name in ("fget", "__func__", "func") if (x := getattr(member, name, None))), member)
    if isinstance(inner, types.FunctionType):
        yield inner


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing in it yet
        return None


def _is_installed(thing: Any) -> bool:
    return _is_package(str(getattr(thing, "__module__", None)).partition(".")[0])


@functools.cache
def _is_package(name: str) -> bool:
    """Whether a package is one of Python's, an installed one or this one, whose versions say what it does."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if name in ("dit_lens", *sys.stdlib_module_names):
        return name != "__main__"
    return file is not None and file.startswith((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))


def _names(code: types.CodeType) -> list[str]:
    """The names that a function may look up outside of it, those of the functions within it as well."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return sorted({*code.co_names, *(name for c in inner for name in _names(c))})


def _bytecode(code: types.CodeType) -> str:
    """What a function does with its names and constants, and not where it stands."""
    constants = [_bytecode(c) if isinstance(c, types.CodeType) else describe(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames} {code.co_freevars}"


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]
