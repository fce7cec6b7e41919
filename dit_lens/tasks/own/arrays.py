"""What a user knows of his inputs: labels, true videos, masks and scores, checked against the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats
from dit_lens.tasks.base import SPLITS, Label

#: The role of a label that says none.
ROLE = "given"


def array_of(given: Any, what: str) -> NDArray[Any]:
    """An array of whatever can be one.

    Raises
    ------
    TaskError
        Rows of different lengths, or no numbers, booleans or strings.
    """
    try:
        values = np.asarray(given)
    except ValueError:
        raise TaskError(f"{what} are of different shapes; give all of them one shape") from None
    if values.dtype.kind not in "biufU":
        raise TaskError(f"{what} must be booleans, whole numbers, numbers or strings, got {values.dtype}")
    return values


def read_labels(given: Mapping[str, Any], lead: tuple[int, ...], cell: int | None, name: str) -> dict[str, Label]:
    """Labels by name, their values with the ``lead`` axes made one.

    Strings become classes with these names. Values with four axes are of cells where there are cells, else of tokens. A
    `Label` of the level "token" keeps it: (*lead, F, H, W) is of the video's tokens, (*lead, N) of the text's.

    Parameters
    ----------
    given : mapping from name to array of shape (*lead, ...), or to `Label` of such values
    lead : (B,) or (P, 2)

    Raises
    ------
    TaskError
        Labels of another length, type or number of axes.
    """
    if not isinstance(given, Mapping):
        raise TaskError(f"{name}: labels must be a mapping from name to values, got {type(given).__name__}")
    return {key: _label(key, values, lead, cell, name) for key, values in given.items()}


def _label(key: str, given: Any, lead: tuple[int, ...], cell: int | None, name: str) -> Label:
    made = given if isinstance(given, Label) else Label(key, ROLE, array_of(given, f"{name}: values of label {key!r}"))
    values = made.values
    if values.shape[: len(lead)] != lead:
        told = " x ".join(map(str, values.shape)) or "one value"
        wanted = " x ".join(map(str, lead))
        raise TaskError(f"{name}: label {key!r} has values for {told}; the inputs need {wanted}, then frames and cells")
    values = values.reshape(-1, *values.shape[len(lead) :])
    names, values = _classes(values, made.names)
    # The level by the number of axes, those in front made one.
    label = replace(made, name=key, values=values, names=names, level=None)
    is_token = made.level == "token" or (label.level == "cell" and cell is None)
    if label.level is None or (is_token and label.level == "clip"):
        axes = values.ndim - 1
        raise TaskError(
            f"{name}: label {key!r} has {axes} axes after the inputs; it may have 0 (clip), 1 (frames) or 3"
        )
    return replace(label, level="token") if is_token else label


def _classes(values: NDArray[Any], names: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Numbers of classes for strings, and the types that labels have for the rest."""
    if values.dtype.kind == "U":
        found, numbers = np.unique(values, return_inverse=True)
        return tuple(map(str, found)), numbers.reshape(values.shape).astype(np.int64)
    wanted = {"b": np.bool_, "f": np.float64}.get(values.dtype.kind, np.int64)
    return names, values.astype(wanted)


def values_of_cells(labels: Mapping[str, Label]) -> dict[str, NDArray[Any]]:
    """The values of the labels of cells, (N, F, n, n) each."""
    return {name: label.values for name, label in labels.items() if label.level == "cell"}


def read_videos(given: Any, lead: tuple[int, ...], picture: tuple[int, int] | None, name: str) -> Video | None:
    """True videos, uint8 (*lead, T, height, width, 3), with the ``lead`` axes made one; None where none are given.

    Raises
    ------
    TaskError
        Videos of another number, type or picture.
    """
    if given is None:
        return None
    videos = array_of(given, f"{name}: the true videos")
    size = ("T", "height", "width") if picture is None else ("T", *picture)
    wanted = f"uint8 videos of shape ({', '.join(map(str, (*lead, *size, 3)))})"
    fits = videos.dtype == np.uint8 and videos.ndim == len(lead) + 4 and videos.shape[-1] == 3
    if not fits or videos.shape[: len(lead)] != lead or picture not in (None, videos.shape[-3:-1]):
        raise TaskError(f"{name}: truth must be {wanted}, got {videos.dtype} {videos.shape}")
    return videos.reshape(-1, *videos.shape[len(lead) :])


def read_masks(given: Any, count: int, picture: tuple[int, int] | None, cell: int | None, name: str) -> Bools | None:
    """Masks of P pairs: bool (P, n, n) of cells, or (P, height, width) of pixels; None where none are given.

    Raises
    ------
    TaskError
        Masks of another number, type or picture, or one that marks nothing.
    """
    if given is None:
        return None
    masks = array_of(given, f"{name}: the masks")
    if cell is not None:
        wanted, fits = f"({count}, n, n) of cells", masks.ndim == 3 and masks.shape[1] == masks.shape[2]
    else:
        wanted = f"({count}, {'height, width' if picture is None else f'{picture[0]}, {picture[1]}'}) of pixels"
        fits = masks.ndim == 3 and picture in (None, masks.shape[1:])
    if masks.dtype != np.bool_ or not fits or len(masks) != count:
        raise TaskError(f"{name}: masks must be bool {wanted}, got {masks.dtype} {masks.shape}")
    if empty := np.flatnonzero(~masks.any(axis=(1, 2))).tolist():
        raise TaskError(f"{name}: masks mark nothing of pair {', '.join(map(str, empty))}; leave such pairs out")
    return masks


def board_size(
    cell: int | None, arrays: Mapping[str, NDArray[Any]], picture: tuple[int, int] | None, name: str
) -> int | None:
    """Cells a side, from the arrays (..., n, n) that have a value for each of them.

    Raises
    ------
    TaskError
        A cell of no pixels or that nothing is told of, arrays of several sizes, or a board that leaves the picture.
    """
    if cell is None:
        return None
    if isinstance(cell, bool) or not isinstance(cell, int) or cell < 1:
        raise TaskError(f"{name}: cell must be a whole number of pixels of at least 1, got {cell!r}")
    sizes = {key: values.shape[-2:] for key, values in arrays.items()}
    if not sizes:
        raise TaskError(f"{name}: cell={cell} is given, but no label or mask has values of cells; leave cell out")
    if len(set(sizes.values())) > 1 or any(down != across for down, across in sizes.values()):
        told = ", ".join(f"{key} {down} x {across}" for key, (down, across) in sizes.items())
        raise TaskError(f"{name}: cells must be n x n, the same n everywhere; got {told}")
    size = next(iter(sizes.values()))[0]
    if picture is not None and cell * size > min(picture):
        raise TaskError(f"{name}: {size} cells of {cell} pixels leave a picture of {picture[0]} x {picture[1]}")
    return int(size)


def read_split(given: Sequence[str] | None, count: int, name: str) -> NDArray[np.str_]:
    """The split of each input or pair; "test" for all where none is given.

    Raises
    ------
    TaskError
        Another number of names, or a name that is no split's.
    """
    if given is None:
        return np.full(count, "test")
    split = np.array([given] if isinstance(given, str) else list(given))
    if len(split) != count or (unknown := sorted(set(split.tolist()) - set(SPLITS))):
        told = f"{len(split)} names" if len(split) != count else ", ".join(map(str, unknown))
        raise TaskError(f"{name}: split must have one of {', '.join(SPLITS)} for each of {count}, got {told}")
    return split


def read_scores(found: Any, count: int, name: str) -> Floats:
    """What a user's scorer says of B videos: float (B,).

    Raises
    ------
    TaskError
        Another number of scores, or scores that are not 0 to 1.
    """
    scores = array_of(found, f"{name}: what the scorer returns")
    if scores.dtype.kind == "U" or scores.shape != (count,) or not ((scores >= 0) & (scores <= 1)).all():
        raise TaskError(f"{name}: the scorer must return {count} scores of 0 to 1, got {scores.tolist()!r:.80}")
    return scores.astype(np.float64)
