"""What a user gives a model: prompts, pictures, or both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dit_lens.errors import TaskError
from dit_lens.files.digest import short_hash
from dit_lens.runs.inputs import picture_bytes, seen_bytes


@dataclass(frozen=True, eq=False)
class Input:
    """One input of a user's own.

    Attributes
    ----------
    id : str
        The same for the same prompt and picture.
    prompt, image : what the model is given; the image is None where it is given none
    row : int
        Its place among the inputs of its task.
    """

    id: str
    prompt: str
    image: Image.Image | None
    row: int

    @property
    def variables(self) -> dict[str, Any]:
        """What can differ between two inputs: the prompt, and a hash of what the model is given of the image."""
        return {"prompt": self.prompt, "image": self.image and short_hash([seen_bytes(self.image)])}

    def __repr__(self) -> str:
        return f"Input({self.id}, {self.prompt!r})"


def read_inputs(given: Iterable[Any], name: str) -> tuple[Input, ...]:
    """Inputs as `VideoDiT.run` takes them, checked against each other.

    Parameters
    ----------
    given : iterable of str, mapping with "prompt" and perhaps "image", or object with such attributes
    name : str
        Of the task, for the ids and the errors.

    Raises
    ------
    TaskError
        No inputs, one that is none, or pictures for some inputs alone or of several sizes.
    """
    listed = isinstance(given, Iterable) and not isinstance(given, str | Mapping)
    inputs = tuple(_input(item, row, name) for row, item in enumerate(given)) if listed else ()
    if not inputs:
        raise TaskError(f"{name}: need a list of inputs with at least one, got {given!r:.80}")
    sizes = {None if i.image is None else i.image.size for i in inputs}
    if None in sizes and len(sizes) > 1:
        lacking = next(i for i in inputs if i.image is None)
        which = f"input {lacking.row} ({lacking.prompt!r:.40})"
        raise TaskError(f"{name}: {which} has no image and others have one; give all of them one, or none")
    if len(sizes) > 1:
        told = " and ".join(sorted(f"{size[0]} x {size[1]}" for size in sizes if size is not None))
        raise TaskError(f"{name}: the images are of {told} pixels; give images of one size")
    return inputs


def picture_size(inputs: Sequence[Input]) -> tuple[int, int] | None:
    """Height and width of the pictures, where there are any."""
    image = inputs[0].image
    return None if image is None else (image.height, image.width)


def _input(item: Any, row: int, name: str) -> Input:
    given = {"prompt": item} if isinstance(item, str) else item
    if not isinstance(given, Mapping):
        given = {key: getattr(item, key, None) for key in ("prompt", "image")}
    if further := sorted(set(given) - {"prompt", "image"}):
        told = ", ".join(map(str, further))
        raise TaskError(f"{name}: input {row} has {told}; an input has a prompt and perhaps an image")
    prompt, image = given.get("prompt"), given.get("image")
    if not isinstance(prompt, str):
        raise TaskError(f"{name}: input {row} needs a prompt (a string), got {prompt!r:.80}")
    if not isinstance(image, Image.Image | None):
        raise TaskError(f"{name}: the image of input {row} must be a PIL image, got {type(image).__name__}")
    content = [prompt.encode()] if image is None else [prompt.encode(), picture_bytes(image)]
    return Input(getattr(item, "id", None) or f"{name}-{short_hash(content)}", prompt, image, row)
