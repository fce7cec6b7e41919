"""A run on its way into a store: its captures, checked, and what the manifest will say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dit_lens.errors import InputError, NotFinite
from dit_lens.runs.inputs import Row
from dit_lens.runs.run import Run
from dit_lens.sites.site import Site
from dit_lens.store.layout import Layout

#: Longer texts among the settings are left out.
LONGEST = 500


@dataclass(frozen=True)
class Job:
    """A run that is to be written.

    Attributes
    ----------
    tensors : dict from site to Tensor
    versions : tuple
        Of the tensors: what changes when torch changes one in place.
    named : bool
        Whether the key was given, and is not the run's id.
    """

    key: str
    run_id: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    layout: Layout
    tensors: Mapping[str, Tensor]
    versions: tuple[int | None, ...]
    named: bool


def tensor_versions(tensors: Mapping[str, Tensor]) -> tuple[int | None, ...]:
    return tuple(None if t.is_inference() else t._version for t in tensors.values())


def job_of(
    run: Run | Mapping[Any, Tensor],
    key: str | None,
    name: str | None,
    rows: Sequence[Row],
    model_id: str | None,
    settings: Mapping[str, Any] | None,
) -> Job:
    """What is to be written of a run, or of a dict from site to tensor.

    Raises
    ------
    InputError, NotFinite
        Names the site and what is wrong with it.
    """
    captures, named, run_id, sampling, setup = captures_of(run, name), key is not None, key, None, None
    if isinstance(run, Run):
        rows, model_id, settings, run_id = run.rows, run.model_id, run.settings, run.id
        sampling, setup = sampling_of(settings), run.setup
    if not isinstance(key := run_id if key is None else key, str) or not key:
        raise InputError(f"key={key!r}: need a text that names the run")
    _check_rows(rows)
    _check(captures, len(rows))
    layout = Layout.of(model_id or None, captures, sampling, setup)
    tensors = {str(site): tensor.detach().cpu() for site, tensor in captures.items()}
    return Job(key, run_id or key, tuple(rows), plain(settings or {}), layout, tensors, tensor_versions(tensors), named)


def captures_of(run: Run | Mapping[Any, Tensor], name: str | None) -> dict[Site, Tensor]:
    """The tensors of a run, or of a dict from site to tensor."""
    if isinstance(run, Run):
        return chosen(run, name)
    return {Site.parse(site) if isinstance(site, str) else site: tensor for site, tensor in run.items()}


def chosen(run: Run, name: str | None) -> dict[Site, Tensor]:
    """The captures of one name, or of all where no site is in two of them."""
    if name is not None:
        return run.captured(name)
    captures: dict[Site, Tensor] = {}
    for found in run.captures.values():
        if twice := captures.keys() & found.keys():
            names = sorted(run.captures)
            raise InputError(f"{min(twice)} was captured under several names; choose one with name=, of {names}")
        captures |= found
    return captures


def rows_of(captures: Mapping[Site, Tensor]) -> int:
    """How many rows tensors have, all of them as many."""
    rows = next((len(tensor) for tensor in captures.values() if isinstance(tensor, Tensor) and tensor.ndim), 0)
    _check(captures, rows)
    return rows


def _check_rows(rows: Sequence[Row]) -> None:
    if not rows or not all(isinstance(row, Row) for row in rows):
        raise InputError(f"rows={rows!r:.80}: need a Row(instance, seed) for every row of the tensors")


def _check(captures: Mapping[Site, Tensor], rows: int) -> None:
    if not captures:
        raise InputError("nothing was captured: give the run a Capture")
    for site, tensor in captures.items():
        if not isinstance(tensor, Tensor) or not tensor.ndim or len(tensor) != rows:
            given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"{site}: need a tensor whose first axis is the {rows} rows, got {given}")
        if not is_finite(tensor):
            raise NotFinite(f"{site} has values that are NaN or infinite; the run was not stored")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; both the least and the greatest value say so, in one pass."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    values = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no order of its own
    return all(math.isfinite(end.item()) for end in values.aminmax())


def sampling_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Number of steps and scales of guidance, which change every activation and not its shape."""
    names = {n for n in settings if n == "num_inference_steps" or "guidance" in n or "scale" in n}
    return plain({name: settings[name] for name in sorted(names)})


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings is numbers and short texts; images, generators and functions are left out."""
    texts = {str(name): _text(value) for name, value in settings.items()}
    return {name: json.loads(text) for name, text in texts.items() if text and len(text) <= LONGEST}


def _text(value: Any) -> str | None:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return None
