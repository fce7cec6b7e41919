"""``python -m tests.benchmarks.stream_memory``: peak memory of streamed probes with ten times as many clips.

Beside it the bytes that collecting the same features would keep. Peak bytes of tensors are counted by torch (see
`tests.benchmarks.memory`); numpy's are in the collected side, whose arrays are counted by their size.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

import dit_lens as dl
from dit_lens.probing.features import collect
from dit_lens.probing.stream import stream_probes
from tests.benchmarks.memory import peak_bytes

#: Most that the peak may rise when there are ten times as many clips: labels and sums of scores, a few bytes a clip.
LIMIT = 1.05


@dataclass(frozen=True)
class StreamMemory:
    """Peak bytes of streaming at two numbers of clips, and what collecting keeps."""

    clips: tuple[int, int]
    streamed: tuple[int, int]
    collected: tuple[int, int]

    @property
    def ratio(self) -> float:
        return self.streamed[1] / self.streamed[0]

    def __str__(self) -> str:
        lines = [f"{'clips':>6}{'streamed, peak MB':>20}{'collected, kept MB':>20}"]
        lines += [
            f"{n:>6}{a / 1e6:>20.2f}{b / 1e6:>20.2f}"
            for n, a, b in zip(self.clips, self.streamed, self.collected, strict=True)
        ]
        ratios = f"ratio {self.ratio:.3f} streamed, {self.collected[1] / self.collected[0]:.1f} collected"
        return "\n".join([*lines, f"{ratios}; limit {LIMIT} streamed"])


def stream_memory(few: int = 16, times: int = 10, batch: int = 4, **options: Any) -> StreamMemory:
    """Measure both numbers of clips in one process."""
    model, task = dl.load_organism("maze"), dl.organisms.organism_tasks("maze")[0]
    counts = (few, times * few)
    given: dict[str, Any] = {"steps": [0, 1], "labels": ["on_path", "distance"], "batch": batch} | options
    streamed = [peak_bytes(partial(stream_probes, model, task, train=n, test=2, **given)) for n in counts]
    one = collect(model, task, task.sample(2), **{**given, "batch": 2})
    each = sum(x.nbytes for part in one.values() for x in part.features.values()) // 2
    return StreamMemory(counts, (streamed[0], streamed[1]), (each * counts[0], each * counts[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=16, help="clips of the smaller of the two")
    print(stream_memory(parser.parse_args().few))


if __name__ == "__main__":
    main()
