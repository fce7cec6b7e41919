"""How long one waits at the door: ``import dit_lens`` and ``dit-lens --help`` against ``import torch``, in pairs.

    python -m tests.benchmarks.door --rounds 11

Each round starts, in random order, one fresh interpreter for each of the three; the ratio to the import of torch is
paired within a round. The limits are shares of that import: the door must not be felt.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tests.benchmarks.machine import machine
from tests.benchmarks.measure import Ratio

AGAINST = "import torch"
COMMANDS: Mapping[str, Sequence[str]] = {
    AGAINST: ("-c", "import torch"),
    "import dit_lens": ("-c", "import dit_lens"),
    "dit-lens --help": ("-m", "dit_lens", "--help"),
}
#: Largest share of the time of ``import torch``.
LIMITS = {"import dit_lens": 0.1, "dit-lens --help": 0.15}


def seconds(arguments: Sequence[str]) -> float:
    """Wall time of one fresh interpreter."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def measure(rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of every command in every round, the first round not counted: it reads the files into memory."""
    order, taken = random.Random(seed), {name: [] for name in COMMANDS}  # type: dict[str, list[float]]
    for _ in range(rounds + 1):
        for name in order.sample(list(COMMANDS), len(COMMANDS)):
            taken[name].append(seconds(COMMANDS[name]))
    return {name: times[1:] for name, times in taken.items()}


def table(taken: Mapping[str, Sequence[float]]) -> str:
    host = machine()
    lines = [
        f"{host['processor']}, {host['cores']} cores, load {host['load'][0]}, {len(taken[AGAINST])} rounds, "
        f"{time.strftime('%Y-%m-%d')}",
        f"{AGAINST}: {np.median(taken[AGAINST]):.2f} s (median)",
    ]
    for name, limit in LIMITS.items():
        ratio = Ratio.of([a / b for a, b in zip(taken[name], taken[AGAINST], strict=True)])
        lines.append(
            f"{name}: {np.median(taken[name]):.2f} s, {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of it, "
            f"limit {limit}: {ratio.verdict(limit)}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.door", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    print(table(measure(options.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
