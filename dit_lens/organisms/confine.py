"""Transformers in which only known blocks can do a thing: the ground truth of a localiser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from dit_lens.errors import InputError


@dataclass(frozen=True)
class Crossing:
    """Which latent frames read which in the self-attention of one block. Every frame also reads itself.

    Attributes
    ----------
    block : int
    head : int, optional
        The only head that crosses frames; the others stay within theirs. By default all heads cross.
    reads : tuple of (int, int), optional
        Pairs of a latent frame and another that it reads. By default every frame reads every frame.
    """

    block: int
    head: int | None = None
    reads: tuple[tuple[int, int], ...] | None = None

    def mask(self, heads: int, latent_frames: int) -> Tensor:
        """Which frame (second to last axis) may read which (last axis) in which head: bool (heads, F, F).

        Raises
        ------
        InputError
            A head or a latent frame that is not there.
        """
        if self.head is not None and self.head not in range(heads):
            raise InputError(f"block {self.block} has heads 0 to {heads - 1}, not {self.head}")
        own = torch.eye(latent_frames, dtype=torch.bool)
        allowed = torch.ones_like(own) if self.reads is None else own.clone()
        for reader, read in self.reads or ():
            if not {reader, read} <= set(range(latent_frames)):
                raise InputError(f"the latent frames are 0 to {latent_frames - 1}; frame {reader} cannot read {read}")
            allowed[reader, read] = True
        crossing = torch.tensor([self.head in (None, head) for head in range(heads)])
        return torch.where(crossing[:, None, None], allowed, own)


def blocks_of(crossings: Iterable[int | Crossing]) -> tuple[int, ...]:
    """The blocks of a list of blocks and crossings, in its order."""
    return tuple(one.block if isinstance(one, Crossing) else one for one in crossings)


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
        _require_video(tokens, frames, encoder_hidden_states)
        apart = hidden_states.reshape(batch * frames, tokens // frames, -1)
        rotary = None if rotary_emb is None else tuple(self._of_frames(table, batch) for table in rotary_emb)
        mixed: Tensor = super().__call__(attn, apart, None, attention_mask, rotary)
        return mixed.reshape(batch, tokens, -1)

    def _of_frames(self, table: Tensor, batch: int) -> Tensor:
        """Rotary table (1, F H W, 1, d) to (B F, H W, 1, d)."""
        return table.reshape(self.latent_frames, -1, *table.shape[2:]).repeat(batch, 1, 1, 1)


class CrossingProcessor(WanAttnProcessor):  # type: ignore[misc]  # diffusers has no types
    """Wan's attention under a mask that says which latent frame may read which, head by head.

    A masked key has the weight exp(-inf), exactly zero, so what it holds does not change a bit of the output.

    Parameters
    ----------
    frames : bool (heads, F, F)
        As `Crossing.mask` makes it.
    """

    def __init__(self, frames: Tensor) -> None:
        super().__init__()
        self.frames = frames

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Self-attention of a stream (B, F H W, D): the same shape."""
        tokens, frames = hidden_states.shape[1], self.frames.shape[-1]
        _require_video(tokens, frames, encoder_hidden_states)
        frame = torch.arange(tokens) // (tokens // frames)
        mask = self.frames[None, :, frame[:, None], frame[None]].to(hidden_states.device)
        if attention_mask is not None:
            mask = mask & attention_mask
        mixed: Tensor = super().__call__(attn, hidden_states, None, mask, rotary_emb)
        return mixed


def _require_video(tokens: int, frames: int, text: Tensor | None) -> None:
    if text is not None or tokens % frames:
        raise InputError(f"{tokens} tokens are not {frames} latent frames of a video")


def confine(
    transformer: WanTransformer3DModel,
    frame_attention: tuple[int | Crossing, ...] | None,
    text_attention: tuple[int, ...] | None,
    latent_frames: int,
) -> WanTransformer3DModel:
    """Leave attention across frames, and the prompt, to the given blocks; ``None`` leaves them to all.

    Parameters
    ----------
    frame_attention : tuple of int or Crossing, optional
        Blocks in which all frames read all frames in all heads, or what of it happens in a block.

    Raises
    ------
    InputError
        A block, head or latent frame that the transformer does not have, or two crossings of one block.
    """
    if text_attention is not None:
        _require_blocks(transformer, text_attention)
        for layer, block in enumerate(transformer.blocks):
            if layer not in text_attention:
                silence(block.attn2.to_out[0])
    if frame_attention is not None:
        _confine_frames(transformer, frame_attention, latent_frames)
    return transformer


def _confine_frames(
    transformer: WanTransformer3DModel, crossings: tuple[int | Crossing, ...], latent_frames: int
) -> None:
    named = blocks_of(crossings)
    _require_blocks(transformer, named)
    if len(set(named)) < len(named):
        raise InputError(f"one crossing for each block, not several: blocks {named}")
    found = dict(zip(named, crossings, strict=True))
    for layer, block in enumerate(transformer.blocks):
        crossing = found.get(layer)
        if crossing is None:
            block.attn1.set_processor(FrameLocalProcessor(latent_frames))
        elif isinstance(crossing, Crossing):
            block.attn1.set_processor(CrossingProcessor(crossing.mask(block.attn1.heads, latent_frames)))


def _require_blocks(transformer: WanTransformer3DModel, blocks: tuple[int, ...]) -> None:
    count = len(transformer.blocks)
    if not set(blocks) <= set(range(count)):
        raise InputError(f"the transformer has blocks 0 to {count - 1}, not {blocks}")


@torch.no_grad()
def silence(projection: nn.Linear) -> None:
    """Make an output projection exactly zero, for good: it adds nothing and is not trained."""
    for parameter in projection.parameters():
        parameter.zero_().requires_grad_(False)
