"""Fit the preview decoders of the shipped models, and print their quality on held-out videos.

    python probes/fit_previews.py --out runs/previews

Each is fitted to true videos of the model's tasks and to x0hat at every step of some runs, of the training split, and
measured on half as many of the test split, whose runs have other noise. Tasks whose pictures have another size than the
first one's are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dit_lens as dl

INSTANCES = 32  # true videos of each task
RUNS = 8  # instances of each task that the model is run on
SEEDS = {"train": 0, "test": 1}  # of the runs of each split, which share no noise


def latents_of(model: dl.VideoDiT, samples: Sequence[Sequence[Any]], runs: int, seed: int) -> Tensor:
    """Encoded true videos of all instances, and x0hat at every step of runs on the first ones: (B, C, F, h, w)."""
    true = np.concatenate([np.stack([instance.video for instance in sample]) for sample in samples])
    shown = [instance for sample in samples for instance in sample[:runs]]
    made = model.runs(shown, seed, record=True, decode=False)
    estimates = [dl.step_lens(model, run).x0hat.flatten(0, 1) for run in made]
    return torch.cat([model.encode(true), *estimates])


def fit(name: str) -> dl.Preview:
    model, tasks = dl.load_organism(name), dl.organisms.organism_tasks(name)
    sizes = [task.sample(1)[0].image.size for task in tasks]
    tasks = [task for task, size in zip(tasks, sizes, strict=True) if size == sizes[0]]
    fitted_on = [task.sample(INSTANCES, seed=0, split="train") for task in tasks]
    held_out = [task.sample(INSTANCES // 2, seed=0, split="test") for task in tasks]
    test = latents_of(model, held_out, RUNS // 2, SEEDS["test"])
    return dl.Preview.fit(model, latents_of(model, fitted_on, RUNS, SEEDS["train"]), held_out=test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["maze", "puzzles"])
    parser.add_argument("--out", type=Path, default=Path("runs/previews"))
    options = parser.parse_args()
    for name in options.names:
        preview = fit(name)
        print(f"{preview.save(options.out / f'{name}.safetensors')}: {preview!r}")


if __name__ == "__main__":
    main()
