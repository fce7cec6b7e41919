"""How well an organism solves its task, on held-out instances."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dit_lens.model import VideoDiT
from dit_lens.organisms.training.data import encode, to_tensor
from dit_lens.statistics import Interval, wilson
from dit_lens.tasks.maze import Maze


@dataclass(frozen=True)
class SizeResult:
    """Strict success on one board size.

    Attributes
    ----------
    strict : Interval
        Wilson's 95 % interval.
    rules : dict from rule name to the share of videos that satisfy it in full
    by_path_length : list of {low, high, strict, n}, over bins of the shortest path's length
    reconstruction : Interval
        Strict score of the true videos after a round trip through the autoencoder.
    seconds_per_sample : float
        Wall time of generation over samples, at the batch size used.
    """

    size: int
    default: bool
    n: int
    strict: Interval
    rules: dict[str, float]
    by_path_length: list[dict[str, Any]]
    reconstruction: Interval
    seconds_per_sample: float

    def __str__(self) -> str:
        mark = " (default)" if self.default else ""
        bins = ", ".join(f"{b['from']}-{b['to']}: {b['strict']:.2f} (n={b['n']})" for b in self.by_path_length)
        rules = ", ".join(f"{rule} {share:.2f}" for rule, share in self.rules.items())
        return (
            f"{self.size} x {self.size}{mark}: strict {self.strict}, n={self.n}; by path length {bins}; "
            f"rules in full {rules}; autoencoder alone {self.reconstruction}; "
            f"{self.seconds_per_sample:.2f} s per sample"
        )

    def to_json(self) -> dict[str, Any]:
        value, low, high = self.strict
        return {
            "size": self.size, "default": self.default, "strict": value, "low": low, "high": high, "n": self.n,
            "by_path_length": self.by_path_length, "rules": self.rules,
            "reconstruction": dict(self.reconstruction._asdict()), "seconds_per_sample": self.seconds_per_sample,
        }  # fmt: skip


def evaluate_maze(
    model: VideoDiT,
    sizes: tuple[int, ...] = (4, 5, 6),
    default: int = Maze.size,
    count: int = 300,
    seed: int = 0,
    batch: int = 20,
) -> list[SizeResult]:
    """Strict success on held-out mazes of every size, one video each."""
    return [_evaluate_size(model, Maze(size), size == default, count, seed, batch) for size in sizes]


def _evaluate_size(model: VideoDiT, task: Maze, default: bool, count: int, seed: int, batch: int) -> SizeResult:
    mazes = task.sample(count, seed=seed, split="test")
    videos, started = [], time.perf_counter()
    for i in tqdm(range(0, count, batch), desc=f"{task.size} x {task.size}", unit="batch"):
        part = mazes[i : i + batch]
        videos.append(model.run(part, seed=list(range(seed + i, seed + i + len(part)))).frames)
    seconds = (time.perf_counter() - started) / count
    scores = task.score(np.concatenate([v for v in videos if v is not None]), mazes)
    lengths = np.array([maze.length for maze in mazes])
    by_length = [_in_bin(scores.strict, lengths, low, low + 2) for low in (3, 6, 9, 12) if (lengths >= low).any()]
    return SizeResult(
        task.size, default, count, wilson(int(scores.strict.sum()), count),
        {rule: float((getattr(scores, rule) == 1).mean()) for rule in ("legal", "complete", "continuous", "walls")},
        by_length,
        _reconstruction(model, task, mazes), seconds,
    )  # fmt: skip


def _in_bin(strict: np.ndarray, lengths: np.ndarray, low: int, high: int) -> dict[str, Any]:
    inside = (lengths >= low) & (lengths <= high)
    value, least, most = wilson(int(strict[inside].sum()), int(inside.sum()))
    return {"from": low, "to": high, "strict": value, "low": least, "high": most, "n": int(inside.sum())}


@torch.no_grad()
def _reconstruction(model: VideoDiT, task: Maze, mazes: list[Any]) -> Interval:
    truth = np.stack([maze.video for maze in mazes])
    vae = model.pipeline.vae
    decoded = [
        model.decode(encode(vae, to_tensor(part).to(vae.device)))
        for part in np.array_split(truth, len(truth) // 20 + 1)
    ]
    return wilson(int(task.score(np.concatenate(decoded), mazes).strict.sum()), len(mazes))
