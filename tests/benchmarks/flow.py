"""The curves of a flow on the shipped model against a loop of whole runs, in pairs.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.flow --rounds 5 --out docs/benchmarks/flow.json

The loop makes one `VideoDiT.run` for every set of tokens and layer, from noise up to the step, with `Patch` from a
donor that was captured once, and reads the same number from it. Both measure the same pairs in both directions.
"alone" gives the flow no room to put cells side by side: then the numbers must be the same bits. ``--device cuda``
measures on a GPU by wall time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import dit_lens as dl
from dit_lens.analysis.flow.cells import EMBED, Cells
from dit_lens.analysis.flow.measure import carried_out, levels_of, plan_of
from dit_lens.analysis.flow.pairs import prepared
from dit_lens.analysis.flow.sets import TokenSets, of_both_sides, smallest_source
from dit_lens.analysis.flow.steps import seen_at
from dit_lens.results.arrays import Floats
from tests.benchmarks.machine import machine
from tests.benchmarks.measure import Ratio

SETS = ("A", "B", "A+B")


class Case:
    """Some pairs of the shipped maze model with their sets, at step 0."""

    def __init__(self, pairs: int, device: str) -> None:
        self.model = dl.load_organism("maze")
        self.model.pipeline.to(device)
        plan = dl.plan_flow(self.model, dl.tasks.Maze(), pairs, parts=())
        self.of = prepared(plan.task, plan.pairs, None, None)
        seen = seen_at(self.of, [0], "cond")[0]
        empty = ((),) * len(self.of.target)
        self.sets = TokenSets(smallest_source(seen.embedded) & ~self.of.target, self.of.target, empty)
        self.layers = levels_of(self.model.layers)

    @property
    def rows(self) -> tuple[list[Any], list[int]]:
        return self.of.pairs.rows

    def flow(self, batch: int) -> dict[tuple[str, int], Floats]:
        """By the planner: movement along each row's own way."""
        cells = Cells(self.of.geometry, 0, "cond", self.sets, ())
        pairs = replace(self.of.pairs, rows_at_once=batch)
        plan = plan_of(self.of.task, pairs, self.of.ways, cells, cells.curves(self.layers))
        sweep = carried_out(plan, None, "flow").sweep
        found = enumerate(sweep.points)
        return {
            (str(p.columns["set"]), int(str(p.columns["layer"]))): sweep.values[i, 0]
            for i, p in found
            if "set" in p.columns
        }

    def loop(self) -> dict[tuple[str, int], Floats]:
        """By whole runs."""
        sides, seeds = self.rows
        at = dl.Sites(("embed", "resid"), steps=0, branches="cond")
        estimate = [dl.Capture(dl.Sites(component, steps=0)) for component in ("latents", "velocity")]
        run = partial(self.model.run, sides, seeds, decode=False, stop_after=0)
        clean = run(interventions=[dl.Capture(at), *estimate])
        still, found = self._estimate(clean), {}
        swapped = [row ^ 1 for row in range(len(sides))]
        for layer in self.layers:
            for name in SETS:
                tokens = of_both_sides(self.sets.cells[name])
                assert tokens is not None
                sites = dl.Sites("embed" if layer == EMBED else "resid", steps=0, branches="cond", tokens=tokens)
                sites = sites if layer == EMBED else sites.at(layers=layer)
                made = run(interventions=[dl.Patch(clean, sites, rows=swapped), *estimate])
                found[name, layer] = self.of.ways.along(self._estimate(made).double() - still.double(), 0)[0]
        return found

    def _estimate(self, run: dl.Run) -> Any:
        return run.clean(0, run["s00/-/-/latents"], run["s00/cond/-/velocity"])


def facts(case: Case) -> dict[str, Any]:
    """What no clock decides: the same numbers, and how many forwards."""
    rows, layers = len(case.rows[0]), case.model.layers
    by_hand, alone, together = case.loop(), case.flow(rows), case.flow(32)
    cells = Cells(case.of.geometry, 0, "cond", case.sets, ())
    plan = plan_of(case.of.task, case.of.pairs, case.of.ways, cells, cells.curves(case.layers)).forecast(timed=False)
    return {
        "pairs": len(case.of.target), "cells": len(by_hand), "layers": layers,
        "same bits alone": all(np.array_equal(alone[key], by_hand[key]) for key in by_hand),
        "largest difference together": max(float(abs(together[key] - by_hand[key]).max()) for key in by_hand),
        "forwards": plan.forwards, "forwards of the loop": rows * (len(by_hand) + 1),
        "forwards of a loop of whole videos": plan.naive_forwards,
    }  # fmt: skip


def seconds(side: Callable[[], Any], device: str) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    started = clock()
    side()
    return clock() - started


def whole(device: str) -> dict[str, float]:
    """Wall seconds of the default flow and of a quick one, models loaded."""
    model, found = dl.load_organism("maze"), {}
    model.pipeline.to(device)
    for name, more in {"default": {}, "quick": {"pairs": 8, "parts": ()}}.items():
        started = time.perf_counter()
        dl.information_flow(model, dl.tasks.Maze(), **more)
        found[name] = time.perf_counter() - started
    return found


def measured(pairs: int, rounds: int, device: str) -> dict[str, Any]:
    case, random_order = Case(pairs, device), random.Random(0)
    sides = {"loop": case.loop, "alone": partial(case.flow, len(case.rows[0])), "together": partial(case.flow, 32)}
    found, taken = facts(case), {name: list[float]() for name in sides}
    for number in range(rounds):
        for name in random_order.sample(list(sides), len(sides)):
            taken[name].append(seconds(sides[name], device))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    ratios = {
        name: Ratio.of([a / b for a, b in zip(taken["loop"], taken[name], strict=True)])
        for name in ("alone", "together")
    }
    return {
        "machine": machine(), "date": time.strftime("%Y-%m-%d"), "device": device, "rounds": rounds, "facts": found,
        "seconds": taken, "times faster": {name: vars(ratio) for name, ratio in ratios.items()},
        "whole": whole(device),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.flow", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    options = parser.parse_args(arguments)
    found = measured(options.pairs, options.rounds, options.device)
    for name, value in found["facts"].items():
        print(f"{name}: {value}")
    for name, ratio in found["times faster"].items():
        print(f"{name}: {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times faster than the loop")
    print(", ".join(f"{name} {value:.1f} s" for name, value in found["whole"].items()))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["facts"]["same bits alone"] else 1


if __name__ == "__main__":
    sys.exit(main())
