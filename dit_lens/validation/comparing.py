"""How a check fails, and how far two tensors are apart."""

from __future__ import annotations

import torch
from torch import Tensor


class Failed(Exception):
    """A check that did not hold; the message says where, with the numbers."""


def ensure(condition: bool, message: str) -> None:
    if not condition:
        raise Failed(message)


def ulps(a: Tensor, b: Tensor, scale: Tensor) -> float:
    """Largest difference in units in the last place of the largest value of ``scale``."""
    eps = torch.finfo(scale.dtype).eps
    return float((a.double() - b.double()).abs().max() / (scale.abs().max().double() * eps).clamp(min=1e-30))
