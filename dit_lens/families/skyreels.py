"""SkyReels-V2: Wan 2.1 under other names, as long as all frames share one time.

Its diffusion-forcing pipelines step every frame on a schedule of its own and move a window; they are not described.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dit_lens.families.base import Settings, guidance_scale_alone
from dit_lens.families.wan import WAN
from dit_lens.families.wan import refuse as refuse_wan


def refuse(pipeline: Any, settings: Settings) -> str | None:
    if pipeline.transformer.config.inject_sample_info:
        return "this transformer needs the frame rate, which only the diffusion-forcing pipelines give it"
    return refuse_wan(pipeline, settings)


SKYREELS = replace(
    WAN,
    family="skyreels-v2",
    transformers=("SkyReelsV2Transformer3DModel",),
    pipelines=("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"),
    scales=guidance_scale_alone,
    refuse=refuse,
)
