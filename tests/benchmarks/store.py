"""The write rate of a store against a plain sequential write of the same bytes: ``python -m tests.benchmarks.store``.

Each round writes one after the other, in random order and each to a folder of its own, the same runs through a store
(hashed, renamed, with a manifest) and plainly: one file a run, opened without a buffer, written tensor after
tensor, synced. Both sides wait until every file is on the disk (fsync). The ratio of the rates is paired within a
round, and it must be at least 0.8. Before each round what is still on its way to the disk is waited for.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit_lens.runs.inputs import Row
from dit_lens.store.shard import raw
from dit_lens.store.store import Store
from tests.benchmarks.machine import machine
from tests.benchmarks.measure import Ratio

#: The share of a plain write's rate that a store must reach.
LIMIT = 0.8

Run = Mapping[str, Tensor]


@dataclass(frozen=True)
class Written:
    """Rates of every round in bytes per second, and whether the store gave back what it was given."""

    size: int
    store: list[float]
    plain: list[float]
    same: bool

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.store, self.plain, strict=True)]

    def interval(self) -> tuple[float, float, float]:
        """Median of the paired ratios, with the ends of its 95 % bootstrap interval over the rounds."""
        ratio = Ratio.of(self.ratios)
        return ratio.median, ratio.low, ratio.high


def made(runs: int, sites: int, values: int) -> list[Run]:
    """Runs of random activations, bfloat16 as a large model's are."""
    generator = torch.Generator().manual_seed(0)
    names = [f"s{k // 40:02d}/cond/L{k % 40:02d}/resid/video" for k in range(sites)]
    return [
        {name: torch.randn(1, values, generator=generator).to(torch.bfloat16) for name in names} for _ in range(runs)
    ]


def through_store(folder: Path, runs: Sequence[Run]) -> None:
    with Store(folder) as store:
        for number, captures in enumerate(runs):
            store.add(captures, f"{number}", rows=[Row(f"{number}", 0)])


def plainly(folder: Path, runs: Sequence[Run]) -> None:
    folder.mkdir()
    for number, captures in enumerate(runs):
        with (folder / f"{number}").open("wb", buffering=0) as file:
            for tensor in captures.values():
                data = raw(tensor)
                while len(data):
                    data = data[file.write(data) :]
            os.fsync(file.fileno())


def seconds(write: object, folder: Path, runs: Sequence[Run]) -> float:
    """Of one side in a new folder, which is removed."""
    os.sync()
    started = time.perf_counter()
    write(folder, runs)  # type: ignore[operator]
    taken = time.perf_counter() - started
    shutil.rmtree(folder)
    return taken


def compare(runs: Sequence[Run], rounds: int, folder: Path, seed: int = 0) -> Written:
    """Write the runs both ways, round after round, the first round not counted."""
    rng, size = random.Random(seed), sum(t.nbytes for captures in runs for t in captures.values())
    taken: dict[str, list[float]] = {"store": [], "plain": []}
    for _ in range(rounds + 1):
        sides = [("store", through_store), ("plain", plainly)]
        for name, write in rng.sample(sides, 2):
            taken[name].append(seconds(write, folder / name, runs))
    rates = {name: [size / s for s in times[1:]] for name, times in taken.items()}
    return Written(size, rates["store"], rates["plain"], _same(runs, folder / "checked"))


def _same(runs: Sequence[Run], folder: Path) -> bool:
    through_store(folder, runs)
    store = Store(folder)
    same = all(torch.equal(store[site].tensor(), torch.cat([r[str(site)] for r in runs])) for site in store.sites())
    shutil.rmtree(folder)
    return same


def table(result: Written, runs: int, sites: int) -> str:
    median, low, high = result.interval()
    verdict = "holds" if low >= LIMIT else "open" if high >= LIMIT else "missed"
    host = machine()
    rates = {name: np.median(rate) / 1e6 for name, rate in (("store", result.store), ("plain", result.plain))}
    return "\n".join([
        f"{runs} runs of {sites} sites, {result.size / 1e6:.0f} MB in all, fsync on both sides, read back the same: "
        f"{result.same}",
        f"{host['processor']}, {host['cores']} cores, {host['threads']} threads, load {host['load'][0]}, "
        f"{len(result.store)} rounds, {time.strftime('%Y-%m-%d')}",
        f"store {rates['store']:.0f} MB/s, plain {rates['plain']:.0f} MB/s (medians)",
        f"paired ratio {median:.3f}, 95 % interval [{low:.3f}, {high:.3f}], rounds {min(result.ratios):.3f} to "
        f"{max(result.ratios):.3f}, limit {LIMIT}: {verdict}",
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where the store gave back other values; as in the other benchmarks, a verdict is only printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.store", description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--sites", type=int, default=40)
    parser.add_argument("--values", type=int, default=800_000, help="of each site in each run, two bytes each")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is to be measured")
    options = parser.parse_args(arguments)
    runs = made(options.runs, options.sites, options.values)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = compare(runs, options.rounds, Path(folder))
    print(table(result, options.runs, options.sites))
    return 0 if result.same else 1


if __name__ == "__main__":
    sys.exit(main())
