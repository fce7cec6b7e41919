"""Train linear probes of a task at sites of a model, score them beside all controls, and save both.

    python probes/train_layer_probes.py --config probes/maze.toml --out runs/probes/maze
    python probes/train_layer_probes.py --model puzzles --task sort --labels height rank --steps 0 5 --out runs/sort
    python probes/train_layer_probes.py --component attn ffn --layers 2 3 --out runs/parts

A configuration file says the same as the options, which overrule it. Writes ``OUT.safetensors``: the
weights and their card (what they are of, how they were fitted, and their scores on unseen instances). Nothing is kept
of the activations: see `dit_lens.probing.stream`.
"""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import dit_lens as dl


@dataclass(frozen=True)
class Config:
    """Everything that a set of probes depends on.

    ``model`` is a shipped organism, or the id or folder of a diffusers pipeline; ``task`` a name as
    `dit_lens.tasks.task_named` reads it, by default the organism's first. ``component`` to ``heads`` are the sites that
    are read, ``frames`` and ``positions`` their tokens; what is left out is that of the level (`dit_lens.Readout`).
    """

    model: str = "maze"
    task: str | None = None
    labels: list[str] | None = None
    component: list[str] | None = None
    steps: list[int] | None = None
    layers: list[int] | None = None
    heads: list[int] | None = None
    stream: str | None = None
    frames: list[int] | None = None
    positions: list[int] | None = None
    branch: str = "cond"
    level: str = "cell"
    pool: str = "mean"
    source: str = "sample"
    controls: list[str] | None = None
    random_seed: int = 0
    train: int = 192
    test: int = 96
    alpha: float = 1e-3
    seed: int = 0
    batch: int = 32

    @property
    def readout(self) -> dl.Readout:
        """What is read in every run."""
        names = ("component", "steps", "layers", "heads", "stream")
        chosen: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        tokens = {name: getattr(self, name) for name in ("frames", "positions") if getattr(self, name) is not None}
        if tokens or chosen.get("stream", "video") != "video":
            chosen["tokens"] = dl.Tokens(**tokens)
        readout = dl.Readout.of(**{"level": self.level, **chosen})
        given: dict[str, Any] = {name: getattr(self, name) for name in ("branch", "pool", "source", "random_seed")}
        if self.controls is not None:
            given["controls"] = tuple(self.controls)
        return replace(readout, **given)


def parse() -> tuple[Config, Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a TOML file of these options")
    parser.add_argument("--out", type=Path, default=Path("runs/probes/probes"))
    several: dict[str, type] = dict.fromkeys(("labels", "component", "controls"), str)
    several |= dict.fromkeys(("steps", "layers", "heads", "frames", "positions"), int)
    numbers = ("train", "test", "seed", "batch", "random_seed")
    single: dict[str, Any] = {"alpha": float} | dict.fromkeys(numbers, int)
    for field in fields(Config):
        kind = {"type": several[field.name], "nargs": "*"} if field.name in several else {
            "type": single.get(field.name, str)}  # fmt: skip
        parser.add_argument(f"--{field.name.replace('_', '-')}", **kind)
    options = vars(parser.parse_args())
    out, file = options.pop("out"), options.pop("config")
    given = tomllib.loads(file.read_text()) if file is not None else {}
    if unknown := set(given) - {field.name for field in fields(Config)}:
        parser.error(f"{file}: unknown {', '.join(sorted(unknown))}")
    return Config(**given | {name: value for name, value in options.items() if value is not None}), out


def main() -> None:
    config, out = parse()
    shipped = config.model in dl.organisms.organism_names()
    model = dl.load_organism(config.model) if shipped else dl.VideoDiT(config.model)
    task = dl.tasks.task_named(config.task) if config.task else dl.organisms.organism_tasks(config.model)[0]

    result = dl.stream_probes(
        model,
        task,
        config.readout,
        train=config.train,
        test=config.test,
        labels=config.labels,
        alpha=config.alpha,
        seed=config.seed,
        batch=config.batch,
    )
    path = result.probes.save(out)

    print(result.grid)
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
