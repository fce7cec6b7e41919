"""Names of models and runs: hashes of what made them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from dit_lens.runs.inputs import Row
from dit_lens.runs.run import Run
from dit_lens.sites.sites import Sites


def model_id(experts: Iterable[Any]) -> str:
    """Hash of the transformers' configuration, of a sample of their weights and of the adapters that are on."""
    digest = hashlib.sha256()
    for module in experts:
        # Private entries say where and by which version it was loaded, not what it is.
        config = {k: v for k, v in module.config.items() if not k.startswith("_")}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                digest.update(_sample(part, name, parameter))
        digest.update(repr(_adapters(module)).encode())
    return digest.hexdigest()[:12]


def weights_state(experts: Iterable[Any]) -> tuple[Any, ...]:
    """What changes whenever the weights or the adapters do: cheap enough to ask at every run."""
    experts = list(experts)
    weights = tuple((id(p), p._version) for module in experts for p in module.parameters())
    return weights, tuple(_adapters(module) for module in experts)


def _adapters(module: nn.Module) -> tuple[Any, ...]:
    """Names and scales of the adapters that act in each adapted layer, and those that are fused into it."""
    if not getattr(module, "_hf_peft_config_loaded", False):
        return ()
    parts: Iterable[Any] = module.modules()
    return tuple(
        (str(part.active_adapters), sorted(part.scaling.items()), str(part.merged_adapters), part.disable_adapters)
        for part in parts
        if hasattr(part, "scaling") and hasattr(part, "merged_adapters")
    )


def _sample(module: Any, name: str, parameter: nn.Parameter) -> bytes:
    """A few values, of an offloaded parameter from where accelerate keeps it."""
    values: Any = parameter
    if parameter.device.type == "meta":
        kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if kept is None:
            return str(tuple(parameter.shape)).encode()
        values = kept[name]
    sample: bytes = values.detach().flatten()[:64].float().cpu().numpy().tobytes()
    return sample


def run_id(model: str, rows: Sequence[Row], settings: Mapping[str, Any], what: Sequence[Any]) -> str:
    """Hash of a model, inputs, settings, what else makes the run (guidance, interventions, the body) and versions."""
    given = [f"{name}={describe(value)}" for name, value in sorted(settings.items())]
    content = [model, repr(tuple(rows)), given, [describe(w) for w in what], versions()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Versions of dit_lens and of the packages whose internals it relies on, as installed."""
    names = ("torch", "diffusers", "nnsight", "transformers")
    # Of the code that runs, which need not be the package that is installed.
    own = {"dit_lens": str(vars(sys.modules["dit_lens"])["__version__"])}
    return own | {name: importlib.metadata.version(name) for name in names}


def describe(value: Any) -> str:
    """A short text that is the same for the same intervention: runs by their id, tensors by a hash of their bytes."""
    if isinstance(value, Run):
        return f"run:{value.id}"
    if isinstance(value, Tensor):
        return f"tensor:{hashlib.sha256(value.detach().float().cpu().numpy().tobytes()).hexdigest()[:12]}"
    if isinstance(value, Sites):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({parts})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {describe(v)}' for k, v in sorted(value.items(), key=str))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(describe, value))}]"
    return getattr(value, "__qualname__", repr(value))
