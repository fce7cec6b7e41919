"""What a sweep goes over: values of an intervention's sites or settings, and the cells that they make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from dit_lens.errors import InputError, SiteError
from dit_lens.interventions.base import Intervention
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import indices, show
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens

#: Fields of `Sites` that can be swept, and the columns of a table that say them.
SITE_AXES = {
    "steps": "step",
    "branches": "branch",
    "layers": "layer",
    "component": "component",
    "stream": "stream",
    "heads": "head",
    "tokens": "tokens",
}
_NUMBERED = ("steps", "layers", "heads")
#: Columns that a table has besides those of the axes.
_TAKEN = (*SITE_COLUMNS, *VALUE_COLUMNS, "tokens", "cell", "site", "number", "instance", "seed")


def column(axis: str) -> str:
    """The column of a table for an axis; ``own_seed`` and the like where a table has one of that name already."""
    return SITE_AXES.get(axis, f"own_{axis}" if axis in _TAKEN else axis)


#: Value of an axis as a table and a file have it.
Label = int | float | str


@dataclass(frozen=True)
class Windows:
    """Every window of so many consecutive layers, steps or heads; see `windows`."""

    size: int
    stride: int = 1

    def over(self, count: int, what: str) -> list[tuple[int, ...]]:
        """The windows of 0..count-1.

        Raises
        ------
        SiteError
            None fits.
        """
        if self.size > count:
            raise SiteError(f"windows of {self.size} {what}: this run has {count}")
        return [tuple(range(start, start + self.size)) for start in range(0, count - self.size + 1, self.stride)]


def windows(size: int, stride: int = 1) -> Windows:
    """Windows of consecutive layers, steps or heads, for an axis of a sweep: 0..size-1, then ``stride`` further on.

    Raises
    ------
    InputError
        A size or stride below 1.

    Examples
    --------
    >>> windows(2).over(4, "layers")
    [(0, 1), (1, 2), (2, 3)]
    """
    for name, value in (("size", size), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"windows({name}={value!r}): need a whole number of at least 1")
    return Windows(size, stride)


@dataclass(frozen=True)
class Together:
    """Several interventions that one cell makes.

    Attributes
    ----------
    parts : tuple of Intervention
        In the order in which they apply where they meet.
    """

    parts: tuple[Any, ...]

    @property
    def sites(self) -> Sites:
        """Of the first, for messages."""
        return self.parts[0].sites  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Cell:
    """One point of a grid: what is done there. It can be pickled where its intervention can.

    Attributes
    ----------
    number : int
        Its place in the sweep.
    kind : "baseline", "donor", "identity" or "swept"
        "baseline" is nothing at all, "donor" the other side of each pair, "identity" every activation put back as it
        was.
    step : int
        The denoising step whose clean estimate is measured: the last one that the intervention touches.
    intervention : Intervention, Together, or None
    at : dict from axis to label
    """

    number: int
    kind: str
    step: int
    intervention: Any = None
    at: Mapping[str, Label] | None = None

    @property
    def parts(self) -> tuple[Any, ...]:
        """The interventions of the cell, in order."""
        if self.intervention is None:
            return ()
        return self.intervention.parts if isinstance(self.intervention, Together) else (self.intervention,)

    @property
    def labels(self) -> dict[str, Label]:
        return dict(self.at or {})

    def __str__(self) -> str:
        where = ", ".join(f"{name}={value}" for name, value in self.labels.items())
        return f"cell {self.number} ({where or self.kind})"


def swept(
    intervention: Intervention, over: Mapping[str, Any], geometry: Geometry
) -> list[tuple[dict[str, Label], Intervention]]:
    """Every point of the grid: its labels, and the intervention changed to it.

    Raises
    ------
    InputError, SiteError
        A grid of nothing, an axis that the intervention does not have, a value that it refuses.
    """
    if not isinstance(over, Mapping) or not over:
        raise InputError(f"over={over!r:.80}: name what to sweep, such as over={{'layers': 'each'}}")
    if not is_dataclass(intervention) or not isinstance(getattr(intervention, "sites", None), Sites):
        raise InputError(
            f"{intervention!r:.80} cannot be swept: it must be a dataclass with sites, as all of dit_lens are"
        )
    axes = {name: _values(name, values, intervention, geometry) for name, values in over.items()}
    found = []
    for point in itertools.product(*(axis.items() for axis in axes.values())):
        made = intervention
        for name, (_, value) in zip(axes, point, strict=True):
            made = _changed(made, name, value)
        made.sites.resolve(geometry)
        found.append((dict(zip(axes, (label for label, _ in point), strict=True)), made))
    return found


def _changed(intervention: Any, name: str, value: Any) -> Any:
    if name in SITE_AXES:
        return replace(intervention, sites=intervention.sites.at(**{name: value}))
    return replace(intervention, **{name: value})


def _values(name: str, values: Any, intervention: Any, geometry: Geometry) -> dict[Label, Any]:
    """The values of an axis by their labels."""
    settings = [field.name for field in fields(intervention) if field.init and field.name != "sites"]
    if name in SITE_AXES and name in settings:
        raise InputError(
            f"over {name}: {type(intervention).__name__} and its sites both have it; give yours another name"
        )
    if name not in SITE_AXES and name not in settings:
        known = ", ".join([*SITE_AXES, *settings])
        raise InputError(f"{type(intervention).__name__} has nothing called {name!r} to sweep; there are {known}")
    several = isinstance(values, Mapping | Sequence | Windows | np.ndarray | range) and not isinstance(values, str)
    if not several and not (isinstance(values, str) and values == "each"):
        raise InputError(
            f"over {name}={values!r:.80}: need a list of values, a mapping from labels to values, or 'each'"
        )
    if isinstance(values, Mapping):
        found = {_label(label): value for label, value in values.items()}
    else:
        listed = _listed(name, values, intervention.sites, geometry)
        found = {_label(value, name): value for value in listed}
        if len(found) < len(listed):
            raise InputError(f"over {name}: two values are called the same; give a mapping from labels to values")
    if not found:
        raise InputError(f"over {name}: no values; a sweep needs one at least")
    return found


def _listed(name: str, values: Any, sites: Sites, geometry: Geometry) -> list[Any]:
    if not isinstance(values, Windows | str):
        return list(values)
    if name not in _NUMBERED:
        raise InputError(f"over {name}={values}: only {', '.join(_NUMBERED)} are counted; list the values")
    count = _count(name, sites, geometry)
    if isinstance(values, Windows):
        return list(values.over(count, name))
    return indices(getattr(sites, name), count, name[:-1])


def _count(name: str, sites: Sites, geometry: Geometry) -> int:
    if name != "heads":
        return int(getattr(geometry, name))
    stream = sites.stream if isinstance(sites.stream, str) else sites.stream[0]
    heads = {geometry.layer(k).heads.get(stream, 0) for k in indices(sites.layers, geometry.layers, "layer")}
    if len(heads) > 1 or 0 in heads:
        raise SiteError(f"over heads='each': the layers have {sorted(heads)} heads that sum to attn; list the heads")
    return heads.pop()


def _label(value: Any, axis: str = "") -> Label:
    """What a value is called in tables and files."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    if isinstance(value, Tokens):
        return str(value)
    if axis in _NUMBERED and not callable(value):
        return _window(value)
    if isinstance(value, tuple | list) and all(isinstance(part, str) for part in value):
        return "+".join(value)
    raise InputError(f"over {axis}: a {type(value).__name__} has no name; give a mapping from labels to values")


def _window(value: Any) -> Label:
    """Consecutive numbers by their ends, others as `Sites` writes them."""
    numbers = list(value) if isinstance(value, Sequence | range | np.ndarray) else []
    if len(numbers) == 1:
        return int(numbers[0])
    if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}-{numbers[-1]}"
    return show(value)
