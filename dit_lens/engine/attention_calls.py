"""Seeing the queries and keys that the model's own attention is given, while one recorded step is done again.

diffusers has no eager attention: every processor ends in ``scaled_dot_product_attention``, and what it is given there
has been through the projections (fused or not), norms and rotary positions, with the mask and the scale that count. A
function mode of torch sees that call whoever makes it; hooks on the attention modules tell which it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dit_lens.errors import UnsupportedModel
from dit_lens.families.base import Attends, bind

_SDPA = torch.nn.functional.scaled_dot_product_attention
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True)
class Given:
    """What one ``scaled_dot_product_attention`` was given.

    Attributes
    ----------
    query : Tensor of shape (B', heads, n, d)
    key : Tensor of shape (B', heads or a divisor of them, m, d)
    mask : Tensor of shape (B' or 1, heads or 1, n or 1, m), or None
    scale : float
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float


@dataclass(frozen=True)
class AttentionCall:
    """One attention module as it was met in one denoiser call.

    Attributes
    ----------
    layer : int
    module : nn.Module
    attends : Attends
    arguments : dict
        Its call arguments by name.
    given : list of Given, one for each softmax that it computed
    """

    layer: int
    module: Any
    attends: Attends
    arguments: Mapping[str, Any]
    given: list[Given]


class _Watch(TorchFunctionMode):
    """Keeps what attention is given while ``into`` is a list. What is computed is computed as ever."""

    into: list[Given] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _SDPA and self.into is not None:
            self.into.append(_given(**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs))
        return func(*args, **kwargs)


def _given(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Given:
    if is_causal:
        raise UnsupportedModel("the attention lens does not model causal attention (is_causal=True)")
    if attn_mask is not None:
        attn_mask = attn_mask.reshape((1,) * (4 - attn_mask.ndim) + attn_mask.shape)
        attn_mask = attn_mask.expand(*attn_mask.shape[:-1], key.shape[-2])
    return Given(query, key, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)


def watched(
    attentions: Mapping[int, tuple[nn.Module, Attends]], nth: int, see: Callable[[AttentionCall], None]
) -> ExitStack:
    """Shows every attention module to ``see`` after its ``nth`` forward, until the stack is closed.

    Parameters
    ----------
    attentions : dict from layer to its module and what the family says of it
    nth : int
        Which of a step's calls of one transformer is to be seen.
    """
    watch = _Watch()
    with ExitStack() as stack:
        for layer, (module, attends) in attentions.items():
            visit = _Visit(watch, layer, attends, nth, see)
            for handle in (
                module.register_forward_pre_hook(visit.before),
                module.register_forward_hook(visit.after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        stack.enter_context(watch)
        return stack.pop_all()


@dataclass
class _Visit:
    """The hooks of one attention module."""

    watch: _Watch
    layer: int
    attends: Attends
    nth: int
    see: Callable[[AttentionCall], None]
    count: int = 0

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.count == self.nth:
            self.watch.into = []

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, self.watch.into = self.watch.into, None
        self.count += 1
        if given is not None:
            if not given:
                raise UnsupportedModel(f"layer {self.layer}: {_why_unseen(module, self.attends.path)}")
            self.see(AttentionCall(self.layer, module, self.attends, _arguments(module, args, kwargs), given))


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """By name; the forward of diffusers' attention takes any keywords, which lie one level deeper."""
    found = bind(module, args, kwargs)
    loose = [n for n, p in inspect.signature(type(module).forward).parameters.items() if p.kind is p.VAR_KEYWORD]
    for name in loose:
        found |= found.pop(name)
    return found


def _why_unseen(module: Any, path: str) -> str:
    own = getattr(getattr(module, "processor", None), "_attention_backend", None)
    backend = AttentionBackendName(own or _AttentionBackendRegistry._active_backend).value
    if "native" in backend:
        return (
            f"the model leaves {path} out here (guidance that skips attention); choose other layers or another branch"
        )
    return (
        f"{path} computes with the attention backend {backend!r}, which does not go through torch's "
        "scaled_dot_product_attention; call set_attention_backend('native') on the transformer and try again"
    )


def attention_modules(
    layers: list[tuple[str, nn.Module, Any]], chosen: list[int], kind: str, family: str
) -> dict[int, tuple[nn.Module, Attends]]:
    """The attention module of a kind in each chosen layer.

    Raises
    ------
    UnsupportedModel
        The family has none of this kind, or its file names one that is not there.
    """
    found = {}
    for layer in chosen:
        _, module, block = layers[layer]
        attends = next((a for a in block.attends if a.kind == kind), None)
        if attends is None:
            raise UnsupportedModel(
                f"{family} has no {kind}-attention in layer {layer}: video and text share one softmax; with "
                "kind='self' the lens gives the mass on the text"
            )
        try:
            found[layer] = (module.get_submodule(attends.path), attends)
        except AttributeError as error:
            raise UnsupportedModel(
                f"{family}: layer {layer} has no module {attends.path}; say in Block.attends where it attends"
            ) from error
    return found
