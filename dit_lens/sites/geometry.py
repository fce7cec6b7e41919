"""What a run offers to be addressed: steps, layers, branches, streams and grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dit_lens.display.short import short_repr
from dit_lens.sites.site import TOLD_COMPONENTS


@dataclass(frozen=True)
class Layer:
    """What one layer offers.

    Attributes
    ----------
    kind : str
        "single", "dual" or "joint-single".
    components : dict from stream to the components of the layer in it, in execution order
        What a block is told besides its residual streams may be of a stream that is none of those ("context" of the
        text).
    heads : dict from stream to the number of attention heads whose shares sum to "attn"; absent where they do not
    """

    kind: str = "single"
    components: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"video": ("delta", "resid")})
    heads: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pixels:
    """The video that a run makes, and how its latent frames divide time.

    Attributes
    ----------
    frames, height, width : int
    temporal : int
        Pixel frames per latent frame (the first latent frame of a causal VAE holds one).
    padding : int
        Latent frames that the pipeline puts in front and discards (CogVideoX 1.5).
    """

    frames: int
    height: int
    width: int
    temporal: int
    padding: int = 0

    def latent_frame(self, frame: int) -> int:
        """The latent frame that holds a pixel frame."""
        if self.frames % self.temporal == 0:  # no frame of its own in front: the VAE is not causal
            return frame // self.temporal + self.padding
        return -(-frame // self.temporal) + self.padding


@dataclass(frozen=True)
class Geometry:
    """What `Sites` are validated against.

    Attributes
    ----------
    steps, layers : int
    branches : tuple of str
    streams : tuple of str
        The residual streams.
    grid : (F, H, W), the token grid
    shapes : dict from component to the shape of its activations, rows left out; streams other than video are not in it
    kinds : tuple of Layer, one per layer
    pixels : Pixels, or None where it is not known
    fixed_frames : tuple of int
        Latent frames of the sampler's state that the pipeline overwrites before the denoiser sees them.
    """

    steps: int
    layers: int
    branches: tuple[str, ...]
    grid: tuple[int, int, int]
    streams: tuple[str, ...] = ("video",)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)
    kinds: tuple[Layer, ...] = ()
    pixels: Pixels | None = None
    fixed_frames: tuple[int, ...] = ()

    __repr__ = short_repr

    def layer(self, index: int) -> Layer:
        return self.kinds[index] if self.kinds else Layer()

    def streams_of(self, component: str) -> tuple[str, ...]:
        """The streams that a component can be of: the residual streams, or those of which a block is told."""
        if component not in TOLD_COMPONENTS:
            return self.streams
        own = {stream: None for kind in self.kinds for stream, has in kind.components.items() if component in has}
        return tuple(own)

    @property
    def latent_grid(self) -> tuple[int, ...]:
        """(F, H, W) of the sampler's state."""
        return tuple(self.shapes["latents"][1:]) if "latents" in self.shapes else self.grid
