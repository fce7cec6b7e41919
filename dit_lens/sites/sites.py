"""Addresses inside a generation: one `Site`, and `Sites` that select many.

A site's canonical string is ``s03/cond/L05/delta/video``: denoising step, guidance branch, layer, component, stream,
with ``-`` for a part that the component does not have; an attention head is ``s03/cond/L05/head.2/video``. It is the
key in every table, file and message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dit_lens.display.short import short_repr
from dit_lens.errors import SiteError
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import Select, from_json, indices, plain, show, to_json
from dit_lens.sites.site import COMPONENTS, LAYER_COMPONENTS, MODULATIONS, TOLD_COMPONENTS, Site
from dit_lens.sites.tokens import LATENT_COMPONENTS, Tokens


@dataclass(frozen=True)
class Sites:
    """A selection of sites.

    Parameters
    ----------
    component : str or tuple of str
    steps, layers : Select
        "all", an index (negative counts from the end), a slice, a list, or a predicate on the index.
    branches : "all", str or tuple of str
    stream : str or tuple of str
        "video", "text", or "all" streams of the model. What a block is told has streams of its own: "context" has
        "text", and where a model reads them "image", "audio" and "audio_text"; "mask" has "text"; neither has "video".
        "all" means each component's own.
    tokens : Tokens
        Which part of each activation; the intervention sees only this. "modulation" and "head_modulation" have no
        tokens.
    heads : Select
        For the component "head".

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
    stream: str | tuple[str, ...] = "video"
    tokens: Tokens = field(default_factory=Tokens)
    heads: Select = "all"

    __repr__ = short_repr

    def __post_init__(self) -> None:
        for name in ("component", "branches", "stream"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        for name in ("steps", "layers", "heads"):
            object.__setattr__(self, name, plain(getattr(self, name), name))
        for component in self.components:
            if component not in COMPONENTS:
                raise SiteError(f"unknown component {component!r}; one of {', '.join(COMPONENTS)}")
        if not isinstance(self.tokens, Tokens):
            raise SiteError(f"tokens must be a Tokens, got {type(self.tokens).__name__}")

    @property
    def components(self) -> tuple[str, ...]:
        return (self.component,) if isinstance(self.component, str) else self.component

    def __str__(self) -> str:
        parts = ["+".join(self.components)]
        parts += [f"{n} {show(s)}" if isinstance(s, int) else f"{n}s {show(s)}" for n, s in self._ranges()]
        if self.branches != "all":
            parts.append(f"branch {self.branches if isinstance(self.branches, str) else '+'.join(self.branches)}")
        if self.stream != "video":
            parts.append(f"stream {self.stream if isinstance(self.stream, str) else '+'.join(self.stream)}")
        if not self.tokens.is_all:
            parts.append(f"tokens {self.tokens}")
        return ", ".join(parts)

    def _ranges(self) -> list[tuple[str, Select]]:
        ranges = [("step", self.steps)]
        ranges += [("layer", self.layers)] if set(self.components) & set(LAYER_COMPONENTS) else []
        return ranges + ([("head", self.heads)] if "head" in self.components else [])

    def resolve(self, geometry: Geometry) -> tuple[Site, ...]:
        """All selected sites of a run, in execution order within a step.

        Raises
        ------
        SiteError
            Names what is wrong and the valid values.
        """
        streams = self._streams(geometry)
        hint = "" if len(geometry.branches) > 1 else " (guidance_scale <= 1 makes no other branch)"
        branches = _among("branch", self.branches, geometry.branches, "this run has", hint)
        for component in self.components:
            self._require_tokens(component, streams, geometry)
        found: list[Site] = []
        for step in indices(self.steps, geometry.steps, "step"):
            found += self._of_step(step, branches, streams, geometry)
        return tuple(found)

    def _streams(self, geometry: Geometry) -> tuple[str, ...]:
        """The chosen streams, of those that the components have.

        Raises
        ------
        SiteError
            A stream that none of the components has, or a component that has none of the chosen.
        """
        own = {component: geometry.streams_of(component) for component in self.components}
        known = tuple(dict.fromkeys(stream for streams in own.values() for stream in streams))
        told = set(self.components) <= set(TOLD_COMPONENTS)
        whose = f"{', '.join(self.components)} has" if told and known else "this model has"
        chosen = _among("stream", self.stream, known or geometry.streams, whose)
        for component, streams in own.items():
            if streams and not set(streams) & set(chosen):
                raise SiteError(f"{component} has no stream {', '.join(chosen)}; it has {', '.join(streams)}")
        return chosen

    def _require_tokens(self, component: str, streams: Sequence[str], geometry: Geometry) -> None:
        """Refuse tokens that an activation of the component does not have."""
        if component in MODULATIONS and not self.tokens.is_all:
            raise SiteError(f"{component} has no tokens to choose among, got tokens {self.tokens}; leave tokens out")
        for stream in (s for s in geometry.streams_of(component) if s in streams):
            self.tokens.resolve(geometry, stream, component)

    def _of_step(
        self, step: int, branches: Sequence[str], streams: Sequence[str], geometry: Geometry
    ) -> Iterable[Site]:
        chosen = self.components
        video = self._needs_video(streams, chosen)
        if "latents" in chosen:
            yield Site(step, None, None, "latents", video)
        for branch in branches:
            if "model_input" in chosen:
                yield Site(step, branch, None, "model_input", video)
            if "embed" in chosen:
                yield from (Site(step, branch, None, "embed", s) for s in geometry.streams if s in streams)
            yield from self._of_layers(step, branch, streams, geometry)
            if "head_modulation" in chosen:
                yield Site(step, branch, None, "head_modulation", video)
            if "velocity" in chosen:
                yield Site(step, branch, None, "velocity", video)
        if "guided" in chosen:
            yield Site(step, None, None, "guided", video)

    def _needs_video(self, streams: Sequence[str], chosen: Sequence[str]) -> str:
        if "video" not in streams and (wrong := set(chosen) & {*LATENT_COMPONENTS, "head_modulation"}):
            raise SiteError(f"{', '.join(sorted(wrong))} belongs to the video, not to the stream {', '.join(streams)}")
        return "video"

    def _of_layers(self, step: int, branch: str, streams: Sequence[str], geometry: Geometry) -> list[Site]:
        wanted = [c for c in LAYER_COMPONENTS if c in self.components]
        if not wanted:
            return []
        layers = indices(self.layers, geometry.layers, "layer")
        for component in wanted:
            self._require(component, layers, streams, geometry)
        return [
            Site(step, branch, layer, component, stream, head)
            for layer in layers
            for component in wanted
            for stream in streams
            for head in self._heads(component, layer, stream, geometry)
        ]

    def _heads(self, component: str, layer: int, stream: str, geometry: Geometry) -> list[Any]:
        """The heads of a layer, [None] for another component that it has, [] for what it does not have."""
        kind = geometry.layer(layer)
        if component != "head":
            return [None] if component in kind.components.get(stream, ()) else []
        return indices(self.heads, kind.heads[stream], "head") if stream in kind.heads else []

    def _require(self, component: str, layers: Sequence[int], streams: Sequence[str], geometry: Geometry) -> None:
        """Refuse a component that no chosen layer has, or that one named by its number lacks."""
        lacking = [k for k in layers if not any(self._heads(component, k, s, geometry) for s in streams)]
        if lacking and (len(lacking) == len(layers) or self.layers != "all"):
            kind = geometry.layer(lacking[0])
            has = ", ".join(dict.fromkeys(c for s in streams for c in kind.components.get(s, ())))
            why = " (its heads do not sum to the attention)" if component == "head" else ""
            raise SiteError(
                f"layer {lacking[0]} ({kind.kind}) has no {component} in stream {', '.join(streams)}{why}; it has {has}"
            )

    def at(self, **changes: Any) -> Sites:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types; predicates have none and raise `SiteError`."""
        names = {n: getattr(self, n) for n in ("component", "branches", "stream")}
        return {
            **{n: v if isinstance(v, str) else list(v) for n, v in names.items()},
            **{n: to_json(getattr(self, n)) for n in ("steps", "layers", "heads")},
            "tokens": self.tokens.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sites:
        """Inverse of `to_json`."""
        ranges = {k: from_json(data[k]) for k in ("steps", "layers", "heads")}
        tokens = Tokens.from_json(data["tokens"])
        return cls(data["component"], **ranges, branches=data["branches"], stream=data["stream"], tokens=tokens)


def _names(what: str, given: Any) -> str | tuple[str, ...]:
    """One name, or several as a tuple."""
    several = (given,) if isinstance(given, str) else given
    if not isinstance(several, list | tuple) or not several or not all(isinstance(name, str) for name in several):
        raise SiteError(f"{what}={given!r:.80}: need a name, or a list of names")
    return given if isinstance(given, str) else tuple(several)


def selection(sites: Sequence[Site], tokens: Tokens = Tokens()) -> Sites:  # noqa: B008 - it is frozen
    """The selection of some sites of one branch and stream."""
    return Sites(
        component=tuple(dict.fromkeys(site.component for site in sites)),
        steps=sorted({site.step for site in sites}),
        layers=sorted({site.layer for site in sites if site.layer is not None}) or "all",
        branches=sites[0].branch or "all",
        stream=sites[0].stream,
        heads=sorted({site.head for site in sites if site.head is not None}) or "all",
        tokens=tokens,
    )


def _among(
    what: str, chosen: str | tuple[str, ...], available: tuple[str, ...], has: str, hint: str = ""
) -> tuple[str, ...]:
    """The chosen names in their order in ``available``."""
    if chosen == "all":
        return available
    names = (chosen,) if isinstance(chosen, str) else chosen
    for name in names:
        if name not in available:
            raise SiteError(f"unknown {what} {name!r}; {has} {', '.join(available)}{hint}")
    return tuple(name for name in available if name in names)
