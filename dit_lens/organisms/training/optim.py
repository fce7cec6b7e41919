"""Muon for the weight matrices, AdamW for everything else, as one object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices by the quintic Newton-Schulz iteration: float (K, rows, columns) to the same."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x: Tensor = matrices if wide else matrices.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram: Tensor = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, in float32 and batched over parameters of one shape.

    ``torch.optim.Muon`` iterates in bfloat16, one matrix after the other: on a CPU without bfloat16 units its step cost
    0.75 s on the autoencoder here, more than the gradient itself.

    Notes
    -----
    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale 0.2 sqrt(max(rows, columns)) that matches
    AdamW's update size is Liu et al. 2025 (arXiv 2502.16982). Kernels of more than two axes count as matrices of shape
    (first axis, the rest).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[0], parameter[0].numel()].append(parameter)
            for shape, parameters in by_shape.items():
                scale = 0.2 * max(shape) ** 0.5
                updates = orthogonalise(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The Nesterov direction of one parameter as a matrix."""
        assert parameter.grad is not None
        buffer: Tensor = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        return torch.lerp(parameter.grad, buffer, momentum).flatten(1)


class MuonAdamW:
    """Muon on matrices and kernels, AdamW on vectors and on the parameters named in ``keep_adamw``."""

    def __init__(self, module: nn.Module, learning_rate: float, keep_adamw: tuple[str, ...] = ()) -> None:
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        matrix = [
            p for n, p in named if p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1 and not n.startswith(keep_adamw)
        ]
        chosen = {id(p) for p in matrix}
        rest = [p for _, p in named if id(p) not in chosen]
        self.parameters = [*matrix, *rest]
        self.optimisers = {
            "muon": Muon(matrix, learning_rate),
            "adamw": torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01),
        }

    def step(self, learning_rate: float, clip: float = 1.0) -> None:
        """Clip the gradient's norm, step both optimisers and clear the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, clip)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[name])


class Ema:
    """Exponential moving average of a module's parameters, with the usual warm-up (t + 1) / (t + 10)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        rate = min(self.decay, (step + 1) / (step + 10))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter, 1 - rate)

    def state_dict(self) -> dict[str, Tensor]:
        return self.values

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.values = state


def learning_rate_at(step: int, total: int, peak: float, warmup: int, decay: float) -> float:
    """Linear warm-up, flat, and a linear fall to zero over the last ``decay`` of all steps."""
    return peak * min(1.0, (step + 1) / warmup, (total - step) / max(1.0, decay * total))
