"""The organism that ships: its files, how it loads, and what it can do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import InputError
from dit_lens.organisms import load_organism, organism_names, save_organism
from dit_lens.organisms.build import OrganismConfig, random_pipeline
from dit_lens.organisms.evaluate import evaluate_maze
from tests.subjects import Subject

HOME = Path(dl.organisms.__file__).parent / "maze"


def test_weights_are_small_enough_to_ship() -> None:
    sizes = {path: path.stat().st_size for path in HOME.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 24 * 2**20
    assert max(sizes.values()) <= 16 * 2**20


def test_nothing_that_ships_is_executable() -> None:
    assert {path.suffix for path in HOME.rglob("*") if path.is_file()} <= {".json", ".safetensors"}


def test_recipe_and_logs_are_kept() -> None:
    recipe = json.loads((HOME / "recipe.json").read_text())
    for part in ("vae", "decoder", "denoiser"):
        log = json.loads((HOME / f"log-{part}.json").read_text())
        stages = recipe["vae" if part != "denoiser" else "denoiser"][
            "decoder_stages" if part == "decoder" else "stages"
        ]
        assert log[-1]["step"] == sum(stage["steps"] for stage in stages)
        assert log[-1]["loss"] < log[0]["loss"]


def test_it_has_at_least_eight_blocks(shipped: Subject) -> None:
    assert shipped.model.layers >= 8


def test_random_weights_are_the_same_architecture_and_the_same_for_a_seed() -> None:
    trained, first, again = load_organism(), load_organism(random=True), load_organism(random=True)
    other = load_organism(random=True, seed=1)
    assert first.id == again.id
    assert len({trained.id, first.id, other.id}) == 3
    shapes = [[p.shape for p in m.pipeline.transformer.parameters()] for m in (trained, first)]
    assert shapes[0] == shapes[1]


def test_an_unknown_organism_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="there are: maze"):
        load_organism("atlantis")
    assert organism_names() == ["maze"]


def test_an_organism_survives_being_saved_in_half_precision(tmp_path: Path) -> None:
    config = OrganismConfig(layers=2)
    pipeline = random_pipeline(config)
    before = {n: p.clone() for n, p in pipeline.transformer.named_parameters()}
    loaded = load_organism(folder=save_organism(pipeline, config, tmp_path / "tiny"))
    for name, parameter in loaded.pipeline.transformer.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name].half().float())
    assert all(torch.equal(p, before[n]) for n, p in pipeline.transformer.named_parameters())
    assert load_organism(folder=tmp_path / "tiny", random=True).layers == 2


def test_the_shipped_model_solves_mazes_and_random_weights_do_not(shipped: Subject) -> None:
    solved = evaluate_maze(shipped.model, sizes=(5,), count=60)[0]
    lost = evaluate_maze(load_organism(random=True), sizes=(5,), count=20)[0]
    assert solved.strict.low > 0.5
    assert lost.strict.value == 0
    # What the autoencoder loses, no transformer can win back.
    assert solved.reconstruction.value >= 0.95


def test_success_falls_with_path_length(shipped: Subject) -> None:
    """Short ways against long ones, on mazes of their own."""
    rates = []
    for lengths in ((3, 5), (9, 11)):
        task = dl.tasks.Maze(lengths=lengths)
        mazes = task.sample(40, seed=5)
        frames = shipped.model.run(mazes, seed=list(range(40))).frames
        rates.append(np.mean(task.score(frames, mazes).strict))
    assert rates[0] > rates[1]
