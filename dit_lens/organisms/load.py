"""Loading the organisms that ship with the package."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from dit_lens.errors import InputError
from dit_lens.model import VideoDiT
from dit_lens.organisms.build import OrganismConfig, build_transformer
from dit_lens.store import write_atomic

_HERE = Path(__file__).parent
CARD = "organism.json"


def organism_names() -> list[str]:
    """Names of the organisms that are in the package."""
    return sorted(path.parent.name for path in _HERE.glob(f"*/{CARD}"))


def load_organism(
    name: str = "maze", *, random: bool = False, seed: int = 0, folder: str | Path | None = None
) -> VideoDiT:
    """Load a small trained model.

    Parameters
    ----------
    name : str
        One of `organism_names`, such as "maze".
    random : bool
        Give the transformer random weights (of ``seed``) instead of the trained ones: the same architecture with
        nothing to find in it. The autoencoder stays as it is, so that mazes still look like mazes.
    folder : path, optional
        Load an organism that `save_organism` wrote elsewhere.

    Raises
    ------
    InputError
        No such organism; the message names those there are.
    """
    place = Path(folder) if folder is not None else _HERE / name
    if not (place / CARD).exists():
        raise InputError(f"no organism {name!r} in {place.parent}; there are: {', '.join(organism_names()) or 'none'}")
    card = json.loads((place / CARD).read_text())
    # The weights are kept in half precision to be small; they run in single precision.
    with _without_progress_bars():
        pipeline = WanImageToVideoPipeline.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline.transformer = build_transformer(_config(card)).eval()
    return VideoDiT(pipeline, defaults=card["defaults"])


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """A few megabytes need no bars; whoever had them switched on has them back afterwards."""
    enabled = [part for part in (diffusers_logging, transformers_logging) if part.is_progress_bar_enabled()]
    try:
        for part in enabled:
            part.disable_progress_bar()
        yield
    finally:
        for part in enabled:
            part.enable_progress_bar()


def _config(card: dict[str, object]) -> OrganismConfig:
    stored = card["config"]
    assert isinstance(stored, dict)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return OrganismConfig(**values)


def save_organism(pipeline: WanImageToVideoPipeline, config: OrganismConfig, folder: Path, steps: int = 10) -> Path:
    """Write a pipeline as an organism, in half precision, with the card that says how to run it.

    The card is written last: a folder without one is no organism.
    """
    small = copy.deepcopy(pipeline)
    for part in (small.transformer, small.vae, small.text_encoder):
        # Not ModelMixin.half, which warns of modules that compute in single precision: only the file is to be small.
        nn.Module.half(part)
    small.save_pretrained(folder, safe_serialization=True)
    card = {"config": vars(config), "defaults": config.run_defaults | {"num_inference_steps": steps}}
    write_atomic(folder / CARD, json.dumps(card, indent=1).encode())
    return folder
