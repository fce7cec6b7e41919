"""Modes of diffusers and torch under which a run would not mean what it says: refused, with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dit_lens.errors import UnsupportedModel


def refuse_modes(experts: Iterable[Any], *, gradients: bool = False) -> None:
    """Raise `UnsupportedModel` for a mode that breaks reading or editing.

    Raises
    ------
    UnsupportedModel
        Names the mode, why it cannot work, and how to leave it.
    """
    for module in experts:
        if getattr(module, "is_cache_enabled", False):
            raise UnsupportedModel(
                f"{type(module).__name__} has a cache enabled ({type(module._cache_config).__name__}): skipped blocks "
                "would give the cache's substitutes for what they would have computed; call disable_cache() first"
            )
        if gradients and getattr(module, "gradient_checkpointing", False):
            raise UnsupportedModel(
                f"{type(module).__name__} has gradient checkpointing enabled: edits are not repeated when a block is "
                "computed again, and the gradients would be silently wrong; call disable_gradient_checkpointing() first"
            )
        if _is_compiled(module):
            raise UnsupportedModel(
                f"{type(module).__name__} is compiled: a trace changes what the compiler saw, and every call would be "
                "compiled anew; load the pipeline without torch.compile for runs with dit_lens"
            )


def _is_compiled(module: Any) -> bool:
    parts = [module, *module.modules()]
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in parts)
