"""Addresses inside a generation: one `Site`, and `Sites` that select many.

A site's canonical string is ``s03/cond/L05/delta/video``: denoising step, guidance branch, layer, component, stream,
with ``-`` for a part that the component does not have. It is the key in every table, file and message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from dit_lens.errors import SiteError

#: Components that belong to one layer, in the order in which a block makes them.
LAYER_COMPONENTS = ("delta", "resid")
#: Components of one denoiser call, in execution order.
CALL_COMPONENTS = ("model_input", "embed", *LAYER_COMPONENTS, "velocity")
#: Components of one denoising step, around its calls.
STEP_COMPONENTS = ("latents", "guided")
COMPONENTS = ("latents", *CALL_COMPONENTS, "guided")
#: Components that can be read but not edited.
READ_ONLY = ("guided",)

#: How a range of steps, layers or frames is chosen: everything, one (negative counts from the end), a slice, several,
#: or a predicate on the index.
Select = str | int | slice | range | Sequence[int] | Callable[[int], bool]

_PATTERN = re.compile(r"s(\d+)/([\w-]+)/(?:L(\d+)|-)/(\w+)/(\w+)")


@dataclass(frozen=True, order=True)
class Site:
    """One place in one generation.

    Parameters
    ----------
    step : int
        Denoising step 0..S-1, never the count of denoiser calls.
    branch : str or None
        "cond" or "uncond"; None for the components around the denoiser.
    layer : int or None
        0..L-1; None for components that belong to no layer.
    component : str
        One of ``dit_lens.sites.COMPONENTS``.
    stream : str
    sigma, expert : float, str or None
        They ride along and take no part in comparison.

    Examples
    --------
    >>> str(Site(3, "cond", 5, "delta"))
    's03/cond/L05/delta/video'
    >>> Site.parse("s03/cond/L05/delta/video").layer
    5
    """

    step: int
    branch: str | None
    layer: int | None
    component: str
    stream: str = "video"
    sigma: float | None = field(default=None, compare=False)
    expert: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        layer = "-" if self.layer is None else f"L{self.layer:02d}"
        return f"s{self.step:02d}/{self.branch or '-'}/{layer}/{self.component}/{self.stream}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a canonical string.

        Raises
        ------
        SiteError
            The text is no canonical string of a known component.
        """
        match = _PATTERN.fullmatch(text)
        if not match or match[4] not in COMPONENTS:
            raise SiteError(f"{text!r} is no site; a site reads like 's03/cond/L05/delta/video'")
        branch = None if match[2] == "-" else match[2]
        layer = None if match[3] is None else int(match[3])
        return cls(int(match[1]), branch, layer, match[4], match[5])


@dataclass(frozen=True)
class Tokens:
    """A rectangular part of the token grid: latent frames, and a box of rows and columns.

    Parameters
    ----------
    frames : Select
        Latent frames.
    rows, columns : (int, int) or None
        Half-open ranges on the token grid.
    """

    frames: Select = "all"
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    def __str__(self) -> str:
        parts = [f"frames={_show(self.frames)}" if self.frames != "all" else ""]
        parts += [f"{n}={a}:{b}" for n, (a, b) in self._boxes()]
        return ",".join(filter(None, parts)) or "all"

    def _boxes(self) -> list[tuple[str, tuple[int, int]]]:
        return [(n, box) for n, box in (("rows", self.rows), ("columns", self.columns)) if box is not None]

    @property
    def is_all(self) -> bool:
        return self == Tokens()

    def validate(self, grid: tuple[int, ...]) -> None:
        """Check against a token grid (F, H, W)."""
        indices(self.frames, grid[0], "latent frame")
        sizes = {"rows": grid[1], "columns": grid[2]}
        for name, (low, high) in self._boxes():
            size = sizes[name]
            if not 0 <= low < high <= size:
                raise SiteError(f"tokens {name}={low}:{high} do not fit; the grid has {name} 0..{size - 1}")

    def take(self, activation: Tensor) -> Tensor:
        """The selected part of an activation (B, F, H, W, D): (B, f, h, w, D)."""
        if self.is_all:
            return activation
        return activation[self._index(activation)]

    def put(self, activation: Tensor, part: Tensor) -> Tensor:
        """A copy of ``activation`` with the selected part replaced."""
        if self.is_all:
            return part
        changed = activation.clone()
        changed[self._index(activation)] = part
        return changed

    def _index(self, activation: Tensor) -> tuple[Any, ...]:
        frames: Any = indices(self.frames, activation.shape[1], "latent frame")
        rows, columns = (slice(*box) if box else slice(None) for box in (self.rows, self.columns))
        return (slice(None), frames, rows, columns)

    def to_json(self) -> dict[str, Any]:
        return {"frames": _to_json(self.frames), "rows": self.rows, "columns": self.columns}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tokens:
        boxes: Any = {k: tuple(data[k]) if data[k] else None for k in ("rows", "columns")}
        return cls(frames=_from_json(data["frames"]), **boxes)


@dataclass(frozen=True)
class Geometry:
    """What a run offers to be addressed: what `Sites` are validated against.

    Attributes
    ----------
    steps, layers : int
    branches, streams : tuple of str
    grid : (F, H, W), the token grid
    shapes : dict from component to the shape of its activations, rows left out
    """

    steps: int
    layers: int
    branches: tuple[str, ...]
    grid: tuple[int, int, int]
    streams: tuple[str, ...] = ("video",)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Sites:
    """A selection of sites.

    Parameters
    ----------
    component : str or tuple of str
    steps, layers : Select
        "all", an index (negative counts from the end), a slice, a list, or a predicate on the index.
    branches : "all", str or tuple of str
    stream : str
    tokens : Tokens
        Which tokens of each activation; the intervention sees only these.

    Raises
    ------
    SiteError
        At construction for an unknown component, at the start of a run for what the model does not have.

    Examples
    --------
    >>> print(Sites(steps=0, layers=[4, 5], component="delta"))
    delta, step 0, layers 4,5
    >>> Sites.from_json(Sites(layers=slice(2, 6)).to_json()) == Sites(layers=slice(2, 6))
    True
    """

    component: str | tuple[str, ...] = "resid"
    steps: Select = "all"
    layers: Select = "all"
    branches: str | tuple[str, ...] = "all"
    stream: str = "video"
    tokens: Tokens = Tokens()

    def __post_init__(self) -> None:
        for name in ("component", "branches"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for component in self.components:
            if component not in COMPONENTS:
                raise SiteError(f"unknown component {component!r}; one of {', '.join(COMPONENTS)}")

    @property
    def components(self) -> tuple[str, ...]:
        return (self.component,) if isinstance(self.component, str) else self.component

    def __str__(self) -> str:
        parts = ["+".join(self.components)]
        parts += [f"{n} {_show(s)}" if isinstance(s, int) else f"{n}s {_show(s)}" for n, s in self._ranges()]
        if self.branches != "all":
            parts.append(f"branch {self.branches if isinstance(self.branches, str) else '+'.join(self.branches)}")
        if self.stream != "video":
            parts.append(f"stream {self.stream}")
        if not self.tokens.is_all:
            parts.append(f"tokens {self.tokens}")
        return ", ".join(parts)

    def _ranges(self) -> list[tuple[str, Select]]:
        per_layer = set(self.components) & set(LAYER_COMPONENTS)
        return [("step", self.steps)] + ([("layer", self.layers)] if per_layer else [])

    def resolve(self, geometry: Geometry) -> tuple[Site, ...]:
        """All selected sites of a run, in execution order within a step.

        Raises
        ------
        SiteError
            Names what is wrong and the valid values.
        """
        if self.stream not in geometry.streams:
            raise SiteError(f"unknown stream {self.stream!r}; this model has {', '.join(geometry.streams)}")
        self.tokens.validate(geometry.grid)
        if not self.tokens.is_all and set(self.components) & {"latents", "model_input", "velocity", "guided"}:
            raise SiteError(f"tokens select on the residual stream; {self} names components on the latent grid")
        steps = indices(self.steps, geometry.steps, "step")
        layers = indices(self.layers, geometry.layers, "layer")
        branches = self._branches(geometry.branches)
        chosen = [c for c in COMPONENTS if c in self.components]
        return tuple(site for step in steps for site in self._of_step(step, branches, layers, chosen))

    def _of_step(
        self, step: int, branches: Sequence[str], layers: Sequence[int], chosen: Sequence[str]
    ) -> Iterable[Site]:
        if "latents" in chosen:
            yield Site(step, None, None, "latents", self.stream)
        for branch in branches:
            for component in (c for c in ("model_input", "embed") if c in chosen):
                yield Site(step, branch, None, component, self.stream)
            for layer in layers:
                for component in (c for c in LAYER_COMPONENTS if c in chosen):
                    yield Site(step, branch, layer, component, self.stream)
            if "velocity" in chosen:
                yield Site(step, branch, None, "velocity", self.stream)
        if "guided" in chosen:
            yield Site(step, None, None, "guided", self.stream)

    def _branches(self, available: tuple[str, ...]) -> tuple[str, ...]:
        if self.branches == "all":
            return available
        chosen = (self.branches,) if isinstance(self.branches, str) else self.branches
        for branch in chosen:
            if branch not in available:
                hint = "" if len(available) > 1 else " (guidance_scale <= 1 makes no other branch)"
                raise SiteError(f"unknown branch {branch!r}; this run has {', '.join(available)}{hint}")
        return tuple(branch for branch in available if branch in chosen)

    def at(self, **changes: Any) -> Sites:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types; predicates have none and raise `SiteError`."""
        return {
            "component": self.component if isinstance(self.component, str) else list(self.component),
            "steps": _to_json(self.steps),
            "layers": _to_json(self.layers),
            "branches": self.branches if isinstance(self.branches, str) else list(self.branches),
            "stream": self.stream,
            "tokens": self.tokens.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sites:
        """Inverse of `to_json`."""
        tokens = Tokens.from_json(data["tokens"])
        ranges = {k: _from_json(data[k]) for k in ("steps", "layers")}
        return cls(data["component"], **ranges, branches=data["branches"], stream=data["stream"], tokens=tokens)


def indices(select: Select, size: int, what: str) -> list[int]:
    """The indices that a `Select` picks out of 0..size-1, in order.

    Raises
    ------
    SiteError
        An index out of range, or nothing selected; the message names the valid range.
    """
    valid = f"this run has {what}s 0..{size - 1}"
    if isinstance(select, str):
        if select != "all":
            raise SiteError(f"unknown {what} {select!r}; 'all', an index, a slice, a list or a predicate; {valid}")
        return list(range(size))
    if isinstance(select, slice):
        chosen = sorted(list(range(size))[select])
    elif callable(select):
        chosen = [i for i in range(size) if select(i)]
    else:
        several = select if isinstance(select, Iterable) else [select]
        chosen = sorted({_index(i, size, what, valid) for i in several})
    if not chosen:
        raise SiteError(f"{what}s {_show(select)} select nothing; {valid}")
    return chosen


def _index(index: Any, size: int, what: str, valid: str) -> int:
    if isinstance(index, bool) or not hasattr(index, "__index__"):
        raise SiteError(f"{what} {index!r} is no whole number; {valid}")
    if not -size <= index < size:
        raise SiteError(f"no {what} {index}; {valid}")
    return int(index) % size


def _show(select: Select) -> str:
    if isinstance(select, slice):
        return (
            ":".join("" if x is None else str(x) for x in (select.start, select.stop, select.step)).rstrip(":") or ":"
        )
    if isinstance(select, str | int):
        return str(select)
    if callable(select):
        return getattr(select, "__name__", "predicate")
    return ",".join(map(str, select)) if isinstance(select, Iterable) else str(select)


def _to_json(select: Select) -> Any:
    if isinstance(select, slice):
        return {"slice": [select.start, select.stop, select.step]}
    if callable(select):
        raise SiteError("a selection by predicate cannot be written to JSON; list the indices")
    if isinstance(select, str):
        return select
    return [int(i) for i in select] if isinstance(select, Iterable) else int(select)


def _from_json(data: Any) -> Select:
    if isinstance(data, dict):
        return slice(*data["slice"])
    selected: Select = data
    return selected
