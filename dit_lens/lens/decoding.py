"""Estimates of the step lens and the depth lens as videos."""

from __future__ import annotations

from torch import Tensor

from dit_lens.errors import MadeForAnother
from dit_lens.files.video import Video
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


def decode_estimates(model: VideoDiT, estimates: Tensor, frames: Select, preview: Preview | None, batch: int) -> Video:
    """Videos of estimates (..., B, C, F, H, W) of several steps and layers: uint8 (..., B, T, height, width, 3).

    Parameters
    ----------
    frames : Select
        Pixel frames.
    preview : Preview, optional
        In the place of the VAE.
    batch : int
        Videos that the VAE is given at once; the rows of all steps and layers share batches.
    """
    flat = estimates.flatten(0, -5)
    video = model.decode(flat, batch, frames) if preview is None else preview.video(flat, frames)
    return video.reshape(*estimates.shape[:-4], *video.shape[1:])
