"""Models whose inner workings are known by construction: what a localiser must find, or must not.

- `with_identity_blocks`: blocks that do exactly nothing, put between the blocks of a trained model. No analysis may
  find a function there, and the model computes what it computed.
- ``load_planted("frames", place)``: information crosses latent frames in two known blocks only, early, in the middle or
  late, and in no other way: not in the condition, whose frames after the first are the same for all pictures, and not
  in the autoencoder, which mixes no frames. *Permanence* needs it to cross: what comes out is what went in.
- ``load_planted("text", place)``: the prompt is read in two known blocks only.
- ``load_planted("relay")``: what is in the first latent frame reaches the last ones by way of the second, which reads
  it in one block and is read in another.
- ``load_planted("head")``: information crosses latent frames in one head of one block.
- ``load_planted("random")``: the same architecture with random weights. There is nothing to find.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from dit_lens.errors import InputError
from dit_lens.model import VideoDiT
from dit_lens.organisms.build import OrganismConfig
from dit_lens.organisms.confine import Crossing, blocks_of, silence
from dit_lens.organisms.load import load_organism, organism_config, organism_tasks
from dit_lens.tasks import BoardTask

PLACES = ("early", "middle", "late")
KINDS = ("frames", "text", "relay", "head", "random")

_FACTS = {
    "frames": "information crosses latent frames in these blocks only",
    "text": "the prompt is read in these blocks only",
    "relay": (
        "latent frame 1 reads frame 0 in block 1 and frames 2, 3 and 4 read frame 1 in block 4; "
        "nothing else crosses latent frames"
    ),
    "head": "information crosses latent frames in block 3 only, and there in head 2 only",
}


@dataclass(frozen=True)
class Planted:
    """A model and the truth about it.

    Attributes
    ----------
    fact : str
        What the blocks do, as a sentence.
    blocks : tuple of int
        The blocks that alone do it ("identity": that do nothing); empty where there is nothing to find.
    task : Task, optional
        The task that needs it.
    heads : tuple of int, optional
        The attention heads of these blocks that alone do it; by default all heads may.
    """

    model: VideoDiT
    fact: str
    blocks: tuple[int, ...]
    task: BoardTask | None = None
    heads: tuple[int, ...] | None = None


def load_planted(kind: str, place: str | None = None, seed: int = 0) -> Planted:
    """Load a model in which only known blocks can do one thing.

    Parameters
    ----------
    kind : "frames", "text", "relay", "head" or "random"
        Let information cross latent frames, read the prompt, let it cross frames in a relay of two blocks or in one
        head, or (with random weights of ``seed``) do nothing.
    place : "early", "middle" or "late", optional
        Of the blocks of "frames" and "text", by default "middle". The other kinds have no place.

    Raises
    ------
    InputError
        No such kind or place, or a place for a kind that has none.
    """
    if kind not in KINDS or place not in (None, *PLACES):
        raise InputError(f"no planted model {kind!r} at {place!r}; kinds are {KINDS}, places {PLACES}")
    if kind not in ("frames", "text") and place is not None:
        raise InputError(f"the planted model {kind!r} is in one place only, not {place!r}: leave the place out")
    if kind == "random":
        model = load_organism("planted/frames-middle", random=True, seed=seed)
        task = organism_tasks("planted/frames-middle")[0]
        return Planted(model, "the weights are random: no block does anything for the task", (), task)
    name = f"planted/{kind}-{place or 'middle'}" if kind in ("frames", "text") else f"planted/{kind}"
    blocks, heads = _planted_in(organism_config(name))
    return Planted(load_organism(name), _FACTS[kind], blocks, organism_tasks(name)[0], heads)


def _planted_in(config: OrganismConfig) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The blocks, and the heads if not all, in which information crosses frames or the prompt is read."""
    crossings = config.frame_attention or config.text_attention or ()
    heads = tuple(one.head for one in crossings if isinstance(one, Crossing) and one.head is not None)
    return blocks_of(crossings), heads or None


def with_identity_blocks(model: VideoDiT, at: Sequence[int]) -> Planted:
    """A copy of a Wan model with blocks that do exactly nothing at the given depths, counted in the new model.

    The output projections of their self-attention, cross-attention and feed-forward are zero, so that each adds
    exactly zero to the residual stream and the copy computes what the model computes, bit for bit. Their other weights
    are those of the trained block that stood there, so that nothing else gives them away.

    Raises
    ------
    InputError
        Depths that the new model does not have.
    """
    wanted = sorted(set(at))
    total = model.layers + len(wanted)
    if not wanted or len(wanted) != len(at) or wanted[0] < 0 or wanted[-1] >= total:
        raise InputError(f"identity blocks at {list(at)}: need different depths from 0 to {total - 1}")
    pipeline = copy.copy(model.pipeline)
    transformer = copy.deepcopy(pipeline.transformer)
    for depth in wanted:
        idle = copy.deepcopy(transformer.blocks[min(depth, len(transformer.blocks) - 1)])
        for projection in (idle.attn1.to_out[0], idle.attn2.to_out[0], idle.ffn.net[2]):
            silence(projection)
        transformer.blocks.insert(depth, idle)
    transformer.register_to_config(num_layers=total)
    pipeline.register_modules(transformer=transformer)
    return Planted(
        VideoDiT(pipeline, defaults=model.defaults),
        "these blocks add exactly zero to the residual stream",
        tuple(wanted),
    )
