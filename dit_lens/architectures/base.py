"""What dit_lens must be told about a family of video transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Architecture:
    """One family. Everything else in the package is written against these fields.

    Parameters
    ----------
    family : str
    transformers : tuple of str
        Class names of the transformers that it describes.
    stacks : tuple of str
        Attribute names of the block lists, in execution order.
    conditioning : str
        Path of the module whose output the head needs besides the residual stream.
    branches : callable (pipeline, guidance_scale) -> names of the guidance branches in the order of their calls
    grid : callable (transformer, latent shape (C, F, H, W)) -> token grid (F, H, W)
    width : callable (transformer) -> width D of the video stream
    head : callable (transformer, residual (B, N, D), conditioning output, grid) -> velocity (B, C, F, H, W)
    guide : callable (branch velocities, guidance_scale) -> the combined prediction
    denormalise : callable (pipeline, latents (B, C, F, H, W)) -> what the VAE decodes
    """

    family: str
    transformers: tuple[str, ...]
    stacks: tuple[str, ...]
    conditioning: str
    branches: Callable[[Any, float], tuple[str, ...]]
    grid: Callable[[nn.Module, tuple[int, ...]], Grid]
    width: Callable[[Any], int]
    head: Callable[[nn.Module, Tensor, Any, Grid], Tensor]
    guide: Callable[[Mapping[str, Tensor], float], Tensor]
    denormalise: Callable[[Any, Tensor], Tensor]

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """All blocks on one layer axis."""
        return [block for name in self.stacks for block in getattr(transformer, name)]

    def block_paths(self, transformer: nn.Module) -> list[str]:
        """Dotted path of every block, in the order of `blocks`."""
        return [f"{name}.{i}" for name in self.stacks for i in range(len(getattr(transformer, name)))]
