"""Pieces that several families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from dit_lens.errors import UnsupportedModel
from dit_lens.families.at_hand import at_hand
from dit_lens.families.base import Grid, Latent, Met, Settings, Term, classifier_free

#: Names under which pipelines keep the factors of their VAE.
_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")


def spatial_factor(pipeline: Any) -> int:
    """Pixels per latent cell along a side."""
    return next(int(getattr(pipeline, name)) for name in _SPATIAL if hasattr(pipeline, name))


def temporal_factor(pipeline: Any) -> int:
    """Pixel frames per latent frame."""
    return next(int(getattr(pipeline, name)) for name in _TEMPORAL if hasattr(pipeline, name))


def causal_latent(channels: str) -> Callable[[Any, Settings], Latent]:
    """The state of a VAE whose first latent frame holds one pixel frame; ``channels`` names the setting with its C."""

    def latent(pipeline: Any, settings: Settings) -> Latent:
        spatial = spatial_factor(pipeline)
        frames = (settings["num_frames"] - 1) // temporal_factor(pipeline) + 1
        config = pipeline.transformer.config
        return int(config[channels]), frames, settings["height"] // spatial, settings["width"] // spatial

    return latent


def separate_calls(pipeline: Any, settings: Settings) -> tuple[tuple[str, ...], ...]:
    """One call a step for "cond" and then one for "uncond"."""
    return (("cond",), ("uncond",)) if settings["guidance_scale"] > 1 else (("cond",),)


def batched_calls(pipeline: Any, settings: Settings) -> tuple[tuple[str, ...], ...]:
    """One call a step, whose batch holds first the rows of "uncond" and then those of "cond"."""
    return (("uncond", "cond"),) if settings["guidance_scale"] > 1 else (("cond",),)


def classifier_free_float32(
    velocities: Mapping[str, Tensor], scales: Mapping[str, float], state: Tensor, sigma: float
) -> Tensor:
    """Classifier-free guidance of pipelines that combine the branches in float32, whatever the transformer's dtype."""
    return classifier_free({branch: v.float() for branch, v in velocities.items()}, scales, state, sigma)


def width_of_heads(transformer: Any) -> int:
    """Width D where the configuration states it as so many heads of so many channels."""
    return int(transformer.config.num_attention_heads * transformer.config.attention_head_dim)


def patch_of(transformer: Any) -> tuple[int, int, int]:
    """(p_t, p_h, p_w): ``config.patch_size``, or that for both sides and ``patch_size_t`` (1 if there is none)."""
    size = transformer.config.patch_size
    if isinstance(size, int):
        return transformer.config.get("patch_size_t") or 1, size, size
    p_t, p_h, p_w = size
    return p_t, p_h, p_w


def patched_grid(transformer: Any, latent: Latent) -> Grid:
    """Tokens along (F, H, W): the latent's size in patches."""
    f, h, w = (size // patch for size, patch in zip(latent[1:], patch_of(transformer), strict=True))
    return f, h, w


def unpatchify_channels_last(patches: Tensor, grid: Grid, patch: tuple[int, int, int]) -> Tensor:
    """Tokens (B, N, p_t p_h p_w C) to (B, C, F, H, W)."""
    channels = patches.shape[-1] // math.prod(patch)
    cells = patches.reshape(len(patches), *grid, *patch, channels)
    return cells.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def refuse_timesteps(pipeline: Any, settings: Settings) -> str | None:
    """For pipelines that set their scheduler to noise levels of their own, whatever timesteps they are given."""
    if settings.get("timesteps") is None:
        return None
    return (
        f"{type(pipeline).__name__} sets its scheduler to noise levels of its own and takes no timesteps; give steps="
    )


def posterior_mode(vae: Any, video: Tensor) -> Tensor:
    """What a VAE makes of a video (B, 3, T, height, width) in [-1, 1], nothing drawn: float32 (B, C, F, H, W)."""
    mode: Tensor = vae.encode(video.to(vae.dtype)).latent_dist.mode()
    return mode.float()


def head_share(z: Tensor, projection: Any, heads: int, head: int, gate: Tensor | None = None) -> Tensor:
    """What one attention head adds to the stream: (B, N, D).

    Parameters
    ----------
    z : Tensor of shape (B, N, heads * d)
        The heads' outputs side by side, which the output projection is given.
    projection : nn.Linear
        Its bias belongs to no head.
    gate : Tensor that broadcasts to (B, N, D), optional

    Raises
    ------
    UnsupportedModel
        The projection is no multiplication with a plain weight (an adapter, a quantised layer).
    """
    width = z.shape[-1] // heads
    own = slice(head * width, (head + 1) * width)
    share = channels_through(projection, z, own)
    return share if gate is None else share * gate


def channels_through(projection: Any, given: Tensor, channels: slice) -> Tensor:
    """What a linear layer makes of some channels of what it is given, (B, N, D_in) to (B, N, D); its bias is left out.

    Raises
    ------
    UnsupportedModel
        As in `linear_weight`.
    """
    made: Tensor = at_hand(projection, lambda: given[..., channels] @ linear_weight(projection, given)[:, channels].T)
    return made


def bias_share(projection: Any, gate: Tensor | None = None) -> Tensor:
    """The output projection's bias under the gate, which no head makes: broadcasts to (B, N, D)."""

    def bias() -> Tensor:
        if projection.bias is None:
            return projection.weight.new_zeros(())
        # Hooks may take away what is not a tensor of its own.
        return projection.bias.detach().clone()

    found = at_hand(projection, bias)
    return found if gate is None else found * gate


def gated_attention(gate: Callable[[Met], Tensor]) -> Term:
    """What the self-attention ``attn1`` of a block of one stream adds under its gate (B, 1 or N, D), also by head."""
    return Term(
        "attn",
        "video",
        ("attn1.output",),
        lambda met: met["attn1.output"] * gate(met),
        heads=lambda met, head: head_share(
            met["attn1.to_out.0.input"], met.module.attn1.to_out[0], met.module.attn1.heads, head, gate(met)
        ),
        headless=lambda met: bias_share(met.module.attn1.to_out[0], gate(met)),
        head_needs=("attn1.to_out.0.input",),
    )


def linear_weight(projection: Any, given: Tensor) -> Tensor:
    """Weight (D, D_in) of a linear layer, to tell apart by columns what it makes of ``given`` (B, N, D_in).

    A fused adapter is part of the weight.

    Raises
    ------
    UnsupportedModel
        The layer is no multiplication with a plain weight.
    """
    if getattr(projection, "merged", False):
        projection = projection.get_base_layer()
    if hasattr(projection, "base_layer"):
        raise UnsupportedModel("heads cannot be told apart behind an adapter; call the pipeline's fuse_lora() first")
    weight: Any = getattr(projection, "weight", None)
    if type(projection) is not nn.Linear or type(weight) not in (Tensor, nn.Parameter):
        kind = type(projection if type(projection) is not nn.Linear else weight)
        raise UnsupportedModel(f"heads cannot be told apart behind a {kind.__module__}.{kind.__name__}; use nn.Linear")
    if (weight.device, weight.dtype) != (given.device, given.dtype):
        raise UnsupportedModel(
            f"heads cannot be told apart: the output projection's weight is {weight.dtype} on {weight.device}, what it "
            f"is given {given.dtype} on {given.device}"
        )
    plain: Tensor = weight
    return plain
