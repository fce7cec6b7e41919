"""``python -m tests.benchmarks.attention``: memory of the attention lens against that of the whole map.

One softmax at several numbers of tokens, in one run: the peak of what torch allocates while the lens reduces it in
chunks, and while the whole map is made and reduced. On the CPU the profiler's own bookkeeping of every chunk takes most
of the time, so that this says nothing of speed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from dit_lens.lens.attention.measure import Axis, Softmax, Sums
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.memory import peak_bytes

HEADS, WIDTH, FRAMES = 2, 64, 8


def softmax_of(tokens: int, device: str) -> Softmax:
    """Random queries and keys, all asked for."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(HEADS, tokens, WIDTH, generator=generator).to(device) for _ in "qk")
    at = torch.arange(tokens, device=device)
    return Softmax(query, key, None, WIDTH**-0.5, at, at // (tokens // FRAMES), at, at)


def in_chunks(softmax: Softmax, budget: int) -> Tensor:
    tokens = softmax.query.shape[1]
    sums = Sums(HEADS, Axis((FRAMES, 1, tokens // FRAMES), tokens, 0), tokens, False, softmax.query.device)
    sums.add(softmax, torch.arange(HEADS, device=softmax.query.device), budget)
    return sums.frames / (tokens // FRAMES)


def at_once(softmax: Softmax) -> Tensor:
    """As one would write it down, in the model's own precision."""
    maps = (softmax.query @ softmax.key.mT * softmax.scale).softmax(-1)
    return maps.unflatten(-1, (FRAMES, -1)).sum(-1).unflatten(1, (FRAMES, -1)).mean(2)


def measured(tokens: Sequence[int], budget: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Peaks in bytes of both, and how far their results lie apart."""
    rows = []
    for count in tokens:
        softmax = softmax_of(count, device)
        chunks, whole = in_chunks(softmax, budget), at_once(softmax)
        rows.append({
            "tokens": count,
            "lens": peak_bytes(lambda s=softmax: in_chunks(s, budget), device),
            "whole map": peak_bytes(lambda s=softmax: at_once(s), device),
            "difference": float((chunks - whole).abs().max()),
        })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--budget", type=int, default=2**22, help="bytes")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measured(options.tokens, options.budget, options.device)
    print(f"{'tokens':>8}{'lens, MiB':>12}{'whole map, MiB':>17}{'difference':>13}")
    for row in rows:
        print(
            f"{row['tokens']:>8}{row['lens'] / 2**20:>12.2f}{row['whole map'] / 2**20:>17.2f}{row['difference']:>13.1e}"
        )
    date = datetime.now(UTC).isoformat(timespec="seconds")
    print(json.dumps({"date": date, "budget": options.budget, "machine": machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
