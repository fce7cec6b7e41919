"""Reading a module's own weights outside of its forward, where they may be away or stored in another dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")

#: diffusers' hooks that bring weights: from the CPU or the disk, or to the dtype that they are used in.
_BRINGING = ("GroupOffloadingHook", "LayerwiseCastingHook")


def bringing(module: nn.Module) -> list[Any]:
    """The hooks of accelerate and diffusers that bring a module's weights before its forward, the outermost first."""
    kept = module.__dict__
    registry = kept.get("_diffusers_hook")
    hooks = [] if registry is None else [registry.hooks[name] for name in reversed(registry._hook_order)]
    found = [hook for hook in hooks if type(hook).__name__ in _BRINGING]
    return found if kept.get("_hf_hook") is None else [kept["_hf_hook"], *found]


def at_hand(module: nn.Module, read: Callable[[], T]) -> T:
    """Read a module's weights as its forward would find them: its hooks bring them before and take them away after.

    Not while the module computes: its weights would be gone when it goes on.
    """
    hooks = bringing(module)
    for hook in hooks:
        hook.pre_forward(module)
    try:
        return read()
    finally:
        for hook in reversed(hooks):
            hook.post_forward(module, None)
