"""The maze task: instances, counterfactual pairs, labels, truth and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dit_lens.errors import TaskError
from dit_lens.tasks.base import Label
from dit_lens.tasks.maze import counterfactual
from dit_lens.tasks.maze.boards import (
    Boards,
    Bools,
    Split,
    concatenate,
    sample_boards,
    sample_paths,
)
from dit_lens.tasks.maze.labels import maze_labels
from dit_lens.tasks.maze.render import ANSWER, frame_sides, read_centres, render_video
from dit_lens.tasks.maze.scorer import Floats, MazeScores, judge_trails, score_videos

Video = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class MazeInstance:
    """One maze with a start, a goal, and one of its shortest paths.

    Attributes
    ----------
    task : Maze
    board : Boards of length 1
    path : tuple of int
        Cell numbers ``i * n + j`` from start to goal, the true answer that the video shows.
    """

    task: Maze
    board: Boards
    path: tuple[int, ...]
    prompt: ClassVar[str] = "draw the path from green to red"

    @cached_property
    def id(self) -> str:
        """A name that is the same for the same walls, start and goal."""
        b = self.board
        content = b"".join(x.tobytes() for x in (b.right, b.down, b.start, b.goal))
        return f"maze{b.size}-{hashlib.sha256(content).hexdigest()[:12]}"

    @property
    def video(self) -> Video:
        """The true video, uint8 of shape (T, height, width, 3)."""
        return np.asarray(render_video(self.board, np.array([self.path]), self.task.frames, self.task.speed)[0])

    @property
    def image(self) -> Image.Image:
        """The first frame, which the model is given."""
        return Image.fromarray(self.video[0])

    @property
    def length(self) -> int:
        """Moves on a shortest path."""
        return len(self.path) - 1

    def __repr__(self) -> str:
        return f"MazeInstance({self.id}, length={self.length})"


@dataclass(frozen=True)
class Maze:
    """Mazes of ``size`` x ``size`` cells of 8 x 8 pixels.

    Parameters
    ----------
    size : int, 2 to 16
        Cells a side. An odd board lies in the upper left of a picture one cell larger, so that sides divide by 16.
    frames : int
        Pixel frames T of the video, 1 + 4 k.
    lengths : (int, int), optional
        Shortest and longest path, in moves; drawn uniformly, so that difficulty is controlled. By default 3 to 3 n - 4,
        as far as the video is long enough: longer paths are rare on a board of that size.
    loops : float in [0, 1]
        Chance that a wall of the spanning tree is opened; loops give some mazes several shortest paths.
    speed : int
        Moves of the agent per frame in the true video.

    Raises
    ------
    TaskError
        Where no such maze exists or its walk does not fit the video.

    Examples
    --------
    >>> from dit_lens.tasks import Maze
    >>> maze = Maze(size=6).sample(1, seed=0)[0]
    >>> maze.video.shape
    (9, 48, 48, 3)
    >>> bool(Maze(size=6).score(maze.video[None], maze).strict[0])
    True
    """

    size: int = 5
    frames: int = 9
    lengths: tuple[int, int] | None = None
    loops: float = 0.1
    speed: int = 2
    name: ClassVar[str] = "maze"

    def __post_init__(self) -> None:
        low, high = self.path_lengths
        if not 2 <= self.size <= 16:
            raise TaskError(f"Maze(size={self.size}): size must be 2 to 16 cells")
        if self.frames < 5 or self.frames % 4 != 1:
            raise TaskError(f"Maze(frames={self.frames}): frames must be 1 + 4 k, such as 5, 9 or 13")
        # A path can wind through every cell. Lengths that exist but are too rare to draw are refused when drawing.
        limit = self.size**2 - 1
        if not 1 <= low <= high or low > limit:
            raise TaskError(f"Maze(lengths={self.lengths}): need 1 <= shortest <= longest and shortest <= {limit}")
        if high > self.speed * (self.frames - 1):
            most = self.speed * (self.frames - 1)
            raise TaskError(f"Maze(lengths={self.lengths}): a walk of {high} moves does not fit; at most {most}")
        if not 0 <= self.loops <= 1:
            raise TaskError(f"Maze(loops={self.loops}): loops is a chance, 0 to 1")

    @property
    def path_lengths(self) -> tuple[int, int]:
        """Shortest and longest path, in moves."""
        if self.lengths is not None:
            return self.lengths
        longest = max(1, min(self.speed * (self.frames - 1), 3 * self.size - 4))
        return min(3, longest), longest

    @property
    def side(self) -> int:
        """Cells a side of the picture, the margin of odd boards included."""
        return frame_sides(self.size)

    def sample(self, count: int, seed: int = 0, split: Split = "test") -> list[MazeInstance]:
        """Draw instances; splits share no wall layout, not even turned or mirrored."""
        rng = self._rng(seed, split)
        return self._instances(self.sample_boards(rng, count, split), rng)

    def sample_boards(self, rng: np.random.Generator, count: int, split: Split) -> Boards:
        """Draw ``count`` boards as arrays, without choosing paths."""
        if count < 1:
            raise TaskError(f"cannot sample {count} mazes; ask for at least 1")
        return sample_boards(rng, count, self.size, loops=self.loops, lengths=self.path_lengths, split=split)

    def sample_videos(self, rng: np.random.Generator, count: int, split: Split) -> Video:
        """True videos of fresh mazes for training: uint8 (B, T, height, width, 3)."""
        boards = self.sample_boards(rng, count, split)
        return render_video(boards, sample_paths(boards, rng), self.frames, self.speed)

    def pair(self, seed: int = 0, kind: str = "goal", split: Split = "test") -> tuple[MazeInstance, MazeInstance]:
        """One counterfactual pair, as `pairs` draws it."""
        return self.pairs(1, seed, kind, split)[0]

    def pairs(
        self, count: int, seed: int = 0, kind: str = "goal", split: Split = "test"
    ) -> list[tuple[MazeInstance, MazeInstance]]:
        """Pairs that differ in one thing.

        Parameters
        ----------
        kind : "goal" or "wall"
            "goal": same walls and start, the goal moved so that neither goal lies on a shortest path to the other.
            "wall": one wall opened or closed so that no old shortest path stays one. Both layouts are of ``split``.
        """
        if kind not in counterfactual.KINDS:
            raise TaskError(f"unknown kind of pair {kind!r}; one of {', '.join(counterfactual.KINDS)}")
        rng, found = self._rng(seed, split), []
        for board in self._stream(rng, split, limit=200 * count):
            changed = counterfactual.KINDS[kind](board, rng, self.path_lengths, split)
            if changed is not None:
                found.append((self._instances(board, rng)[0], self._instances(changed, rng)[0]))
            if len(found) == count:
                return found
        raise TaskError(f"{self}: only {len(found)} of {count} pairs of kind {kind!r} found; widen lengths or loops")

    def labels(
        self, instances: Sequence[MazeInstance], latent_frames: int, frames: Video | None = None
    ) -> dict[str, Label]:
        """Labels for probes, each of shape (B, F, n, n); with a run's ``frames`` also ``drawn``.

        See `dit_lens.tasks.maze.labels.maze_labels` for what each says.
        """
        boards = concatenate([i.board for i in instances])
        drawn = None if frames is None else self.score(frames, instances).trail
        paths = [i.path for i in instances]
        return maze_labels(boards, paths, latent_frames, self.frames, self.speed, drawn)

    def score(self, frames: Video, instances: MazeInstance | Sequence[MazeInstance]) -> MazeScores:
        """Score videos, uint8 (B, T, height, width, 3), one for each instance or several of one instance.

        Raises
        ------
        TaskError
            Videos of another size, type or number than the instances.
        """
        many = [instances] * len(frames) if isinstance(instances, MazeInstance) else list(instances)
        self._check_videos(frames, len(many))
        return score_videos(frames, concatenate([i.board for i in many]), self.speed)

    def read_answer(self, images: Video) -> Bools:
        """Cells that the last of the given frames (..., height, width, 3) shows as trail or agent: bool (..., n, n)."""
        return np.isin(read_centres(images, self.size), ANSWER)

    def judge_answer(self, answers: Bools, instances: Sequence[MazeInstance]) -> tuple[Floats, Floats]:
        """The rules *legal* and *complete* of answers (B, n, n) as `read_answer` gives them: two float arrays (B,)."""
        return judge_trails(answers, concatenate([i.board for i in instances]))

    def floors(self, count: int = 100, seed: int = 0) -> pd.DataFrame:
        """Scores of the truth and of two videos that know nothing: a frozen first frame, and uniform noise.

        Returns
        -------
        DataFrame with columns video, total, strict, n
        """
        instances = self.sample(count, seed)
        truth = np.stack([i.video for i in instances])
        noise = np.random.default_rng(seed).integers(0, 256, truth.shape, dtype=np.uint8)
        frozen = np.repeat(truth[:, :1], self.frames, axis=1)
        rows = []
        for name, video in (("truth", truth), ("frozen", frozen), ("noise", noise)):
            scores = self.score(video, instances)
            rows.append({"video": name, "total": scores.total.mean(), "strict": scores.strict.mean(), "n": count})
        return pd.DataFrame(rows)

    def _check_videos(self, frames: Video, count: int) -> None:
        expected = (count, self.frames, 8 * self.side, 8 * self.side, 3)
        if frames.dtype != np.uint8 or frames.shape != expected:
            raise TaskError(f"{self}: expected uint8 videos of shape {expected}, got {frames.dtype} {frames.shape}")

    def _rng(self, seed: int, split: Split) -> np.random.Generator:
        if split not in ("train", "val", "test"):
            raise TaskError(f"unknown split {split!r}; one of train, val, test")
        return np.random.default_rng([seed, self.size, ("train", "val", "test").index(split)])

    def _stream(self, rng: np.random.Generator, split: Split, limit: int) -> Iterator[Boards]:
        for _ in range(0, limit, 32):
            boards = self.sample_boards(rng, 32, split)
            yield from (boards[b : b + 1] for b in range(len(boards)))

    def _instances(self, boards: Boards, rng: np.random.Generator) -> list[MazeInstance]:
        made = []
        for b, walk in enumerate(sample_paths(boards, rng)):
            moves = int((np.diff(walk) != 0).sum())
            made.append(MazeInstance(self, boards[b : b + 1], tuple(int(c) for c in walk[: moves + 1])))
        return made
