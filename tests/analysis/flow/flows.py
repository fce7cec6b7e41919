"""Flows of tiny models, and models that are changed to know what must come out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import nn

import dit_lens as dl
from dit_lens.analysis.flow.result import InformationFlow
from dit_lens.organisms import Planted, load_planted
from dit_lens.organisms.confine import silence


def flow_of(model: dl.VideoDiT, task: Any, pairs: Any = 4, **more: Any) -> InformationFlow:
    return dl.information_flow(model, task, pairs, **{"parts": ()} | more)


@cache
def planted(name: str) -> Planted:
    """Such as "frames-early"."""
    kind, _, place = name.partition("-")
    return load_planted(kind, place or None)


@cache
def flow_of_planted(name: str) -> InformationFlow:
    """With the pairs that need what is planted."""
    own = planted(name)
    kind = "exit" if name.startswith("text") else "colour"
    return flow_of(own.model, own.task, kind=kind, parts=("blocks",))


def means(flow: InformationFlow) -> dict[str, list[float]]:
    """The mean over pairs of every curve."""
    return {name: values.mean(axis=1).tolist() for name, values in flow.effects.items()}


def with_blocks(model: dl.VideoDiT, change: Callable[[nn.ModuleList], Sequence[nn.Module]]) -> dl.VideoDiT:
    """A copy of a Wan model with other blocks, made of copies of its own."""
    pipeline = copy.copy(model.pipeline)
    transformer = copy.deepcopy(pipeline.transformer)
    blocks = list(change(transformer.blocks))
    transformer.blocks = nn.ModuleList(blocks)
    transformer.register_to_config(num_layers=len(blocks))
    pipeline.register_modules(transformer=transformer)
    return dl.VideoDiT(pipeline, defaults=model.defaults)


def dead(block: Any) -> nn.Module:
    """A copy of a block that adds exactly nothing."""
    made: nn.Module = copy.deepcopy(block)
    return _silent(made, made.attn1.to_out[0], made.attn2.to_out[0], made.ffn.net[2])  # type: ignore[union-attr,index]


def halves_of(block: Any) -> list[nn.Module]:
    """A block as two: its attention, then its feed-forward."""
    attention, feed = copy.deepcopy(block), copy.deepcopy(block)
    return [
        _silent(attention, attention.ffn.net[2]),
        _silent(feed, feed.attn1.to_out[0], feed.attn2.to_out[0]),
    ]


def _silent(block: nn.Module, *projections: Any) -> nn.Module:
    for projection in projections:
        silence(projection)
    return block
