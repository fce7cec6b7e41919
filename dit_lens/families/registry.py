"""Which family a pipeline is of, and how one that does not ship is made known."""

from __future__ import annotations

from typing import Any

from dit_lens.errors import UnsupportedModel
from dit_lens.families.allegro import ALLEGRO
from dit_lens.families.base import Architecture
from dit_lens.families.cogvideox import COGVIDEOX
from dit_lens.families.cosmos import COSMOS
from dit_lens.families.hunyuan import HUNYUAN_VIDEO
from dit_lens.families.hunyuan15 import HUNYUAN_VIDEO_15
from dit_lens.families.ltx import LTX_VIDEO
from dit_lens.families.ltx2 import LTX_2
from dit_lens.families.mochi import MOCHI
from dit_lens.families.skyreels import SKYREELS
from dit_lens.families.wan import WAN

FAMILIES = (WAN, SKYREELS, COSMOS, HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, COGVIDEOX, MOCHI, ALLEGRO, LTX_VIDEO, LTX_2)


def architecture_of(pipeline: Any) -> Architecture:
    """The architecture of a diffusers pipeline's transformer.

    Raises
    ------
    UnsupportedModel
        No transformer, one of a family that has no file in ``dit_lens/families`` yet, or a pipeline of a known
        family whose loop does not fit (it names those that do).
    """
    transformer = getattr(pipeline, "transformer", None)
    if transformer is None:
        raise UnsupportedModel(f"{type(pipeline).__name__} has no transformer; dit_lens takes video DiT pipelines")
    for family in _families():
        if not _is_one_of(transformer, family.transformers):
            continue
        if _is_one_of(pipeline, family.pipelines):
            return family
        fitting = ", ".join(family.pipelines)
        raise UnsupportedModel(f"{type(pipeline).__name__} is no supported pipeline of {family.family}; use {fitting}")
    name, known = type(transformer).__name__, ", ".join(t for f in _families() for t in f.transformers)
    file = f"dit_lens/families/{name.lower().partition('transformer')[0] or name.lower()}.py"
    raise UnsupportedModel(f"{name} is of no known family (known: {known}); add {file}, see docs/adding-a-family.md")


def family_named(name: str) -> Architecture:
    """The architecture of a family by its name, as a run keeps it.

    Raises
    ------
    UnsupportedModel
        No family of this name is known here.
    """
    for family in _families():
        if family.family == name:
            return family
    raise UnsupportedModel(f"no family is named {name!r}; register it first, known are {_names()}")


def _names() -> str:
    return ", ".join(family.family for family in _families())


def register(architecture: Architecture) -> None:
    """Make a family known that does not ship with dit_lens; it counts before those that describe the same class."""
    _registered.insert(0, architecture)


_registered: list[Architecture] = []


def _families() -> tuple[Architecture, ...]:
    return (*_registered, *FAMILIES)


def _is_one_of(thing: Any, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(thing).__mro__)
