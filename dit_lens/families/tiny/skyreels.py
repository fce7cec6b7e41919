"""SkyReels-V2 in miniature; the flow shifts are those of the examples in diffusers' pipelines."""

from __future__ import annotations

from typing import Any

from diffusers import SkyReelsV2ImageToVideoPipeline, SkyReelsV2Pipeline, SkyReelsV2Transformer3DModel
from transformers import CLIPVisionModelWithProjection

from dit_lens.families.tiny.base import Tiny
from dit_lens.families.tiny.samples import two_pictures, two_prompts
from dit_lens.families.tiny.wan import (
    NARROW,
    SEEING,
    SHORT,
    SIZE,
    image_encoder,
    scheduler,
    text,
    vae,
)


def _transformer(**more: Any) -> SkyReelsV2Transformer3DModel:
    return SkyReelsV2Transformer3DModel(**NARROW, **more).eval()


def _text_to_video() -> SkyReelsV2Pipeline:
    return SkyReelsV2Pipeline(**text(), vae=vae(), scheduler=scheduler(8.0), transformer=_transformer())


def _image_to_video() -> SkyReelsV2ImageToVideoPipeline:
    return SkyReelsV2ImageToVideoPipeline(
        **text(),
        vae=vae(),
        scheduler=scheduler(5.0),
        transformer=_transformer(**SEEING),
        **image_encoder(CLIPVisionModelWithProjection),
    )


SKYREELS_T2V = Tiny("skyreels-v2", _text_to_video, two_prompts, {**SIZE, **SHORT})
# With an image encoder the text must have the full 512 tokens.
SKYREELS_I2V = Tiny("skyreels-v2-i2v", _image_to_video, lambda: two_pictures(SIZE), SIZE)
