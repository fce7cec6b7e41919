"""Score trained probes on the task's test split, beside all controls, and print the table of README.md.

    python probes/evaluate_probes.py maze puzzles
    python probes/evaluate_probes.py runs/probes/maze.safetensors --instances 192 --model maze

The instances are drawn with another seed than those that the probes were scored on when they were trained, and their
runs have seeds that neither those nor the training runs had.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import dit_lens as dl

SHOWN = ["site", "skill", "interval", "shuffled", "input", "position", "random", "majority", "selectivity"]


def table(probes: dl.ProbeSet, model: dl.VideoDiT, instances: int, step: int | None) -> str:
    """Label x layer with all controls at one step, as Markdown."""
    step = probes.steps[len(probes.steps) // 2] if step is None else step
    grid = dl.evaluate_probes(model, probes.task, probes, instances)
    found = grid.wide(step)
    found["interval"] = [f"{low:.2f} to {high:.2f}" for low, high in zip(found["low"], found["high"], strict=True)]
    sigma = grid.sigmas[step]
    lines = [
        f"{probes.card['task']['name']}, one row per {grid.level}, states from {grid.source}, step {step} (sigma "
        f"{sigma:.2f}), trained on {probes.card['train']['instances']} instances, scored on n = {grid.groups}",
        "",
        "Rows scored: "
        + "; ".join(f"{name} ({rows})" for name, rows in found.groupby("label", sort=False)["rows"].first().items()),
        "",
        "| " + " | ".join(["label", *SHOWN]) + " |",
        "|" + "---|" * (len(SHOWN) + 1),
    ]
    for label, part in found.groupby("label", sort=False):
        lines += [_row(str(label), row) for _, row in part.iterrows()]
    return "\n".join(lines)


def _row(label: str, row: pd.Series) -> str:
    cells = [f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in SHOWN]
    return "| " + " | ".join([label, *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("probes", nargs="+", help="names of shipped probes, or files")
    parser.add_argument("--model", help="a shipped organism, or a diffusers pipeline; by default named as the probes")
    parser.add_argument("--instances", type=int, default=96)
    parser.add_argument("--step", type=int, help="by default the middle one of the trained steps")
    options = parser.parse_args()
    for name in options.probes:
        probes = dl.load_probes(name)
        wanted = options.model or str(name).partition("/")[0]
        shipped = wanted in dl.organisms.organism_names()
        model = dl.load_organism(wanted) if shipped else dl.VideoDiT(Path(wanted))
        print(table(probes, model, options.instances, options.step), end="\n\n")


if __name__ == "__main__":
    main()
