"""What an edit of the state does under samplers that remember: ``python -m tests.benchmarks.samplers``.

A tiny random Wan, 20 steps, two rows; the state is edited before step 10. For every sampler and ``--seeds`` seeds:

- noise in the place of the state, in the stock pipeline's own callback and by `Noise`: cosine of the final latents to
  those of the clean run. Near 1 the edit was undone.
- what the new beginning costs: distance of the final latents, relative to their norm, where the state is edited by its
  last bit alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dit_lens as dl
from tests.benchmarks.machine import machine
from tests.engine.test_sampler import MIDDLE, SAMPLERS, STATE, STEPS, begun_anew, cosine, distance, run, wan
from tests.subjects import Edit


def in_the_callback(model: dl.VideoDiT, seeds: tuple[int, int], noise: Tensor) -> Tensor:
    """The stock pipeline, whose callback puts noise in the place of the state before step 10."""

    def callback(_pipeline: Any, step: int, _time: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": noise} if step == MIDDLE - 1 else given

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        ended = model.pipeline(
            prompt=["blue circle"] * 2,
            generator=generators,
            output_type="latent",
            return_dict=False,
            callback_on_step_end=callback,
            **model.defaults,
        )[0]
    found: Tensor = ended
    return found


def measure(name: str, seeds: int) -> tuple[list[float], list[float], list[float]]:
    """Both cosines and the distance, one of each for every pair of seeds."""
    model = wan(SAMPLERS[name]())
    stock, ours, cost = [], [], []
    for seed in range(0, 2 * seeds, 2):
        pair = (seed, seed + 1)
        clean = run(model, seeds=pair).latents
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1000 + seed))
        stock.append(cosine(in_the_callback(model, pair, noise), clean))
        ours.append(cosine(run(model, dl.Patch(noise, STATE), seeds=pair).latents, clean))
        cost.append(distance(run(model, Edit(STATE, begun_anew), seeds=pair).latents, clean))
    return stock, ours, cost


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.samplers", description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="pairs of seeds")
    seeds = parser.parse_args(arguments).seeds
    print(f"{machine()['processor']}, {time.strftime('%Y-%m-%d')}, edit before step {MIDDLE} of {STEPS}, n = {seeds}")
    print("| sampler | cosine, stock callback | cosine, dit_lens | cost of the new beginning |\n|---|---|---|---|")
    for name in SAMPLERS:
        columns = [f"{np.mean(x):.3f} [{min(x):.3f}, {max(x):.3f}]" for x in measure(name, seeds)]
        print(f"| {name} | {' | '.join(columns)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
