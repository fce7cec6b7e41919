"""What evidence a task has: it declares a thing by having it, and whoever needs what it lacks refuses it by name.

The least a task can be is `dit_lens.tasks.base.Task`: a name and instances. Everything else is *declared*: a task has
an attribute or method of one of the names in `EVIDENCE`, or it has none, or None. `require` refuses a task that lacks
something; the functions after it ask for one thing and refuse what is declared but not as it should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd

from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats
from dit_lens.tasks.answers import Answers, hold
from dit_lens.tasks.base import Label, Pair, Scores, Split, Task

#: What a task may declare, and what each is.
EVIDENCE: dict[str, str] = {
    "frames": "pixel frames of its videos",
    "size": "cells a side of its board",
    "cell": "pixels a side of a cell",
    "pairs": "pairs of instances with different answers",
    "labels": "labels of cells",
    "scene_labels": "labels of frames and clips",
    "main_labels": "the labels by role that a verdict is read from",
    "answer_label": "the label that says where the answer is",
    "answer_mask": "where the right answers of a pair differ",
    "read_answer": "what a picture shows of the answer",
    "judge_answer": "how right the answer is that a picture shows",
    "read_given": "whether what the first frame shows is still drawn",
    "alive": "how many candidate answers a picture shows",
    "render": "true videos",
    "score": "scores of videos",
    "floors": "scores of videos that cannot have solved it",
    "settings": "what tells it from others of its name, for saved probes",
    "search_free": "features of a cell that need no search",
}


#: Those that are called.
_CALLED = frozenset(
    {
        "pairs",
        "labels",
        "scene_labels",
        "answer_mask",
        "read_answer",
        "judge_answer",
        "read_given",
        "alive",
        "render",
        "score",
        "floors",
    }
)


class BoardTask(Task, Protocol):
    """A task on a board of n x n cells, with what every shipped task declares; see `EVIDENCE`.

    Attributes
    ----------
    frames : int
        Pixel frames T of a video.
    size, cell : int
        Cells n a side, in the upper left of the picture, and pixels a side of a cell.
    kinds : mapping
        The kinds of pairs, the default first, and the variable that each changes.
    weights : mapping
        What each rule of the score is worth; they sum to 1.
    answer_label : str
    search_free : tuple of str, or None
        Names of features of each cell that can be known without solving the problem.
    """

    @property
    def frames(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def cell(self) -> int: ...

    @property
    def kinds(self) -> Mapping[str, str]: ...

    @property
    def weights(self) -> Mapping[str, float]: ...

    @property
    def answer_label(self) -> str: ...

    @property
    def search_free(self) -> tuple[str, ...] | None: ...

    def pair(self, seed: int = 0, kind: str | None = None, split: Split = "test") -> Pair: ...

    def pairs(self, count: int, seed: int = 0, kind: str | None = None, split: Split = "test") -> list[Pair]: ...

    def labels(self, instances: Sequence[Any], latent_frames: int) -> dict[str, Label]:
        """Labels of cells, (B, F, n, n), for probes."""
        ...

    def scene_labels(self, instances: Sequence[Any], latent_frames: int) -> dict[str, Label]:
        """Labels of latent frames, (B, F), and of clips, (B,)."""
        ...

    def answer_mask(self, pair: Pair) -> Bools:
        """Where the right answers of a pair differ and what was given does not.

        Returns
        -------
        bool array of shape (n, n), of cells; of a task without cells (height, width), of pixels
        """
        ...

    def read_answer(self, images: Video, instances: Sequence[Any]) -> Answers:
        """What pictures, uint8 (B, height, width, 3), show of the answers of B instances."""
        ...

    def judge_answer(self, images: Video, instances: Sequence[Any]) -> Mapping[str, Floats]:
        """The rules of the answer that pictures show, each float (B,) in [0, 1], the one that says most first."""
        ...

    def render(self, instances: Sequence[Any]) -> Video:
        """True videos, uint8 (B, T, height, width, 3)."""
        ...

    def score(self, frames: Video, instances: Any) -> Scores:
        """Scores of videos, uint8 (B, T, height, width, 3), one for each instance, or several of one."""
        ...

    def floors(self, count: int = 100, seed: int = 0) -> pd.DataFrame:
        """Scores of videos that cannot have solved the task."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the task is, as JSON types."""
        ...


class Evidence(BoardTask, Protocol):
    """A task that declares everything in `EVIDENCE`. A task need not: ask it for what `require` has let through.

    Attributes
    ----------
    main_labels : mapping from role to names of labels
    settings : mapping
        JSON types that tell the task from others of its name; a dataclass needs none, its fields are its settings.
    """

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def main_labels(self) -> Mapping[str, tuple[str, ...]]: ...

    def read_given(self, images: Video, instances: Sequence[Any]) -> Mapping[str, Bools]:
        """By the name of a perception label, whether what it marks is drawn where it is: bool (B,) each."""
        ...

    def alive(self, images: Video, instances: Sequence[Any]) -> Mapping[str, Floats]:
        """Of pictures (S, B, height, width, 3), "alive": how many candidates each shows, float (S, B); and more."""
        ...


def declares(task: Task, *names: str) -> bool:
    """Whether a task has all of these things of `EVIDENCE`.

    Raises
    ------
    EvidenceError
        No such thing, or something that should be a method and is none.
    """
    if unknown := [name for name in names if name not in EVIDENCE]:
        raise EvidenceError(f"no task declares {', '.join(unknown)}; there are {', '.join(EVIDENCE)}")
    found = {name: getattr(task, name, None) for name in names}
    for name in _CALLED & found.keys():
        if found[name] is not None and not callable(found[name]):
            raise EvidenceError(f"task {task.name!r} declares {name}, which must be a method, not {found[name]!r:.80}")
    return all(value is not None for value in found.values())


def require_task(task: Any, *, who: str) -> None:
    """Refuse what is no task.

    Raises
    ------
    EvidenceError
    """
    if isinstance(task, type):
        raise EvidenceError(f"{who} needs a task, got the class {task.__name__}: make one, {task.__name__}(...)")
    if not isinstance(getattr(task, "name", None), str):
        raise EvidenceError(f"{who} needs a task, such as dl.tasks.Maze(size=4), got {task!r:.80}")


def declared(task: Task) -> tuple[str, ...]:
    """What a task has of `EVIDENCE`, by name."""
    return tuple(name for name in EVIDENCE if declares(task, name))


def require(task: Task, *names: str, who: str) -> Evidence:
    """The task, to be asked for these things.

    Parameters
    ----------
    who : str
        Who needs them, for the error.

    Raises
    ------
    EvidenceError
        What is no task, or something that the task does not declare.
    """
    require_task(task, who=who)
    for name in names:
        if not declares(task, name):
            has = ", ".join(declared(task)) or "nothing"
            raise EvidenceError(
                f"{who} needs {name} ({EVIDENCE[name]}); task {task.name!r} does not declare it, it declares {has}"
            )
    return cast(Evidence, task)


def answer_masks(task: Task, pairs: Sequence[Pair], *, who: str) -> Bools:
    """Where the right answers of each pair differ.

    Returns
    -------
    bool array of shape (P, n, n), of cells; of a task without cells (P, height, width), of pixels

    Raises
    ------
    EvidenceError
        A task without masks, or masks of another shape or type.
    """
    known = require(task, "answer_mask", who=who)
    if not pairs:
        raise EvidenceError(f"{who} needs pairs of task {task.name!r}; none were given")
    masks = [known.answer_mask(pair) for pair in pairs]
    shape = (known.size, known.size) if declares(task, "size", "cell") else np.shape(masks[0])
    for mask in masks:
        _check(task, "answer_mask", mask, "b", shape if len(shape) == 2 else ("height", "width"))
    return np.stack(masks)


def pairs_that_differ(task: Task, pairs: Sequence[Pair], *, who: str) -> list[int]:
    """The numbers of the pairs whose right answers differ somewhere, of a task with masks."""
    return [number for number, mask in enumerate(answer_masks(task, pairs, who=who)) if mask.any()]


def on_grid(task: Task, masks: Bools, grid: tuple[int, int], picture: tuple[int, int]) -> Bools:
    """Masks of cells or pixels, as `answer_masks` gives them, on H x W tokens or latents: bool (P, H, W).

    A position is in the mask where some pixel of it is.

    Parameters
    ----------
    grid : (H, W)
    picture : (height, width), in pixels
    """
    cell = require(task, "cell", who="a mask of cells").cell if declares(task, "size", "cell") else 1
    pixels = np.zeros((len(masks), *picture), dtype=bool)
    drawn = masks.repeat(cell, axis=1).repeat(cell, axis=2)
    if drawn.shape[1] > picture[0] or drawn.shape[2] > picture[1] or picture[0] % grid[0] or picture[1] % grid[1]:
        raise EvidenceError(
            f"task {task.name!r}: masks of {drawn.shape[1]} x {drawn.shape[2]} pixels do not fit a picture of "
            f"{picture[0]} x {picture[1]} on a grid of {grid[0]} x {grid[1]}"
        )
    pixels[:, : drawn.shape[1], : drawn.shape[2]] = drawn
    parts = pixels.reshape(len(masks), grid[0], picture[0] // grid[0], grid[1], picture[1] // grid[1])
    return np.asarray(parts.any(axis=(2, 4)))


def answers_of(task: Task, images: Video, instances: Sequence[Any], *, who: str) -> Answers:
    """What pictures, uint8 (B, height, width, 3), show of the answers of B instances.

    Raises
    ------
    EvidenceError
        A task that reads no answers, or readings of another shape or type.
    """
    found = require(task, "read_answer", who=who).read_answer(images, instances)
    if not isinstance(found, Answers):
        raise EvidenceError(f"task {task.name!r} declares read_answer, which must return Answers, not {found!r}")
    count = len(instances)
    _check(task, "read_answer", found.marks, "iu", (count, *np.shape(found.marks)[1:3]))
    for which in (found.drawn, found.right):
        _check(task, "read_answer", which, "b", (count,))
    return found


def rules_of_answer(task: Task, images: Video, instances: Sequence[Any], *, who: str) -> dict[str, Floats]:
    """The rules of the answers that pictures show, each float (B,) in [0, 1], the one that says most first.

    Raises
    ------
    EvidenceError
        A task that does not judge answers, or rules of another shape, type or range.
    """
    rules = require(task, "judge_answer", who=who).judge_answer(images, instances)
    if not isinstance(rules, Mapping) or not rules:
        raise EvidenceError(f"task {task.name!r} declares judge_answer, which must return rules by name, not {rules!r}")
    for values in rules.values():
        _check(task, "judge_answer", values, "f", (len(instances),))
        if not ((values >= 0) & (values <= 1)).all():
            raise EvidenceError(f"task {task.name!r} declares judge_answer, whose rules must be 0 to 1, not {values}")
    return dict(rules)


def scores_of(task: Task, frames: Video, instances: Sequence[Any], *, who: str) -> Scores:
    """Scores of videos, uint8 (B, T, height, width, 3), one for each of B instances.

    Raises
    ------
    EvidenceError
        A task that scores no videos, or scores of another number, type or range.
    """
    found = require(task, "score", who=who).score(frames, list(instances))
    rules = getattr(found, "rules", None)
    if not isinstance(rules, Mapping) or not all(hasattr(found, name) for name in ("total", "strict")):
        raise EvidenceError(
            f"task {task.name!r} declares score, which must return scores with rules by name, total and strict, "
            f"not {found!r:.80}"
        )
    _check(task, "score", found.strict, "b", (len(instances),), part="strict")
    for name, values in {"total": found.total, **rules}.items():
        _check(task, "score", values, "f", (len(instances),), part=name)
        if not ((values >= 0) & (values <= 1)).all():
            raise EvidenceError(f"task {task.name!r} declares score, whose {name} must be 0 to 1, not {values}")
    return found


def show_answer(task: Task, frames: Video, instances: Sequence[Any], *, who: str) -> Bools:
    """Whether videos, uint8 (B, T, height, width, 3), show the right answers: bool (B,).

    Of a task that judges answers the last frame decides, of another strict success.
    """
    if declares(task, "judge_answer"):
        return hold(rules_of_answer(task, frames[:, -1], instances, who=who))
    return scores_of(task, frames, instances, who=who).strict


def labels_of(
    task: Task, instances: Sequence[Any], latent_frames: int, frames: Video | None = None, *, who: str = "a probe"
) -> dict[str, Label]:
    """Every label of a task: those of cells, of latent frames and of clips.

    ``steps``, how many steps a solution needs, comes from the instances where all of them say it.

    Parameters
    ----------
    frames : uint8 array of shape (B, T, height, width, 3), optional
        Videos that a model made. Of a task that reads answers they add ``drawn``: the cells that the last frame marks.

    Raises
    ------
    EvidenceError
        A task without labels, or labels of another number of instances or latent frames.
    """
    known = require(task, "scene_labels" if declares(task, "scene_labels") else "labels", who=who)
    found = _named_labels(task, "labels", known.labels(instances, latent_frames)) if declares(task, "labels") else {}
    if frames is not None and declares(task, "read_answer"):
        marked = answers_of(task, frames[:, -1], instances, who=who).marks > 0
        found["drawn"] = Label("drawn", "reasoning", marked[:, None].repeat(latent_frames, axis=1))
    if declares(task, "scene_labels"):
        found |= _named_labels(task, "scene_labels", known.scene_labels(instances, latent_frames))
    if all(hasattr(instance, "steps") for instance in instances):
        found["steps"] = Label("steps", "reasoning", np.array([float(i.steps) for i in instances]))
    if not found:
        raise EvidenceError(f"task {task.name!r} has no labels: nothing to ask a probe")
    for name, label in found.items():
        _check_label(task, name, label, len(instances), latent_frames)
    return found


def labels_by_role(task: Task, labels: Mapping[str, Label], role: str) -> tuple[str, ...]:
    """Names of the labels of a role: those that the task calls main, or all."""
    main = require(task, "main_labels", who=role).main_labels if declares(task, "main_labels") else {}
    return tuple(name for name in main.get(role, labels) if name in labels and labels[name].role == role)


def _named_labels(task: Task, name: str, given: Any) -> dict[str, Label]:
    if not isinstance(given, Mapping):
        raise EvidenceError(f"task {task.name!r} declares {name}, which must return labels by name, not {given!r:.80}")
    return dict(given)


def _check_label(task: Task, name: str, label: Label, count: int, latent_frames: int) -> None:
    if not isinstance(label, Label) or label.level is None:
        raise EvidenceError(f"task {task.name!r}: label {name!r} must be a Label of a clip, frame, cell or token")
    of_text = label.level == "token" and label.values.ndim == 2  # positions of a text
    wanted = (count,) if label.level == "clip" or of_text else (count, latent_frames)
    if label.values.shape[: len(wanted)] != wanted:
        raise EvidenceError(
            f"task {task.name!r}: label {name!r} has values of shape {label.values.shape}; "
            f"{count} instances of {latent_frames} latent frames need {label.level} values that begin with {wanted}"
        )


def _check(
    task: Task, name: str, value: Any, kinds: str, shape: tuple[int | str, ...], part: str | None = None
) -> None:
    """Refuse what is not an array of one of these kinds of dtype and this shape."""
    if isinstance(value, np.ndarray) and value.dtype.kind in kinds and value.shape == shape:
        return
    found = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
    kind = {"b": "bool", "f": "float"}.get(kinds, "int")
    what = "which must return" if part is None else f"whose {part} must be"
    raise EvidenceError(f"task {task.name!r} declares {name}, {what} {kind} of shape {shape}, not {found}")
