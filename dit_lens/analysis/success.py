"""How well an organism solves its tasks on held-out instances, and whether it reads its prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from dit_lens.model import VideoDiT
from dit_lens.organisms.training.data import encode, to_tensor
from dit_lens.results.intervals import Interval, wilson

#: A task counts as solved only where the lower end of its normalised score is above this.
CLAIM = 0.3


@dataclass(frozen=True)
class TaskResult:
    """Strict success on one task.

    Attributes
    ----------
    strict : Interval
        Wilson's 95 % interval of the share of n videos that are strictly right.
    floor : float
        The highest strict success of a video that cannot have solved it; see `dit_lens.tasks.floors.null_floors`.
    score : float
        Mean partial score.
    rules : dict from rule name to the share of videos that satisfy it in full
    by_steps : list of {from, to, strict, low, high, n}, over bins of the number of steps that a solution needs
    reconstruction : Interval
        Strict score of the true videos after a round trip through the autoencoder.
    seconds_per_sample : float
        Wall time of generation over samples, at the batch size used.
    """

    task: str
    size: int
    n: int
    strict: Interval
    floor: float
    score: float
    rules: dict[str, float]
    by_steps: list[dict[str, Any]]
    reconstruction: Interval
    seconds_per_sample: float

    @property
    def normalised(self) -> Interval:
        """(strict - floor) / (1 - floor)."""
        return Interval(*((x - self.floor) / (1 - self.floor) for x in self.strict))

    @property
    def claimed(self) -> bool:
        return self.normalised.low > CLAIM

    def __str__(self) -> str:
        bins = ", ".join(f"{b['from']}-{b['to']}: {b['strict']:.2f} (n={b['n']})" for b in self.by_steps)
        rules = ", ".join(f"{rule} {share:.2f}" for rule, share in self.rules.items())
        return (
            f"{self.task} {self.size} x {self.size}: strict {self.strict}, n={self.n}, floor {self.floor:.3f}"
            f"{'' if self.claimed else ' (not claimed)'}; mean score {self.score:.3f}; by steps {bins}; rules in full "
            f"{rules}; autoencoder alone {self.reconstruction}; {self.seconds_per_sample:.2f} s per sample"
        )

    def to_json(self) -> dict[str, Any]:
        value, low, high = self.strict
        return asdict(self) | {
            "strict": value,
            "low": low,
            "high": high,
            "claimed": self.claimed,
            "normalised": dict(self.normalised._asdict()),
            "reconstruction": dict(self.reconstruction._asdict()),
        }


@dataclass(frozen=True)
class SwapResult:
    """What happens when only the prompt is exchanged for its counterfactual.

    Attributes
    ----------
    original, swapped : Interval
        Strict success, judged by the original problem, with the original prompt and with the other one.
    followed : Interval
        Strict success of the videos with the other prompt, judged by the other problem.
    """

    task: str
    kind: str
    n: int
    original: Interval
    swapped: Interval
    followed: Interval

    def __str__(self) -> str:
        return (
            f"{self.task}, prompt exchanged ({self.kind}): the original answer {self.original} -> {self.swapped}, "
            f"the other answer {self.followed}, n={self.n}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {k: dict(getattr(self, k)._asdict()) for k in ("original", "swapped", "followed")}


@dataclass(frozen=True)
class GuidanceResult:
    """Strict success at several guidance scales, over the same instances and seeds.

    Attributes
    ----------
    strict : dict from guidance scale to Interval
    changed : dict from guidance scale to the share of videos that differ in a pixel by more than a tenth of its range
        from those at scale 1
    """

    task: str
    n: int
    strict: dict[float, Interval]
    changed: dict[float, float]

    def __str__(self) -> str:
        scales = "; ".join(f"{s:g}: {v} ({self.changed[s]:.2f} changed)" for s, v in self.strict.items())
        return f"{self.task}, guidance {scales}, n={self.n}"

    def to_json(self) -> dict[str, Any]:
        strict = {str(scale): dict(v._asdict()) for scale, v in self.strict.items()}
        return {
            "task": self.task,
            "n": self.n,
            "strict": strict,
            "changed": {str(s): v for s, v in self.changed.items()},
        }


def evaluate(
    model: VideoDiT, tasks: Sequence[Any], count: int = 300, seed: int = 0, batch: int = 20
) -> list[TaskResult]:
    """Strict success on held-out instances of every task, one video each."""
    return [_evaluate(model, task, count, seed, batch) for task in tasks]


def _evaluate(model: VideoDiT, task: Any, count: int, seed: int, batch: int) -> TaskResult:
    instances = task.sample(count, seed=seed, split="test")
    started = time.perf_counter()
    videos = generate(model, instances, seed, batch)
    seconds = (time.perf_counter() - started) / count
    scores = task.score(videos, instances)
    nulls = task.floors(count, seed).query("video != 'truth'")
    return TaskResult(
        task=task.title,
        size=task.size,
        n=count,
        strict=wilson(int(scores.strict.sum()), count),
        floor=float(nulls["strict"].max()),
        score=float(scores.total.mean()),
        rules={rule: float((values == 1).mean()) for rule, values in scores.rules.items()},
        by_steps=_by_steps(scores.strict, np.array([i.steps for i in instances])),
        reconstruction=_reconstruction(model, task, instances),
        seconds_per_sample=seconds,
    )


def exchange_prompts(
    model: VideoDiT, task: Any, kind: str, count: int = 300, seed: int = 0, batch: int = 20
) -> SwapResult:
    """Run pairs that differ in the prompt alone: the picture and the noise of the original, the words of the other."""
    pairs = task.pairs(count, seed, kind, split="test")
    originals, others = [pair.original for pair in pairs], [pair.counterfactual for pair in pairs]
    clean, swapped = (generate(model, side, seed, batch) for side in (originals, others))
    judged = ((clean, originals), (swapped, originals), (swapped, others))
    rates = [wilson(int(task.score(videos, by).strict.sum()), count) for videos, by in judged]
    return SwapResult(task.title, kind, count, *rates)


def prompt_kinds(task: Any) -> list[str]:
    """The kinds of pairs whose two pictures are the same: only the prompt tells them apart."""
    pairs = {kind: task.pair(0, kind) for kind in task.kinds}
    return [k for k, p in pairs.items() if np.array_equal(p.original.video[0], p.counterfactual.video[0])]


def compare_guidance(
    model: VideoDiT,
    task: Any,
    scales: Sequence[float] = (1.0, 2.0, 4.0),
    count: int = 100,
    seed: int = 0,
    batch: int = 20,
) -> GuidanceResult:
    """Strict success at each guidance scale, over the same instances and seeds."""
    instances = task.sample(count, seed=seed, split="test")
    videos = {s: generate(model, instances, seed, batch, guidance_scale=s) for s in scales}
    strict = {s: wilson(int(task.score(v, instances).strict.sum()), count) for s, v in videos.items()}
    plain = videos[scales[0]].astype(np.int64)
    changed = {s: float((np.abs(v - plain) > 25).any(axis=(1, 2, 3, 4)).mean()) for s, v in videos.items()}
    return GuidanceResult(task.title, count, strict, changed)


def generate(model: VideoDiT, instances: Sequence[Any], seed: int, batch: int, **options: Any) -> NDArray[np.uint8]:
    """Videos of instances, uint8 (B, T, height, width, 3); instance i runs with seed ``seed + i``."""
    videos = []
    for i in tqdm(range(0, len(instances), batch), desc=instances[0].task.title, unit="batch"):
        part = list(instances[i : i + batch])
        frames = model.run(part, seed=list(range(seed + i, seed + i + len(part))), **options).frames
        assert frames is not None
        videos.append(frames)
    return np.concatenate(videos)


def _by_steps(strict: NDArray[np.bool_], steps: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Strict success by the number of necessary steps, three to a bin."""
    found = []
    for low in range(3 * (int(steps.min()) // 3), int(steps.max()) + 1, 3):
        inside = (steps >= low) & (steps < low + 3)
        value, least, most = wilson(int(strict[inside].sum()), int(inside.sum()))
        if inside.any():
            row = {"from": low, "to": low + 2, "strict": value, "low": least, "high": most, "n": int(inside.sum())}
            found.append(row)
    return found


@torch.no_grad()
def _reconstruction(model: VideoDiT, task: Any, instances: Sequence[Any]) -> Interval:
    truth = task.render(instances)
    vae = model.pipeline.vae
    decoded = [
        model.decode(encode(vae, to_tensor(part).to(vae.device)))
        for part in np.array_split(truth, len(truth) // 20 + 1)
    ]
    return wilson(int(task.score(np.concatenate(decoded), instances).strict.sum()), len(instances))
