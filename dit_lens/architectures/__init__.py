"""The families of video diffusion transformers that dit_lens knows, one file each."""

from __future__ import annotations

from typing import Any

from dit_lens.architectures.base import Architecture, Grid
from dit_lens.architectures.wan import WAN
from dit_lens.errors import UnsupportedModel

FAMILIES = (WAN,)

__all__ = ["FAMILIES", "Architecture", "Grid", "architecture_of"]


def architecture_of(pipeline: Any) -> Architecture:
    """The architecture of a diffusers pipeline's transformer.

    Raises
    ------
    UnsupportedModel
        No transformer, or one of a family that has no file in ``dit_lens/architectures`` yet.
    """
    transformer = getattr(pipeline, "transformer", None)
    if transformer is None:
        raise UnsupportedModel(f"{type(pipeline).__name__} has no transformer; dit_lens takes video DiT pipelines")
    name = type(transformer).__name__
    for family in FAMILIES:
        if name in family.transformers:
            return family
    known = ", ".join(t for f in FAMILIES for t in f.transformers)
    raise UnsupportedModel(f"{name} is of no known family (known: {known}); add a file to dit_lens/architectures")
