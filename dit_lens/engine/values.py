"""What a module is called with and gives back, with parts of it replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_lens.families.base import Block
from dit_lens.interventions.shapes import wide
from dit_lens.runs.call import Call
from dit_lens.runs.replay import Resume


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


def recorded(resume: Resume, call: Call, block: Block) -> Any:
    """What a skipped block gives back: the recorded residual streams, for all branches of the call."""
    streams = {}
    for stream in block.streams:
        rows = [resume.residual(branch, stream.name) for branch in call.branches]
        device = call.kwargs["hidden_states"].device
        streams[stream.name] = torch.cat([r.to(device).flatten(1, -2) for r in rows])
    return output_of(None, block, streams)


def added(stream: Tensor, difference: Tensor) -> Tensor:
    """Sum in float32 at least, rounded once to the stream's own dtype."""
    return (wide(stream) + difference).to(stream.dtype)
