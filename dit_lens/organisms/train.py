"""Train an organism: ``python -m dit_lens.organisms.train maze --preset cpu``."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from dit_lens.files.atomic import write_atomic
from dit_lens.organisms.load import save_organism
from dit_lens.organisms.training.denoiser import train_denoiser
from dit_lens.organisms.training.presets import PRESETS, Preset
from dit_lens.organisms.training.vae import train_vae


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the autoencoder, then the transformer, and write the organism with its logs.

    An interrupted training goes on from its last checkpoint when the same command is given again.
    """
    parser = argparse.ArgumentParser(prog="python -m dit_lens.organisms.train", description=main.__doc__)
    parser.add_argument("organism", choices=sorted(PRESETS))
    parser.add_argument("--preset", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for checkpoints, logs and the organism")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--device", default=None, help="overrides the preset's, which falls back to cpu")
    parser.add_argument("--threads", type=int, default=None, help="of torch; by default as many as there are cores")
    options = parser.parse_args(arguments)
    if options.preset not in PRESETS[options.organism]:
        parser.error(f"{options.organism} has the presets {', '.join(PRESETS[options.organism])}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    preset = PRESETS[options.organism][options.preset]
    device = options.device or (preset.device if torch.cuda.is_available() else "cpu")
    preset = replace(preset, device=device, autocast=preset.autocast and device != "cpu")
    if options.seed is not None:
        preset = replace(preset, seed=options.seed)
    print(train(options.organism, preset, options.out / f"{options.organism}-{options.preset}"))


def train(name: str, preset: Preset, folder: Path) -> Path:
    """Train (or finish) an organism; returns the folder in ``folder`` that holds it, ready to ship."""
    vae = train_vae(preset, folder).eval().requires_grad_(False)
    pipeline = train_denoiser(preset, vae, folder)
    shared = preset.vae if isinstance(preset.vae, str) else None
    kinds = tuple(preset.denoiser.stages[-1].mix)
    saved = save_organism(pipeline.to("cpu"), preset.config, folder / name, tasks=kinds, vae_of=shared)
    for step in preset.denoiser.keep:
        (saved / "checkpoints").mkdir(exist_ok=True)
        shutil.copy(folder / f"step-{step:05d}.safetensors", saved / "checkpoints")
    write_atomic(saved / "recipe.json", json.dumps(asdict(preset), indent=1).encode())
    phases = [] if isinstance(preset.vae, str) else [phase.name for phase in preset.vae.phases]
    for log in (*phases, "denoiser"):
        shutil.copy(folder / f"{log}.json", saved / f"log-{log}.json")
    return saved


if __name__ == "__main__":
    main()
