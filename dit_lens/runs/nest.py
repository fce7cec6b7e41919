"""Tensors within mappings, lists and tuples, as models are called with them and return them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def mapped(nest: Any, change: Callable[[Tensor], Any]) -> Any:
    """A nest with every tensor changed, each mapping, list and tuple of its own type; what else is in it stays."""
    if isinstance(nest, Tensor):
        return change(nest)
    if isinstance(nest, dict):  # of its own type: what a transformer returns can be indexed as well
        found = {key: mapped(value, change) for key, value in nest.items()}
        return found if type(nest) is dict else type(nest)(**found)
    return type(nest)(mapped(item, change) for item in nest) if type(nest) in (list, tuple) else nest


def moved(nest: Any, device: torch.device | str) -> Any:
    """A nest on a device; tensors that are there already are not copied."""
    return mapped(nest, lambda tensor: tensor.to(device))
