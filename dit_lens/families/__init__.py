"""The families of video diffusion transformers that dit_lens knows, one file each, and what a new one is made of."""

from dit_lens.families.base import Architecture, Attends, Block, Met, Reader, Stream, Term
from dit_lens.families.registry import FAMILIES, architecture_of, register

__all__ = [
    "FAMILIES",
    "Architecture",
    "Attends",
    "Block",
    "Met",
    "Reader",
    "Stream",
    "Term",
    "architecture_of",
    "register",
]
