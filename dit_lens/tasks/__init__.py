"""Reasoning tasks with exact truth: what to solve, what is in every cell, and whether a video solved it."""

from typing import Any

from dit_lens.errors import TaskError
from dit_lens.tasks import vbvr
from dit_lens.tasks.base import Instance, Label, Pair, Scores, Task, title_of
from dit_lens.tasks.maze import Maze, MazeInstance, MazeScores
from dit_lens.tasks.puzzles.move import Move
from dit_lens.tasks.puzzles.pattern import Pattern
from dit_lens.tasks.puzzles.permanence import Permanence
from dit_lens.tasks.puzzles.puzzle import Puzzle, PuzzleInstance, PuzzleScores
from dit_lens.tasks.puzzles.sort import Sort
from dit_lens.tasks.puzzles.tictactoe import TicTacToe

__all__ = [
    "TASKS",
    "Instance",
    "Label",
    "Maze",
    "MazeInstance",
    "MazeScores",
    "Move",
    "Pair",
    "Pattern",
    "Permanence",
    "Puzzle",
    "PuzzleInstance",
    "PuzzleScores",
    "Scores",
    "Sort",
    "Task",
    "TicTacToe",
    "task_named",
    "title_of",
    "vbvr",
]

#: Every task by its name.
TASKS: dict[str, Any] = {task.name: task for task in (Maze, Move, Pattern, Permanence, Sort, TicTacToe)}


def task_named(name: str, frames: int = 9) -> Task:
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
    task: Task = TASKS[kind](frames=frames, **options)
    return task
