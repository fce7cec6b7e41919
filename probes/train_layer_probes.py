"""Train linear probes for every label, layer and step of a task, and save them with their scores.

    python probes/train_layer_probes.py --model maze --out runs/probes

Writes ``probes.safetensors`` (for each step and readout the coefficients of shape (labels, D), intercepts and
thresholds) and ``probes.json`` (what they are, how they were fitted, and their held-out scores beside all controls).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from tqdm.auto import tqdm

import dit_lens as dl
from dit_lens.files import write_atomic
from dit_lens.probing import LinearProbe, ProbeData, collect, probe_grid


@dataclass(frozen=True)
class Config:
    """Everything that a set of probes depends on."""

    model: str = "maze"
    size: int = 5
    instances: int = 192
    frame: int = -1
    folds: int = 3
    alpha: float = 1e-3
    seed: int = 0
    split: str = "val"


def fit_all(data: dict[int, ProbeData], alpha: float) -> dict[str, np.ndarray]:
    """Final probes, fitted on all instances: tensors by ``sSS/readout/what``."""
    tensors = {}
    for step, part in tqdm(data.items(), desc="final probes", unit="step"):
        targets = np.stack(
            [np.asarray(label.values, dtype=np.float64).ravel() for label in part.labels.values()], axis=1
        )
        for readout, features in part.features.items():
            probe = LinearProbe(alpha).fit(features.reshape(-1, features.shape[-1]), targets)
            for what in ("coef", "intercept", "threshold"):
                tensors[f"s{step:02d}/{readout}/{what}"] = getattr(probe, f"{what}_").astype(np.float32)
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/probes"))
    for name, value in asdict(Config()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = vars(parser.parse_args())
    out = options.pop("out")
    config = Config(**options)

    model = dl.load_organism(config.model)
    task = dl.tasks.Maze(config.size)
    instances = task.sample(config.instances, seed=config.seed, split=config.split)
    data = collect(model, task, instances, frame=config.frame, seed=config.seed, decode=True)

    grid = probe_grid(data, folds=config.folds, alpha=config.alpha, seed=config.seed)
    scores = grid.frame()
    labels = list(next(iter(data.values())).labels)
    card = {
        "config": asdict(config), "model_id": model.id, "task": task.name, "labels": labels,
        "scores": json.loads(scores.to_json(orient="records")),
    }  # fmt: skip
    write_atomic(out / "probes.safetensors", save(fit_all(data, config.alpha)))
    write_atomic(out / "probes.json", json.dumps(card, indent=1).encode())

    shown = scores[(scores["control"] == "none") & (scores["step"] == scores["step"].min())]
    print(shown.pivot_table(index="label", columns="readout", values="skill").round(2).to_string())
    print(f"{out}/probes.safetensors, {out}/probes.json")


if __name__ == "__main__":
    main()
