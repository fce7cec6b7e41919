"""Arguments of a pipeline that have an entry for each row: which they are, and some rows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import InputError

#: Parts of the names of such arguments; a text serves all rows.
_NAMES = ("negative_prompt", "latents", "embeds", "attention_mask")


def entries(name: str, value: Any) -> int | None:
    """Rows that an argument has entries for; None for one that all rows share."""
    if not any(part in name for part in _NAMES):
        return None
    if isinstance(value, list | tuple):
        return len(value)
    return len(value) if isinstance(value, Tensor | np.ndarray) and value.ndim else None


def require_entries(arguments: Mapping[str, Any], count: int) -> None:
    """Refuse arguments with entries for another number of rows.

    Raises
    ------
    InputError
    """
    for name, value in arguments.items():
        if (given := entries(name, value)) not in (None, count):
            raise InputError(f"{name}= has entries for {given} rows, and these inputs make {count}: give one for each")


def rows_of(arguments: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The same arguments for some rows."""
    return {
        name: value if entries(name, value) is None else _taken(value, list(rows)) for name, value in arguments.items()
    }


def _taken(value: Any, rows: list[int]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(value[row] for row in rows)
    return value[torch.tensor(rows, device=value.device)] if isinstance(value, Tensor) else value[rows]
