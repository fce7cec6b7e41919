"""The independent witness: a plain call of the pipeline, watched by torch's own hooks and the scheduler's own step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_lens.engine.pipeline import borrowed
from dit_lens.errors import UnsupportedModel
from dit_lens.families.base import Architecture, Block, HeadTold, Met, Term, bind
from dit_lens.interventions.base import Intervention
from dit_lens.interventions.capture import Capture
from dit_lens.model import VideoDiT
from dit_lens.runs.inputs import gather, split_rows
from dit_lens.runs.run import Run
from dit_lens.sites.site import TERM_COMPONENTS
from dit_lens.sites.sites import Sites


@dataclass
class SeenBlock:
    """One block in one denoiser call.

    Attributes
    ----------
    path : str
    block : Block
    met : Met
        With all events of the block.
    before, after : dict from stream to Tensor of shape (B, N, D)
    order : list of str
        Events as they came.
    by_head : dict from stream to (what the attention adds, the sum of what its heads and their bias add)
        Of the families whose heads are additive; taken while the block computes and has its weights.
    """

    path: str
    block: Block
    met: Met
    before: dict[str, Tensor]
    after: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    by_head: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Observed:
    """What the witness saw.

    Attributes
    ----------
    latents : Tensor, in the pipeline's own layout
    calls : list of list of SeenBlock, one per denoiser call
    outputs : list of what the denoiser returned
    head_told : list of what the output head was told, one per denoiser call, all branches of the call together
    steps : list of (model output, sample, results) of every ``scheduler.step``
    no_heads : str
        Why heads cannot be told apart; empty where they can.
    """

    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    calls: list[list[SeenBlock]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    head_told: list[Tensor] = field(default_factory=list)
    steps: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = field(default_factory=list)
    no_heads: str = ""


@torch.no_grad()
def observed(subject: Subject) -> Observed:
    """Call the pipeline by hand with the subject's inputs and settings."""
    seen, pipeline = Observed(), subject.model.pipeline
    inputs = gather(list(subject.inputs), [11, 12])
    given = {**subject.model.defaults, **subject.settings}
    settings = subject.architecture.pipeline_arguments(given, len(inputs.rows))
    tokens = math.prod(subject.model.geometry(subject.inputs[0], **subject.settings).grid)
    with (
        _hooked(subject, seen, tokens),
        _stepping(pipeline.scheduler, seen),
        _by_row(pipeline, subject.architecture.shared_image),
    ):
        output = pipeline(
            prompt=inputs.prompts,
            generator=inputs.generators(),
            output_type="latent",
            return_dict=False,
            **inputs.image_argument(),
            **settings,
        )[0]
    seen.latents = output
    return seen


@contextmanager
def _by_row(pipeline: Any, shared_image: bool) -> Iterator[None]:
    """Different images need the mended ``prepare_latents`` here as well; and a check draws no progress bars."""
    with borrowed(pipeline, "prepare_latents", "_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.prepare_latents = split_rows(pipeline.prepare_latents, shared_image=shared_image)
        yield


@contextmanager
def _hooked(subject: Subject, seen: Observed, tokens: int) -> Iterator[None]:
    with ExitStack() as stack:

        def hook(module: nn.Module, function: Callable[..., None], *, before: bool) -> None:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(register(function, with_kwargs=True).remove)

        for transformer in subject.model.experts.values():
            hook(transformer, lambda m, a, k: seen.calls.append([]), before=True)
            for path, module, block in subject.architecture.layers(transformer):
                hook(module, partial(_enter, seen, path, block, tokens), before=True)
                for event in block.events:
                    inner, _, what = event.rpartition(".")
                    hook(module.get_submodule(inner), partial(_see, seen, event), before=what == "input")
                hook(module, partial(_leave, seen), before=False)
            told = subject.architecture.head_told
            hook(transformer.get_submodule(told.path), partial(_see_told, seen, told), before=told.end == "inputs")
            hook(transformer, lambda m, a, k, out: seen.outputs.append(out), before=False)
        yield


def _enter(seen: Observed, path: str, block: Block, tokens: int, module: nn.Module, args: Any, kwargs: Any) -> None:
    arguments = bind(module, args, kwargs)
    before = {s.name: arguments[s.argument].clone() for s in block.streams}
    seen.calls[-1].append(SeenBlock(path, block, Met(module, arguments, tokens), before))


def _see(seen: Observed, event: str, _module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
    here = seen.calls[-1][-1]
    here.order.append(event)
    first = args[0] if args else next(iter(kwargs.values()))
    here.met.see(event, first if event.endswith(".input") else output)
    for term in here.block.terms:
        if term.heads is not None and event in (needs := {*term.needs, *term.head_needs}) and needs <= {*here.order}:
            try:
                here.by_head[term.stream] = _by_head(term, here.met, here.before[term.stream].dtype)
            except UnsupportedModel as error:
                seen.no_heads = str(error)


def _see_told(seen: Observed, told: HeadTold, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
    seen.head_told.append(told.take(module, (args, kwargs) if told.end == "inputs" else output).clone())


def _by_head(term: Term, met: Met, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What an attention adds and what its heads and their bias add together, both in the dtype of the stream."""
    assert term.heads is not None
    heads = met.module.attn1.heads if hasattr(met.module, "attn1") else met.module.attn.heads
    total = torch.stack([term.heads(met, head).double() for head in range(heads)]).sum(dim=0)
    total = total if term.headless is None else total + term.headless(met).double()
    return term.value(met).to(dtype), total.to(dtype)


def _leave(seen: Observed, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
    here = seen.calls[-1][-1]
    here.after = {s.name: (output if s.element is None else output[s.element]).clone() for s in here.block.streams}


@contextmanager
def _stepping(scheduler: Any, seen: Observed) -> Iterator[None]:
    """Watch ``scheduler.step``.

    By a subclass for the time being, not by an attribute: LTX-2 copies its scheduler for the audio, and an attribute
    of the copy would go on calling the original.
    """
    kind = type(scheduler)

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = (args[0], *(a for a in args[1:] if isinstance(a, Tensor) and a.shape == args[0].shape))
        result = kind.step(self, *args, **kwargs)
        if self is scheduler:
            seen.steps.append((before[0], before[-1], tuple(result) if isinstance(result, tuple) else (result,)))
        return result

    scheduler.__class__ = type(kind.__name__, (kind,), {"step": step})
    try:
        yield
    finally:
        scheduler.__class__ = kind


@dataclass(frozen=True)
class Subject:
    """A model and how to run it for a check.

    Attributes
    ----------
    model : VideoDiT
    own_inputs : two mappings with "prompt" (and "image")
    settings : mapping
        Arguments of the pipeline.
    """

    model: VideoDiT
    own_inputs: tuple[Mapping[str, Any], Mapping[str, Any]]
    settings: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Of one picture where the stock pipeline has an image encoder: by hand it takes no two in a batch."""
        one, other = self.own_inputs
        return (one, {**other, "image": one["image"]}) if self.sees_one_picture else self.own_inputs

    @property
    def sees_one_picture(self) -> bool:
        return "image" in self.own_inputs[0] and getattr(self.model.pipeline, "image_encoder", None) is not None

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    def run(self, interventions: Sequence[Intervention] = (), **more: Any) -> Run:
        """Two rows, not decoded."""
        inputs = more.pop("inputs", self.inputs)
        seeds = more.pop("seed", [11, 12][: len(inputs)])
        settings = {**self.settings, **more}
        return self.model.run(list(inputs), seeds, interventions=interventions, decode=False, **settings)

    @cached_property
    def plain(self) -> Observed:
        """The same generation by the pipeline called by hand, watched by torch hooks alone."""
        return observed(self)

    @cached_property
    def base(self) -> Run:
        """A recorded run with every component of every stream captured."""
        geometry = self.model.geometry(self.inputs[0], **self.settings)
        own = {c for kind in geometry.kinds for s in kind.components.values() for c in s}
        parts = tuple(c for c in TERM_COMPONENTS if c in own)
        everywhere = Capture(Sites(("embed", *parts, "delta", "resid"), stream="all"))
        around = Capture(Sites(("latents", "model_input", "velocity", "guided")))
        heads = [] if self.no_heads else [Capture(Sites("head", stream="all"))]
        return self.run([everywhere, around, *heads], record=True)

    @cached_property
    def no_heads(self) -> str:
        """Why heads cannot be told apart in this model; empty where they can."""
        kinds = self.model.geometry(self.inputs[0], **self.settings).kinds
        return self.plain.no_heads if any(kind.heads for kind in kinds) else "not additive"
