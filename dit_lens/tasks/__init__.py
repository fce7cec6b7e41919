"""Reasoning tasks with exact truth: what to solve, what is in every cell, and whether a video solved it."""

from dit_lens.tasks.base import Instance, Label, Scores, Task
from dit_lens.tasks.maze import Maze, MazeInstance, MazeScores

__all__ = ["Instance", "Label", "Maze", "MazeInstance", "MazeScores", "Scores", "Task"]
