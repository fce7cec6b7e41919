"""Estimates of the step lens and the depth lens as videos."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import MadeForAnother
from dit_lens.lens.preview import Preview
from dit_lens.model import VideoDiT
from dit_lens.sites.select import Select


def require_made_by(model: VideoDiT, model_id: str, preview: Preview | None = None) -> None:
    """Refuse to decode through another model's VAE: latents of one fit the channels of another and mean nothing there.

    Raises
    ------
    MadeForAnother
        Another model than that of the lens, or a preview of another VAE than the model's.
    """
    if model.id != model_id:
        raise MadeForAnother(f"this lens was read from model {model_id}, this is {model.id}: its VAE may be another")
    if preview is not None:
        preview.require(model)


def decode_estimates(
    model: VideoDiT, estimates: Tensor, frames: Select | None, preview: Preview | None, batch: int
) -> NDArray[np.uint8]:
    """Videos of estimates (P, B, C, F, H, W) of P steps or layers: uint8 (P, B, T, height, width, 3).

    Parameters
    ----------
    frames : Select, optional
        Pixel frames, by default all.
    preview : Preview, optional
        In the place of the VAE.
    batch : int
        Videos that the VAE is given at once; the rows of all steps or layers share batches.
    """
    wanted, flat = "all" if frames is None else frames, estimates.flatten(0, 1)
    video = model.decode(flat, batch, wanted) if preview is None else preview.video(flat, wanted)
    return video.reshape(*estimates.shape[:2], *video.shape[1:])
