"""``python -m tests.benchmarks``: measure one size, print a table, write the result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.cases import cases
from tests.benchmarks.machine import load, machine, versions
from tests.benchmarks.measure import compare
from tests.benchmarks.models import SIZES, Bench, Size

SCHEMA = 1


def measured(size: Size, rounds: int, only: Sequence[str] = (), seed: int = 0) -> dict[str, Any]:
    """Everything that the result file holds."""
    date, before = datetime.now(UTC).isoformat(timespec="seconds"), machine()
    bench = Bench(size)
    chosen = [case for case in cases(bench) if not only or case.name in only]
    timings = compare(chosen, rounds, seed=seed, device=size.device, tell=_tell)
    return {
        "schema": SCHEMA, "date": date, "machine": {**before, "load at the end": load()}, "versions": versions(),
        "model": bench.facts(), "rounds": rounds, "seed": seed, "cases": [timing.result() for timing in timings],
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    model, host = result["model"], result["machine"]
    lines = [
        f"{model['size']}: {model['parameters'] / 1e6:.1f} million parameters, {model['tokens']} tokens, "
        f"{model['layers']} layers, {model['steps']} steps, {len(model['branches'])} branches, {model['dtype']}",
        f"{host['accelerator'] or host['processor']}, {host['threads']} threads, load {host['load'][0]} before and "
        f"{host['load at the end'][0]} after, {result['rounds']} rounds, {result['date']}",
        f"{'case':<10}{'ratio':>7}  {'95 % interval':<17}{'quartiles':<17}{'processor':>10}{'limit':>7}  "
        f"{'verdict':<9}{'seconds':>16}",
        *(_row(case) for case in result["cases"]),
    ]
    return "\n".join(lines + [line for case in result["cases"] for line in _details(case)])


def _row(case: dict[str, Any]) -> str:
    ratio, (a, b) = case["ratio"], case["median seconds"]
    interval = f"[{ratio['low']:.3f}, {ratio['high']:.3f}]"
    quartiles = "{:.3f} to {:.3f}".format(*ratio["quartiles"])
    limit = "" if case["limit"] is None else f"{case['limit']:.2f}"
    return (
        f"{case['case']:<10}{ratio['median']:>7.3f}  {interval:<17}{quartiles:<17}"
        f"{case['processor ratio']['median']:>10.3f}{limit:>7}  {case['verdict']:<9}{a:>7.2f} : {b:.2f}"
    )


def _details(case: dict[str, Any]) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in case["facts"].items())
    memory = [f"{name} {value:,}" for name, value in case["memory"].items()]
    lines = [f"{case['case']}: {facts}"]
    return lines + ([f"{' ' * len(case['case'])}  bytes of memory: {', '.join(memory)}"] if memory else [])


def _tell(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where nothing was measured because the machine cannot run the size."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="shipped")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=[], help="names of cases; all unless given")
    parser.add_argument("--threads", type=int, help="threads that torch uses on the CPU; its own choice unless given")
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    options = parser.parse_args(arguments)
    size = SIZES[options.size]
    if reason := size.missing():
        print(f"skipped: {reason}. Nothing was measured; `--size wan-50m` runs on the CPU.", file=sys.stderr)
        return 1
    if options.threads:
        torch.set_num_threads(options.threads)
    result = measured(size, options.rounds, options.only, options.seed)
    print(table(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
