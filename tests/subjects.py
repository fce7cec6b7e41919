"""Tiny random pipelines of three kinds and the shipped model, each with two inputs and a plain way to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
from diffusers import WanTransformer3DModel as Transformer
from torch import Tensor, nn

import dit_lens as dl
from dit_lens.families.tiny.text import build_text_encoder, build_tokenizer
from dit_lens.organisms.build import OrganismConfig, build_pipeline, build_transformer, build_vae, random_pipeline

# Sums are split among threads: only with one are two runs of one pipeline the same bits on every machine.
torch.set_num_threads(1)

STEPS = 3
SEED = 5
ALL_EDITABLE = ("latents", "model_input", "embed", "delta", "resid", "velocity")


@dataclass(frozen=True)
class Subject:
    """A model, two inputs of the same prompt, and the seeds whose noise belongs to them."""

    name: str
    model: dl.VideoDiT
    inputs: tuple[Mapping[str, Any], Mapping[str, Any]]
    seeds: tuple[int, int]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pipeline(self) -> Any:
        return self.model.pipeline

    def run(self, which: int = 0, guidance: float = 1.0, **more: Any) -> dl.Run:
        settings = {"num_inference_steps": STEPS, "decode": False, **more}
        return self.model.run(self.inputs[which], self.seeds[which], guidance_scale=guidance, **settings)

    def plain(self, which: int = 0, guidance: float = 1.0, output_type: str = "latent", **more: Any) -> Any:
        """The stock pipeline called by hand, nothing of dit_lens around it."""
        settings = {**self.model.defaults, **self.options, "num_inference_steps": STEPS, "guidance_scale": guidance}
        generator = torch.Generator().manual_seed(self.seeds[which])
        arguments = {**self.inputs[which], **settings, "generator": generator, **more}
        with torch.no_grad():
            return self.pipeline(**arguments, output_type=output_type, return_dict=False)[0]


def _organism() -> Subject:
    model = dl.VideoDiT(
        random_pipeline(OrganismConfig(layers=4)), defaults={"num_frames": 9, "max_sequence_length": 16}
    )
    return _of_mazes("organism", model)


def _of_mazes(name: str, model: dl.VideoDiT) -> Subject:
    a, b = dl.tasks.Maze(size=4, lengths=(3, 8)).pair(seed=0)
    inputs = tuple({"prompt": maze.prompt, "image": maze.image} for maze in (a, b))
    # Image-to-video: donor and receiver share text and noise and differ in the picture.
    return Subject(name, model, inputs, (SEED, SEED), {"height": 32, "width": 32})


def _transformer(channels: int, out: int, patch: tuple[int, int, int]) -> Transformer:
    return Transformer(
        patch_size=patch, num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=out,
        text_dim=32, freq_dim=32, ffn_dim=48, num_layers=4, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        image_dim=None, added_kv_proj_dim=None, rope_max_seq_len=64,
    )  # fmt: skip


def _vae() -> AutoencoderKLWan:
    return build_vae(OrganismConfig(vae_base=8))


def _text_to_video() -> Subject:
    """A stock text-to-video pipeline whose token grid is 3 x 2 x 4."""
    config = OrganismConfig()
    torch.manual_seed(1)
    pipeline = WanPipeline(
        tokenizer=build_tokenizer(config.words),
        text_encoder=build_text_encoder(config.text_width).eval(),
        vae=_vae().eval(),
        scheduler=random_pipeline(OrganismConfig(layers=1)).scheduler,
        transformer=_transformer(8, 8, (1, 2, 2)).eval(),
    )
    size = {"height": 32, "width": 64, "num_frames": 5, "max_sequence_length": 16}
    prompt = {"prompt": "move the blue circle"}
    # Text-to-video: nothing but the noise tells the two apart.
    return Subject("text_to_video", dl.VideoDiT(pipeline, defaults=size), (prompt, prompt), (SEED, SEED + 1))


def _two_experts() -> Subject:
    """A stock image-to-video pipeline that changes its transformer at sigma .9."""
    config = OrganismConfig(layers=4, vae_base=8)
    torch.manual_seed(2)
    one = build_pipeline(config, _vae(), build_transformer(config), build_text_encoder(config.text_width))
    parts = {name: getattr(one, name) for name in ("tokenizer", "text_encoder", "vae", "transformer")}
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3)
    second = build_transformer(config).eval()
    pipeline = WanImageToVideoPipeline(**parts, scheduler=scheduler, transformer_2=second, boundary_ratio=0.9)
    return _of_mazes("two_experts", dl.VideoDiT(pipeline, defaults={"num_frames": 5, "max_sequence_length": 16}))


def _shipped() -> Subject:
    if not hasattr(dl, "load_organism"):
        pytest.skip("this version ships no organism")
    return _of_mazes("shipped", dl.load_organism("maze"))


BUILDERS: dict[str, Callable[[], Subject]] = {
    "organism": _organism,
    "text_to_video": _text_to_video,
    "two_experts": _two_experts,
    "shipped": _shipped,
}


#: One subject of a kind for the whole session: building costs more than running.
BUILT: dict[str, Subject] = {}


def subject_of(name: str) -> Subject:
    if name not in BUILT:
        BUILT[name] = BUILDERS[name]()
        BUILT[name].pipeline.set_progress_bar_config(disable=True)
    return BUILT[name]


def leftovers(pipeline: Any) -> list[str]:
    """What a run may have left in a pipeline: instance attributes that shadow the stock methods, and torch hooks."""
    found = ["prepare_latents"] if "prepare_latents" in pipeline.__dict__ else []
    for expert in ("transformer", "transformer_2"):
        for path, module in named_modules(getattr(pipeline, expert, None)):
            found += [f"{expert}.{path}:{key}" for key in ("forward", "__nnsight__") if key in module.__dict__]
            found += [f"{expert}.{path}:hook"] if module._forward_hooks or module._forward_pre_hooks else []
    return found


def named_modules(module: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    return iter(()) if module is None else module.named_modules()


@contextmanager
def forward_hooks(module: nn.Module, hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
    """A raw torch hook for the duration of the block: the independent way of doing what an intervention does."""
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def equal_frames(frames: np.ndarray, plain: np.ndarray) -> bool:
    """Whether uint8 frames are the pipeline's own floats in [0, 1], rounded."""
    return bool(np.array_equal(frames, (plain * 255).round().astype(np.uint8)))


def different(a: Tensor, b: Tensor) -> bool:
    """Guards a test of equality against comparing a thing with itself."""
    return not torch.equal(a, b)


@dataclass(frozen=True)
class Edit:
    """An intervention from a function."""

    sites: dl.Sites
    function: Callable[[Tensor, dl.At], Tensor | None]
    reads_only: bool = False

    def __call__(self, activation: Tensor, at: dl.At) -> Tensor | None:
        return self.function(activation, at)


def capture(*components: str, **select: Any) -> dl.Capture:
    """Capture some components, or all."""
    return dl.Capture(dl.Sites(components or (*ALL_EDITABLE, "guided"), **select))


@contextmanager
def raw_captures(subject: Subject) -> Iterator[dict[str, list[Tensor]]]:
    """What torch's own hooks see inside the transformers, by component and in the order of execution."""
    seen: dict[str, list[Tensor]] = {name: [] for name in ("model_input", "embed", "delta", "resid", "velocity")}

    def model(_module: Any, _args: Any, kwargs: Mapping[str, Any], output: tuple[Tensor, ...]) -> None:
        seen["model_input"].append(kwargs["hidden_states"].clone())
        seen["velocity"].append(output[0].clone())

    def block(first: bool, _module: Any, args: tuple[Tensor, ...], _kwargs: Any, output: Tensor) -> None:
        if first:
            seen["embed"].append(args[0].clone())
        seen["delta"].append(output - args[0])
        seen["resid"].append(output.clone())

    with ExitStack() as stack:
        for transformer in subject.model.experts.values():
            stack.enter_context(forward_hooks(transformer, model))
            for k, module in enumerate(transformer.blocks):
                stack.enter_context(forward_hooks(module, partial(block, k == 0)))
        yield seen
