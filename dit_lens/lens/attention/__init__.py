"""The attention lens: where chosen queries look, in bounded memory."""

from dit_lens.lens.attention.read import attention
from dit_lens.lens.attention.result import Attention

__all__ = ["Attention", "attention"]
