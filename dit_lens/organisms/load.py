"""Loading the organisms that ship with the package."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.utils import logging as transformers_logging

from dit_lens.errors import InputError, StoreError
from dit_lens.families.notices import without_notices
from dit_lens.files import strict
from dit_lens.files.atomic import replacing_folder, write_atomic
from dit_lens.files.shipped import CARD, ORGANISMS, organism_names
from dit_lens.files.strict import Malformed
from dit_lens.model import VideoDiT
from dit_lens.organisms.build import OrganismConfig, build_transformer
from dit_lens.organisms.confine import confine
from dit_lens.tasks import BoardTask, task_named

if TYPE_CHECKING:
    from diffusers import WanImageToVideoPipeline


@dataclass(frozen=True)
class Card:
    """What says how to load and run an organism.

    Attributes
    ----------
    defaults : dict
        Arguments of its runs.
    tasks : tuple of str
        That it was trained on, as `dit_lens.tasks.task_named` reads them, the default first.
    vae_of : str or None
        The shipped organism whose autoencoder it shares.
    """

    config: OrganismConfig
    defaults: dict[str, int | float]
    tasks: tuple[str, ...]
    vae_of: str | None


def load_organism(
    name: str = "puzzles",
    *,
    random: bool = False,
    seed: int = 0,
    checkpoint: int | None = None,
    folder: str | Path | None = None,
) -> VideoDiT:
    """Load a small trained model.

    Parameters
    ----------
    name : str
        One of `organism_names`: "puzzles" solves several tasks as its prompt says, "maze" larger mazes without one.
    random : bool
        Give the transformer random weights (of ``seed``) instead of the trained ones: the same architecture with
        nothing to find in it. The autoencoder stays as it is, so that pictures still look like pictures.
    checkpoint : int, optional
        The weights as they were after so many training steps, one of `organism_checkpoints`.
    folder : path, optional
        Load an organism that `save_organism` wrote elsewhere.

    Raises
    ------
    InputError
        No such organism or checkpoint; the message names those there are.
    """
    place, card = _card(name, folder)
    config = card.config
    # The weights are kept in half precision to be small; they run in single precision.
    with _without_progress_bars(), without_notices():
        shared = {} if card.vae_of is None else {"vae": _vae(card.vae_of)}
        pipeline = DiffusionPipeline.from_pretrained(place, dtype=torch.float32, local_files_only=True, **shared)
    if checkpoint is not None:
        _load_checkpoint(pipeline, place, checkpoint)
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline.transformer = build_transformer(config).eval()
    confine(pipeline.transformer, config.frame_attention, config.text_attention, config.latent_frames)
    return VideoDiT(pipeline, defaults=card.defaults)


def organism_tasks(name: str = "puzzles", *, folder: str | Path | None = None) -> list[BoardTask]:
    """The tasks that an organism was trained on, its default first."""
    _, card = _card(name, folder)
    return [task_named(task) for task in card.tasks]


def organism_config(name: str = "puzzles", *, folder: str | Path | None = None) -> OrganismConfig:
    """The architecture of an organism."""
    return _card(name, folder)[1].config


def organism_checkpoints(name: str = "puzzles", *, folder: str | Path | None = None) -> list[int]:
    """The training steps whose weights are kept for `load_organism`'s ``checkpoint``."""
    place, _ = _card(name, folder)
    return sorted(int(path.stem.removeprefix("step-")) for path in place.glob("checkpoints/step-*.safetensors"))


def _card(name: str, folder: str | Path | None) -> tuple[Path, Card]:
    place = Path(folder) if folder is not None else ORGANISMS / name
    if not (place / CARD).exists():
        raise InputError(f"no organism {name!r} in {place.parent}; there are: {', '.join(organism_names()) or 'none'}")
    try:
        card: Card = strict.typed(strict.load((place / CARD).read_bytes()), Card, "card")
    except (OSError, Malformed) as error:
        raise StoreError(f"{place / CARD} is no card of an organism: {error}") from error
    if card.vae_of is not None and card.vae_of not in organism_names():
        raise StoreError(f"{place / CARD} shares the autoencoder of {card.vae_of!r}, which is no organism")
    return place, card


def _vae(name: str) -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(ORGANISMS / name / "vae", dtype=torch.float32, local_files_only=True)


def _load_checkpoint(pipeline: WanImageToVideoPipeline, place: Path, step: int) -> None:
    path = place / "checkpoints" / f"step-{step:05d}.safetensors"
    if not path.exists():
        kept = ", ".join(map(str, organism_checkpoints(folder=place))) or "none"
        raise InputError(f"no checkpoint of step {step} is kept; there are: {kept}")
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    parts = {name.partition(".")[0] for name in found} & {"transformer", "text_encoder"}
    own = {f"{part}.{name}": p for part in parts for name, p in getattr(pipeline, part).named_parameters()}
    shapes = [{name: tuple(tensor.shape) for name, tensor in of.items()} for of in (own, found)]
    if shapes[0] != shapes[1] or not found:
        wrong = min({name for name, _ in shapes[0].items() ^ shapes[1].items()}, default="no tensors")
        raise StoreError(f"{path} is no checkpoint of this organism: {wrong} is missing or of another shape")
    for name, values in found.items():
        own[name].data.copy_(values)


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


def save_organism(
    pipeline: WanImageToVideoPipeline,
    config: OrganismConfig,
    folder: Path,
    tasks: Sequence[str] = ("maze:5",),
    vae_of: str | None = None,
    **defaults: float,
) -> Path:
    """Write a pipeline as an organism, in half precision, with the card that says how to run it.

    The folder is replaced as a whole: a kill leaves the organism that was there before.

    Parameters
    ----------
    tasks : names of the tasks that it was trained on, as `dit_lens.tasks.task_named` reads them, the default first
    vae_of : str, optional
        A shipped organism whose autoencoder this one shares; it is then not written again.
    **defaults
        Arguments of a run that differ from the configuration's.
    """
    small = copy.deepcopy(pipeline)
    for part in (small.transformer, small.vae, small.text_encoder):
        # Not ModelMixin.half, which warns of modules that compute in single precision: only the file is to be small.
        nn.Module.half(part)
    card = Card(config, config.run_defaults | defaults, tuple(tasks), vae_of)
    with replacing_folder(folder) as new:
        small.save_pretrained(new, safe_serialization=True)
        if vae_of is not None:
            shutil.rmtree(new / "vae")
        write_atomic(new / CARD, json.dumps(asdict(card), indent=1).encode())
    return folder
