"""Arrays, tensors, tables and pictures as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dit_lens.files.codec import BASES, FORMS, TAGGED, Arguments, Packer, Unpacker, mismatch
from dit_lens.files.strict import Malformed

#: Types of a table's columns that are not numpy's.
_EXTENSIONS = {
    *("str", "string", "boolean", "Float32", "Float64"),
    *(f"{sign}{bits}" for sign in ("Int", "UInt") for bits in (8, 16, 32, 64)),
}
Array = NDArray[Any]
#: Complex numbers are kept as pairs of real ones.
_COMPLEX = {"torch.complex64": torch.float32, "torch.complex128": torch.float64}
_MODES = ("L", "RGB", "RGBA")
#: What a tensor is called in a file by its number, with what it has to be.
_TENSOR = {"tensor", "dtype", "shape"}


class _Tensors:
    """A tensor by its number, dtype and shape."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if not isinstance(value, Tensor):
            raise mismatch(value, Tensor, name)
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise Malformed(
                f"field {name!r} is a {value.layout} tensor on {value.device}; need a dense one with values"
            )
        parts = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        return {"tensor": packer.number(parts), "dtype": str(value.dtype), "shape": list(value.shape)}

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Tensor:
        data = _of_names(data, _TENSOR, Tensor, name)
        tensor = unpacker.tensor(data["tensor"], name)
        if data["dtype"] in list(_COMPLEX) and tensor.dtype == _COMPLEX[data["dtype"]] and tensor.shape[-1:] == (2,):
            tensor = torch.view_as_complex(tensor)
        if data["dtype"] != str(tensor.dtype) or data["shape"] != list(tensor.shape):
            need = f"{data['dtype']} of shape {data['shape']!r:.60}"
            raise Malformed(f"field {name!r} is {need}; its tensor is {tensor.dtype} of shape {list(tensor.shape)}")
        return tensor


class _Arrays:
    """An array as the tensor of its values, or as a list of its texts."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if type(value) is not np.ndarray:
            raise mismatch(value, np.ndarray, name)
        _check_scalar(value, kinds, name)
        if value.dtype.kind == "U":
            return {"texts": value.ravel().tolist(), "dtype": value.dtype.str, "shape": list(value.shape)}
        try:
            tensor = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
        except (TypeError, ValueError) as error:
            raise Malformed(f"field {name!r} is an array of {value.dtype}; need numbers, bools or texts") from error
        return packer.pack(tensor, Tensor, name)

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Array:
        texts = isinstance(data, dict) and "texts" in data
        array = _text_array(data, name) if texts else _number_array(data, name, unpacker)
        _check_scalar(array, kinds, name)
        return array


class _Tables:
    """A table by its columns and the names of its rows."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if not isinstance(value, pd.DataFrame):
            raise mismatch(value, pd.DataFrame, name)
        columns = [_pack_column(value.iloc[:, i], f"{name}[{c!r}]", packer) for i, c in enumerate(value.columns)]
        names, index = (
            _pack_index(part, f"{name}.{called}", packer)
            for part, called in ((value.columns, "columns"), (value.index, "index"))
        )
        return {"columns": columns, "names": names, "index": index}

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> pd.DataFrame:
        data = _of_names(data, {"columns", "names", "index"}, pd.DataFrame, name)
        names, index = (_unpack_index(data[part], f"{name}.{part}", unpacker) for part in ("names", "index"))
        if not isinstance(data["columns"], list):
            raise mismatch(data["columns"], list, name)
        found = {i: _unpack_column(column, f"{name}[{i}]", unpacker) for i, column in enumerate(data["columns"])}
        if len(found) != len(names) or any(len(column) != len(index) for column in found.values()):
            raise Malformed(f"field {name!r} is a table whose columns differ in length from its names or rows")
        table = pd.DataFrame(found, index=index)
        table.columns = names
        return table


class _Pictures:
    """A picture by its mode and pixels."""

    def pack(self, value: Any, kinds: Arguments, name: str, packer: Packer) -> Any:
        if not isinstance(value, Image.Image):
            raise mismatch(value, Image.Image, name)
        if value.mode not in _MODES or "transparency" in value.info:
            clear = " with a transparent colour" if "transparency" in value.info else ""
            raise Malformed(f"field {name!r} is a picture of mode {value.mode}{clear}; convert it to one of {_MODES}")
        return {"mode": value.mode, "pixels": packer.pack(np.asarray(value), np.ndarray, f"{name}.pixels")}

    def unpack(self, data: Any, kinds: Arguments, name: str, unpacker: Unpacker) -> Image.Image:
        data = _of_names(data, {"mode", "pixels"}, Image.Image, name)
        pixels = unpacker.unpack(data["pixels"], np.ndarray, f"{name}.pixels")
        mode = {(): "L", (3,): "RGB", (4,): "RGBA"}.get(pixels.shape[2:])
        if pixels.dtype != np.uint8 or pixels.ndim < 2 or mode != data["mode"] or 0 in pixels.shape:
            raise Malformed(f"field {name!r} is a picture of {pixels.dtype} {pixels.shape}, mode {data['mode']!r:.20}")
        return Image.fromarray(pixels)


def _of_names(data: Any, names: set[str], kind: Any, name: str) -> Mapping[str, Any]:
    """An object of JSON with exactly these entries."""
    if not isinstance(data, dict) or data.keys() != names:
        raise mismatch(data, kind, name)
    return data


def _check_scalar(array: Array, kinds: Arguments, name: str) -> None:
    """Refuse an array of another dtype than its annotation has, which is ``ndarray[shape, dtype[scalar]]``."""
    scalar = get_args(kinds[1])[0] if len(kinds) > 1 and get_args(kinds[1]) else Any
    scalar = get_origin(scalar) or scalar
    known = isinstance(scalar, type) and issubclass(scalar, np.generic)
    if known and not issubclass(array.dtype.type, scalar):
        raise Malformed(f"field {name!r} is an array of {array.dtype}; need {scalar.__name__}")


def _number_array(data: Any, name: str, unpacker: Unpacker) -> Array:
    tensor = unpacker.unpack(data, Tensor, name)
    try:
        return np.asarray(tensor.numpy())
    except TypeError as error:
        raise Malformed(f"field {name!r} is {tensor.dtype}, which numpy does not have") from error


def _text_array(data: Any, name: str) -> Array:
    data = _of_names(data, {"texts", "dtype", "shape"}, np.ndarray, name)
    texts = data["texts"]
    try:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("need texts")
        array = np.array(texts, dtype=data["dtype"]).reshape(data["shape"])
    except (ValueError, TypeError, MemoryError) as error:
        raise Malformed(f"field {name!r} is no array of texts: {error}") from error
    if array.dtype.kind != "U" or array.ravel().tolist() != texts:
        raise Malformed(f"field {name!r} has longer texts than its dtype {data['dtype']}")
    return array


def _pack_column(column: Any, name: str, packer: Packer) -> dict[str, Any]:
    """A series, or the names of rows or columns, by dtype and values."""
    if isinstance(column.dtype, np.dtype) and column.dtype != object:
        return {"dtype": "numpy", "values": packer.pack(column.to_numpy(), np.ndarray, name)}
    if str(column.dtype) != "object" and str(column.dtype) not in _EXTENSIONS:
        raise Malformed(f"field {name!r} is a column of {column.dtype}; need numbers, bools or texts")
    values = [None if value is pd.NA else value for value in column]
    return {"dtype": str(column.dtype), "values": [packer.pack(value, Any, name) for value in values]}


def _unpack_column(data: Any, name: str, unpacker: Unpacker) -> Any:
    data = _of_names(data, {"dtype", "values"}, pd.Series, name)
    if data["dtype"] == "numpy":
        values = unpacker.unpack(data["values"], np.ndarray, name)
        if values.ndim != 1:
            raise Malformed(f"field {name!r} is a column of shape {values.shape}")
        return values
    if data["dtype"] not in ["object", *_EXTENSIONS] or not isinstance(data["values"], list):
        raise Malformed(f"field {name!r} is a column of {data['dtype']!r:.20}; need numbers, bools or texts")
    values = [unpacker.unpack(value, Any, name) for value in data["values"]]
    try:
        return pd.array(values, dtype=data["dtype"]) if data["dtype"] != "object" else np.array(values, dtype=object)
    except (ValueError, TypeError) as error:
        raise Malformed(f"field {name!r}: {error}") from error


def _pack_index(index: Any, name: str, packer: Packer) -> dict[str, Any]:
    if isinstance(index, pd.MultiIndex):
        raise Malformed(f"field {name!r} has several levels; use reset_index()")
    called = packer.pack(index.name, Any, name)
    if isinstance(index, pd.RangeIndex):
        return {"name": called, "range": [index.start, index.stop, index.step]}
    return {"name": called, "column": _pack_column(index, name, packer)}


def _unpack_index(data: Any, name: str, unpacker: Unpacker) -> Any:
    if not isinstance(data, dict) or data.keys() not in ({"name", "range"}, {"name", "column"}):
        raise mismatch(data, pd.Index, name)
    called = unpacker.unpack(data["name"], Any, name)
    if "range" in data:
        start, stop, step = unpacker.unpack(data["range"], tuple[int, int, int], name)
        return pd.RangeIndex(start, stop, step or 1, name=called)
    return pd.Index(_unpack_column(data["column"], name, unpacker), name=called)


FORMS |= {Tensor: _Tensors(), np.ndarray: _Arrays(), pd.DataFrame: _Tables(), Image.Image: _Pictures()}
TAGGED |= {"array": np.ndarray, "table": pd.DataFrame}
BASES |= {"tensor": Tensor, "picture": Image.Image}
