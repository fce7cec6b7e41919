"""Names of models and runs: hashes of what made them.

docs/identity.md says what is seen, what is not, and what it costs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from dit_lens.files.digest import short_hash
from dit_lens.runs.describe import describe
from dit_lens.runs.inputs import Inputs
from dit_lens.runs.weights import contents, submodules, tensors

#: Parts of a pipeline that decode.
_DECODERS = frozenset({"vae", "audio_vae", "vocoder"})

#: Entries of a configuration that say how it was loaded, not what it is.
_LOADED = frozenset({"transformers_version", "torch_dtype", "dtype", "architectures"})


def model_id(experts: Iterable[Any], *, whole: bool = False) -> str:
    """Hash of the transformers' configuration, weights and saved buffers, and of the adapters that are on.

    Parameters
    ----------
    experts : transformers, or any other modules with a configuration
    whole : bool
        Every value of the weights instead of a sample.
    """
    return short_hash(part for module in experts for part in _parts_of(module, whole=whole))


def setup_of(pipeline: Any, experts: Iterable[Any]) -> dict[str, str]:
    """What makes a run besides the transformers' weights: a hash of each part of the pipeline, by its name.

    ``pipeline`` is its own configuration, ``transformer`` what of the transformers is computed and not saved (tables of
    positions, to half precision), the kind of their attention processors and the tensors that these hold, such as
    masks; of the other parts the class and configuration count, and the weights of those that have any.
    """
    experts = list(experts)
    names = {name: part for name, part in pipeline.components.items() if part is not None}
    others = {name: part for name, part in names.items() if not any(part is expert for expert in experts)}
    found = {name: short_hash([_kind(part), *_parts_of(part)]) for name, part in sorted(others.items())}
    # The classes of the parts stand in the pipeline's configuration as pairs.
    own = {name: value for name, value in _config(pipeline).items() if not isinstance(value, list | tuple)}
    found["pipeline"] = short_hash([_kind(pipeline), describe(own).encode()])
    found["transformer"] = short_hash(part for expert in experts for part in _computed(expert))
    return found


def of_latents(setup: Mapping[str, str], *, pictures: bool) -> dict[str, str]:
    """The parts that latents depend on: not those that decode, unless the VAE encodes the pictures of the inputs."""
    idle = _DECODERS - {"vae"} if pictures else _DECODERS
    return {name: part for name, part in setup.items() if name not in idle}


def difference(setup: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The first part in which two setups differ; empty where they do not."""
    return next((name for name in sorted(setup.keys() | other.keys()) if setup.get(name) != other.get(name)), "")


def run_id(
    model: str, setup: Mapping[str, str], inputs: Inputs, settings: Mapping[str, Any], what: Sequence[Any]
) -> str:
    """Hash of a model, its setup, inputs, settings, what else makes the run (guidance, interventions) and versions.

    To be made before the run: what interventions hold may be used up in it.
    """
    given = [repr(inputs.rows), inputs.content, describe(settings)]
    content = [model, dict(setup), given, [describe(w) for w in what], versions()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def replay_id(run: str, step: int, interventions: Sequence[Any], from_layer: int) -> str:
    """Hash of a run's id, the step that is replayed, the interventions and the layer from where; before the replay."""
    content = [run, step, [describe(intervention) for intervention in interventions], from_layer]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Versions of dit_lens and of the packages whose internals it relies on, as installed."""
    names = ("torch", "diffusers", "nnsight", "transformers")
    # Of the code that runs, which need not be the package that is installed.
    own = {"dit_lens": str(vars(sys.modules["dit_lens"])["__version__"])}
    return own | {name: importlib.metadata.version(name) for name in names}


def _parts_of(part: Any, *, whole: bool = False) -> Iterator[bytes]:
    """What there is to know of a part of a pipeline: configuration, settings made later, weights and adapters."""
    yield json.dumps(_config(part) | _later(part), sort_keys=True, default=describe).encode()
    if isinstance(part, nn.Module):
        parts = submodules(part)
        yield from contents(tensors(parts), whole=whole)
        yield repr(_adapters(parts)).encode()


def _kind(part: Any) -> bytes:
    return f"{type(part).__module__}.{type(part).__qualname__} ".encode()


def _config(part: Any) -> dict[str, Any]:
    """Configuration without what says where it was loaded from and how."""
    config = getattr(part, "config", part)
    given = config if isinstance(config, Mapping) else config.to_dict() if hasattr(config, "to_dict") else {}
    found: dict[str, Any] = _without_loading(given)
    return found


def _without_loading(config: Any) -> Any:
    if not isinstance(config, Mapping):
        return config
    kept = {str(name): value for name, value in config.items() if str(name) not in _LOADED}
    return {name: _without_loading(value) for name, value in kept.items() if not name.startswith("_")}


def _later(part: Any) -> dict[str, Any]:
    """What can be set without changing the configuration, of schedulers, guiders, tokenizers and autoencoders."""
    own = vars(part)
    tiles = [name for name in own if name.startswith(("tile_", "use_")) and isinstance(own[name], int | float)]
    names = ("shift", "guidance_scale", "_enabled", "model_max_length", "truncation_side", *tiles)
    # Not through `hasattr`: diffusers gives configuration by attribute as well, and warns of it.
    found = {name: getattr(part, name) for name in names if name in own or hasattr(type(part), name)}
    return found | ({"words": len(part)} if hasattr(part, "get_vocab") else {})


def _adapters(parts: Iterable[tuple[str, Any]]) -> list[tuple[Any, ...]]:
    """Names and scales of the adapters that act in each adapted layer, and those that are fused into it."""
    return [
        (
            path,
            str(part.active_adapters),
            sorted(part.scaling.items()),
            str(part.merged_adapters),
            part.disable_adapters,
        )
        for path, part in parts
        if "scaling" in part.__dict__ and hasattr(part, "merged_adapters")
    ]


def _computed(expert: nn.Module) -> Iterator[bytes]:
    parts = submodules(expert)
    yield from contents(tensors(parts, computed=True), half=True)
    kept = [(path, part.__dict__) for path, part in parts]
    processors = {path: own["processor"] for path, own in kept if "processor" in own}
    yield describe({path: type(processor) for path, processor in processors.items()}).encode()
    # Masks: two models may have the same weights and kinds of processors, and differ in who may read whom.
    held = {path: [v for v in vars(p).values() if isinstance(v, Tensor)] for path, p in processors.items()}
    if any(held.values()):
        yield describe(held).encode()
