"""A sweep of the shipped model against a loop written with nnsight by hand, in pairs.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.sweeps --rounds 7 --out docs/benchmarks/sweeps.json

The loop generates the whole video of every cell in one nnsight trace of the stock pipeline, and edits one block in it;
its donors are captured once. Both sides patch the update of a layer in both directions over the same pairs and noise,
and must come to the same numbers. The stock image-to-video pipeline takes one picture at a time, so the loop goes row
by row; in the cases "side by side" it is given the package's own way to run several pictures at once. Cases:

- ``one step``: every layer at step 0, the share of the way that the clean estimate of that step moves;
- ``video``: layers 0, 3 and 7 at steps 0, 3, 6 and 9 (on average as far from the noise as all 80), whether the finished
  video shows the donor's answer.

``growth`` compares 200 doses of noise with 20 of them: seconds and peak memory.

``--device cuda`` measures on a GPU by wall time, and wants 4 times for the video; without one it measures on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnsight import NNsight
from torch import Tensor

import dit_lens as dl
from dit_lens.runs.inputs import gather, split_rows
from dit_lens.sweeps.metrics import Moved, Sides, share
from dit_lens.tasks.evidence import show_answer
from tests.benchmarks.machine import machine
from tests.benchmarks.measure import Ratio
from tests.benchmarks.memory import peak_bytes

#: How many times faster each case must be.
LIMITS = {"cpu": {"one step": 10.0, "video": 2.0}, "cuda": {"one step": 10.0, "video": 4.0}}
SIDE_BY_SIDE = ", side by side"
GRIDS: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "one step": (range(8), (0,)),
    "video": ((0, 3, 7), (0, 3, 6, 9)),
}


class ByHand:
    """The stock pipeline in a copy of its own, its transformer wrapped by nnsight."""

    def __init__(self, plan: dl.SweepPlan, *, by_row: bool) -> None:
        self.plan, (self.batch,) = plan, plan.batches
        assert self.batch.pairs is not None
        self.sides = Sides(plan.model, plan.task, self.batch.pairs, plan.geometry)
        self.pipeline = copy.deepcopy(plan.model.pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        rows = list(range(len(self.batch)))
        self.groups = [[row] for row in rows] if by_row else [rows]
        if not by_row:  # the stock method takes no batch of pictures
            self.pipeline.prepare_latents = split_rows(self.pipeline.prepare_latents, shared_image=False)
        self.envoy: Any = NNsight(self.pipeline.transformer)
        self.settings = plan.model.run(self.batch.instances[0], 0, decode=False, stop_after=0).settings

    def generate(self, rows: Sequence[int], output_type: str) -> Any:
        own = gather([self.batch.instances[r] for r in rows], [self.batch.seeds[r] for r in rows])
        given = {"prompt": own.prompts, "generator": own.generators(), **own.image_argument()}
        return self.pipeline(**given, **self.settings, output_type=output_type, return_dict=False)[0]

    def traced(self, rows: Sequence[int], steps: Sequence[int], meet: Callable[[int], None], output_type: str) -> Any:
        """One generation as one trace, in which something is met at some steps."""
        found = []
        with torch.no_grad(), self.envoy.trace(fn=lambda: found.append(self.generate(rows, output_type))) as tracer:  # noqa: SIM117 - nnsight reads the source of each block
            with tracer.invoke():
                for step in tracer.iter[list(steps)]:
                    meet(step)
        return found[0]

    def measured(self, layers: Sequence[int], steps: Sequence[int], of: str) -> list[list[float]]:
        """The number of every row of every cell."""
        donors: dict[tuple[int, int], list[Tensor]] = {}
        clean: dict[int, list[Tensor]] = {}

        def keep(step: int) -> None:
            for layer in layers:
                block = self.envoy.blocks[layer]
                before = block.inputs[0][0]
                donors.setdefault((step, layer), []).append((block.output - before).clone())
            clean.setdefault(step, []).append(self.envoy.output[0].clone())

        for rows in self.groups:
            self.traced(rows, steps, keep, "latent")
        return [
            self._cell(layer, step, torch.cat(donors[step, layer]), torch.cat(clean[step]), of)
            for step in steps
            for layer in layers
        ]

    def _cell(self, layer: int, step: int, donor: Tensor, clean: Tensor, of: str) -> list[float]:
        partners, velocity, videos = self.sides.partners, [], []
        for rows in self.groups:
            given = donor[[partners[row] for row in rows]]

            def patch(_: int, given: Tensor = given) -> None:
                block = self.envoy.blocks[layer]
                before = block.inputs[0][0]
                after = block.output
                block.output = after + (given - (after - before))
                velocity.append(self.envoy.output[0].clone())

            videos.append(np.asarray(self.traced(rows, [step], patch, "latent" if of == "one step" else "np")))
        if of == "one step":
            own, moved = (self._clean(v) for v in (clean, torch.cat(velocity)))
            return share(Moved(moved, own, self.batch.instances, own[partners], self.sides)).tolist()
        frames = (np.concatenate(videos) * 255).round().astype(np.uint8)
        donors = [self.batch.instances[p] for p in partners]
        return show_answer(self.plan.task, frames, donors, who="benchmark").astype(float).tolist()

    def _clean(self, velocity: Tensor) -> Tensor:
        """The clean estimate of step 0, whose state is the noise, by the sampler's rule for flow matching."""
        shape = self.plan.geometry.shapes["latents"]
        drawn = [torch.Generator().manual_seed(seed) for seed in self.batch.seeds]
        noise = torch.cat([torch.randn(1, *shape, generator=generator) for generator in drawn])
        return noise.to(velocity) - velocity


def model_on(device: str) -> dl.VideoDiT:
    model = dl.load_organism("maze")
    model.pipeline.to(device)
    return model


def plan_of(case: str, pairs: int, device: str = "cpu") -> dl.SweepPlan:
    layers, steps = GRIDS[case]
    return dl.plan_sweep(
        model_on(device),
        dl.tasks.Maze(),
        dl.Patch("pair", dl.Sites("delta")),
        {"steps": list(steps), "layers": list(layers)},
        "share" if case == "one step" else "donor_answer",
        instances=pairs,
        batch=2 * pairs,
    )


def compare(name: str, rounds: int, pairs: int, device: str, seed: int = 0) -> dict[str, Any]:
    """Seconds of both sides in every round, in random order, and whether their numbers are the same."""
    clock, case = time.process_time if device == "cpu" else time.perf_counter, name.removesuffix(SIDE_BY_SIDE)
    plan, layers, steps = plan_of(case, pairs, device), *GRIDS[case]
    hand = ByHand(plan, by_row=name == case)
    sides: dict[str, Callable[[], Any]] = {
        "by hand": lambda: hand.measured(layers, steps, case),
        "sweep": lambda: dl.carry_out(plan, progress=None),
    }
    order, taken = random.Random(seed), {name: [] for name in sides}  # type: dict[str, list[float]]
    numbers: dict[str, Any] = {}
    for _ in range(rounds + 1):
        for side in order.sample(list(sides), 2):
            started = clock()
            numbers[side] = sides[side]()
            taken[side].append(clock() - started)
    swept = numbers["sweep"].values[[point.cell == "swept" for point in numbers["sweep"].points]]
    ratio = Ratio.of([a / b for a, b in zip(taken["by hand"][1:], taken["sweep"][1:], strict=True)])
    limit = LIMITS[device][case]
    return {
        "case": name,
        "times faster": vars(ratio),
        "wanted": limit,
        "verdict": "holds" if ratio.low >= limit else "missed" if ratio.high < limit else "open",
        "largest difference": float(np.abs(swept[:, 0] - np.array(numbers["by hand"])).max()),
        "cells": len(swept),
        "rows": sum(map(len, plan.batches)),
        "forwards": numbers["sweep"].forwards,
        "naive forwards": plan.forecast(timed=False).naive_forwards,
        "seconds": {name: times[1:] for name, times in taken.items()},
    }


def growth(device: str) -> dict[str, Any]:
    """Ten times the cells: how many times the seconds, and the peak bytes."""
    model, task, found = model_on(device), dl.tasks.Maze(), {}
    for count in (20, 200):
        plan = dl.plan_sweep(
            model,
            task,
            dl.Noise(dl.Sites("resid", steps=0, layers=3), "add"),
            {"dose": [k / 200 for k in range(1, count + 1)]},
            "distance",
            instances=4,
            batch=4,
        )
        started = time.process_time()
        dl.carry_out(plan, progress=None)
        taken = time.process_time() - started
        found[count] = taken, peak_bytes(partial(dl.carry_out, plan, progress=None), device)
    (few, little), (many, much) = found[20], found[200]
    return {
        "seconds": [few, many],
        "time ratio": many / few,
        "peak bytes": [little, much],
        "memory ratio": much / little,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sweeps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--device", choices=sorted(LIMITS), default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = options.device if torch.cuda.is_available() else "cpu"
    cases = [compare(case + how, options.rounds, options.pairs, device) for case in GRIDS for how in ("", SIDE_BY_SIDE)]
    for case in cases:
        ratio = Ratio(**case["times faster"])
        print(
            f"{case['case']}: {ratio.median:.1f} [{ratio.low:.1f}, {ratio.high:.1f}] times faster than by hand, wanted "
            f"{case['wanted']:g}: {case['verdict']}; {case['cells']} cells, {case['forwards']:g} forwards against "
            f"{case['naive forwards']}; numbers differ by at most {case['largest difference']:.2g}"
        )
    found = {"cases": cases, "growth": growth(device), "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    grown: Any = found["growth"]
    print(
        f"ten times the cells took {grown['time ratio']:.1f} times the seconds and {grown['memory ratio']:.3f} "
        "times the peak memory"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
