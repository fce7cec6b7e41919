# mypy: disable-error-code="no-untyped-call, no-any-return, attr-defined, assignment"
"""The one boundary to nnsight: a tree of envoys that costs nothing while no run is active.

nnsight replaces the ``forward`` of every module by a controller. A `Tree` takes those controllers off again as soon as
they are made and puts them back only while a run traces, and then only on the modules that the run reads or edits: on a
transformer of 12 blocks all controllers together cost 0.7 ms a call, the ones on its blocks a tenth of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nnsight import NNsight
from nnsight.intervention.source import STATE
from torch import nn

Worker = Callable[[], None]


class Tree:
    """The envoys of one transformer.

    Parameters
    ----------
    transformer : nn.Module
        Left as it was found: also an nnsight wrapping of the user's own is untouched outside a run.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.modules = dict(transformer.named_modules())
        before = {path: _take_off(module) for path, module in self.modules.items()}
        self.envoy: Any = NNsight(transformer)
        self._controllers = {path: _take_off(module) for path, module in self.modules.items()}
        for path, module in self.modules.items():
            module.__dict__.update(before[path])

    @contextmanager
    def attached(self, paths: Iterable[str] | None) -> Iterator[None]:
        """Controllers on the modules at ``paths`` (None: on all) for the duration of the block."""
        chosen = list(self.modules) if paths is None else ["", *paths]
        before = {path: _take_off(self.modules[path]) for path in chosen}
        try:
            for path in chosen:
                self.modules[path].__dict__.update(self._controllers[path])
            yield
        finally:
            for path in chosen:
                _take_off(self.modules[path])
                self.modules[path].__dict__.update(before[path])

    def trace(self, call: Callable[[], Any], workers: Sequence[Worker]) -> Any:
        """Run ``call`` as one nnsight trace, every worker in an invoke of its own; returns what it returned."""
        returned: list[Any] = []
        with self.envoy.trace(fn=call) as tracer:
            for worker in workers:
                with tracer.invoke():
                    worker()
            with tracer.invoke():
                returned.append(tracer.result)
        return returned[0]


def module_of(envoy: Any) -> nn.Module:
    """The module that an envoy stands for."""
    return envoy._module


def at(envoy: Any, path: str) -> Any:
    """The envoy at a dotted path below another."""
    for part in path.split("."):
        envoy = envoy[int(part)] if part.isdigit() else getattr(envoy, part)
    return envoy


def _take_off(module: nn.Module) -> dict[str, Any]:
    """Take ``forward`` and nnsight's state off a module and return them.

    Whatever stood in ``forward`` (a controller of the user's own, accelerate's wrapper) goes back when the run is over.
    """
    return {key: module.__dict__.pop(key) for key in ("forward", STATE) if key in module.__dict__}
