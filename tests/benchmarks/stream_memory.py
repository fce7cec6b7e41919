"""``python -m tests.benchmarks.stream_memory``: peak memory of streamed probes with ten times as many clips.

Beside it the bytes that collecting the same features would keep, by the arrays' sizes. Peak bytes of tensors are
counted by torch, those of Python and numpy by tracemalloc (see `tests.benchmarks.memory`): the latter grow by the
instances themselves, their labels and their sums of scores, and the table says by how much a clip.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

import dit_lens as dl
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.readout import Readout
from dit_lens.probing.stream import stream_probes
from tests.benchmarks.memory import peak_bytes, python_peak_bytes

#: Most that the peak of tensors may rise when there are ten times as many clips.
LIMIT = 1.05
#: Most bytes of Python and numpy that a clip may add.
A_CLIP = 16_384


@dataclass(frozen=True)
class StreamMemory:
    """Peak bytes of streaming at two numbers of clips, and what collecting keeps."""

    clips: tuple[int, int]
    streamed: tuple[int, int]
    python: tuple[int, int]
    collected: tuple[int, int]

    @property
    def ratio(self) -> float:
        return self.streamed[1] / self.streamed[0]

    @property
    def a_clip(self) -> float:
        """Bytes of Python and numpy that one more clip adds."""
        return (self.python[1] - self.python[0]) / (self.clips[1] - self.clips[0])

    def __str__(self) -> str:
        lines = [f"{'clips':>6}{'tensors, peak MB':>20}{'Python, peak MB':>20}{'collected, kept MB':>20}"]
        lines += [
            "".join([f"{n:>6}", *(f"{x / 1e6:>20.2f}" for x in sizes)])
            for n, *sizes in zip(self.clips, self.streamed, self.python, self.collected, strict=True)
        ]
        lines.append(
            f"tensors: ratio {self.ratio:.3f}, limit {LIMIT}; collected: {self.collected[1] / self.collected[0]:.1f}"
        )
        lines.append(f"Python and numpy: {self.a_clip:.0f} bytes a clip, limit {A_CLIP}")
        return "\n".join(lines)


def stream_memory(few: int = 16, times: int = 10, batch: int = 4, readout: Readout | None = None) -> StreamMemory:
    """Measure both numbers of clips in one process."""
    model, task = dl.load_organism("maze"), dl.organisms.organism_tasks("maze")[0]
    counts = (few, times * few)
    given: dict[str, Any] = {"labels": ["on_path", "distance"], "batch": batch}
    given["readout"] = readout or Readout.of(steps=[0, 1])
    streams = [partial(stream_probes, model, task, train=n, test=2, **given) for n in counts]
    streamed, python = [[measure(stream) for stream in streams] for measure in (peak_bytes, python_peak_bytes)]
    one = collect(model, task, task.sample(2), **{**given, "batch": 2})
    each = sum(x.nbytes for step, part in one.items() for x in part.places(step).values()) // 2
    return StreamMemory(
        counts, (streamed[0], streamed[1]), (python[0], python[1]), (each * counts[0], each * counts[1])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=16, help="clips of the smaller of the two")
    print(stream_memory(parser.parse_args().few))


if __name__ == "__main__":
    main()
