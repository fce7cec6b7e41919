"""Trained weights with the record of what they are, in one file: neither is ever taken for that of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dit_lens.errors import StoreError
from dit_lens.files import strict
from dit_lens.files.atomic import write_atomic
from dit_lens.files.strict import Malformed

#: The entry of the file's metadata that holds the record, a line of JSON with its checksum.
_ENTRY = "record"
#: Where the record names the weights.
_NAMED = "weights_sha256"


def write_weights(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Path:
    """Write tensors and their record to ``path`` (safetensors), whole or not at all.

    Raises
    ------
    StoreError
        A file that cannot be written, or a record that is no JSON (NaN and infinity are none).
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        named = strict.line({**record, _NAMED: _sections(save(tensors))[1]}).decode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path}: the record cannot be written as JSON: {error}") from error
    return write_atomic(path, save(tensors, {_ENTRY: named}))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record that `write_weights` wrote.

    Raises
    ------
    StoreError
        A file that is missing, damaged, changed since it was written, or without a record.
    """
    try:
        data = path.read_bytes()
        metadata, digest = _sections(data)
        record = strict.parse_line(strict.get(metadata, _ENTRY, str).encode())
        if strict.get(record, _NAMED, str) != digest:
            raise Malformed("its record is that of other weights")
        del record[_NAMED]
        return load(data), record
    except (OSError, Malformed, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _sections(data: bytes) -> tuple[dict[str, Any], str]:
    """The metadata of a safetensors file, and a hash of all else: names, dtypes, shapes and values."""
    end = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or len(data) < end:
        raise Malformed(f"it ends after {len(data)} bytes, within its header")
    header = strict.load(data[8:end])
    metadata = strict.get(header, "__metadata__", dict) if "__metadata__" in header else {}
    entries = json.dumps({name: header[name] for name in header.keys() - {"__metadata__"}}, sort_keys=True)
    return metadata, hashlib.sha256(entries.encode() + data[end:]).hexdigest()
