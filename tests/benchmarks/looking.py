"""What looking costs, by processor time: ``python -m tests.benchmarks.looking --out docs/benchmarks/looking.json``.

One generation of the shipped model in six ways: the plain pipeline; torch hooks that clone every block's output;
nnsight's own trace of the whole pipeline, which saves every block's output as it is, or a copy of it; `VideoDiT.run`
that captures them, its check of the model's identity included; and `VideoDiT.run` that captures their means over
tokens. Each round runs all six in random order and gives one ratio for each comparison. Processor time is what other
work on the machine disturbs least; with one thread it is what an idle machine's clock would show.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import nnsight
import torch
from torch import nn

import dit_lens as dl
from tests.benchmarks.cases import Outcome, Side, _hooked, _run, _stranger
from tests.benchmarks.machine import load, machine, versions
from tests.benchmarks.measure import Ratio, imports_frozen
from tests.benchmarks.models import SEED, SIZES, Bench, Size, twin

SCHEMA = 1
#: Measured side, side it is compared with, and what the ratio may be.
COMPARISONS = (
    ("hooks", "plain", None),
    ("nnsight", "plain", None),
    ("full", "plain", None),
    ("pooled", "plain", 1.08),
    ("full", "nnsight", 1.0),
    ("full", "nnsight, copies", None),
    ("pooled", "nnsight", None),
)


class _Whole(nn.Module):
    """A pipeline as one module, which is what nnsight wraps."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.pipeline, self.transformer = pipeline, pipeline.transformer

    def forward(self, **arguments: Any) -> Any:
        return self.pipeline(**arguments)[0]


class ByNnsight:
    """What one would write with nnsight alone: one trace of the whole generation that saves what every block gives."""

    def __init__(self, bench: Bench, *, copies: bool = False) -> None:
        self.bench, self.copies = bench, copies
        self.whole: Any = nnsight.NNsight(_Whole(twin(bench.stranger)))
        self.calls = bench.steps * len(bench.geometry.branches)

    def __call__(self) -> Outcome:
        bench = self.bench
        given = {**bench.model.defaults, **bench.inputs, **bench.size.settings}
        generator = [torch.Generator().manual_seed(SEED)]
        with self.whole.trace(**given, generator=generator, output_type="latent", return_dict=False) as tracer:
            kept = nnsight.save([])
            for _ in tracer.iter[: self.calls]:
                for block in self.whole.transformer.blocks:
                    kept.append((block.output.clone() if self.copies else block.output).save())
            latents = tracer.result.save()
        return Outcome(latents, kept)


def sides(bench: Bench) -> dict[str, Side]:
    everything = dl.Sites("resid")
    return {
        "plain": partial(_stranger, bench),
        "hooks": partial(_hooked, bench),
        "nnsight": ByNnsight(bench),
        "nnsight, copies": ByNnsight(bench, copies=True),
        "full": partial(_run, bench, interventions=[dl.Capture(everything)]),
        "pooled": partial(_run, bench, interventions=[dl.Capture(everything, reduce="token_mean")]),
    }


def facts(outcomes: Mapping[str, Outcome]) -> dict[str, bool]:
    """What no clock decides: one video, and the same values kept in the same order."""
    plain, hooks = outcomes["plain"], outcomes["hooks"]
    same = {f"same latents, {name}": torch.equal(x.latents, plain.latents) for name, x in outcomes.items()}
    for name in ("nnsight", "nnsight, copies", "full"):
        pairs = zip(outcomes[name].kept, hooks.kept, strict=True)
        same[f"same values, {name}"] = all(torch.equal(a.flatten(), b.flatten()) for a, b in pairs)
    means = [x.mean(dim=1).flatten() for x in hooks.kept]
    pooled = zip(outcomes["pooled"].kept, means, strict=True)
    return same | {"same means, pooled": all(torch.allclose(a.flatten(), b, atol=1e-5) for a, b in pooled)}


def seconds(
    ways: Mapping[str, Side], rounds: int, seed: int, tell: Callable[[str], None] = lambda text: None
) -> dict[str, list[float]]:
    """Processor seconds of every side in every round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(seed)
    with imports_frozen():
        for number in range(rounds):
            for name in order.sample(list(ways), len(ways)):
                taken[name].append(_processor(ways[name]))
            tell(f"round {number + 1} of {rounds}")
    return taken


def _processor(side: Side) -> float:
    gc.collect()
    started = time.process_time()
    outcome = side()
    taken = time.process_time() - started
    del outcome  # not before the clock has stopped
    return taken


def compared(taken: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """JSON types: every comparison with its ratio and verdict."""
    found = []
    for measured, against, limit in COMPARISONS:
        ratio = Ratio.of([a / b for a, b in zip(taken[measured], taken[against], strict=True)])
        found.append(
            {"measured": measured, "against": against, "limit": limit, "verdict": ratio.verdict(limit)}
            | {"processor ratio": vars(ratio)}
        )
    return found


def measured(size: Size, rounds: int, seed: int = 0) -> dict[str, Any]:
    """Everything that the result file holds."""
    date, before = datetime.now(UTC).isoformat(timespec="seconds"), machine()
    bench = Bench(size)
    ways = sides(bench)
    found = facts({name: side() for name, side in ways.items()})
    taken = seconds(ways, rounds, seed, _tell)
    return {
        "schema": SCHEMA, "date": date, "machine": {**before, "load at the end": load()}, "versions": versions(),
        "model": bench.facts(), "rounds": rounds, "seed": seed, "facts": found, "comparisons": compared(taken),
        "processor seconds": taken,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    host, taken = result["machine"], result["processor seconds"]
    lines = [
        f"{host['processor']}, {host['threads']} threads, load {host['load'][0]} before and "
        f"{host['load at the end'][0]} after, {result['rounds']} rounds, {result['date']}",
        ", ".join(f"{name} {1000 * sorted(x)[len(x) // 2]:.0f} ms" for name, x in taken.items()),
        *(f"{name}: {value}" for name, value in result["facts"].items() if not value),
    ]
    for case in result["comparisons"]:
        ratio = case["processor ratio"]
        lines.append(
            f"{case['measured']:<8}/ {case['against']:<16}{ratio['median']:>7.3f}  [{ratio['low']:.3f}, "
            f"{ratio['high']:.3f}]  {'' if case['limit'] is None else case['limit']!s:<6}{case['verdict']}"
        )
    return "\n".join(lines)


def _tell(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.looking", description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    options = parser.parse_args(arguments)
    result = measured(SIZES["shipped"], options.rounds, options.seed)
    print(table(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
