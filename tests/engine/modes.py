"""The modes that tests/engine/test_modes.py tries, and edits made by raw torch hooks alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import accelerate
import nnsight
import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import WanPipeline
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn

from dit_lens.families.tiny.pipelines import TINY
from tests.subjects import forward_hooks

#: The layer that is edited.
LAYER = 1
CPU = torch.device("cpu")

Mode = Callable[[Any, Path], AbstractContextManager[None]]


# The modes, each from its beginning to its end. Those that change weights for good have no end.


def to_dtype(dtype: torch.dtype) -> Mode:
    @contextmanager
    def mode(pipeline: Any, folder: Path) -> Iterator[None]:
        pipeline.to(dtype)
        yield

    return mode


@contextmanager
def model_offload(pipeline: Any, folder: Path) -> Iterator[None]:
    pipeline.enable_model_cpu_offload(device="cpu")
    yield
    pipeline.remove_all_hooks()


@contextmanager
def sequential_offload(pipeline: Any, folder: Path) -> Iterator[None]:
    """What ``enable_sequential_cpu_offload`` does to a transformer; on a CPU accelerate cannot do it to the others."""
    accelerate.cpu_offload(pipeline.transformer, CPU, offload_buffers=True)
    assert {p.device.type for p in pipeline.transformer.parameters()} == {"meta"}
    yield
    remove_hook_from_module(pipeline.transformer, recurse=True)


@contextmanager
def device_map(pipeline: Any, folder: Path) -> Iterator[None]:
    """Two blocks on the disk, as ``device_map`` puts them when memory is short."""
    places = {"": "cpu", "blocks.1": "disk", "blocks.2": "disk"}
    accelerate.dispatch_model(pipeline.transformer, places, main_device="cpu", offload_dir=folder, force_hooks=True)
    assert {p.device.type for p in pipeline.transformer.parameters()} == {"cpu", "meta"}
    yield
    remove_hook_from_module(pipeline.transformer, recurse=True)


def group_offload(**kind: Any) -> Mode:
    @contextmanager
    def mode(pipeline: Any, folder: Path) -> Iterator[None]:
        """To the disk: what is off is then no longer in memory, so that a hook that is passed over shows on a CPU."""
        pipeline.transformer.enable_group_offload(CPU, CPU, offload_to_disk_path=str(folder), **kind)
        yield

    return mode


@contextmanager
def layerwise_casting(pipeline: Any, folder: Path) -> Iterator[None]:
    pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert pipeline.transformer.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    yield


@contextmanager
def quantised(pipeline: Any, folder: Path) -> Iterator[None]:
    """All linear layers of the blocks in int8."""
    kinds = {nn.Linear}
    pipeline.transformer.blocks = torch.ao.quantization.quantize_dynamic(pipeline.transformer.blocks, kinds)
    yield


@contextmanager
def math_attention(pipeline: Any, folder: Path) -> Iterator[None]:
    with attention_backend("_native_math"):
        yield


@contextmanager
def fused_qkv(pipeline: Any, folder: Path) -> Iterator[None]:
    pipeline.transformer.fuse_qkv_projections()
    yield
    pipeline.transformer.unfuse_qkv_projections()


@contextmanager
def checkpointing(pipeline: Any, folder: Path) -> Iterator[None]:
    pipeline.transformer.enable_gradient_checkpointing()
    yield
    pipeline.transformer.disable_gradient_checkpointing()


@contextmanager
def own_nnsight(pipeline: Any, folder: Path) -> Iterator[None]:
    """A wrapping of the user's own with an edit that belongs to its own traces, and which still works afterwards."""
    own = nnsight.NNsight(pipeline.transformer)
    with own.edit(inplace=True):
        own.blocks[0].output = own.blocks[0].output * 0
    yield
    assert type(pipeline.transformer.__dict__["forward"]).__name__ == "Controller"


@contextmanager
def reading_hooks(pipeline: Any, folder: Path) -> Iterator[None]:
    seen: list[tuple[int, ...]] = []
    with ExitStack() as stack:
        for block in pipeline.transformer.blocks:
            stack.enter_context(forward_hooks(block, lambda m, a, k, output: seen.append(output.shape)))
        yield
        assert seen


@contextmanager
def changing_hooks(pipeline: Any, folder: Path) -> Iterator[None]:
    """Before a block: what the hook gives is what the block is given, for raw hooks and dit_lens alike."""
    hook = lambda module, args, kwargs: ((args[0] * 1.5, *args[1:]), kwargs)  # noqa: E731
    with forward_hooks(pipeline.transformer.blocks[2], hook, before=True):
        yield


@contextmanager
def own_forward(pipeline: Any, folder: Path) -> Iterator[None]:
    """A block whose ``forward`` somebody replaced."""
    block = pipeline.transformer.blocks[2]
    stock = block.forward
    block.forward = lambda *args, **kwargs: stock(*args, **kwargs) * 1.5
    yield
    del block.forward


@contextmanager
def lora(pipeline: Any, folder: Path) -> Iterator[None]:
    load_lora(pipeline, folder, "one")
    yield
    pipeline.unload_lora_weights()


MODES: dict[str, Mode] = {
    "bf16": to_dtype(torch.bfloat16), "fp16": to_dtype(torch.float16),
    "model_offload": model_offload, "sequential_offload": sequential_offload, "device_map": device_map,
    "group_offload_blocks": group_offload(offload_type="block_level", num_blocks_per_group=1),
    "group_offload_leaves": group_offload(offload_type="leaf_level"),
    "layerwise_casting": layerwise_casting, "quantised": quantised,
    "attention_backend": math_attention, "fused_qkv": fused_qkv, "checkpointing": checkpointing,
    "own_nnsight": own_nnsight, "reading_hooks": reading_hooks, "changing_hooks": changing_hooks,
    "own_forward": own_forward, "lora": lora,
}  # fmt: skip
#: Modes that cannot be left: weights were rounded, or diffusers has no way back.
FOR_GOOD = {"bf16", "fp16", "group_offload_blocks", "group_offload_leaves", "layerwise_casting", "quantised"}


def load_lora(pipeline: Any, folder: Path, name: str, targets: Sequence[str] = ("to_q", "to_k", "to_out.0")) -> None:
    """Make an adapter, save it as diffusers does, and load it through the pipeline."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    maker = TINY["wan2.1-t2v"].build().transformer
    maker.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(targets), init_lora_weights="gaussian"))
    generator = torch.Generator().manual_seed(len(name))
    for path, parameter in maker.named_parameters():
        if "lora_B" in path:
            nn.init.normal_(parameter, std=0.2, generator=generator)
    WanPipeline.save_lora_weights(folder / name, transformer_lora_layers=get_peft_model_state_dict(maker))
    pipeline.load_lora_weights(folder / name, adapter_name=name)


# What the same edits are as raw torch hooks, operation by operation.


def added(stream: Tensor, difference: Tensor) -> Tensor:
    return (stream.float() + difference).to(stream.dtype)


def edit_delta(change: Callable[[Tensor], Tensor]) -> Callable[[Any], AbstractContextManager[None]]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        own = output - args[0]
        return added(output, change(own).float() - own.float())

    return lambda transformer: forward_hooks(transformer.blocks[LAYER], hook)


@contextmanager
def halve_attn(transformer: Any) -> Iterator[None]:
    """The halved term is taken from the stream wherever it is read after it was added, and from the block's output."""
    block, kept = transformer.blocks[LAYER], {}

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        kept["dtype"], kept["temb"] = args[0].dtype, args[2]

    def after_attention(module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        gate = block.scale_shift_table[:, 2] + kept["temb"][:, 2].float()
        own = (output * gate.unsqueeze(1)).to(kept["dtype"])
        kept["difference"] = (own * 0.5).float() - own.float()

    def into_norm(module: Any, args: Any, kwargs: Any) -> Any:
        return (added(args[0], kept["difference"]), *args[1:]), kwargs

    with ExitStack() as stack:
        stack.enter_context(forward_hooks(block, enter, before=True))
        stack.enter_context(forward_hooks(block.attn1, after_attention))
        for norm in (block.norm2, block.norm3):
            stack.enter_context(forward_hooks(norm, into_norm, before=True))
        stack.enter_context(forward_hooks(block, lambda m, a, k, output: added(output, kept["difference"])))
        yield
