"""The settings of a run: all arguments of the pipeline, checked, and what they make addressable."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_lens.errors import InputError, UnsupportedModel
from dit_lens.families.base import Architecture, Block, Settings
from dit_lens.families.common import spatial_factor, temporal_factor
from dit_lens.runs.inputs import Inputs, kept
from dit_lens.runs.per_row import require_entries
from dit_lens.sites.geometry import Geometry, Layer, Pixels
from dit_lens.sites.site import TOLD_COMPONENTS

#: Settings that a run always has; their defaults are the pipeline's own.
_BASIC = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")


def gather_settings(
    pipeline: Any, architecture: Architecture, defaults: Settings, inputs: Inputs, arguments: Settings
) -> dict[str, Any]:
    """All pipeline arguments: the pipeline's own defaults, the model's, the inputs', the call's.

    Raises
    ------
    InputError
        An argument that the pipeline does not take, a value that it would round, crop or reject, or entries for other
        rows than those of the inputs.
    UnsupportedModel
        What the family cannot do, with the reason.
    """
    signature = inspect.signature(type(pipeline).__call__).parameters
    settings = {n: signature[n].default for n in _BASIC if n in signature} | dict(defaults)
    if inputs.images is not None:
        settings |= {"height": inputs.images[0].height, "width": inputs.images[0].width}
    settings |= dict(inputs.options) | {k: v for k, v in arguments.items() if v is not None or k not in _BASIC}
    if unknown := set(settings) - set(signature):
        hint = "; the number of denoising steps is num_inference_steps" if "steps" in unknown else ""
        raise InputError(f"{type(pipeline).__name__} takes no {', '.join(sorted(unknown))}{hint}")
    _fill_size(pipeline, settings)
    _count_steps(pipeline.scheduler, settings, arguments.get("num_inference_steps"))
    _check(pipeline, architecture, settings, inputs, takes_image="image" in signature)
    if reason := architecture.refuse(pipeline, settings):
        raise UnsupportedModel(f"{architecture.family}: {reason}")
    if inputs.rows:
        require_entries(settings, len(inputs.rows))
        _check_latents(pipeline, architecture, settings, len(inputs.rows))
    own: dict[str, Any] = kept(settings, {})
    return own


def _check_latents(pipeline: Any, architecture: Architecture, settings: Settings, count: int) -> None:
    """Refuse a first state of another shape: a transformer takes any, and would put its tokens elsewhere."""
    if (given := settings.get("latents")) is None:
        return
    latent = architecture.latent(pipeline, settings)
    state = torch.empty(count, *latent, device="meta")
    shape = tuple((state if architecture.packs_given else architecture.pack(state, latent)).shape)
    if not isinstance(given, Tensor) or not given.is_floating_point() or tuple(given.shape) != shape:
        got = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"latents= is {got}; this run needs a tensor of floats of shape {shape}")


def _count_steps(scheduler: Any, settings: dict[str, Any], asked: Any) -> None:
    """Let a list of noise levels or of timesteps say how many steps there are, as it does in the pipelines.

    Raises
    ------
    InputError
        Both lists, one that is empty or holds no finite numbers, another number of steps besides, or a scheduler that
        takes no such list.
    """
    lists = {name: settings[name] for name in ("sigmas", "timesteps") if settings.get(name) is not None}
    if len(lists) > 1:
        raise InputError("sigmas= and timesteps= both say what the steps are; give one of them")
    for name, values in lists.items():
        numbers = np.asarray(values.tolist() if hasattr(values, "tolist") else values)
        if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
            raise InputError(f"{name}={values!r:.80}: need a list of finite numbers, one for each step")
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise InputError(f"{type(scheduler).__name__} takes no {name}; give num_inference_steps=")
        if asked is not None and asked != len(numbers):
            raise InputError(
                f"num_inference_steps={asked} and {len(numbers)} {name}: give one of them, or as many of both"
            )
        settings["num_inference_steps"] = len(numbers)


def _fill_size(pipeline: Any, settings: dict[str, Any]) -> None:
    """Sizes that a pipeline leaves to its transformer's configuration."""
    config = pipeline.transformer.config
    sizes = {"height": "sample_height", "width": "sample_width", "num_frames": "sample_frames"}
    for name, configured in sizes.items():
        if settings.get(name) is None:
            size = getattr(config, configured, None)
            if size is None:
                raise InputError(f"{type(pipeline).__name__} has no default {name}; give {name}=")
            settings[name] = size if name == "num_frames" else size * spatial_factor(pipeline)


def _check(pipeline: Any, architecture: Architecture, settings: Settings, inputs: Inputs, *, takes_image: bool) -> None:
    steps = settings["num_inference_steps"]
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"num_inference_steps={steps!r}: need a whole number of at least 1")
    scale = settings.get("guidance_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise InputError(f"guidance_scale={scale!r}: need a finite number; above 1 there is a branch uncond")
    check_size(architecture.multiples(pipeline), settings)
    if takes_image != (inputs.images is not None) and inputs.rows:
        wants = "needs an image" if takes_image else "takes no image"
        raise InputError(f"{type(pipeline).__name__} {wants}")
    sizes = {image.size for image in inputs.images or []}
    if len(sizes) > 1:
        raise InputError(f"images of one run must share a size, got {sorted(sizes)}")
    negative = settings.get("negative_prompt") or ""
    prompts = {*inputs.prompts, *([negative] if isinstance(negative, str) else negative)}
    _check_words(getattr(pipeline, "tokenizer", None), prompts, settings.get("max_sequence_length"))


def _check_words(tokenizer: Any, prompts: set[Any], longest: int | None) -> None:
    """Refuse words that a word-level tokenizer does not know or would cut off: the model would be asked another thing.

    Tokenizers of published models know pieces of words, and so all words.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if type(getattr(backend, "model", None)).__name__ != "WordLevel":
        return
    vocabulary = tokenizer.get_vocab()
    for prompt in sorted(filter(None, prompts)):
        pieces = backend.pre_tokenizer.pre_tokenize_str(prompt)
        # Marks such as quotes may mean something to the pipeline itself and are no words.
        if unknown := [w for w, _ in pieces if w not in vocabulary and any(c.isalnum() for c in w)]:
            known = ", ".join(sorted(word for word in vocabulary if word.isalpha()))
            raise InputError(f"the model knows no {', '.join(map(repr, unknown))} (in {prompt!r}); it knows {known}")
        if longest is not None and len(pieces) >= longest:
            raise InputError(f"{prompt!r} has {len(pieces)} words; the model reads at most {longest - 1}")


def check_size(multiples: tuple[int, int, int], settings: Settings) -> None:
    """Refuse a size that the pipeline would round, crop or reject.

    Raises
    ------
    InputError
        Names the nearest valid value.
    """
    for name, step in zip(("height", "width"), multiples[:2], strict=True):
        value = settings[name]
        if not isinstance(value, int) or value < step or value % step:
            nearest = max(step, round(value / step) * step) if isinstance(value, int | float) else step
            raise InputError(f"{name}={value!r} is not a multiple of {step}; the nearest valid value is {nearest}")
    frames, step = settings["num_frames"], multiples[2]
    if not isinstance(frames, int) or frames < 1 or (frames - 1) % step:
        nearest = 1 + step * max(0, round((frames - 1) / step)) if isinstance(frames, int | float) else 1
        raise InputError(f"num_frames={frames!r} is not 1 + {step} k; the nearest valid value is {nearest}")


def geometry_of(pipeline: Any, architecture: Architecture, settings: Settings) -> Geometry:
    """What a run with these settings offers to be addressed."""
    transformer = pipeline.transformer
    latent = architecture.latent(pipeline, settings)
    grid = architecture.grid(transformer, latent)
    kinds = tuple(_layer(module, block) for _, module, block in architecture.layers(transformer))
    tokens = (*grid, architecture.width(transformer))
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("latents", "velocity", "guided"), latent)
    made = {c for kind in kinds for c in kind.components["video"] if c not in TOLD_COMPONENTS}
    shapes |= dict.fromkeys(("embed", "head", *made), tokens)
    shapes["model_input"] = (transformer.config.in_channels, *latent[1:])
    streams = dict.fromkeys(s for kind in kinds for s, has in kind.components.items() if "resid" in has)
    branches = dict.fromkeys(b for call in architecture.calls(pipeline, settings) for b in call)
    return Geometry(
        steps=settings["num_inference_steps"],
        layers=len(kinds),
        branches=tuple(branches),
        grid=grid,
        streams=tuple(streams),
        shapes=shapes,
        kinds=kinds,
        pixels=_pixels(pipeline, settings, latent[1]),
        fixed_frames=architecture.fixed_frames(pipeline, settings),
    )


def _layer(module: nn.Module, block: Block) -> Layer:
    told = [t for t in block.told if t.has(module)]
    components: dict[str, tuple[str, ...]] = {}
    residual = [s.name for s in block.streams]
    for name in dict.fromkeys((*residual, *(t.stream for t in told))):
        made = (*(t.component for t in block.terms if t.stream == name), "delta", "resid") if name in residual else ()
        components[name] = (*(t.component for t in told if t.stream == name), *made)
    counted = {t.stream: _heads(module) for t in block.terms if t.heads is not None}
    return Layer(block.kind, components, counted)


def _heads(module: Any) -> int:
    """Attention heads of a block's own attention, by whichever of its two usual names."""
    attention = getattr(module, "attn1", None) or module.attn
    return int(attention.heads)


def _pixels(pipeline: Any, settings: Settings, latent_frames: int) -> Pixels:
    frames, temporal = settings["num_frames"], temporal_factor(pipeline)
    made = frames // temporal if frames % temporal == 0 else (frames - 1) // temporal + 1
    return Pixels(frames, settings["height"], settings["width"], temporal, latent_frames - made)


def scales_of(
    pipeline: Any, architecture: Architecture, settings: Settings, experts: Mapping[str | None, Any]
) -> dict[str | None, dict[str, float]]:
    """The numbers that combine the branches, by expert."""
    return {name: architecture.scales(pipeline, settings, name) for name in experts}
