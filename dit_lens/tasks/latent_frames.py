"""Pixel frames and the latent frames that cover them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError


def pixel_frames(frames: int, latent_frames: int) -> list[slice]:
    """Pixel frames that each latent frame covers: the first covers one, the others (T - 1) / (F - 1) each.

    Raises
    ------
    TaskError
        No whole number of pixel frames to a latent frame.
    """
    if latent_frames == 1 and frames == 1:
        return [slice(0, 1)]
    if latent_frames < 2 or (frames - 1) % (latent_frames - 1):
        raise TaskError(f"{frames} pixel frames cannot be {latent_frames} latent frames")
    covered = (frames - 1) // (latent_frames - 1)
    return [slice(0, 1), *(slice(1 + f * covered, 1 + (f + 1) * covered) for f in range(latent_frames - 1))]


def over_latent_frames(values: NDArray[Any], frames: int, latent_frames: int) -> NDArray[Any]:
    """Values of pixel frames (B, T, ...) as values of latent frames (B, F, ...).

    A latent frame after the first covers several pixel frames: a boolean holds where it holds in one of them, a float
    is their mean, a class that of the last.
    """
    parts = [values[:, part] for part in pixel_frames(frames, latent_frames)]
    if np.issubdtype(values.dtype, np.integer):
        return np.stack([part[:, -1] for part in parts], axis=1)
    pool = np.any if values.dtype == np.bool_ else np.mean
    return np.stack([pool(part, axis=1) for part in parts], axis=1)
