"""Mazes: find the way from green to red without crossing a wall."""

from dit_lens.tasks.maze.instance import MazeInstance
from dit_lens.tasks.maze.scorer import MazeScores
from dit_lens.tasks.maze.task import Maze

__all__ = ["Maze", "MazeInstance", "MazeScores"]
