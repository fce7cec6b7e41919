"""Reasoning tasks with exact truth: what to solve, what is in every cell, and whether a video solved it."""

from collections.abc import Callable

from dit_lens.errors import TaskError
from dit_lens.tasks import vbvr
from dit_lens.tasks.answers import Answers, agreement
from dit_lens.tasks.base import Instance, Label, Pair, Problem, Scores, Task
from dit_lens.tasks.evidence import EVIDENCE, BoardTask, Evidence, declared, declares, require
from dit_lens.tasks.maze import Maze, MazeInstance, MazeScores
from dit_lens.tasks.own import Input, Labelled, Pairs
from dit_lens.tasks.puzzles.move import Move
from dit_lens.tasks.puzzles.pattern import Pattern
from dit_lens.tasks.puzzles.permanence import Permanence
from dit_lens.tasks.puzzles.puzzle import Puzzle, PuzzleInstance, PuzzleScores
from dit_lens.tasks.puzzles.sort import Sort
from dit_lens.tasks.puzzles.tictactoe import TicTacToe

__all__ = [
    "EVIDENCE",
    "TASKS",
    "Answers",
    "BoardTask",
    "Evidence",
    "Input",
    "Instance",
    "Label",
    "Labelled",
    "Maze",
    "MazeInstance",
    "MazeScores",
    "Move",
    "Pair",
    "Pairs",
    "Pattern",
    "Permanence",
    "Problem",
    "Puzzle",
    "PuzzleInstance",
    "PuzzleScores",
    "Scores",
    "Sort",
    "Task",
    "TicTacToe",
    "agreement",
    "declared",
    "declares",
    "require",
    "task_named",
    "vbvr",
]

#: Every task by its name.
TASKS: dict[str, Callable[..., BoardTask]] = {
    task.name: task for task in (Maze, Move, Pattern, Permanence, Sort, TicTacToe)
}


def task_named(name: str, frames: int = 9) -> BoardTask:
    """A task by a short name.

    Parameters
    ----------
    name : str
        "maze", or with its size "maze:6"; "two-goal maze:4" has two goals.

    Raises
    ------
    TaskError
        No such task; the message names those there are.
    """
    kind, _, size = name.partition(":")
    options = {"size": int(size)} if size.isdecimal() else {}
    if kind.startswith("two-goal "):
        kind, options = kind.removeprefix("two-goal "), options | {"goals": 2}
    if kind not in TASKS or (size and not size.isdecimal()) or ("goals" in options and kind != "maze"):
        raise TaskError(f"no task is named {name!r}; there are {', '.join(TASKS)}, such as 'maze:6' or 'two-goal maze'")
    return TASKS[kind](frames=frames, **options)
