"""What dit_lens must be told about a family of video transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor, nn

from dit_lens.display.short import short_repr

#: Token grid (F, H, W).
Grid = tuple[int, int, int]
#: Shape (C, F, H, W) of one row of the sampler's state.
Latent = tuple[int, int, int, int]
#: All arguments with which the pipeline is called.
Settings = Mapping[str, Any]
#: Which tokens of a joint tensor belong to a stream, given the number of video tokens.
Part = Callable[[int], slice]


def whole(video_tokens: int) -> slice:
    return slice(None)


def first_video(video_tokens: int) -> slice:
    """The video's part of [video; text]."""
    return slice(0, video_tokens)


def last_text(video_tokens: int) -> slice:
    """The text's part of [video; text]."""
    return slice(video_tokens, None)


def last_video(video_tokens: int) -> slice:
    """The video's part of [text; video]."""
    return slice(-video_tokens, None)


def first_text(video_tokens: int) -> slice:
    """The text's part of [text; video]."""
    return slice(0, -video_tokens)


@dataclass(frozen=True)
class Stream:
    """How a block takes a residual stream in and gives it back.

    Attributes
    ----------
    name : str
        "video" or "text".
    argument : str
        Name of the parameter of the block's ``forward`` that carries it, of shape (B, N, D).
    element : int or None
        Its place in the block's output tuple; None where the output is the stream itself.
    """

    name: str
    argument: str
    element: int | None = None


@dataclass
class Met:
    """One block as it is met in one denoiser call: what a `Term` computes its value from.

    Attributes
    ----------
    module
        The block itself, for its own parameters such as a modulation table.
    arguments : dict
        The block's call arguments by name.
    video_tokens : int
        N of the video stream.
    """

    module: Any
    arguments: dict[str, Any]
    video_tokens: int
    _events: dict[str, Any] = field(default_factory=dict)

    __repr__ = short_repr

    def __getitem__(self, event: str) -> Any:
        """What was seen at an event: "path.output" is a module's output, "path.input" its first argument."""
        return self._events[event]

    def see(self, event: str, value: Any) -> None:
        self._events[event] = value


@dataclass(frozen=True)
class Term:
    """One of the additions that a block makes to a stream.

    Attributes
    ----------
    component : str
        "attn", "cross_attn", "ffn", or a family's own ("a2v", "pos", "bias").
    stream : str
    needs : tuple of str
        Events that must have been seen, in the order of `Block.events`; of a block with ``absent`` events at least one
        that always comes, and the term is met after the last that does.
    value : callable (Met) -> (B, N, D)
        What is added to the stream, after its gate.
    heads : callable (Met, head) -> (B, N, D), optional
        For "attn" only: the share of one attention head, after the gate. None where heads are not additive.
    headless : callable (Met) -> tensor that broadcasts to (B, N, D), optional
        The part of ``value`` that belongs to no head (the output projection's bias under the gate): the heads and this
        sum to ``value``.
    head_needs : tuple of str
        Events for ``heads`` and ``headless``.
    """

    component: str
    stream: str
    needs: tuple[str, ...]
    value: Callable[[Met], Tensor]
    heads: Callable[[Met, int], Tensor] | None = None
    headless: Callable[[Met], Tensor] | None = None
    head_needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A module inside a block that reads the stream as it stands between two terms.

    An edit of a term is added to the stream here, at every reader that comes after it, and at the block's output.

    Attributes
    ----------
    event : str
        "path.input" of the module.
    stream : str
    argument : int or str
        Position or name of the argument that is the stream.
    part : Part
        Which of its tokens are the stream's, where the argument is a joint tensor.
    """

    event: str
    stream: str
    argument: int | str = 0
    part: Part = whole


def always(module: Any) -> bool:
    return True


@dataclass(frozen=True)
class Told:
    """Something that a block is told besides its residual streams; see `dit_lens.families.told`.

    Attributes
    ----------
    component : str
        "context": what a cross-attention reads, (B, N, D); "modulation": time, and the pooled prompt, in the model's
        own layout (B, ..., D); "mask": 1 where attention may read a position of the text and 0 where not, (B, N, 1).
    stream : str
        Whose it is: of a context "text", "image", "audio" or "audio_text".
    take : callable (Met) -> Tensor, or None where a call has none
    put : callable (Met, changed Tensor) -> the block's call arguments that change with it
    has : callable (the block) -> whether a block of this kind is told it
    """

    component: str
    stream: str
    take: Callable[[Met], Tensor | None]
    put: Callable[[Met, Tensor], dict[str, Any]]
    has: Callable[[Any], bool] = always


@dataclass(frozen=True)
class HeadTold:
    """What the output head is told besides the residual stream, and nothing but the head.

    Attributes
    ----------
    path : str
        Of a module of the transformer.
    end : "output" or "inputs"
        "output" of a module that runs before the blocks, "inputs" of one that runs after them.
    take : callable (the module, its output or its (args, kwargs)) -> Tensor of shape (B, ..., D)
        A batch may have several entries for each row in its first axis.
    put : callable (the module, its output or its (args, kwargs), changed Tensor) -> the same with the tensor replaced
    """

    path: str
    end: str
    take: Callable[[Any, Any], Tensor]
    put: Callable[[Any, Any, Tensor], Any]


def all_positions(arguments: Mapping[str, Any], row: int) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Attends:
    """An attention module of a block: what its queries are of, and what its keys.

    Attributes
    ----------
    path : str
        Of the module in the block.
    kind : str
        "self": from the video to the video, and to the text where that is in the same softmax; "cross": from the video
        to what it is conditioned on.
    keys : tuple of str
        Of a cross-attention: what its softmaxes read, in the order in which it computes them. A model that has fewer of
        them has the last.
    video : Part
        Which of the queries and keys of a self-attention are the video's.
    text : Part, optional
        Which are the text's.
    positions : callable (the module's call arguments by name, row) -> bool Tensor of shape (N,), or None
        Where the text's keys are only some of its N positions: which, in a row of the call.
    """

    path: str
    kind: str
    keys: tuple[str, ...] = ("image", "text")
    video: Part = whole
    text: Part | None = None
    positions: Callable[[Mapping[str, Any], int], Tensor | None] = all_positions


#: What most blocks of one stream have.
SELF_AND_CROSS = (Attends("attn1", "self"), Attends("attn2", "cross"))


def nothing_absent(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    return ()


def all_valid(met: Met) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Block:
    """One kind of block.

    Attributes
    ----------
    kind : str
        "single" (one stream), "dual" (two streams with weights of their own), or "joint-single" (two streams, one set
        of weights).
    streams : tuple of Stream
    events : tuple of str
        All events that terms and readers name, in execution order: an inner module's input comes before the output of
        the module around it.
    terms : tuple of Term, in execution order
    readers : tuple of Reader, in execution order
    carried : tuple of Stream
        Streams that the block takes and gives back but that cannot be addressed (the audio of LTX-2).
    absent : callable (the block's call arguments by name) -> events that do not come in this call
        Of modules that some calls leave out (audio and video not seeing each other in a branch of LTX-2).
    attends : tuple of Attends
        For the attention lens.
    text_valid : callable (Met) -> bool Tensor of shape (B, N), or None
        The positions of the text that attention may read; the others are padding. None where it reads all.
    told : tuple of Told
        What the block is told besides its residual streams.
    """

    kind: str
    streams: tuple[Stream, ...]
    events: tuple[str, ...]
    terms: tuple[Term, ...]
    readers: tuple[Reader, ...] = ()
    carried: tuple[Stream, ...] = ()
    absent: Callable[[Mapping[str, Any]], tuple[str, ...]] = nothing_absent
    attends: tuple[Attends, ...] = SELF_AND_CROSS
    text_valid: Callable[[Met], Tensor | None] = all_valid
    told: tuple[Told, ...] = ()

    def stream(self, name: str) -> Stream:
        return next(s for s in self.streams if s.name == name)


def no_refusal(pipeline: Any, settings: Settings) -> str | None:
    return None


@dataclass(frozen=True)
class Fixed:
    """What a pipeline puts into its final latents: they become (1 - mask) value + mask state.

    Attributes
    ----------
    mask, value : Tensor that broadcasts to (B, C, F, H, W)
    """

    mask: Tensor
    value: Tensor

    __repr__ = short_repr

    def __call__(self, state: Tensor) -> Tensor:
        """A state or an estimate (B, C, F, H, W) as the pipeline leaves it."""
        mask, value = self.mask.to(state.device), self.value.to(state.device)
        return (1 - mask) * value + mask * state


def nothing_fixed(pipeline: Any, prepared: tuple[Any, ...]) -> Fixed | None:
    return None


def no_frames(pipeline: Any, settings: Settings) -> tuple[int, ...]:
    return ()


def as_given(arguments: dict[str, Any], batch: int) -> dict[str, Any]:
    return arguments


def guidance_scale_alone(pipeline: Any, settings: Settings, expert: str | None) -> dict[str, float]:
    return {"guidance_scale": float(settings["guidance_scale"])}


def classifier_free(
    velocities: Mapping[str, Tensor], scales: Mapping[str, float], state: Tensor, sigma: float
) -> Tensor:
    """Classifier-free guidance of the branches "cond" and "uncond"."""
    if "uncond" not in velocities:
        return velocities["cond"]
    return velocities["uncond"] + scales["guidance_scale"] * (velocities["cond"] - velocities["uncond"])


def as_it_is(x: Tensor, latent: Latent) -> Tensor:
    return x


@dataclass(frozen=True)
class Architecture:
    """One family. Everything else in the package is written against these fields.

    Attributes
    ----------
    family : str
    transformers, pipelines : tuple of str
        Class names that it describes; a subclass of one of them is taken too.
    stacks : tuple of (attribute name, Block)
        The block lists in execution order; together they are the one layer axis.
    conditioning : tuple of str
        Paths of the modules whose outputs the head needs besides the residual stream; one that is None in a model is
        left out.
    calls : callable (pipeline, settings) -> tuple of tuple of str
        The denoiser's calls of one step in order; each names the guidance branches whose rows it carries, in order.
    latent : callable (pipeline, settings) -> (C, F, H, W) of one row of the sampler's state
    grid : callable (transformer, latent) -> token grid (F, H, W)
    width : callable (transformer) -> width D of the video stream
    multiples : callable (pipeline) -> (height, width, frames)
        Height and width must be multiples of the first two, and frames 1 + k times the third.
    head : callable (transformer, residual (B, N, D), conditioning by path, grid) -> the transformer's output
        The model's own operations in their own order, so that the last residual gives the model's output bit for bit.
        In the layout in which the transformer itself returns it.
    head_told : HeadTold
        Of the head's ``conditioning`` what can be read and edited as "head_modulation".
    decode : callable (pipeline, latents (B, C, F, H, W)) -> video (B, 3, T, height, width) in [-1, 1]
    encode : callable (pipeline, video (B, 3, T, height, width) in [-1, 1]) -> latents (B, C, F, H, W)
        The mode of the VAE's posterior in the scale of the sampler's state: what ``decode`` undoes before its VAE.
    guide : callable (velocities by branch (B, C, F, H, W), scales, state (B, C, F, H, W), sigma) -> combined prediction
    scales : callable (pipeline, settings, expert) -> dict of the numbers that ``guide`` needs
    unpack, pack : callable (tensor, latent shape) -> tensor
        From the layout of the sampler's state, the denoiser's input and output to (B, C, F, H, W) and back; the number
        of channels is the tensor's own.
    packs_given : bool
        Whether the pipeline is given ``latents=`` as (B, C, F, H, W) and packs them itself.
    refuse : callable (pipeline, settings) -> reason, or None
        What the family cannot do.
    fixed : callable (pipeline, prepared) -> Fixed or None
        What the pipeline puts into its final latents from what it prepared at the start; ``prepared`` is what
        ``prepare_latents`` returned besides the state.
    fixed_frames : callable (pipeline, settings) -> latent frames of the state that the pipeline overwrites
    pipeline_arguments, call_arguments : callable (arguments, batch) -> arguments
        Mend the pipeline's and the denoiser's arguments where the stock pipeline gets a batch of ``batch`` rows wrong.
    late_timesteps : bool
        The pipeline makes its latents before it sets its timesteps; the first sigma is then 1.
    step_callback : bool
        Whether the pipeline takes ``callback_on_step_end``.
    shared_image : bool
        Whether the image-to-video pipeline takes one image for several rows.
    decodes_batches : bool
        Whether the VAE decodes and encodes several rows at once.
    causal_decoder : bool
        Whether no frame that the decoder makes of the first F latent frames depends on a later one.
    video_fixes_state : bool
        Whether a clean video and noise fix the sampler's state: not where it holds audio too.
    """

    family: str
    transformers: tuple[str, ...]
    pipelines: tuple[str, ...]
    stacks: tuple[tuple[str, Block], ...]
    conditioning: tuple[str, ...]
    calls: Callable[[Any, Settings], tuple[tuple[str, ...], ...]]
    latent: Callable[[Any, Settings], Latent]
    grid: Callable[[Any, Latent], Grid]
    width: Callable[[Any], int]
    multiples: Callable[[Any], tuple[int, int, int]]
    head: Callable[[Any, Tensor, Mapping[str, Any], Grid], Tensor]
    head_told: HeadTold
    decode: Callable[[Any, Tensor], Tensor]
    encode: Callable[[Any, Tensor], Tensor]
    guide: Callable[[Mapping[str, Tensor], Mapping[str, float], Tensor, float], Tensor] = classifier_free
    scales: Callable[[Any, Settings, str | None], dict[str, float]] = guidance_scale_alone
    unpack: Callable[[Tensor, Latent], Tensor] = as_it_is
    pack: Callable[[Tensor, Latent], Tensor] = as_it_is
    packs_given: bool = False
    refuse: Callable[[Any, Settings], str | None] = no_refusal
    fixed: Callable[[Any, tuple[Any, ...]], Fixed | None] = nothing_fixed
    fixed_frames: Callable[[Any, Settings], tuple[int, ...]] = no_frames
    pipeline_arguments: Callable[[dict[str, Any], int], dict[str, Any]] = as_given
    call_arguments: Callable[[dict[str, Any], int], dict[str, Any]] = as_given
    late_timesteps: bool = False
    step_callback: bool = True
    shared_image: bool = False
    decodes_batches: bool = True
    causal_decoder: bool = False
    video_fixes_state: bool = True

    def layers(self, transformer: Any) -> list[tuple[str, nn.Module, Block]]:
        """Path, module and kind of every block, on one layer axis."""
        return [
            (f"{name}.{i}", module, block)
            for name, block in self.stacks
            for i, module in enumerate(getattr(transformer, name))
        ]

    def blocks(self, transformer: Any) -> list[nn.Module]:
        """All blocks on one layer axis."""
        return [module for _, module, _ in self.layers(transformer)]


@cache
def _signature(kind: Hashable) -> inspect.Signature:
    return inspect.signature(kind.forward)  # type: ignore[attr-defined]


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A module's call arguments by name, defaults filled in."""
    kind: Any = type(module)
    bound = _signature(kind).bind(module, *args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
