"""What the output head is given besides the residual stream, caught as the model makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from dit_lens.runs.call import Call
from dit_lens.runs.nest import mapped


def keeping_outputs(transformer: nn.Module, paths: Sequence[str], outputs: dict[str, Any]) -> ExitStack:
    """Collects the outputs of some modules until the stack is closed; paths that a model lacks are left out."""
    with ExitStack() as stack:
        for path in paths:
            module = _submodule(transformer, path)
            if module is not None:
                hook = _keeping(outputs, path)
                stack.callback(module.register_forward_hook(hook).remove)
        return stack.pop_all()


def _submodule(module: Any, path: str) -> nn.Module | None:
    for part in path.split("."):
        module = getattr(module, part, None)
    return module if isinstance(module, nn.Module) else None


def _keeping(outputs: dict[str, Any], path: str) -> Callable[..., None]:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[path] = output

    return keep


def rows_of(outputs: Any, rows: slice, call: Call) -> Any:
    """One branch's rows of everything in a nest of dicts and tuples; flattened batches have several entries a row."""
    batch = len(call.context.rows) * len(call.branches)

    def take(tensor: Tensor) -> Tensor:
        if not tensor.ndim or tensor.shape[0] % batch:
            return tensor
        each = tensor.shape[0] // batch
        return tensor[rows.start * each : rows.stop * each]

    return mapped(outputs, take)
