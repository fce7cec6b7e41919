"""Train a tuned lens on runs of some tasks.

    python probes/train_tuned_lens.py --model maze --out runs/tuned

Writes ``tuned_lens.safetensors`` (the translators and the training record), and prints the errors of the plain and the
tuned lens on the validation runs. With a folder or a hub id in the place of an organism's name,
give the tasks. `probes/evaluate_tuned_lens.py` shows both lenses on held-out runs.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import dit_lens as dl


@dataclass(frozen=True)
class Config:
    """Everything that a tuned lens depends on."""

    model: str = "maze"
    tasks: str = ""  # names with commas between them; by default those of the organism
    runs: int = 192
    validation: int = 48
    objective: str = "residual"
    start: str = "identity"  # of objective "velocity"; or "residual", its closed form
    passes: int = 2  # of objective "velocity"
    bands: int = 3
    layers: str = "all"  # or numbers with commas between them
    branch: str = "cond"
    batch: int = 16
    seed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tuned"))
    for name, value in asdict(Config()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = vars(parser.parse_args())
    out = options.pop("out")
    config = Config(**options)

    ships = config.model in dl.organisms.organism_names()
    model = dl.load_organism(config.model) if ships else dl.VideoDiT(config.model)
    named = config.tasks.split(",") if config.tasks else []
    tasks = [dl.tasks.task_named(t) for t in named] or dl.organisms.organism_tasks(config.model)

    layers = "all" if config.layers == "all" else [int(k) for k in config.layers.split(",")]

    recipe = dl.TunedLensRecipe(
        objective=config.objective,
        bands=config.bands,
        batch=config.batch,
        passes=config.passes,
        start=config.start,
    )
    started = time.perf_counter()
    tuned = dl.train_tuned_lens(
        model,
        tasks,
        runs=config.runs,
        validation=config.validation,
        sites=dl.Sites(layers=layers),
        recipe=recipe,
        branch=config.branch,
        seed=config.seed,
    )
    seconds = time.perf_counter() - started
    path = tuned.save(out / "tuned_lens.safetensors")

    print(f"{tuned}\n{config.runs} runs of {', '.join(map(str, tasks))} in {seconds:.0f} s")
    shown = [c for c in tuned.table.columns if "validation" in c]
    table = tuned.table[["band", "layer", "used", "penalty", *shown]]
    print(table.rename(columns=lambda c: c.replace("_validation", "")).to_string(index=False, float_format="%.3g"))
    print(path)


if __name__ == "__main__":
    main()
