"""Transformers in which only known blocks can do a thing: the ground truth of a localiser."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from dit_lens.errors import InputError


class FrameLocalProcessor(WanAttnProcessor):  # type: ignore[misc]  # diffusers has no types
    """Wan's attention with every latent frame a sequence of its own: no token sees a token of another frame."""

    def __init__(self, latent_frames: int) -> None:
        super().__init__()
        self.latent_frames = latent_frames

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Self-attention of a stream (B, F H W, D), frame by frame: the same shape."""
        batch, tokens, _ = hidden_states.shape
        frames = self.latent_frames
        if encoder_hidden_states is not None or tokens % frames:
            raise InputError(f"{tokens} tokens are not {frames} latent frames of a video")
        apart = hidden_states.reshape(batch * frames, tokens // frames, -1)
        rotary = None if rotary_emb is None else tuple(self._of_frames(table, batch) for table in rotary_emb)
        mixed: Tensor = super().__call__(attn, apart, None, attention_mask, rotary)
        return mixed.reshape(batch, tokens, -1)

    def _of_frames(self, table: Tensor, batch: int) -> Tensor:
        """Rotary table (1, F H W, 1, d) to (B F, H W, 1, d)."""
        return table.reshape(self.latent_frames, -1, *table.shape[2:]).repeat(batch, 1, 1, 1)


def confine(
    transformer: WanTransformer3DModel,
    frame_attention: tuple[int, ...] | None,
    text_attention: tuple[int, ...] | None,
    latent_frames: int,
) -> WanTransformer3DModel:
    """Leave attention across frames, and the prompt, to the given blocks; ``None`` leaves them to all.

    Raises
    ------
    InputError
        A block that the transformer does not have.
    """
    count = len(transformer.blocks)
    for blocks in (frame_attention, text_attention):
        if blocks is not None and not set(blocks) <= set(range(count)):
            raise InputError(f"the transformer has blocks 0 to {count - 1}, not {blocks}")
    for layer, block in enumerate(transformer.blocks):
        if frame_attention is not None and layer not in frame_attention:
            block.attn1.set_processor(FrameLocalProcessor(latent_frames))
        if text_attention is not None and layer not in text_attention:
            silence(block.attn2.to_out[0])
    return transformer


@torch.no_grad()
def silence(projection: nn.Linear) -> None:
    """Make an output projection exactly zero, for good: it adds nothing and is not trained."""
    for parameter in projection.parameters():
        parameter.zero_().requires_grad_(False)
