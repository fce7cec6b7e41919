"""What plain torch hooks see in a transformer: the independent way of reading what an `Architecture` describes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_lens.architectures.base import Architecture, Block, Met, bind


@dataclass
class RawLayer:
    """One block in one call."""

    block: Block
    met: Met
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def terms(self, stream: str) -> dict[str, Tensor]:
        return {t.component: t.value(self.met) for t in self.block.terms if t.stream == stream}


@dataclass
class RawCall:
    kwargs: dict[str, Any]
    layers: list[RawLayer] = field(default_factory=list)
    conditioning: dict[str, Any] = field(default_factory=dict)
    output: Any = None


@contextmanager
def watch(architecture: Architecture, transformer: nn.Module, tokens: int) -> Iterator[list[RawCall]]:
    """Collect every call of the transformer while the block runs; ``tokens`` is the number of video tokens."""
    calls: list[RawCall] = []
    with ExitStack() as stack:

        def hook(module: nn.Module, function: Any, before: bool) -> None:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(register(function, with_kwargs=True).remove)

        hook(transformer, lambda m, a, k: calls.append(RawCall(dict(k))), True)
        hook(transformer, lambda m, a, k, out: setattr(calls[-1], "output", out), False)
        for path in architecture.conditioning:
            module = _submodule(transformer, path)
            if module is not None:
                hook(module, lambda m, a, k, out, path=path: calls[-1].conditioning.__setitem__(path, out), False)
        for _, module, block in architecture.layers(transformer):
            _watch_block(hook, module, block, calls, tokens)
        yield calls


def _watch_block(hook: Any, module: nn.Module, block: Block, calls: list[RawCall], tokens: int) -> None:
    def enter(m: nn.Module, args: Any, kwargs: Any) -> None:
        arguments = bind(m, args, kwargs)
        inputs = {s.name: arguments[s.argument].clone() for s in block.streams}
        calls[-1].layers.append(RawLayer(block, Met(m, arguments, tokens), inputs))

    def leave(m: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        for s in block.streams:
            calls[-1].layers[-1].outputs[s.name] = (out if s.element is None else out[s.element]).clone()

    def event(name: str, m: nn.Module, args: Any, kwargs: Any, out: Any = None) -> None:
        layer = calls[-1].layers[-1]
        layer.order.append(name)
        first = args[0] if args else next(iter(kwargs.values()))
        layer.met.see(name, first if name.endswith(".input") else out)

    hook(module, enter, True)
    for name in block.events:
        path, _, what = name.rpartition(".")
        hook(module.get_submodule(path), partial(event, name), what == "input")
    hook(module, leave, False)


def _submodule(transformer: nn.Module, path: str) -> nn.Module | None:
    found: Any = transformer
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def worst_sum_error(layer: RawLayer, stream: str) -> float:
    """The largest difference between a block's update and the sum of its terms, in units in the last place."""
    out, total = layer.outputs[stream].double(), layer.inputs[stream].double()
    for value in layer.terms(stream).values():
        total = total + value.double()
    scale = torch.maximum(layer.outputs[stream].abs().max(), layer.inputs[stream].abs().max()).double()
    return float((out - total).abs().max() / (scale * torch.finfo(layer.outputs[stream].dtype).eps))
