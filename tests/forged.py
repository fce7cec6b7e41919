"""Cards that were changed by somebody who gave them the checksums that they then need."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

#: What a field may not be, whatever it is.
WRONG: tuple[Any, ...] = (None, float("nan"), float("inf"), 10**400, True, -1, "", [], {}, [None], {"a": None})


def rewrite(path: Path, card: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
    """Put another card, of whatever values, into a file of weights."""
    found = dict(load_file(path) if tensors is None else tensors)
    save_file(found, path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    named = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + data[end:]).hexdigest()
    text = _text({**card, "weights_sha256": named})
    signed = text[:-1] + f',"sha256":"{hashlib.sha256(text.encode()).hexdigest()}"}}'
    save_file(found, path, {"record": signed})


def _text(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))


def spoilt(card: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every field of a card in turn, replaced by every wrong value or left out: its place, the old value, the card.

    Of long lists the first and the last item.
    """
    for place in _places(card):
        for value in (*WRONG, ...):
            changed = copy.deepcopy(card)
            owner = changed
            for step in place[:-1]:
                owner = owner[step]
            old = owner[place[-1]]
            if value is ...:
                del owner[place[-1]]
            elif json.dumps(value) == json.dumps(old):
                continue
            else:
                owner[place[-1]] = value
            yield f"{'.'.join(map(str, place))} = {'(left out)' if value is ... else repr(value)[:12]}", old, changed


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*at, key))
    elif isinstance(value, list):
        for i in sorted({0, len(value) - 1} if value else set()):
            yield from _places(value[i], (*at, i))
