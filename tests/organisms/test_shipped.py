"""The organism that ships: its files, how it loads, and what it can do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dit_lens as dl
from dit_lens.analysis.guidance import compare_guidance
from dit_lens.analysis.prompts import exchange_prompts, prompt_kinds
from dit_lens.analysis.success import evaluate
from dit_lens.errors import InputError, StoreError
from dit_lens.organisms import (
    load_organism,
    organism_checkpoints,
    organism_names,
    organism_tasks,
    save_organism,
)
from dit_lens.organisms.build import OrganismConfig, random_pipeline
from dit_lens.results.intervals import wilson
from tests.subjects import Subject

HOME = Path(dl.organisms.__file__).parent
SHIPPED = organism_names()


def files(name: str) -> dict[Path, int]:
    return {path: path.stat().st_size for path in (HOME / name).rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_small_enough_to_ship(name: str) -> None:
    assert sum(files(name).values()) <= 24 * 2**20
    assert max(files(name).values()) <= 16 * 2**20


def test_the_whole_package_is_small_enough_to_ship() -> None:
    package = Path(dl.__file__).parent
    assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) <= 64 * 2**20


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_that_ships_is_executable(name: str) -> None:
    assert {path.suffix for path in files(name)} <= {".json", ".safetensors"}


@pytest.mark.parametrize("name", SHIPPED)
def test_recipe_and_logs_are_kept(name: str) -> None:
    recipe = json.loads((HOME / name / "recipe.json").read_text())
    phases = [] if isinstance(recipe["vae"], str) else recipe["vae"]["phases"]
    planned = {phase["name"]: phase["stages"] for phase in phases} | {"denoiser": recipe["denoiser"]["stages"]}
    for part, stages in planned.items():
        log = json.loads((HOME / name / f"log-{part}.json").read_text())
        assert log[-1]["step"] == sum(stage["steps"] for stage in stages)
        assert log[-1]["loss"] < log[0]["loss"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_organism_says_which_tasks_it_was_trained_on(name: str) -> None:
    model, tasks = load_organism(name), organism_tasks(name)
    instance = tasks[0].sample(1)[0]
    run = model.run(instance, num_inference_steps=1)
    assert run.frames is not None
    assert tasks[0].score(run.frames, [instance]).total.shape == (1,)


def test_checkpoints_along_training_are_kept_and_differ() -> None:
    steps = organism_checkpoints("puzzles")
    assert len(steps) >= 3
    assert organism_checkpoints("maze") == []
    ids = {load_organism("puzzles", checkpoint=step).id for step in steps} | {load_organism("puzzles").id}
    assert len(ids) == len(steps) + 1
    with pytest.raises(InputError, match=f"there are: {steps[0]}, "):
        load_organism("puzzles", checkpoint=7)


def test_an_early_checkpoint_solves_less() -> None:
    task = dl.tasks.Permanence()
    instances = task.sample(30, seed=3)
    early, late = (
        dl.load_organism("puzzles", checkpoint=step).run(instances, seed=list(range(30))).frames
        for step in (organism_checkpoints()[0], None)
    )
    assert task.score(early, instances).total.mean() < task.score(late, instances).total.mean()


def test_it_has_at_least_eight_blocks(shipped: Subject) -> None:
    assert shipped.model.layers >= 8


@pytest.mark.parametrize("name", ["maze", "puzzles"])
def test_random_weights_are_the_same_architecture_and_the_same_for_a_seed(name: str) -> None:
    trained = load_organism(name)
    first, again, other = (load_organism(name, random=True, seed=seed) for seed in (0, 0, 1))
    assert first.id == again.id
    assert len({trained.id, first.id, other.id}) == 3
    shapes = [[p.shape for p in m.pipeline.transformer.parameters()] for m in (trained, first)]
    assert shapes[0] == shapes[1]


def test_an_unknown_organism_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="there are: maze, planted/frames-early"):
        load_organism("atlantis")
    assert load_organism().id == load_organism("puzzles").id


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
    (solved,) = evaluate(shipped.model, dl.tasks.Maze(), 60).tasks
    (lost,) = evaluate(load_organism("maze", random=True), dl.tasks.Maze(), 20).tasks
    assert solved.strict.low > 0.5
    assert solved.claimed
    assert lost.strict.value == 0
    assert not lost.claimed
    # What the autoencoder loses, no transformer can win back.
    assert solved.restored is not None
    assert solved.restored.mean() >= 0.95


def test_success_falls_with_path_length(shipped: Subject) -> None:
    """Short ways against long ones, on mazes of their own."""
    rates = []
    for lengths in ((3, 5), (9, 11)):
        task = dl.tasks.Maze(lengths=lengths)
        mazes = task.sample(40, seed=5)
        frames = shipped.model.run(mazes, seed=list(range(40))).frames
        rates.append(np.mean(task.score(frames, mazes).strict))
    assert rates[0] > rates[1]


# -- the puzzles -------------------------------------------------------------------------------------------------------


def test_a_claim_is_made_of_the_normalised_score() -> None:
    model, task = load_organism("puzzles"), dl.tasks.Permanence()
    (result,) = evaluate(model, [task], 40).tasks
    assert result.normalised.value == pytest.approx((result.strict.value - result.floor) / (1 - result.floor))
    assert result.claimed == (result.normalised.low > 0.3)
    data = result.to_json()
    assert {"task", "strict", "low", "high", "n", "floor"} <= set(data)
    assert json.loads(json.dumps(data)) == data


def test_with_the_other_prompt_the_original_answer_is_lost_and_the_other_one_found() -> None:
    model, task = load_organism("puzzles"), dl.tasks.Permanence()
    assert prompt_kinds(task) == ["exit", "object"]
    result = exchange_prompts(model, task, 40, kind="exit")
    assert result.swapped.mean() <= 0.05
    assert result.followed.mean() > wilson(int(result.swapped.sum()), 40).high


def test_guidance_changes_videos() -> None:
    result = compare_guidance(load_organism("puzzles"), dl.tasks.Permanence(), 10, scales=(1.0, 3.0))
    assert result.strict.shape == result.changed.shape == (2, 10)
    assert not result.changed[0].any()
    assert result.changed[1].any()


def test_words_that_the_organism_does_not_know_are_refused() -> None:
    image = dl.tasks.Permanence().sample(1)[0].image
    with pytest.raises(InputError, match="knows no 'hexagon'"):
        load_organism("puzzles").run({"prompt": "the hexagon goes behind the wall and stays", "image": image})
    with pytest.raises(InputError, match="knows no 'blurry'"):
        load_organism("puzzles").run({"prompt": "sort the bars up", "image": image}, negative_prompt="blurry")


def test_prompts_that_would_be_cut_off_are_refused() -> None:
    image = dl.tasks.Permanence().sample(1)[0].image
    with pytest.raises(InputError, match="at most 15"):
        load_organism("puzzles").run({"prompt": " ".join(["up"] * 16), "image": image})


def test_checkpoints_of_other_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "puzzles"
    shutil.copytree(HOME / "puzzles", folder)
    step = organism_checkpoints(folder=folder)[0]
    path = folder / "checkpoints" / f"step-{step:05d}.safetensors"
    whole = load_file(path)
    load_organism(folder=folder, checkpoint=step)
    name = next(iter(whole))
    for wrong in (
        {n: x for n, x in whole.items() if n != name},
        {**whole, name: torch.zeros(1)},
        {**whole, "transformer.more": torch.zeros(1)},
        {"vae.x": torch.zeros(1)},
    ):
        save_file(wrong, path)
        with pytest.raises(StoreError, match=r"is no checkpoint of this organism: .* is missing or"):
            load_organism(folder=folder, checkpoint=step)
    path.write_bytes(b"no tensors")
    with pytest.raises(StoreError, match="cannot be read"):
        load_organism(folder=folder, checkpoint=step)
