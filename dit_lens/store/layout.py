"""What every run of a store has: its model, sites and noise levels, and the shape and dtype of what is kept at each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import InputError, MadeForAnother
from dit_lens.runs.identity import difference
from dit_lens.sites.site import Site

#: The names of safetensors for the dtypes that a store takes.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Part:
    """What is kept at one site.

    Attributes
    ----------
    site : Site
        With its sigma, alpha and expert.
    dtype : str
        As safetensors names it.
    shape : tuple of int
        Rows left out.
    """

    site: Site
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def _noise(self) -> tuple[object, ...]:
        return self.site.sigma, self.site.alpha, self.site.expert

    def difference(self, other: Part) -> str:
        """What another part of the same site has that this one has not, in words; empty where they agree."""
        pairs = {
            "shape (rows left out)": (self.shape, other.shape),
            "dtype": (self.dtype, other.dtype),
            "sigma, alpha, expert": (self._noise, other._noise),
        }
        return "; ".join(f"{name} {b}, the store has {a}" for name, (a, b) in pairs.items() if a != b)


@dataclass(frozen=True)
class Layout:
    """The columns of a store: all its runs have the same sites, shapes and dtypes.

    Attributes
    ----------
    model_id : str or None
        None for activations of no named model.
    setup : dict or None
        Of the runs (see `Run`); None where it is not known.
    parts : tuple of Part, in the order in which the run met them
    sampling : dict or None
        Number of steps and scales of guidance; None where they are not known.
    """

    model_id: str | None
    parts: tuple[Part, ...]
    sampling: Mapping[str, Any] | None = None
    setup: Mapping[str, str] | None = None

    @cached_property
    def by_name(self) -> dict[str, Part]:
        return {str(part.site): part for part in self.parts}

    @property
    def row_bytes(self) -> int:
        return sum(part.row_bytes for part in self.parts)

    @classmethod
    def of(
        cls,
        model_id: str | None,
        tensors: Mapping[Site, Tensor],
        sampling: Mapping[str, Any] | None = None,
        setup: Mapping[str, str] | None = None,
    ) -> Layout:
        """Of tensors whose first axis is rows.

        Raises
        ------
        InputError
            A dtype that cannot be stored.
        """
        for site, tensor in tensors.items():
            if tensor.dtype not in NAMES:
                raise InputError(f"{site} is {tensor.dtype}; a store takes {', '.join(map(str, NAMES))}")
        parts = tuple(Part(site, NAMES[t.dtype], tuple(t.shape[1:])) for site, t in tensors.items())
        return cls(model_id, parts, sampling, setup)

    def require(self, other: Layout) -> None:
        """Refuse a run that is of another kind than those of this store.

        Raises
        ------
        MadeForAnother
            Of another model or setup, or with other sites, shapes, noise levels, steps or scales of guidance.
        InputError
            With another dtype.
        """
        self.require_model(other.model_id, other.setup)
        self._require_sampling(other)
        missing, extra = self.by_name.keys() - other.by_name.keys(), other.by_name.keys() - self.by_name.keys()
        for what, sites in (("lacks", missing), ("also has", extra)):
            if sites:
                raise MadeForAnother(f"this run {what} {_few(sites)}; all runs of a store have the same sites")
        for name, part in other.by_name.items():
            if differs := self.by_name[name].difference(part):
                kind = InputError if differs.startswith("dtype") and ";" not in differs else MadeForAnother
                raise kind(f"{name}: this run has {differs}")

    def require_model(self, model_id: str | None, setup: Mapping[str, str] | None) -> None:
        """Refuse another model, or the same with another scheduler or encoder.

        Raises
        ------
        MadeForAnother
            Names what differs.
        """
        if self.model_id != model_id:
            own, given = _model(self.model_id), _model(model_id)
            raise MadeForAnother(f"the store has activations of {own}, these are of {given}")
        if self.setup is not None and setup is not None and (part := difference(self.setup, setup)):
            raise MadeForAnother(f"the store has activations of runs with another {part} than the pipeline has now")

    def _require_sampling(self, other: Layout) -> None:
        a, b = self.sampling, other.sampling
        if a is None or b is None:
            return
        for name in sorted(a.keys() | b.keys()):
            if a.get(name) != b.get(name):
                raise MadeForAnother(f"this run has {name}={b.get(name)}, the store has {a.get(name)}")


def _model(name: str | None) -> str:
    return "no named model" if name is None else f"model {name}"


def _few(names: set[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more
