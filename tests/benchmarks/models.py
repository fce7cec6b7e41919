"""The sizes at which generations are compared: pipelines, inputs and settings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn

import dit_lens as dl
from dit_lens.families.tiny.text import WORDS, build_text_encoder, build_tokenizer
from dit_lens.families.tiny.wan import vae

GIB = 2**30
SEED = 0


@dataclass(frozen=True)
class Size:
    """A model and a generation with it.

    Attributes
    ----------
    name, what : str
    make : callable () -> VideoDiT
    inputs : callable () -> mapping with "prompt" and, where the pipeline takes one, "image"
    settings : mapping
        All arguments of the pipeline; guidance is on, so that there are two branches.
    pooled_limit : float
        What a pooled capture of everything may cost, as a ratio of whole generations.
    device : str
    needs : int
        Bytes of memory that must be free on an accelerator.
    """

    name: str
    what: str
    make: Callable[[], dl.VideoDiT]
    inputs: Callable[[], Mapping[str, Any]]
    settings: Mapping[str, Any]
    pooled_limit: float = 1.03
    device: str = "cpu"
    needs: int = 0

    def missing(self) -> str | None:
        """Why this machine cannot run it, or None."""
        if self.device == "cpu":
            return None
        if not torch.cuda.is_available():
            return f"{self.name} needs a CUDA device with {self.needs / GIB:.0f} GiB free; torch sees no CUDA device"
        free, _ = torch.cuda.mem_get_info()
        if free < self.needs:
            return f"{self.name} needs {self.needs / GIB:.0f} GiB free on the CUDA device; {free / GIB:.0f} GiB are"
        return None


class Bench:
    """A model at one size, and a twin of its pipeline that never meets dit_lens.

    The twin has modules of its own and the same parameters, so that two runs read the same memory.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        self.model = size.make()
        self.model.pipeline.set_progress_bar_config(disable=True)
        self.stranger = twin(self.model.pipeline)
        self.inputs = size.inputs()

    @property
    def transformer(self) -> Any:
        return self.model.pipeline.transformer

    @property
    def steps(self) -> int:
        return int(self.size.settings["num_inference_steps"])

    @cached_property
    def geometry(self) -> Any:
        return self.model.geometry(self.inputs, **self.size.settings)

    @cached_property
    def record(self) -> dl.Run:
        """The whole run from which others resume."""
        return self.run(record=True)

    def run(self, **more: Any) -> dl.Run:
        return self.model.run(self.inputs, SEED, decode=False, **self.size.settings, **more)

    def plain(self, pipeline: Any, **more: Any) -> Tensor:
        """A pipeline called by hand: its final latents (B, C, F, H, W)."""
        arguments = {**self.model.defaults, **self.inputs, **self.size.settings, **more}
        generator = [torch.Generator().manual_seed(SEED)]
        latents: Tensor = pipeline(**arguments, generator=generator, output_type="latent", return_dict=False)[0]
        return latents

    def facts(self) -> dict[str, Any]:
        """What was run, for the result."""
        layers, grid = self.geometry.layers, self.geometry.grid
        return {
            "size": self.size.name, "what": self.size.what, "device": self.size.device,
            "parameters": sum(p.numel() for p in self.transformer.parameters()), "dtype": str(self.transformer.dtype),
            "layers": layers, "width": self.geometry.shapes["resid"][-1], "grid": list(grid),
            "tokens": grid[0] * grid[1] * grid[2], "steps": self.steps, "branches": list(self.geometry.branches),
            "settings": dict(self.size.settings),
        }  # fmt: skip


def twin(pipeline: Any) -> Any:
    """A copy of a pipeline whose modules are its own and whose tensors are shared."""
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    shared = chain.from_iterable(chain(m.parameters(), m.buffers()) for m in modules)
    return copy.deepcopy(pipeline, {id(tensor): tensor for tensor in shared})


def wan(
    layers: int, heads: int, head_width: int, ffn: int, *, text_width: int = 32, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dl.VideoDiT:  # fmt: skip
    """Wan text-to-video with random weights behind a text encoder of one layer; the VAE is never called."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=head_width, in_channels=16,
            out_channels=16, text_dim=text_width, freq_dim=256, ffn_dim=ffn, num_layers=layers, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        )  # fmt: skip
        encoder = build_text_encoder(text_width)
    pipeline = WanPipeline(
        tokenizer=build_tokenizer(WORDS),
        text_encoder=encoder.to(dtype).eval(),
        vae=vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=_cast(transformer, dtype).eval(),
    )
    return dl.VideoDiT(pipeline.to(device))


def _cast(transformer: Any, dtype: torch.dtype) -> Any:
    """Parameters in ``dtype`` but for those that diffusers keeps in float32 when it loads the model."""
    kept = transformer._keep_in_fp32_modules or []
    for name, parameter in transformer.named_parameters():
        if not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def _maze() -> dict[str, Any]:
    task, _ = dl.tasks.Maze(size=6).pair(seed=0)
    return {"prompt": task.prompt, "image": task.image}


def _prompt() -> dict[str, Any]:
    return {"prompt": "move the blue circle"}


def _video(height: int, width: int, frames: int, steps: int, **more: Any) -> dict[str, Any]:
    size = {"height": height, "width": width, "num_frames": frames}
    return {**size, "num_inference_steps": steps, "guidance_scale": 5.0, **more}


_BF16: dict[str, Any] = {"text_width": 4096, "device": "cuda", "dtype": torch.bfloat16}
_LARGE = _video(480, 832, 81, 4, max_sequence_length=512)

SIZES = {
    size.name: size
    for size in (
        Size(
            "shipped", "the maze organism that ships with the package", partial(dl.load_organism, "maze"), _maze,
            _video(48, 48, 9, 10), pooled_limit=1.08,
        ),
        Size(
            "wan-50m", "Wan text-to-video with random weights", partial(wan, 12, 8, 64, 2048), _prompt,
            _video(256, 256, 21, 2, max_sequence_length=16),
        ),
        Size(
            "wan-1.3b", "Wan 2.1 1.3B with random weights", partial(wan, 30, 12, 128, 8960, **_BF16), _prompt, _LARGE,
            device="cuda", needs=60 * GIB,
        ),
        Size(
            "wan-14b-stack", "4 of the 40 blocks of Wan 2.1 14B with random weights",
            partial(wan, 4, 40, 128, 13824, **_BF16), _prompt, _LARGE, device="cuda", needs=60 * GIB,
        ),
    )
}  # fmt: skip

#: For the tests: every case in a moment, and what the sizes for an accelerator do but on the CPU.
TINY = Size("tiny", "for the tests", partial(wan, 2, 2, 16, 48), _prompt, _video(32, 64, 5, 2, max_sequence_length=16))
TINY_BF16 = Size(
    "tiny-bf16", "for the tests", partial(wan, 2, 2, 16, 48, dtype=torch.bfloat16), _prompt,
    _video(32, 64, 5, 2, max_sequence_length=16),
)  # fmt: skip
