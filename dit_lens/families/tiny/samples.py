"""Something to generate from, for checks and tiny pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image


def two_prompts() -> tuple[dict[str, Any], dict[str, Any]]:
    return {"prompt": "move the blue circle"}, {"prompt": "draw the red square then the star"}


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Smooth random colours, so that a VAE has something to see."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def two_pictures(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two prompts, each with a picture of its own of the height and width that the settings name."""
    one, other = two_prompts()
    first, second = (picture(settings["height"], settings["width"], seed) for seed in (0, 1))
    return {**one, "image": first}, {**other, "image": second}
