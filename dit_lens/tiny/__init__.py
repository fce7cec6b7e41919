"""Tiny random pipelines of every family that dit_lens supports, for checks and tests.

Imported on request only: it imports the pipeline classes of every family.
"""

from dit_lens.tiny.base import Tiny
from dit_lens.tiny.wan import WAN21_T2V

TINY = {tiny.name: tiny for tiny in (WAN21_T2V,)}

__all__ = ["TINY", "Tiny"]
