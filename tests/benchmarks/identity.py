"""What it costs to know a model by its weights: ``python -m tests.benchmarks.identity``.

Milliseconds, medians, of `VideoDiT.id`, of what a run hashes besides (`VideoDiT.setup`) and of `VideoDiT.full_id`, for
the shipped model and a transformer of a billion random parameters; beside them what they are part of: a run of 10 steps
and a replay of one step of the shipped model, one call of the large one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel

import dit_lens as dl
from dit_lens.runs.identity import model_id
from dit_lens.runs.weights import contents, tensors
from tests.benchmarks.machine import machine

#: The layers of Wan 2.1 1.3B, and fewer of them.
LARGE: dict[str, Any] = {
    "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "text_dim": 4096, "num_layers": 22,
}  # fmt: skip
#: What the large one is called with: 5 latent frames of 30 x 52, as of 17 frames of 480 x 832 pixels at half the size.
LATENT = (1, 16, 5, 30, 52)


def milliseconds(what: Callable[[], object], rounds: int) -> float:
    """Median wall time, the first round not counted."""
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        what()
        taken.append(1000 * (time.perf_counter() - started))
    return float(np.median(taken[1:]))


def facts(module: torch.nn.Module) -> str:
    found = tensors(module)
    read = sum(map(len, contents(found)))
    values = sum(x.numel() for x in found.values())
    return f"{values / 1e6:.1f} million values in {len(found)} tensors, {read:,} bytes read"


def shipped(rounds: int) -> list[str]:
    model = dl.load_organism("maze")
    maze = dl.organisms.organism_tasks("maze")[0].sample(1)[0]
    record = model.run(maze, record=True, decode=False)
    cases: dict[str, Callable[[], object]] = {
        "id": lambda: model.id,
        "setup": lambda: model.setup,
        "full_id": model.full_id,
        "run of 10 steps": lambda: model.run(maze, decode=False),
        "replay of a step": lambda: model.replay(record, 5),
    }
    return [f"shipped maze model: {facts(model.pipeline.transformer)}", *_lines(cases, rounds)]


def large(rounds: int) -> list[str]:
    transformer = WanTransformer3DModel(**LARGE).eval()
    given = {
        "hidden_states": torch.zeros(LATENT),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 512, LARGE["text_dim"]),
    }

    @torch.no_grad()
    def call() -> None:
        transformer(**given)

    cases: dict[str, Callable[[], object]] = {
        "id": lambda: model_id([transformer]),
        "full_id": lambda: model_id([transformer], whole=True),
    }
    title = f"a Wan transformer of {LARGE['num_layers']} layers: {facts(transformer)}"
    return [title, *_lines(cases, rounds), *_lines({"one call": call}, 1)]


def _lines(cases: dict[str, Callable[[], object]], rounds: int) -> list[str]:
    return [f"  {name:<18}{milliseconds(what, rounds):>10.2f} ms" for name, what in cases.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.identity", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--skip-large", action="store_true", help="5 GB of memory and a minute")
    options = parser.parse_args(arguments)
    host = machine()
    print(
        f"{host['processor']}, {host['threads']} threads, load {host['load'][0]}, float32, medians of "
        f"{options.rounds}, {time.strftime('%Y-%m-%d')}"
    )
    print(*shipped(options.rounds), sep="\n")
    if not options.skip_large:
        print(*large(max(1, options.rounds // 4)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
