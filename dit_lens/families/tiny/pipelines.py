"""The tiny pipelines of all families, by name.

Imported on request only: it imports the pipeline classes of every family.
"""

from dit_lens.families.notices import without_notices

with without_notices():  # diffusers' modules print them when they are imported
    from dit_lens.families.tiny.allegro import ALLEGRO_T2V
    from dit_lens.families.tiny.cogvideox import COGVIDEOX_10, COGVIDEOX_15
    from dit_lens.families.tiny.cosmos import COSMOS_T2W
    from dit_lens.families.tiny.hunyuan import HUNYUAN_VIDEO_T2V
    from dit_lens.families.tiny.hunyuan15 import HUNYUAN_VIDEO_15_T2V
    from dit_lens.families.tiny.ltx import LTX_VIDEO_T2V
    from dit_lens.families.tiny.ltx2 import LTX_2_T2V
    from dit_lens.families.tiny.mochi import MOCHI_T2V
    from dit_lens.families.tiny.skyreels import SKYREELS_I2V, SKYREELS_T2V
    from dit_lens.families.tiny.wan import WAN21_I2V, WAN21_T2V, WAN22_A14B, WAN22_TI2V, WAN22_TI2V_IMAGE

_ALL = (
    WAN21_T2V,
    WAN21_I2V,
    WAN22_A14B,
    WAN22_TI2V,
    WAN22_TI2V_IMAGE,
    SKYREELS_T2V,
    SKYREELS_I2V,
    COSMOS_T2W,
    HUNYUAN_VIDEO_T2V,
    HUNYUAN_VIDEO_15_T2V,
    COGVIDEOX_10,
    COGVIDEOX_15,
    MOCHI_T2V,
    ALLEGRO_T2V,
    LTX_VIDEO_T2V,
    LTX_2_T2V,
)

TINY = {tiny.name: tiny for tiny in _ALL}
