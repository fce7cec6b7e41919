"""The maze task: instances, counterfactual pairs, labels, truth and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from dit_lens.errors import TaskError
from dit_lens.files.video import Video
from dit_lens.results.arrays import Bools, Floats, Ints
from dit_lens.tasks.answers import Answers, hold
from dit_lens.tasks.base import (
    Label,
    Pair,
    Split,
    check_frames,
    check_pixels,
    generator,
    instance_of_each,
)
from dit_lens.tasks.describe import describe_task
from dit_lens.tasks.floors import null_floors
from dit_lens.tasks.maze import counterfactual
from dit_lens.tasks.maze.alive import paths_alive
from dit_lens.tasks.maze.boards import (
    Boards,
    concatenate,
    sample_boards,
    sample_paths,
    shortest_path_cells,
)
from dit_lens.tasks.maze.instance import MazeInstance, prompts
from dit_lens.tasks.maze.labels import MAIN_LABELS, maze_labels, maze_scene_labels
from dit_lens.tasks.maze.render import (
    ANSWER,
    CELL,
    GOAL_NAMES,
    GOALS,
    START,
    UNREADABLE,
    frame_sides,
    read_centres,
    read_rings,
    render_video,
    rings,
)
from dit_lens.tasks.maze.scorer import WEIGHTS, MazeScores, judge_trails, score_videos


@dataclass(frozen=True)
class Maze:
    """The path from green to red through a maze; of two goals the prompt says which.

    Parameters
    ----------
    size : int, 2 to 16
        Cells a side, of 8 x 8 pixels. An odd board lies in the upper left of a picture one cell larger, so that sides
        divide by 16.
    frames : int
        Pixel frames T of the video, 1 + 4 k.
    lengths : (int, int), optional
        Shortest and longest path, in moves; drawn uniformly, so that difficulty is controlled. By default 3 to 3 n - 4,
        as far as the video is long enough: longer paths are rare on a board of that size.
    loops : float in [0, 1]
        Chance that a wall of the spanning tree is opened; loops give some mazes several shortest paths.
    speed : int
        Moves of the agent per frame in the true video.
    goals : 1 or 2
        With two goals, red and purple, the prompt says which one to draw the path to. Neither lies on a shortest path
        to the other, and ``lengths`` holds for both; the longest ways are rarer than with one goal, since a board must
        have room for two.

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
    >>> pair = Maze(size=6, goals=2).pair(seed=0)
    >>> pair.original.prompt, pair.counterfactual.prompt, pair.variable
    ('draw the path from green to purple', 'draw the path from green to red', 'named')
    """

    size: int = 5
    frames: int = 9
    lengths: tuple[int, int] | None = None
    loops: float = 0.1
    speed: int = 2
    goals: int = 1
    name: ClassVar[str] = "maze"
    weights: ClassVar[Mapping[str, float]] = WEIGHTS
    cell: ClassVar[int] = CELL
    main_labels: ClassVar[Mapping[str, tuple[str, ...]]] = MAIN_LABELS
    answer_label: ClassVar[str] = "on_path"
    #: The features come with the verdict that needs them.
    search_free: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self) -> None:
        low, high = self.path_lengths
        if not 2 <= self.size <= 16:
            raise TaskError(f"Maze(size={self.size}): size must be 2 to 16 cells")
        check_frames("Maze", self.frames)
        if self.goals not in (1, 2):
            raise TaskError(f"Maze(goals={self.goals}): a maze has 1 or 2 goals")
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
    def title(self) -> str:
        return "maze" if self.goals == 1 else "two-goal maze"

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

    @property
    def kinds(self) -> dict[str, str]:
        """Kinds of counterfactual pairs, the default first, and the variable that each changes."""
        if self.goals == 1:
            return {"goal": "goal", "wall": "walls"}
        return {"prompt": "named", "goal": "goals", "wall": "walls"}

    def sample(self, count: int, seed: int = 0, split: Split = "test") -> list[MazeInstance]:
        """Draw instances; splits share no wall layout, not even turned or mirrored."""
        rng = generator(seed, self.size, split)
        return self._instances(self.sample_boards(rng, count, split), rng)

    def sample_boards(self, rng: np.random.Generator, count: int, split: Split) -> Boards:
        """Draw ``count`` boards as arrays, without choosing paths."""
        if count < 1:
            raise TaskError(f"cannot sample {count} mazes; ask for at least 1")
        return sample_boards(
            rng, count, self.size, loops=self.loops, lengths=self.path_lengths, split=split, goals=self.goals
        )

    def sample_videos(self, rng: np.random.Generator, count: int, split: Split) -> tuple[Video, list[str]]:
        """True videos of fresh mazes for training, uint8 (B, T, height, width, 3), and their prompts."""
        boards = self.sample_boards(rng, count, split)
        return render_video(boards, sample_paths(boards, rng), self.frames, self.speed), prompts(boards)

    def pair(self, seed: int = 0, kind: str | None = None, split: Split = "test") -> Pair:
        """One counterfactual pair, as `pairs` draws it."""
        return self.pairs(1, seed, kind, split)[0]

    def pairs(self, count: int, seed: int = 0, kind: str | None = None, split: Split = "test") -> list[Pair]:
        """Pairs that differ in one latent variable and so in their answers.

        Parameters
        ----------
        kind : "prompt", "goal" or "wall", by default the first of ``kinds``
            "prompt": same picture with two goals, the prompt names the other one.
            "goal": same walls and start, the goal moved so that neither goal lies on a shortest path to the other. Of
            two goals it is the named one that moves.
            "wall": one wall opened or closed so that no old shortest path stays one. Both layouts are of ``split``.
        """
        kind = next(iter(self.kinds)) if kind is None else kind
        if kind not in self.kinds:
            raise TaskError(f"{self}: unknown kind of pair {kind!r}; one of {', '.join(self.kinds)}")
        if count < 1:
            raise TaskError(f"cannot draw {count} pairs of mazes; ask for at least 1")
        rng, found = generator(seed, self.size, split), list[Pair]()
        for board in self._stream(rng, split, limit=200 * count):
            changed = counterfactual.KINDS[kind](board, rng, self.path_lengths, split)
            if changed is not None:
                found.append(Pair(self._instances(board, rng)[0], self._instances(changed, rng)[0]))
            if len(found) == count:
                return found
        raise TaskError(f"{self}: only {len(found)} of {count} pairs of kind {kind!r} found; widen lengths or loops")

    def render(self, instances: Sequence[MazeInstance]) -> Video:
        """True videos: uint8 (B, T, height, width, 3)."""
        boards, longest = self._boards(instances), max(len(i.path) for i in instances)
        # A walk that has arrived stays at its goal.
        walks = np.array([(*i.path, *i.path[-1:] * (longest - len(i.path))) for i in instances])
        return render_video(boards, walks, self.frames, self.speed)

    def labels(self, instances: Sequence[MazeInstance], latent_frames: int) -> dict[str, Label]:
        """Labels for probes, each of shape (B, F, n, n).

        See `dit_lens.tasks.maze.labels.maze_labels` for what each says.
        """
        boards, paths = self._boards(instances), [i.path for i in instances]
        return maze_labels(boards, paths, latent_frames, self.frames, self.speed)

    def scene_labels(self, instances: Sequence[MazeInstance], latent_frames: int) -> dict[str, Label]:
        """Labels of the whole clip and of each latent frame; see `dit_lens.tasks.maze.labels.maze_scene_labels`."""
        boards, paths = self._boards(instances), [i.path for i in instances]
        return maze_scene_labels(boards, paths, latent_frames, self.frames, self.speed)

    def score(self, frames: Video, instances: MazeInstance | Sequence[MazeInstance]) -> MazeScores:
        """Score videos, uint8 (B, T, height, width, 3), one for each instance or several of one instance.

        Raises
        ------
        TaskError
            Videos of another size, type or number than the instances.
        """
        many = instance_of_each(frames, instances)
        check_pixels(self, frames, (len(many), self.frames, *self._picture))
        return score_videos(frames, self._boards(many), self.speed)

    def answer_mask(self, pair: Pair) -> Bools:
        """Cells on a shortest path of one side only and no goal of either: bool (n, n)."""
        boards = self._boards(pair)
        goals = np.isin(rings(boards), GOALS).any(axis=0)
        return np.asarray(np.logical_xor(*shortest_path_cells(boards)) & ~goals)

    def read_answer(self, images: Video, instances: Sequence[MazeInstance]) -> Answers:
        """What pictures, uint8 (B, height, width, 3), show of the path: cells of trail or agent are marked 1.

        A path is drawn where the centre of every cell is readable and at least two cells are marked.
        """
        centres = self._centres(images, instances)
        trail = np.isin(centres, ANSWER)
        drawn = (centres != UNREADABLE).all(axis=(1, 2)) & (trail.sum(axis=(1, 2)) >= 2)
        return Answers(trail.astype(np.int64), drawn, drawn & hold(self._judged(trail, instances)))

    def judge_answer(self, images: Video, instances: Sequence[MazeInstance]) -> dict[str, Floats]:
        """The rules *legal* and *complete* of the paths that pictures show, each float (B,)."""
        return self._judged(np.isin(self._centres(images, instances), ANSWER), instances)

    def read_given(self, images: Video, instances: Sequence[MazeInstance]) -> dict[str, Bools]:
        """Whether pictures draw start and goals where they are, by the names of their labels: bool (B,) each."""
        boards, here = self._boards(instances), np.arange(len(instances))
        check_pixels(self, images, (len(instances), *self._picture), "pictures")
        shown = read_rings(images, self.size, self.goals)
        names = ["goal"] if self.goals == 1 else [f"goal_{name}" for name in GOAL_NAMES]
        goals = zip(GOALS, np.moveaxis(boards.goals, 1, 0), strict=False)
        ends = {"start": (START, boards.start)} | dict(zip(names, goals, strict=True))
        return {name: shown[here, cell[:, 0], cell[:, 1]] == code for name, (code, cell) in ends.items()}

    def alive(self, images: Video, instances: Sequence[MazeInstance]) -> dict[str, Floats]:
        """How many paths pictures show at once, each float (S, B).

        *Ink* is how much of trail or agent a cell shows. "branches" are the connected sets of inked cells off the trail
        of the last picture from which a legal move leads onto it. "alive" is 1, for the trail, and one for each branch;
        it is 0 where fewer than two cells are inked. With two goals it counts those that are reached through inked
        cells. "undecided" counts cells that are neither empty nor inked.

        Parameters
        ----------
        images : uint8 array of shape (S, B, height, width, 3)
            Last frames of the instances at S steps, the final one last.
        """
        return paths_alive(self, images, list(instances))

    def floors(self, count: int = 100, seed: int = 0) -> pd.DataFrame:
        """Scores of the truth and of videos that cannot have solved it; see `dit_lens.tasks.floors.null_floors`."""
        return null_floors(self, count, seed)

    def describe(self) -> dict[str, Any]:
        """What the task is, as JSON types; see `dit_lens.tasks.describe.describe_task`."""
        return describe_task(self) | {"goals": self.goals}

    @property
    def _picture(self) -> tuple[int, int, int]:
        """Shape of a frame: (height, width, 3)."""
        return CELL * self.side, CELL * self.side, 3

    def _centres(self, images: Video, instances: Sequence[MazeInstance]) -> Ints:
        """Who is in each cell of B pictures: int (B, n, n)."""
        check_pixels(self, images, (len(instances), *self._picture), "pictures")
        return read_centres(images, self.size, self.goals)

    def _judged(self, trail: Bools, instances: Sequence[MazeInstance]) -> dict[str, Floats]:
        return dict(zip(("legal", "complete"), judge_trails(trail, self._boards(instances)), strict=True))

    def _boards(self, instances: Sequence[MazeInstance]) -> Boards:
        if not instances:
            raise TaskError(f"{self}: no mazes given")
        if not all(isinstance(i, MazeInstance) for i in instances):
            raise TaskError(f"{self}: the instances are of another task")
        found = {(i.board.size, i.board.goals.shape[1]) for i in instances}
        if found != {(self.size, self.goals)}:
            raise TaskError(f"{self}: the mazes are of other (size, goals): {sorted(found)}")
        return concatenate([i.board for i in instances])

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
