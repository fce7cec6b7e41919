"""Timing in pairs: rounds in random order, a ratio for every round, its median and interval."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import bootstrap_weights, percentile_interval
from tests.benchmarks.cases import Case, Side
from tests.benchmarks.memory import peak_bytes

REPLICATES = 2000
#: With fewer rounds not even their two extremes are a 95 % interval of the median: 2 / 2**n > 0.05.
ENOUGH = 6


@dataclass(frozen=True)
class Ratio:
    """Median of the rounds' ratios with its bootstrap 95 % interval, and how far the rounds spread."""

    median: float
    low: float
    high: float
    quartiles: tuple[float, float]
    extremes: tuple[float, float]
    rounds: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        values = np.asarray(ratios, dtype=np.float64)
        interval = percentile_interval(_medians(values))
        q25, q75 = np.percentile(values, [25, 75])
        return cls(*interval, (float(q25), float(q75)), (float(values.min()), float(values.max())), len(values))

    def verdict(self, limit: float | None) -> str:
        """ "holds" or "exceeded" where enough rounds and the whole interval say so, else "open"; "" without a limit."""
        if limit is None or self.rounds < ENOUGH:
            return "" if limit is None else "open"
        return "holds" if self.high <= limit else "exceeded" if self.low > limit else "open"


def _medians(values: Floats) -> Floats:
    """Median of the sample and of its bootstrap replicates: float of shape (replicates + 1,)."""
    weights = bootstrap_weights(len(values), REPLICATES, seed=0).astype(np.int64)
    return np.array([np.median(np.repeat(values, counts)) for counts in weights])


@dataclass
class Timing:
    """Seconds of the two sides of a case, one pair a round: on the wall, and of this process's processors."""

    case: Case
    wall: list[tuple[float, float]] = field(default_factory=list)
    processor: list[tuple[float, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        """JSON types."""
        ratio, processor = (Ratio.of([a / b for a, b in pairs]) for pairs in (self.wall, self.processor))
        medians = [float(np.median(side)) for side in zip(*self.wall, strict=True)]
        return {
            "case": self.case.name, "measured": self.case.measured, "against": self.case.against,
            "limit": self.case.limit, "verdict": ratio.verdict(self.case.limit), "ratio": vars(ratio),
            "processor ratio": vars(processor), "median seconds": medians, "seconds": self.wall,
            "processor seconds": self.processor, "facts": self.facts, "memory": self.memory,
        }  # fmt: skip


def compare(cases: Sequence[Case], rounds: int, *, seed: int = 0, device: str = "cpu",
            tell: Callable[[str], None] = lambda text: None) -> list[Timing]:  # fmt: skip
    """Time all cases.

    Each side runs once before, untimed, which also gives the facts. Then in every round the cases come in random order,
    and in every case the two sides, one right after the other, so that a change of the machine's load meets both.
    """
    timings = {case.name: Timing(case, facts=_facts(case)) for case in cases}
    tell("facts")
    with imports_frozen():
        peaks: dict[Side, int] = {}
        for case in (case for case in cases if case.weighed):
            timings[case.name].memory = _memory(case, device, peaks)
        tell("memory")
        _time(timings, rounds, random.Random(seed), device, tell)
    return list(timings.values())


@contextmanager
def imports_frozen() -> Iterator[None]:
    """Keep Python's collector from the objects that imports leave: a pass over them takes as long as a small video."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _time(
    timings: Mapping[str, Timing], rounds: int, order: random.Random, device: str, tell: Callable[[str], None]
) -> None:
    for number in range(rounds):
        for timing in order.sample(list(timings.values()), len(timings)):
            wall, processor = _pair(timing.case, order, device)
            timing.wall.append(wall)
            timing.processor.append(processor)
        tell(f"round {number + 1} of {rounds}")


def _facts(case: Case) -> dict[str, Any]:
    measured, against = case.sides
    return case.facts(measured(), against())


def _memory(case: Case, device: str, peaks: dict[Side, int]) -> dict[str, int]:
    """Peak of the measured side, and how far it is above the others; a side that two cases share is run once."""
    for side in (case.sides[0], *case.weighed.values()):
        if side not in peaks:
            peaks[side] = peak_bytes(side, device)
    peak = peaks[case.sides[0]]
    return {"peak": peak, **{f"above {name}": peak - peaks[side] for name, side in case.weighed.items()}}


def _pair(case: Case, order: random.Random, device: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both sides in random order: (measured, against) on the wall, and of the processors."""
    seconds = {i: _timed(case.sides[i], device) for i in order.sample([0, 1], 2)}
    return (seconds[0][0], seconds[1][0]), (seconds[0][1], seconds[1][1])


def _timed(side: Side, device: str) -> tuple[float, float]:
    gc.collect()
    _synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    outcome = side()
    _synchronize(device)
    taken = time.perf_counter() - wall, time.process_time() - processor
    del outcome  # not before the clock has stopped
    return taken


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
