"""Between videos and the sampler's latents, through the pipeline's own VAE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import InputError, NotFinite
from dit_lens.families.base import Architecture
from dit_lens.families.common import temporal_factor
from dit_lens.files.video import Video
from dit_lens.sites.select import Select, indices


def decode(pipeline: Any, architecture: Architecture, latents: Tensor, batch: int, frames: Select) -> Video:
    """Frames of latents (B, C, F, H, W), uint8 (B, T, height, width, 3); see `VideoDiT.decode`."""
    if latents.ndim != 5 or not len(latents) or batch < 1:
        given = f"{tuple(latents.shape)} in batches of {batch}"
        raise InputError(f"decode: need latents of shape (B, C, F, H, W), at least one and so a batch; got {given}")
    if not torch.isfinite(latents).all():
        raise NotFinite(f"decode: {int((~torch.isfinite(latents)).sum())} values of the latents are not finite")
    chosen: list[int] | None = None
    if architecture.causal_decoder and frames != "all":
        temporal = temporal_factor(pipeline)
        chosen = indices(frames, 1 + (latents.shape[2] - 1) * temporal, "frame")
        latents = latents[:, :, : 1 - (-chosen[-1] // temporal)]
    decoded = []
    for part in latents.split(batch if architecture.decodes_batches else 1):
        video = architecture.decode(pipeline, part)
        chosen = indices(frames, video.shape[2], "frame") if chosen is None else chosen
        pixels = pipeline.video_processor.postprocess_video(video[:, :, chosen], output_type="np")
        decoded.append(to_bytes(pixels))
    return np.concatenate(decoded)


def to_bytes(pixels: NDArray[np.floating]) -> Video:
    """Pixels in [0, 1] as uint8.

    Raises
    ------
    NotFinite
        NaN, as of a VAE that overflows in half precision; as a whole number it would be black.
    """
    if bad := int(np.isnan(pixels).sum()):
        raise NotFinite(f"the VAE decoded {bad} values that are NaN; try it in float32: pipeline.vae.to(torch.float32)")
    return (pixels * 255).round().astype(np.uint8)


def video_shape(frames: Any) -> tuple[int, ...]:
    """(B, T, height, width, 3) of what is to be encoded.

    Raises
    ------
    InputError
        Anything but uint8 videos.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        given = f"{frames.dtype} of shape {tuple(frames.shape)}" if hasattr(frames, "dtype") else repr(type(frames))
        raise InputError(f"encode: need a uint8 array of shape (B, T, height, width, 3), got {given}")
    shape: tuple[int, ...] = frames.shape
    return shape


def encode(pipeline: Any, architecture: Architecture, frames: Video, batch: int) -> Tensor:
    """Latents (B, C, F, H, W) of videos, uint8 (B, T, height, width, 3), in float32; see `VideoDiT.encode`."""
    if batch < 1 or not len(frames):
        raise InputError(f"encode: {len(frames)} videos in batches of {batch}; need at least one of each")
    latents = []
    for part in torch.from_numpy(frames).split(batch if architecture.decodes_batches else 1):
        pixels = part.permute(0, 4, 1, 2, 3).to(pipeline._execution_device)
        latents.append(architecture.encode(pipeline, pixels / 127.5 - 1))
    return torch.cat(latents)
