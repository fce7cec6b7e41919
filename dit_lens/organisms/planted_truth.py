"""Models whose inner workings are known by construction: what a localiser must find, or must not.

- `with_identity_blocks`: blocks that do exactly nothing, put between the blocks of a trained model. No analysis may
  find a function there, and the model computes what it computed.
- ``load_planted("frames", place)``: information crosses latent frames in two known blocks only, early, in the middle or
  late, and in no other way: not in the condition, whose frames after the first are the same for all pictures, and not
  in the autoencoder, which mixes no frames. *Permanence* needs it to cross: what comes out is what went in.
- ``load_planted("text", place)``: the prompt is read in two known blocks only.
- ``load_planted("random")``: the same architecture with random weights. There is nothing to find.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from dit_lens.errors import InputError
from dit_lens.model import VideoDiT
from dit_lens.organisms.confine import silence
from dit_lens.organisms.load import load_organism, organism_config, organism_tasks
from dit_lens.tasks import BoardTask

PLACES = ("early", "middle", "late")
KINDS = ("frames", "text", "random")


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
    """

    model: VideoDiT
    fact: str
    blocks: tuple[int, ...]
    task: BoardTask | None = None


def load_planted(kind: str, place: str = "middle", seed: int = 0) -> Planted:
    """Load a model in which only known blocks can do one thing.

    Parameters
    ----------
    kind : "frames", "text" or "random"
        Let information cross latent frames, read the prompt, or (with random weights of ``seed``) do nothing.
    place : "early", "middle" or "late"

    Raises
    ------
    InputError
        No such kind or place.
    """
    if kind not in KINDS or place not in PLACES:
        raise InputError(f"no planted model {kind!r} at {place!r}; kinds are {KINDS}, places {PLACES}")
    if kind == "random":
        model = load_organism("planted/frames-middle", random=True, seed=seed)
        task = organism_tasks("planted/frames-middle")[0]
        return Planted(model, "the weights are random: no block does anything for the task", (), task)
    name = f"planted/{kind}-{place}"
    config = organism_config(name)
    fact, blocks = {
        "frames": ("information crosses latent frames in these blocks only", config.frame_attention),
        "text": ("the prompt is read in these blocks only", config.text_attention),
    }[kind]
    return Planted(load_organism(name), fact, blocks or (), organism_tasks(name)[0])


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
