"""What a module is called with and gives back, with parts of it replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit_lens.families.base import Block


def output_of(output: Any, block: Block, streams: Mapping[str, Tensor]) -> Any:
    """A block's output with the given streams replaced; made anew where there is none."""
    everything = (*block.streams, *block.carried)
    if block.streams[0].element is None:
        return streams[block.streams[0].name]
    elements = list(output) if output is not None else [None] * len(everything)
    for stream in (s for s in everything if s.name in streams):
        assert stream.element is not None
        elements[stream.element] = streams[stream.name]
    return tuple(elements)


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str, name: int | str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Call arguments with one replaced, by position where it was given so and by name otherwise."""
    if isinstance(place, int) and place < len(args):
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, {**kwargs, str(name): value}
