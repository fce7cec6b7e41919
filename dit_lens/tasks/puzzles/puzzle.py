"""The machinery of every task whose cells show glyphs: a puzzle says what it draws and how it is judged.

Letters: B scenes, T pixel frames, n cells a side. *Scenes* are the latent variables of B problems: a dict of arrays
whose first axis is B. A puzzle gives, all vectorised over B,

- ``draw``: random scenes;
- ``vary``: scenes with one variable changed, for counterfactual pairs;
- ``codes``: the true video as glyph numbers, int (B, T, n, n);
- ``judge``: the rules of the score, read off glyph numbers;
- ``drawn``: whether the last frame shows an answer, right or wrong, read off glyph numbers;
- ``maps``: what is where and what the answer needs, per pixel frame and cell;

and, of one scene, ``prompt``, ``answer``, ``candidates`` and ``necessary_steps``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dit_lens.display.short import short_repr
from dit_lens.errors import TaskError
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.answers import Answers, hold
from dit_lens.tasks.base import (
    Label,
    Pair,
    Rendered,
    Split,
    check_frames,
    check_pixels,
    generator,
    instance_of_each,
)
from dit_lens.tasks.describe import describe_task
from dit_lens.tasks.floors import null_floors
from dit_lens.tasks.latent_frames import over_latent_frames
from dit_lens.tasks.puzzles.glyphs import CELL, UNREADABLE, paint, read
from dit_lens.tasks.puzzles.scenes import Scenes, concatenate, hash_rows, length, rows, take

#: Name of a label to its role and its values, bool or float of shape (B, T, n, n), or (B, n, n) if it never changes.
Maps = dict[str, tuple[str, NDArray[Any]]]
#: Name of a label to its role, its values of shape (B,) or (B, T), and of integers what each stands for.
Facts = dict[str, tuple[str, NDArray[Any]] | tuple[str, NDArray[Any], tuple[str, ...]]]


@dataclass(frozen=True, eq=False)
class PuzzleInstance(Rendered):
    """One problem of a puzzle.

    Attributes
    ----------
    task : Puzzle
    scene : scenes of length 1
    """

    task: Puzzle
    scene: Scenes

    @cached_property
    def id(self) -> str:
        """A name that is the same for the same latent variables."""
        content = b"".join(name.encode() + np.ascontiguousarray(x).tobytes() for name, x in sorted(self.scene.items()))
        return f"{self.task.name}{self.task.size}-{hashlib.sha256(content).hexdigest()[:12]}"

    @property
    def variables(self) -> Mapping[str, Any]:
        """The latent variables by name, numpy arrays or scalars."""
        return {name: values[0] for name, values in self.scene.items()}

    @property
    def prompt(self) -> str:
        return self.task.prompt(self.variables)

    @property
    def answer(self) -> Hashable:
        return self.task.answer(self.variables)

    @property
    def candidates(self) -> tuple[Hashable, ...]:
        """Every answer that the problem could have had, the right one among them."""
        return self.task.candidates(self.variables)

    @property
    def steps(self) -> int:
        """Number of steps that a solution needs."""
        return self.task.necessary_steps(self.variables)

    def __repr__(self) -> str:
        return f"PuzzleInstance({self.id}, {self.prompt!r}, answer={self.answer!r})"


@dataclass(frozen=True)
class PuzzleScores:
    """Scores of B videos.

    Attributes
    ----------
    rules : dict from rule name to float (B,) in [0, 1]
    weights : what each rule is worth
    """

    rules: Mapping[str, Floats]
    weights: Mapping[str, float]

    __repr__ = short_repr

    @property
    def total(self) -> Floats:
        """Weighted sum of the rules in [0, 1], shape (B,)."""
        return np.asarray(sum(weight * self.rules[rule] for rule, weight in self.weights.items()))

    @property
    def strict(self) -> Bools:
        """Whether every rule holds in full, shape (B,)."""
        return np.asarray(np.logical_and.reduce([self.rules[rule] == 1 for rule in self.weights]))


@dataclass(frozen=True)
class Puzzle:
    """Base of the puzzles; see the module's docstring for what one must give.

    Parameters
    ----------
    size : int
        Cells n a side, of 8 x 8 pixels. An odd grid lies in the upper left of a picture one cell larger.
    frames : int
        Pixel frames T of the video, 1 + 4 k.

    Raises
    ------
    TaskError
        Sizes or lengths at which the puzzle does not exist.
    """

    size: int = 4
    frames: int = 9

    name: ClassVar[str]
    weights: ClassVar[Mapping[str, float]]
    #: Kinds of counterfactual pairs, the default first, and the variable that each changes.
    kinds: ClassVar[Mapping[str, str]]
    #: Variables that decide to which split a scene belongs: those that the picture shows and no pair by prompt changes.
    layout: ClassVar[tuple[str, ...]]
    #: The rules of the score that say whether the answer is right, whatever the frames before the last one show.
    answer_rules: ClassVar[tuple[str, ...]]
    sizes: ClassVar[tuple[int, int]] = (3, 16)
    cell: ClassVar[int] = CELL
    answer_label: ClassVar[str] = "answer"
    #: The features come with the verdict that needs them.
    search_free: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self) -> None:
        low, high = self.sizes
        if not isinstance(self.size, int) or not low <= self.size <= high:
            raise TaskError(f"{type(self).__name__}(size={self.size}): size must be {low} to {high} cells")
        check_frames(type(self).__name__, self.frames)

    # What a puzzle gives.

    def draw(self, rng: np.random.Generator, count: int) -> Scenes:
        """``count`` random scenes."""
        raise NotImplementedError

    def vary(self, scenes: Scenes, kind: str, rng: np.random.Generator) -> tuple[Scenes, Bools]:
        """Scenes with the variable of ``kind`` changed so that the answer is another, and where that was possible."""
        raise NotImplementedError

    def codes(self, scenes: Scenes) -> Ints:
        """The true video as glyph numbers: int (B, T, n, n)."""
        raise NotImplementedError

    def judge(self, codes: Ints, scenes: Scenes) -> dict[str, Floats]:
        """Each rule in [0, 1], shape (B,), of videos read as glyph numbers (B, T, n, n)."""
        raise NotImplementedError

    def drawn(self, codes: Ints, scenes: Scenes) -> Bools:
        """Whether last frames read as glyph numbers (B, n, n) show one answer, right or wrong: bool (B,)."""
        raise NotImplementedError

    def maps(self, scenes: Scenes) -> Maps:
        """Labels per pixel frame and cell."""
        raise NotImplementedError

    def facts(self, scenes: Scenes) -> Facts:
        """Labels per clip or pixel frame; a puzzle may have none."""
        return {}

    def prompt(self, scene: Mapping[str, Any]) -> str:
        raise NotImplementedError

    def answer(self, scene: Mapping[str, Any]) -> Hashable:
        raise NotImplementedError

    def candidates(self, scene: Mapping[str, Any]) -> tuple[Hashable, ...]:
        raise NotImplementedError

    def necessary_steps(self, scene: Mapping[str, Any]) -> int:
        raise NotImplementedError

    def shown(self, scenes: Scenes) -> Scenes:
        """The variables of ``layout``, the same for the same picture: things that have no order are put into one."""
        return {name: scenes[name] for name in self.layout}

    # What every puzzle has.

    @property
    def title(self) -> str:
        return self.name

    @property
    def side(self) -> int:
        """Cells a side of the picture, the margin of odd grids included."""
        return self.size + self.size % 2

    def sample(self, count: int, seed: int = 0, split: Split = "test") -> list[PuzzleInstance]:
        """Draw instances; splits share no scene, not even under another prompt."""
        return self._instances(self.sample_scenes(generator(seed, self.size, split), count, split))

    def sample_scenes(self, rng: np.random.Generator, count: int, split: Split) -> Scenes:
        """Draw ``count`` scenes of a split as arrays.

        Raises
        ------
        TaskError
            Nothing was asked for, or a hundred draws in a row held no scene of that split.
        """
        if count < 1:
            raise TaskError(f"cannot sample {count} instances of {self.name}; ask for at least 1")
        parts: list[Scenes] = []
        for scenes in self._of_split(rng, 2 * count if split == "train" else 12 * count, split):
            parts.append(scenes)
            if sum(map(length, parts)) >= count:
                break
        return take(concatenate(parts), slice(count))

    def sample_videos(self, rng: np.random.Generator, count: int, split: Split) -> tuple[Video, list[str]]:
        """True videos of fresh scenes for training, uint8 (B, T, height, width, 3), and their prompts."""
        scenes = self.sample_scenes(rng, count, split)
        return paint(self.codes(scenes), self.side), [self.prompt(row) for row in rows(scenes)]

    def pair(self, seed: int = 0, kind: str | None = None, split: Split = "test") -> Pair:
        """One counterfactual pair, as `pairs` draws it."""
        return self.pairs(1, seed, kind, split)[0]

    def pairs(self, count: int, seed: int = 0, kind: str | None = None, split: Split = "test") -> list[Pair]:
        """Pairs that differ in one latent variable and so in their answers.

        Parameters
        ----------
        kind : str, optional
            One of ``kinds``, by default the first. `Pair.variable` says in what a pair differs.

        Raises
        ------
        TaskError
            No such kind, or too few such pairs.
        """
        kind = next(iter(self.kinds)) if kind is None else kind
        if kind not in self.kinds:
            raise TaskError(f"{self.name}: unknown kind of pair {kind!r}; one of {', '.join(self.kinds)}")
        if count < 1:
            raise TaskError(f"cannot draw {count} pairs of {self.name}; ask for at least 1")
        rng, found = generator(seed, self.size, split), list[Pair]()
        barren = 0
        for scenes in self._of_split(rng, 24 * count, split):
            changed, possible = self.vary(scenes, kind, rng)
            kept = possible & self.in_split(changed, split)
            sides = (self._instances(take(s, kept)) for s in (scenes, changed))
            found += [Pair(a, b) for a, b in zip(*sides, strict=True)]
            barren = 0 if kept.any() else barren + 1
            if len(found) >= count:
                break
            if barren == 1000:
                raise TaskError(f"{self}: only {len(found)} of {count} pairs of kind {kind!r} found in split {split!r}")
        return found[:count]

    def in_split(self, scenes: Scenes, split: Split) -> Bools:
        """Which scenes belong to a split: of ten parts, eight train, one validates, one tests. Shape (B,)."""
        part = hash_rows(self.shown(scenes)) % np.uint64(10)
        bounds = {"train": (0, 8), "val": (8, 9), "test": (9, 10)}[split]
        return np.asarray((part >= bounds[0]) & (part < bounds[1]))

    def labels(self, instances: Sequence[PuzzleInstance], latent_frames: int) -> dict[str, Label]:
        """Labels for probes, each of shape (B, F, n, n).

        A latent frame after the first covers several pixel frames: a boolean label holds where it holds in one of them,
        a number is their mean.
        """
        found = {}
        for name, (role, values) in self.maps(self._scenes(instances)).items():
            if values.ndim == 3:
                values = np.repeat(values[:, None], self.frames, axis=1)
            found[name] = Label(name, role, over_latent_frames(values, self.frames, latent_frames))
        return found

    def scene_labels(self, instances: Sequence[PuzzleInstance], latent_frames: int) -> dict[str, Label]:
        """Labels of the whole clip, of shape (B,), and of each latent frame, (B, F), pooled as in `labels`."""
        found = {}
        for name, (role, values, *names) in self.facts(self._scenes(instances)).items():
            values = over_latent_frames(values, self.frames, latent_frames) if values.ndim == 2 else values
            found[name] = Label(name, role, values, names=tuple(*names))
        return found

    def render(self, instances: Sequence[PuzzleInstance]) -> Video:
        """True videos: uint8 (B, T, height, width, 3)."""
        return paint(self.codes(self._scenes(instances)), self.side)

    def score(self, frames: Video, instances: PuzzleInstance | Sequence[PuzzleInstance]) -> PuzzleScores:
        """Score videos, uint8 (B, T, height, width, 3), one for each instance or several of one instance.

        Raises
        ------
        TaskError
            Videos of another size, type or number than the instances.
        """
        many = instance_of_each(frames, instances)
        check_pixels(self, frames, (len(many), self.frames, CELL * self.side, CELL * self.side, 3))
        return PuzzleScores(self.judge(read(frames, self.size), self._scenes(many)), self.weights)

    def answer_mask(self, pair: Pair) -> Bools:
        """Cells in which the true last frames differ and the first ones do not: bool (n, n).

        It is empty where only what was given differs in the end.
        """
        codes = self.codes(self._scenes(pair))
        return np.asarray((codes[0, -1] != codes[1, -1]) & (codes[0, 0] == codes[1, 0]))

    def read_answer(self, images: Video, instances: Sequence[PuzzleInstance]) -> Answers:
        """What pictures, uint8 (B, height, width, 3), show of the answer; see `drawn` for when one is drawn.

        Cells are marked whose glyph is not that of the first frame, with the glyph's number and 1.
        """
        codes, scenes = self._read(images, len(instances)), self._scenes(instances)
        new = (codes != self.codes(scenes)[:, 0]) & (codes != UNREADABLE)
        drawn = self.drawn(codes, scenes)
        return Answers(np.where(new, 1 + codes, 0), drawn, drawn & hold(self._judged(codes, scenes)))

    def judge_answer(self, images: Video, instances: Sequence[PuzzleInstance]) -> dict[str, Floats]:
        """The rules of `answer_rules` of what pictures show, each float (B,)."""
        return self._judged(self._read(images, len(instances)), self._scenes(instances))

    def _read(self, images: Video, count: int) -> Ints:
        """Glyph numbers of B pictures: int (B, n, n)."""
        check_pixels(self, images, (count, CELL * self.side, CELL * self.side, 3), "pictures")
        return read(images, self.size)

    def _judged(self, codes: Ints, scenes: Scenes) -> dict[str, Floats]:
        # The rules of the answer read the last frame alone.
        rules = self.judge(np.repeat(codes[:, None], self.frames, axis=1), scenes)
        return {rule: rules[rule] for rule in self.answer_rules}

    def floors(self, count: int = 100, seed: int = 0) -> pd.DataFrame:
        """Scores of the truth and of videos that cannot have solved it; see `dit_lens.tasks.floors.null_floors`."""
        return null_floors(self, count, seed)

    def describe(self) -> dict[str, Any]:
        """What the task is, as JSON types; see `dit_lens.tasks.describe.describe_task`."""
        return describe_task(self)

    def _of_split(self, rng: np.random.Generator, batch: int, split: Split) -> Iterator[Scenes]:
        """Endless scenes of a split; a hundred batches in a row without one are an error."""
        barren = 0
        while barren < 100:
            scenes = self.draw(rng, max(64, batch))
            scenes = take(scenes, self.in_split(scenes, split))
            barren = 0 if length(scenes) else barren + 1
            if length(scenes):
                yield scenes
        raise TaskError(f"{self}: a hundred draws held nothing of split {split!r}; there are too few such scenes")

    def _instances(self, scenes: Scenes) -> list[PuzzleInstance]:
        return [PuzzleInstance(self, take(scenes, slice(b, b + 1))) for b in range(length(scenes))]

    def _scenes(self, instances: Sequence[PuzzleInstance]) -> Scenes:
        if not instances:
            raise TaskError(f"{self.name}: no instances given")
        if any(getattr(i, "task", None) != self for i in instances):
            raise TaskError(f"{self}: the instances are of another task")
        return concatenate([i.scene for i in instances])
