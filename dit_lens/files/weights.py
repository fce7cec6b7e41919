"""Trained weights beside the record of what they are: two files, of which neither is taken for that of another pair."""

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
from dit_lens.files.atomic import write_atomic

#: Where the record's file names the weights beside it.
_NAMED = "weights_sha256"


def write_weights(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Path:
    """Write tensors to ``path`` (safetensors) and, last and beside it, their record (``.json``), which names them.

    Raises
    ------
    StoreError
        A file that cannot be written.
    """
    weights = save(dict(tensors))
    write_atomic(path, weights)
    named = {**record, _NAMED: hashlib.sha256(weights).hexdigest()}
    write_atomic(path.with_suffix(".json"), json.dumps(named, indent=1).encode())
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record that `write_weights` wrote.

    Raises
    ------
    StoreError
        Files that are missing or damaged, or a record of other weights.
    """
    try:
        weights, record = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
        if record.pop(_NAMED) != hashlib.sha256(weights).hexdigest():
            raise StoreError(f"{path.with_suffix('.json')} is the record of other weights than {path.name}")
        return load(weights), record
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise StoreError(f"{path} and its record cannot be read: {type(error).__name__}: {error}") from error
