"""Reasoning tasks with exact truth: what to solve, what is in every cell, and whether a video solved it."""

from dit_lens.tasks.base import Instance, Label, Pair, Scores, Task
from dit_lens.tasks.maze import Maze, MazeInstance, MazeScores
from dit_lens.tasks.permanence import Permanence
from dit_lens.tasks.puzzle import Puzzle, PuzzleInstance, PuzzleScores

__all__ = [
    "Instance",
    "Label",
    "Maze",
    "MazeInstance",
    "MazeScores",
    "Pair",
    "Permanence",
    "Puzzle",
    "PuzzleInstance",
    "PuzzleScores",
    "Scores",
    "Task",
]
