"""Reading the weights of a module wherever they are kept: in memory, with accelerate, or on the disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

#: A module and those within it, by path.
Parts = Sequence[tuple[str, nn.Module]]


def submodules(module: nn.Module) -> Parts:
    """A module and those within it, by path. Every run asks, so it must be quick."""
    found, left = list[tuple[str, nn.Module]](), [("", module)]
    while left:
        found.append(left.pop())
        path, module = found[-1]
        if children := module.__dict__["_modules"]:
            left += [(f"{path}{name}.", child) for name, child in children.items() if child is not None]
    return found


def tensors(parts: nn.Module | Parts, *, computed: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers by name, in the order of their names.

    Parameters
    ----------
    parts : nn.Module, or its `submodules` where they are at hand
    computed : bool
        The buffers that are computed and not saved, such as tables of positions, instead of all others.
    """
    found, read = {}, _Disk()
    for path, part in submodules(parts) if isinstance(parts, nn.Module) else parts:
        kept = part.__dict__
        unsaved = kept["_non_persistent_buffers_set"]
        own = kept["_parameters"] if not computed else {}
        if kept["_buffers"]:
            own = own | {name: x for name, x in kept["_buffers"].items() if (name in unsaved) == computed}
        if "_diffusers_hook" in kept:
            read.note(part)
        for name, tensor in own.items():
            if tensor is not None:
                found[path + name] = tensor if tensor.device.type != "meta" else _away(part, name, tensor)
    return {name: read(found[name]) for name in sorted(found)} if read.places else dict(sorted(found.items()))


def _away(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A tensor that accelerate has taken off the device, from where it keeps it; itself where that is unknown."""
    hook = getattr(module, "_hf_hook", None)
    for candidate in (hook, *getattr(hook, "hooks", ())):
        if (kept := getattr(candidate, "weights_map", None)) is not None:
            return kept[name]  # type: ignore[no-any-return]
    return tensor


class _Disk:
    """Tensors that diffusers' group offloading has written to files: what stands in memory meanwhile means nothing."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[str, str]] = {}

    def note(self, module: nn.Module) -> None:
        hook: Any = module.__dict__["_diffusers_hook"].hooks.get("group_offloading")
        group = getattr(hook, "group", None)
        if group is not None and group._is_offloaded_to_disk:
            file = group.safetensors_file_path
            self.places |= {id(tensor): (file, key) for tensor, key in group.tensor_to_key.items()}

    def __call__(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.places:
            return tensor
        file, key = self.places[id(tensor)]
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(key)  # type: ignore[no-any-return]


def contents(found: Mapping[str, Tensor], *, whole: bool = False, half: bool = False) -> Iterator[bytes]:
    """Names, dtypes and shapes, then the bits of a sample that meets every row and every column of every tensor.

    Tensors of one axis are read whole. One transfer for each device and dtype. Of tensors without values (on the meta
    device, or quantised by a library that keeps them elsewhere) only names, dtypes and shapes count.

    Parameters
    ----------
    whole : bool
        All values instead of a sample.
    half : bool
        Rounded to half precision, so that the last bit of another machine's cosine does not count.
    """
    yield "".join([name + _kind(tensor.dtype, tensor.shape) for name, tensor in found.items()]).encode()
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in found.values():
        for plain in (tensor.data,) if type(tensor) in _PLAIN else _inner(tensor):
            if not plain.is_meta and not plain.is_quantized and plain.layout is torch.strided:
                sample = plain.reshape(-1) if whole else _sample(plain)
                groups.setdefault((plain.device, plain.dtype), []).append(sample)
    for parts in groups.values():
        # Whole models are read one tensor at a time, so that no second one is needed in memory.
        for joined in parts if whole else (torch.cat(parts),):
            values = joined.half() if half and joined.is_floating_point() else joined
            # A copy of its own: a single value may have a stride that forbids to view it as bytes.
            yield values.cpu().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


@cache
def _kind(dtype: torch.dtype, shape: torch.Size) -> str:
    return f" {dtype} {tuple(shape)};"


_PLAIN = (Tensor, nn.Parameter)


def _inner(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors of a subclass: the parts of one that wraps others (torchao, DTensor), or its own values."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _inner(getattr(tensor, name))
    else:
        yield tensor.detach().as_subclass(Tensor)


def _sample(tensor: Tensor) -> Tensor:
    if tensor.ndim == 1:
        return tensor
    step = stride(tensor.shape)
    if not tensor.is_contiguous():
        return tensor.reshape(-1)[::step]
    return tensor.as_strided((-(-tensor.numel() // step),), (step,))


@cache
def stride(shape: tuple[int, ...]) -> int:
    """Distance between the values of a sample that meets every row and every column of a matrix, and few besides.

    With R rows of C values it is the largest number up to both that has no divisor in common with C: any C values of
    the sample stand in C different columns, and no row is passed over.
    """
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
    least = min(rows, columns)
    return next((n for n in range(least, 0, -1) if math.gcd(n, columns) == 1), 1)
