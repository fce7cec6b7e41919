"""Gradients of one denoising step, for attribution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dit_lens.display.short import short_repr
from dit_lens.errors import InputError, NotFinite
from dit_lens.interventions.base import At
from dit_lens.runs.replay import Replay
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites

Metric = Callable[[Replay], Tensor]


@dataclass(frozen=True)
class Gradients:
    """A metric of one denoising step and its derivative with respect to the activations at some sites.

    Attributes
    ----------
    value : Tensor of no shape
    activations, gradients : dict from Site to Tensor of the shape of the activation (B, F, H, W, D)
        Of only the tokens that the sites select. To first order a change of an activation by ``e`` moves the metric by
        ``(gradients[site] * e).sum()``.
    replay : Replay, detached
    """

    value: Tensor
    activations: dict[Site, Tensor]
    gradients: dict[Site, Tensor]
    replay: Replay

    __repr__ = short_repr


@dataclass(frozen=True)
class Watch:
    """Adds a leaf of zeros to every activation: the metric's derivative by the leaf is that by the activation."""

    sites: Sites
    activations: dict[Site, Tensor] = field(default_factory=dict)
    leaves: dict[Site, Tensor] = field(default_factory=dict)

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        self.activations[at.site] = activation.detach().clone()
        self.leaves[at.site] = leaf = torch.zeros_like(activation, requires_grad=True)
        return activation + leaf


def derive(watch: Watch, value: Tensor) -> dict[Site, Tensor]:
    """Derivatives of a scalar by every watched activation; zero where it does not depend on one.

    Raises
    ------
    InputError
        The metric gave no scalar.
    """
    if not isinstance(value, Tensor) or value.ndim:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"gradients: the metric must give a tensor of no shape, got {shape}")
    if not value.requires_grad:
        return {site: torch.zeros_like(leaf) for site, leaf in watch.leaves.items()}
    found = torch.autograd.grad(value, list(watch.leaves.values()), allow_unused=True)
    zeros = map(torch.zeros_like, watch.leaves.values())
    return {s: z if g is None else g for s, g, z in zip(watch.leaves, found, zeros, strict=True)}


def require_finite(value: Tensor, gradients: Mapping[Site, Tensor]) -> None:
    """Raise `NotFinite` for a metric or derivatives that are NaN or infinite."""
    if not torch.isfinite(value):
        raise NotFinite(f"gradients: the metric is {value.item()}")
    for site, gradient in gradients.items():
        if bad := int((~torch.isfinite(gradient)).sum()):
            raise NotFinite(f"gradients: {bad} derivatives are NaN or infinite at {site}")


def detached(replay: Replay) -> Replay:
    """The same replay without its graph."""
    return replace(
        replay,
        velocities={b: v.detach() for b, v in replay.velocities.items()},
        guided=replay.guided.detach(),
        x0hat=replay.x0hat.detach(),
    )


def frozen(modules: Iterable[nn.Module]) -> ExitStack:
    """No parameter takes a gradient until the stack is closed, so that the graph starts at the watched activations."""
    with ExitStack() as stack:
        for parameter in (p for module in modules for p in module.parameters() if p.requires_grad):
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        return stack.pop_all()
