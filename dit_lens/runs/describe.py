"""What a value is, in a text that is the same for the same value and for no other: what ids of runs are hashed from."""

from __future__ import annotations

import copyreg
import functools
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dit_lens.files.digest import short_hash
from dit_lens.runs.donor import Donor
from dit_lens.runs.inputs import picture_bytes
from dit_lens.runs.weights import contents, submodules, tensors

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, np.generic)
_NAMED = (types.ModuleType, types.MethodDescriptorType, types.WrapperDescriptorType)


def describe(value: Any) -> str:
    """Runs by their id, tensors, arrays and pictures by a hash of their bytes, functions by their code and its data.

    Of a function that is its bytecode and constants, its defaults and attributes, what it encloses and the globals that
    it names; of another object its class and what pickle would keep of it. Functions and classes of installed packages
    count by their names alone.
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
            return f"{type(value).__qualname__}.{value.name}={self.text(value.value)}"
        if isinstance(value, Donor):
            return f"run:{value.id}"
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, Image.Image):
            return f"picture:{short_hash([picture_bytes(value)])}"
        if isinstance(value, torch.Generator):
            return f"generator:{self.text(value.get_state())}"
        if isinstance(value, Mapping):
            items = sorted(value.items(), key=lambda item: repr(item[0]))  # no value is printed for its place
            return f"{{{', '.join(f'{k}: {self.text(v)}' for k, v in items)}}}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self.text, value))}]"
        if isinstance(value, Set):
            return f"{{{', '.join(sorted(map(self.text, value)))}}}"
        return None

    def _tensor(self, value: Tensor) -> str:
        value = value.detach()
        if value.layout is torch.sparse_coo:
            value = value.coalesce()
            return f"sparse {tuple(value.shape)}:{self.text([value.indices(), value.values()])}"
        plain = value.resolve_conj().resolve_neg() if value.layout is torch.strided else value.to_dense()
        return f"tensor:{short_hash(contents({'': plain}, whole=True))}"

    def _array(self, value: Any) -> str:
        if isinstance(value, np.ma.MaskedArray):
            return f"masked:{self.text([value.data, np.ma.getmaskarray(value)])}"
        if value.dtype.hasobject:
            return f"array {value.dtype} {value.shape}:{self.text(value.tolist())}"
        return f"array:{short_hash([f'{value.dtype} {value.shape}'.encode(), np.ascontiguousarray(value).tobytes()])}"

    def _code(self, value: Any) -> str | None:
        if isinstance(value, functools.partial):
            return f"partial({self.text(value.func)}, {self.text(value.args)}, {self.text(value.keywords)})"
        if isinstance(value, types.MethodType):
            return f"{self.text(value.__func__)} of {self.text(value.__self__)}"
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.BuiltinFunctionType):
            of = value.__self__
            return value.__qualname__ + (
                "" if of is None or isinstance(of, types.ModuleType) else f" of {self.text(of)}"
            )
        if isinstance(value, _NAMED):
            return str(getattr(value, "__qualname__", value.__name__))
        if isinstance(value, type):
            return self._class(value)
        wrapped = getattr(value, "__wrapped__", None)  # of `functools.cache` and its like
        return f"{type(value).__qualname__} of {self.text(wrapped)}" if callable(wrapped) else None

    def _function(self, function: types.FunctionType) -> str:
        if _is_installed(function):
            return f"{function.__module__}.{function.__qualname__}"
        code, cells = function.__code__, function.__closure__ or ()
        enclosed = dict(zip(code.co_freevars, map(_contents, cells), strict=True))
        named = {name: function.__globals__[name] for name in _names(code) if name in function.__globals__}
        defaults = [function.__defaults__, function.__kwdefaults__, vars(function)]
        return (
            f"{function.__qualname__}<{short_hash([self.text([_bytecode(code), defaults, enclosed, named]).encode()])}>"
        )

    def _class(self, kind: type) -> str:
        """Its name; and of one that the user wrote what stands in it, for a notebook may define it again."""
        own = [base for base in kind.__mro__ if not _is_installed(base)]
        members = [f"{name}={self.text(x)}" for base in own for name, x in sorted(_members(base).items())]
        return f"{kind.__qualname__}<{short_hash([' '.join(members).encode()])}>" if members else kind.__qualname__

    def _object(self, value: Any) -> str:
        kind = self.text(type(value))
        if isinstance(value, nn.Module):
            within = {path: [type(part), _attributes(part, public=True)] for path, part in submodules(value)}
            return f"{kind}:{short_hash(contents(tensors(value)))} {self.text(within)}"
        if hasattr(value, "full_id"):  # a model
            return f"model:{value.id}"
        if is_dataclass(value) and _is_installed(type(value)):
            return f"{kind}{self.text({f.name: getattr(value, f.name) for f in fields(value)})}"
        reduced = _reduced(value)
        return f"{kind}{self.text(_attributes(value) if reduced is None else reduced)}"


def _reduced(value: Any) -> Any:
    """What pickle keeps of an object that has a way of its own; None for others, and where it cannot be pickled."""
    kinds = type(value).__mro__[:-1]
    own = any(name in vars(kind) for kind in kinds for name in ("__reduce__", "__reduce_ex__"))
    known = copyreg.dispatch_table.get(type(value))
    if known is None and not own:
        return None
    try:
        reduced = value.__reduce_ex__(4) if known is None else known(value)
    except Exception:  # of a lock, a file, a generator
        return None
    # Items come as iterators, which are used up by being read.
    return [list(x) if isinstance(x, Iterator) else x for x in reduced] if isinstance(reduced, tuple) else reduced


def _attributes(value: Any, *, public: bool = False) -> dict[str, Any]:
    """What an object holds in its ``__dict__`` and slots, without what its class computes once and keeps there."""
    kinds = type(value).__mro__
    cached = {n for base in kinds for n, x in vars(base).items() if isinstance(x, functools.cached_property)}
    found = {name: x for name, x in getattr(value, "__dict__", {}).items() if name not in cached}
    for base in kinds:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            hidden = slot.startswith("__") and not slot.endswith("__")
            name = f"_{base.__name__.lstrip('_')}{slot}" if hidden else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return {name: x for name, x in found.items() if not (public and name.startswith("_"))}


def _members(kind: type) -> dict[str, Any]:
    """What a class defines: functions, those of properties and of methods without an instance, and data."""
    found = {}
    for name, member in vars(kind).items():
        inner = next((x for n in ("fget", "__func__", "func") if (x := getattr(member, n, None))), member)
        plain = not (name.startswith("__") and name.endswith("__")) and not name.startswith("_abc_")
        if isinstance(inner, types.FunctionType) or (plain and not isinstance(inner, types.MemberDescriptorType)):
            found[name] = inner if isinstance(inner, types.FunctionType) else member
    return found


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
