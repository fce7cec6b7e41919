"""Loading the organisms that ship with the package."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from torch import nn
from transformers.utils import logging as transformers_logging

from dit_lens.errors import InputError
from dit_lens.families.notices import without_notices
from dit_lens.files.atomic import write_atomic
from dit_lens.files.shipped import CARD, ORGANISMS, organism_names
from dit_lens.model import VideoDiT
from dit_lens.organisms.build import OrganismConfig, build_transformer
from dit_lens.organisms.confine import confine
from dit_lens.tasks import task_named

if TYPE_CHECKING:
    from diffusers import WanImageToVideoPipeline


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
    config = _config(card)
    # The weights are kept in half precision to be small; they run in single precision.
    with _without_progress_bars(), without_notices():
        shared = {} if card.get("vae_of") is None else {"vae": _vae(card["vae_of"])}
        pipeline = DiffusionPipeline.from_pretrained(place, dtype=torch.float32, local_files_only=True, **shared)
    if checkpoint is not None:
        _load_checkpoint(pipeline, place, checkpoint)
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline.transformer = build_transformer(config).eval()
    confine(pipeline.transformer, config.frame_attention, config.text_attention, config.latent_frames)
    return VideoDiT(pipeline, defaults=card["defaults"])


def organism_tasks(name: str = "puzzles", *, folder: str | Path | None = None) -> list[Any]:
    """The tasks that an organism was trained on, its default first."""
    _, card = _card(name, folder)
    return [task_named(task) for task in card["tasks"]]


def organism_config(name: str = "puzzles", *, folder: str | Path | None = None) -> OrganismConfig:
    """The architecture of an organism."""
    return _config(_card(name, folder)[1])


def organism_checkpoints(name: str = "puzzles", *, folder: str | Path | None = None) -> list[int]:
    """The training steps whose weights are kept for `load_organism`'s ``checkpoint``."""
    place, _ = _card(name, folder)
    return sorted(int(path.stem.removeprefix("step-")) for path in place.glob("checkpoints/step-*.safetensors"))


def _card(name: str, folder: str | Path | None) -> tuple[Path, dict[str, Any]]:
    place = Path(folder) if folder is not None else ORGANISMS / name
    if not (place / CARD).exists():
        raise InputError(f"no organism {name!r} in {place.parent}; there are: {', '.join(organism_names()) or 'none'}")
    return place, json.loads((place / CARD).read_text())


def _vae(name: str) -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(ORGANISMS / name / "vae", dtype=torch.float32, local_files_only=True)


def _load_checkpoint(pipeline: WanImageToVideoPipeline, place: Path, step: int) -> None:
    path = place / "checkpoints" / f"step-{step:05d}.safetensors"
    if not path.exists():
        kept = ", ".join(map(str, organism_checkpoints(folder=place))) or "none"
        raise InputError(f"no checkpoint of step {step} is kept; there are: {kept}")
    for name, values in load_file(path).items():
        part, _, parameter = name.partition(".")
        getattr(pipeline, part).get_parameter(parameter).data.copy_(values)


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


def _config(card: dict[str, Any]) -> OrganismConfig:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in card["config"].items()}
    return OrganismConfig(**values)


def save_organism(
    pipeline: WanImageToVideoPipeline,
    config: OrganismConfig,
    folder: Path,
    tasks: Sequence[str] = ("maze:5",),
    vae_of: str | None = None,
    **defaults: float,
) -> Path:
    """Write a pipeline as an organism, in half precision, with the card that says how to run it.

    The card is written last: a folder without one is no organism.

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
    small.save_pretrained(folder, safe_serialization=True)
    if vae_of is not None:
        shutil.rmtree(folder / "vae")
    card = {
        "config": vars(config),
        "defaults": config.run_defaults | defaults,
        "tasks": list(tasks),
        "vae_of": vae_of,
    }
    write_atomic(folder / CARD, json.dumps(card, indent=1).encode())
    return folder
