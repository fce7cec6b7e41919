"""What a run generates from: rows of (task instance, seed), turned into the pipeline's own arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import InputError
from dit_lens.files.digest import short_hash
from dit_lens.runs.seeds import row_seeds
from dit_lens.sites.select import whole


@dataclass(frozen=True)
class Row:
    """One row of a batch: a task instance (or prompt) and a seed."""

    instance: str
    seed: int


@dataclass(frozen=True)
class Inputs:
    """B rows of prompts and, for image-to-video, images.

    Attributes
    ----------
    given : tuple, B of them
        What each row was made from: a task instance, a prompt or a mapping, which is a copy.
    rows : tuple of Row
    prompts : list of str
    images : list of images, or None for text-to-video
    options : further arguments of the pipeline
    """

    given: tuple[Any, ...]
    rows: tuple[Row, ...]
    prompts: list[str]
    images: list[Image.Image] | None
    options: Mapping[str, Any]

    __repr__ = short_repr

    @cached_property
    def content(self) -> tuple[str, ...]:
        """Hash of the prompt and picture of each row, whose name is what its task instance says and may say less."""
        pictures = {id(image): image for image in self.images or ()}
        digests = {number: short_hash([picture_bytes(image)]) for number, image in pictures.items()}
        of_rows = [digests[id(image)] for image in self.images or ()] or [""] * len(self.rows)
        pairs = zip(self.prompts, of_rows, strict=True)
        return tuple(short_hash([repr(prompt).encode(), picture.encode()]) for prompt, picture in pairs)

    def generators(self) -> list[torch.Generator]:
        """One generator per row, on the CPU so that a seed means the same on every device."""
        return [torch.Generator("cpu").manual_seed(row.seed) for row in self.rows]

    @property
    def several_images(self) -> bool:
        """Whether the rows have pictures of their own."""
        return self.images is not None and any(image is not self.images[0] for image in self.images)

    def image_argument(self) -> dict[str, Any]:
        """The pipeline's ``image``: the picture itself where all rows share it, else a batch in [0, 1]."""
        if self.images is None:
            return {}
        if not self.several_images:
            only = self.images[0]
            return {"image": only if only.mode == "RGB" else only.convert("RGB")}
        pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0 for image in self.images])
        return {"image": torch.from_numpy(pixels.transpose(0, 3, 1, 2))}


def gather(inputs: Any, seed: int | Sequence[int]) -> Inputs:
    """Rows from whatever `VideoDiT.run` is given.

    One input and K seeds make K rows; N inputs take one seed each, or all the same one.

    Raises
    ------
    InputError
        Nothing to run, inputs of unknown kind, two different ones of one id, or numbers of inputs and seeds that do not
        fit.
    """
    listed, seeds = _matched(listed_inputs(inputs), seed)
    copies: dict[int, tuple[Any, Any]] = {}
    given = [kept(item, copies) for item in listed]
    parsed = [_parse(item) for item in given] if len({id(g) for g in given}) > 1 else [_parse(given[0])] * len(given)
    images = [p[2] for p in parsed if p[2] is not None]
    if len(images) not in (0, len(parsed)):
        raise InputError("either every input has an image or none has")
    options = parsed[0][3]
    if any(p[3] != options for p in parsed):
        raise InputError("inputs of one run must share every option but prompt and image")
    rows = tuple(Row(p[0], s) for p, s in zip(parsed, seeds, strict=True))
    gathered = Inputs(tuple(given), rows, [p[1] for p in parsed], _shared(images) or None, options)
    _require_names(gathered)
    return gathered


def kept(value: Any, copies: dict[int, tuple[Any, Any]]) -> Any:
    """A copy of what a caller may change later: lists, mappings, tensors, arrays and pictures; all else as it is.

    Parameters
    ----------
    copies : dict from id to a value and its copy
        Filled here: what comes twice is copied once.
    """
    if id(value) not in copies:
        copies[id(value)] = value, _copied(value, copies)
    return copies[id(value)][1]


def _copied(value: Any, copies: dict[int, tuple[Any, Any]]) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray | Image.Image):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: kept(item, copies) for key, item in value.items()}
    return type(value)(kept(item, copies) for item in value) if type(value) in (list, tuple) else value


def _require_names(inputs: Inputs) -> None:
    known: dict[str, str] = {}
    for row, content in zip(inputs.rows, inputs.content, strict=True):
        if known.setdefault(row.instance, content) != content:
            raise InputError(
                f"two inputs with another prompt or picture have the id {row.instance!r}: give each an id of its own"
            )


def _shared(images: list[Image.Image]) -> list[Image.Image]:
    """The same pictures, those that are equal one object: a pipeline is given one for all rows if all rows have it."""
    if len({id(image) for image in images}) < 2:
        return images
    known: dict[bytes, Image.Image] = {}
    return [known.setdefault(picture_bytes(image), image) for image in images]


def plain_inputs(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of which `gather` makes the same rows, of plain data: a task instance as its id, prompt and picture."""
    plain = {id(item): item if isinstance(item, str | Mapping) else _as_mapping(item) for item in given}
    return tuple(plain[id(item)] for item in given)


def _as_mapping(instance: Any) -> dict[str, Any]:
    name, prompt, image, _ = _parse(instance)
    return {"id": name, "prompt": prompt} | ({} if image is None else {"image": image})


def listed_inputs(inputs: Any) -> list[Any]:
    """One input or several as a list.

    Raises
    ------
    InputError
        Nothing to run.
    """
    given = [inputs] if _is_single(inputs) else list(inputs)
    if not given:
        raise InputError("no inputs to run")
    return given


def paired(inputs: Any, seed: int | Sequence[int]) -> list[tuple[Any, int]]:
    """Every row's input and seed, as `VideoDiT.runs` makes them: an int gives each input a seed of its own.

    Raises
    ------
    InputError
        As `gather`.
    """
    given = listed_inputs(inputs)
    if not isinstance(seed, Iterable):
        seed = row_seeds(_seeds(seed, 1)[0], len(given))
    return list(zip(*_matched(given, seed), strict=True))


def _matched(given: list[Any], seed: int | Sequence[int]) -> tuple[list[Any], list[int]]:
    """Inputs and seeds of the same number: one input is that of every seed."""
    seeds = _seeds(seed, len(given))
    return given * len(seeds) if len(given) == 1 else given, seeds


def _is_single(inputs: Any) -> bool:
    return isinstance(inputs, str | Mapping) or hasattr(inputs, "prompt")


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    try:
        seeds = [whole(s) for s in seed] if isinstance(seed, Iterable) else [whole(seed)] * count
    except TypeError:
        raise InputError(f"a seed must be a whole number, or one per row; got {seed!r}") from None
    if not seeds or (count > 1 and len(seeds) != count):
        raise InputError(f"{len(seeds)} seeds for {count} inputs; give one seed, or one per input")
    if any(s < 0 for s in seeds):
        raise InputError(f"seeds must not be negative, got {min(seeds)}")
    return seeds


def _parse(item: Any) -> tuple[str, str, Image.Image | None, dict[str, Any]]:
    """Name, prompt, image and other options of one input."""
    if isinstance(item, str):
        return item, item, None, {}
    if isinstance(item, Mapping):
        options = {k: v for k, v in item.items() if k not in ("id", "prompt", "image")}
        if not isinstance(item.get("prompt"), str):
            raise InputError(f"an input needs a prompt (a string), got {item.get('prompt')!r}")
        image = item.get("image")
        name = item.get("id", "") or _name(item["prompt"], image)
        if not isinstance(name, str):
            raise InputError(f"an input's id must be a string, got {name!r:.80}")
        return name, item["prompt"], image, options
    if hasattr(item, "prompt"):
        image = getattr(item, "image", None)
        return getattr(item, "id", None) or _name(item.prompt, image), item.prompt, image, {}
    raise InputError(f"cannot run {type(item).__name__}; give a prompt, a mapping with 'prompt', or a task instance")


def _name(prompt: str, image: Any) -> str:
    """Name of an input without an id: its prompt, and a hash of its picture, for one prompt serves many pictures."""
    if image is None:
        return prompt
    if not isinstance(image, Image.Image):
        raise InputError(f"an input's image must be a PIL image, got {type(image).__name__}")
    return f"{prompt} [{short_hash([picture_bytes(image)])}]"


def seen_bytes(image: Image.Image) -> bytes:
    """What a model is given of a picture: its size and its pixels in RGB."""
    return f"{image.size} ".encode() + (image if image.mode == "RGB" else image.convert("RGB")).tobytes()


def picture_bytes(image: Image.Image) -> bytes:
    """All that a picture is: its mode, size and pixels, and what colours they stand for."""
    palette = image.palette.tobytes() if image.palette is not None else b""
    about = f"{image.mode} {image.size} {image.info.get('transparency')!r} "
    return about.encode() + palette + image.tobytes()


def split_rows(prepare: Any, *, shared_image: bool) -> Any:
    """``pipeline.prepare_latents`` for a batch of images, one row at a time.

    The stock methods encode the whole batch of images once per generator (Wan makes B x B conditions so), or take no
    single image for several rows (CogVideoX). Each row is prepared on its own here and the results are stacked, so that
    a row is what it would be alone.

    Parameters
    ----------
    prepare : callable
    shared_image : bool
        Whether the stock method takes one image for all rows.
    """
    signature = inspect.signature(prepare)

    def prepare_rows(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        images, generators = bound.arguments.get("image"), bound.arguments.get("generator", [])
        latents = bound.arguments.get("latents")
        if images is None or len(generators) == 1 or (shared_image and len(images) == 1):
            return prepare(*args, **kwargs)
        parts = []
        for row, generator in enumerate(generators):
            own = None if latents is None else latents[row : row + 1]
            image = images if len(images) == 1 else images[row : row + 1]
            bound.arguments.update(image=image, generator=[generator], batch_size=1, latents=own)
            parts.append(prepare(*bound.args, **bound.kwargs))
        # A mask that has one row for all (expand_timesteps) stays as it is.
        return tuple(
            p[0] if len(p[0]) == 1 and i == 2 else torch.cat(p) for i, p in enumerate(zip(*parts, strict=True))
        )

    return prepare_rows
