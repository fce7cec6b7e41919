"""A run of chosen rows: every tensor of it that has rows, cut to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_lens.errors import InputError
from dit_lens.families.base import Fixed
from dit_lens.files.digest import short_hash
from dit_lens.runs.call import Call, Prepared
from dit_lens.runs.per_row import rows_of
from dit_lens.sites.select import whole
from dit_lens.sites.site import Site

if TYPE_CHECKING:
    from dit_lens.runs.run import Run


def row_numbers(rows: Sequence[int], count: int) -> list[int]:
    """Rows as numbers from 0.

    Raises
    ------
    InputError
        None, one that the run does not have, or one twice.
    """
    try:
        numbers = [whole(row) for row in rows]
    except TypeError as error:
        raise InputError(f"select({rows!r:.80}): need a list of row numbers, such as [0, 2]") from error
    if not numbers or not all(-count <= n < count for n in numbers):
        raise InputError(f"select({numbers}): the run has rows 0..{count - 1}; name at least one")
    numbers = [n % count for n in numbers]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"select({numbers}): a row is named twice")
    return numbers


def selected(run: Run, rows: list[int]) -> Run:
    """The run of these rows."""
    count = len(run.rows)
    return replace(
        run,
        id=short_hash([run.id.encode(), repr(rows).encode()]),
        inputs=tuple(run.inputs[r] for r in rows),
        rows=tuple(run.rows[r] for r in rows),
        content=tuple(run.content[r] for r in rows),
        frames=None if run.frames is None else run.frames[rows],
        latents=run.latents[rows],
        settings=rows_of(run.settings, rows),
        captures={name: _captures(name, found, rows, count) for name, found in run.captures.items()},
        calls=tuple(_call(call, rows, count) for call in run.calls),
        states=tuple(state[rows] for state in run.states),
        prepared=run.prepared
        and Prepared(tuple(map(_where(count, rows), run.prepared.rest)), run.prepared.generators[rows]),
        fixed=run.fixed and Fixed(*(_where(count, rows)(t) for t in (run.fixed.mask, run.fixed.value))),
        text_valid={branch: valid[rows] for branch, valid in run.text_valid.items()},
    )


def _where(count: int, rows: Sequence[int]) -> Callable[[Any], Any]:
    """Takes the rows of a tensor whose first axis has ``count`` of them; what has none stays whole."""

    def take(value: Any) -> Any:
        has_rows = isinstance(value, Tensor) and value.ndim and value.shape[0] == count
        return value[torch.tensor(rows, device=value.device)] if has_rows else value

    return take


def _call(call: Call, rows: Sequence[int], count: int) -> Call:
    """The rows of each of a call's branches.

    Only tensors that are arguments or outputs themselves have rows: those in lists within them, as tables of positions
    are, hold the same for all.
    """
    of_branches = [place * count + row for place in range(len(call.branches)) for row in rows]
    take = _where(count * len(call.branches), of_branches)
    return replace(
        call,
        args=tuple(map(take, call.args)),
        kwargs={name: take(value) for name, value in call.kwargs.items()},
        output=None if call.output is None else tuple(map(take, call.output)),
        context=None,
    )


def _captures(name: str, found: Mapping[Site, Tensor], rows: Sequence[int], count: int) -> dict[Site, Tensor]:
    for site, tensor in found.items():
        if not tensor.ndim or len(tensor) != count:
            shape, called = tuple(tensor.shape), f" of the name {name!r}" if name else ""
            raise InputError(f"select: the capture of {site}{called} has shape {shape}, and not {count} rows")
    return {site: tensor[list(rows)] for site, tensor in found.items()}
