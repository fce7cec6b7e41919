"""Show the plain and the tuned depth lens side by side, on held-out runs.

    python probes/evaluate_tuned_lens.py --model maze --out runs/tuned

Writes ``comparison.csv`` (every measure of both lenses and of their difference, with 95 % intervals over instances) and
``comparison.png``, and prints the measures named below. By default the lens is the one that ships with the organism.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

import dit_lens as dl

MEASURES = ("velocity_distance", "agreement", "legality", "strict")


@dataclass(frozen=True)
class Config:
    """What is compared on what."""

    model: str = "maze"
    lens: str = ""  # a file; by default the lens of the organism
    tasks: str = ""  # names with commas between them; by default those of the organism
    instances: int = 32  # of each task
    seed: int = 0


def print_tables(comparison: dl.LensComparison) -> None:
    """One table for each task and measure: a row for each step and layer, a column for each lens."""
    for (task, measure), part in comparison.table.groupby(["task", "measure"], sort=False):
        if measure in MEASURES:
            text = [f"{v:.2f} [{a:.2f}, {b:.2f}]" for v, a, b in part[["value", "low", "high"]].to_numpy()]
            wide = part.assign(text=text, sigma=part["sigma"].round(3)).pivot_table(
                index=["step", "sigma", "layer"], columns="lens", values="text", aggfunc="first"
            )
            print(f"\n{task}: {measure}, n = {part['n'].iloc[0]}\n{wide.to_string()}")


def draw(comparison: dl.LensComparison) -> Figure:
    """A row for each step, a column for each measure."""
    steps = sorted(set(comparison.samples["step"]))
    measures = [m for m in MEASURES if m in comparison.measures]
    size = (4.2 * len(measures), 2.9 * len(steps))
    figure, axes = plt.subplots(len(steps), len(measures), figsize=size, layout="constrained", squeeze=False)
    for row, step in zip(axes, steps, strict=True):
        for axis, measure in zip(row, measures, strict=True):
            comparison.plot(axis, measure=measure, step=step)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tuned"))
    for name, value in asdict(Config()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = vars(parser.parse_args())
    out = options.pop("out")
    out.mkdir(parents=True, exist_ok=True)
    config = Config(**options)
    matplotlib.use("Agg")
    pd.set_option("display.width", 160)

    ships = config.model in dl.organisms.organism_names()
    model = dl.load_organism(config.model) if ships else dl.VideoDiT(config.model)
    named = config.tasks.split(",") if config.tasks else []
    tasks = [dl.tasks.task_named(t) for t in named] or dl.organisms.organism_tasks(config.model)
    tuned = dl.TunedLens.load(config.lens or config.model, model)

    comparison = dl.compare_lenses(model, tasks, tuned, instances=config.instances, seed=config.seed)
    comparison.table.to_csv(out / "comparison.csv", index=False)
    draw(comparison).savefig(out / "comparison.png", dpi=120)
    print_tables(comparison)
    print(f"\n{out}/comparison.csv, {out}/comparison.png")


if __name__ == "__main__":
    main()
