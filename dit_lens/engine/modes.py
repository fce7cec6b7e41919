"""Modes of diffusers and torch under which a run would not mean what it says: refused, with the reason.

docs/modes.md lists what every mode does; tests/engine/test_modes.py tries it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from dit_lens.errors import UnsupportedModel
from dit_lens.runs.weights import submodules

#: Where pipelines hold their transformers.
_HELD = ("transformer", "transformer_2")
#: Hooks of diffusers that move or cast weights and leave alone what a module computes. Its others skip modules, answer
#: them from a cache, or split them among devices.
_HARMLESS = ("diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting")
#: What a mode leaves in the module that it changes.
_MARKS = frozenset({"_compiled_call_impl", "forward", "_diffusers_hook", "gradient_checkpointing"})


def refuse_modes(experts: Iterable[Any], *, gradients: bool = False, pipeline: Any = None) -> None:
    """Raise `UnsupportedModel` for a mode that breaks reading or editing.

    Parameters
    ----------
    experts : transformers of one model
    gradients : bool
        Whether gradients are to be taken.
    pipeline : optional
        Refused as well where it no longer holds these transformers.

    Raises
    ------
    UnsupportedModel
        Names the mode, why it cannot work, and how to leave it.
    """
    for expert in experts:
        name = type(expert).__name__
        if pipeline is not None and not any(expert is getattr(pipeline, held, None) for held in _HELD):
            raise UnsupportedModel(
                f"the pipeline no longer holds the {name} that this VideoDiT was made with; make a new VideoDiT of it"
            )
        if getattr(expert, "is_cache_enabled", False):
            raise UnsupportedModel(
                f"{name} has a cache enabled ({type(expert._cache_config).__name__}): skipped blocks would give the "
                "cache's substitutes for what they would have computed; call disable_cache() first"
            )
        for module in _marked(expert):
            reason = _compiled(module) or _substituting(module) or (_checkpointing(module) if gradients else None)
            if reason is not None:
                raise UnsupportedModel(f"{name}: {reason}")


def _marked(module: nn.Module) -> list[nn.Module]:
    """The modules that have anything of interest here. Every run and every replay asks, so it must be quick."""
    kept = ((part, part.__dict__) for _, part in submodules(module))
    return [part for part, own in kept if not _MARKS.isdisjoint(own) or "_orig_mod" in own["_modules"]]


def _compiled(module: nn.Module) -> str | None:
    kept = module.__dict__
    in_place = kept.get("_compiled_call_impl") is not None
    replaced = "_orig_mod" in module._modules or hasattr(kept.get("forward"), "_torchdynamo_orig_callable")
    if not replaced and (not in_place or _forced_eager()):
        return None
    reload = "load the pipeline without torch.compile"
    way_out = reload if replaced else f'run inside torch.compiler.set_stance("force_eager"), or {reload}'
    return (
        f"{type(module).__name__} is compiled: the compiler would compile the reading and editing too, anew in every "
        f"call; {way_out}"
    )


def _forced_eager() -> bool:
    """Whether torch was told to leave compiled code aside. It has no public way of asking."""
    stance = getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", None)
    return getattr(stance, "stance", None) == "force_eager"


def _substituting(module: nn.Module) -> str | None:
    registry = module.__dict__.get("_diffusers_hook")
    for hook in registry.hooks.values() if registry is not None else ():
        source = type(hook).__module__
        if source.startswith("diffusers.") and source not in _HARMLESS:
            return (
                f"{type(module).__name__} carries diffusers' {type(hook).__name__}, which does not always compute what "
                "is read and edited here; take it off, or load the pipeline without it"
            )
    return None


def _checkpointing(module: nn.Module) -> str | None:
    if not module.__dict__.get("gradient_checkpointing"):
        return None
    return (
        "gradient checkpointing is enabled: edits are not repeated when a block is computed again, and the gradients "
        "would be silently wrong; call disable_gradient_checkpointing() first"
    )
