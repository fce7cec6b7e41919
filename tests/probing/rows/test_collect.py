"""Collected features are the model's, the controls what they say, and the twin is given the same inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, MadeForAnother, UnsupportedModel
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.probing.fit.estimators import LinearProbe
from dit_lens.probing.logistic import logistic_from_store
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.data import fold_of_runs
from dit_lens.probing.rows.random_weights import random_twin
from dit_lens.probing.rows.sources import ForwardNoise, invert
from dit_lens.store.store import Store
from dit_lens.tasks import Maze, Permanence
from dit_lens.tasks.evidence import labels_of
from tests.engine.modes import load_lora
from tests.subjects import Subject

TASK = Maze(size=4, lengths=(3, 8))


@pytest.fixture(name="short")
def _short(organism: Subject) -> dl.VideoDiT:
    """The random organism at three steps, without guidance."""
    defaults = organism.model.defaults | {"num_inference_steps": 3, "guidance_scale": 1.0}
    return dl.VideoDiT(organism.pipeline, defaults=defaults)


def test_the_twin_has_other_weights_and_the_same_everything_else(two_experts: Subject) -> None:
    assert random_twin(dl.load_organism("maze"), 3).id == dl.load_organism("maze", random=True, seed=3).id
    twin, again, other = (random_twin(two_experts.model, seed) for seed in (0, 0, 1))
    assert twin.id == again.id
    assert len({twin.id, other.id, two_experts.model.id}) == 3
    assert twin.pipeline.vae is two_experts.pipeline.vae
    assert twin.pipeline.config["boundary_ratio"] == 0.9
    confined = dl.organisms.load_planted("frames", "early").model
    processors = [type(b.attn1.processor) for b in confined.pipeline.transformer.blocks]
    assert [type(b.attn1.processor) for b in random_twin(confined).pipeline.transformer.blocks] == processors


def test_in_the_twin_an_adapter_adds_nothing(tmp_path: Path) -> None:
    """The twin of a model with a LoRA adapter is that of the model without, and other parameters are refused."""
    tiny = TINY["wan2.1-t2v"]
    plain, adapted = (dl.VideoDiT(tiny.build(), defaults=tiny.settings) for _ in range(2))
    load_lora(adapted.pipeline, tmp_path, "one")
    one, other = (
        random_twin(m).run(tiny.inputs()[0], 0, num_inference_steps=2, decode=False) for m in (plain, adapted)
    )
    torch.testing.assert_close(one.latents, other.latents)
    adapted.pipeline.transformer.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(UnsupportedModel, match="extra is not in the transformer's configuration"):
        random_twin(adapted)


def test_random_readouts_are_of_the_trained_models_own_inputs(short: dl.VideoDiT) -> None:
    mazes = TASK.sample(3)
    data = collect(short, TASK, mazes, steps=[0, 2], batch=2, seed=4, random_seed=9)
    run = short.run(mazes, [4, 5, 6], record=True, decode=False)
    here = dl.Capture(dl.Sites(("embed", "resid"), steps=2))
    replay = random_twin(short, 9).replay(run, 2, [here])
    for site, given in replay.captures[""].items():
        name = "embed" if site.component == "embed" else f"L{site.layer:02d}"
        np.testing.assert_allclose(data[2].features[f"random/{name}"], given[:, -1].flatten(1, 2), atol=1e-4)
    assert data[2].groups == [maze.id for maze in mazes]
    assert data[2].sigma == run.schedule.sigma(2)
    assert (data[2].source, data[2].level) == ("sample", "cell")


def test_controls_can_be_switched_off(short: dl.VideoDiT) -> None:
    data = collect(short, TASK, TASK.sample(2), steps=0, layers=[1], controls=("position",))
    assert set(data[0].features) == {"embed", "L01", "position"}
    with pytest.raises(EvidenceError, match="unknown controls 'luck'"):
        collect(short, TASK, TASK.sample(2), controls=("luck",))
    with pytest.raises(EvidenceError, match="no instances"):
        collect(short, TASK, [])


@pytest.mark.parametrize("source", ["forward-noise", "invert"])
def test_states_of_a_source_are_what_is_read(short: dl.VideoDiT, source: str) -> None:
    model, mazes = short, TASK.sample(2)
    options = {"steps": [1, 2], "layers": 3, "controls": ("input",), "seed": 1, "labels": ["on_path"]}
    data = collect(model, TASK, mazes, source=source, **options)  # type: ignore[arg-type]
    clean = model.encode(TASK.render(mazes))
    keep = dl.Capture(dl.Sites(("resid", "model_input"), steps=2, layers=3))
    if source == "forward-noise":
        run = model.run(mazes, [1, 2], interventions=[ForwardNoise(clean), keep], decode=False)
    else:
        states = invert(model, mazes, clean).states
        write = dl.intervention(dl.Sites("latents"))(lambda state, at: states[at.site.step])
        run = model.run(mazes, [1, 2], interventions=[write, keep], decode=False)
    read = data[2].features
    assert data[2].source == source
    np.testing.assert_allclose(read["L03"], run["s02/cond/L03/resid/video"][:, -1].flatten(1, 2), atol=1e-3)
    given = run["s02/cond/-/model_input/video"][:, :, -1].flatten(2).transpose(1, 2)
    np.testing.assert_allclose(read["input"], given, atol=1e-3)
    sampled = collect(model, TASK, mazes, **options)  # type: ignore[arg-type]
    assert np.abs(sampled[2].features["L03"] - read["L03"]).max() > 0.01


def test_tokens_of_a_model_whose_patches_hold_several_cells() -> None:
    """Patches of 2 x 2 latent cells of 8 pixels: a token is four cells of the task."""
    spec, task = TINY["wan2.1-i2v"], Permanence(size=4, frames=5)
    model = dl.VideoDiT(spec.build(), defaults={"num_frames": 5, "num_inference_steps": 2, "guidance_scale": 1.0})
    problems = task.sample(2)
    with pytest.raises(EvidenceError, match="level='token'"):
        collect(model, task, problems)
    data = collect(model, task, problems, level="token", labels=["object", "row"], frames="all", steps=1)
    found = data[1]
    # Two latent frames of 2 x 2 tokens; the input of each is 36 channels of 4 latent cells.
    assert found.features["L03"].shape == (2, 8, 32)
    assert found.features["input"].shape == (2, 8, 144)
    assert found.features["random/L03"].shape == (2, 8, 32)
    cells = task.labels(problems, 2)["object"].values.reshape(2, 2, 2, 2, 2, 2)
    assert np.array_equal(found.labels["object"].values, cells.any(axis=(3, 5)).reshape(2, 8))


def test_the_drawn_answer_is_a_label_of_decoded_runs() -> None:
    model, task = dl.load_organism("maze"), dl.organisms.organism_tasks("maze")[0]
    mazes = task.sample(2)
    data = collect(model, task, mazes, steps=0, layers=0, controls=(), decode=True)
    assert "on_path" in data[0].labels
    run = model.run(mazes, [0, 1])
    drawn = labels_of(task, mazes, 5, run.frames)["drawn"].values[:, -1].reshape(2, -1)
    assert drawn.any(axis=1).all()
    np.testing.assert_array_equal(data[0].labels["drawn"].values, drawn)


def test_logistic_probes_from_a_store_score_as_those_in_memory(short: dl.VideoDiT, tmp_path: Path) -> None:
    model, mazes = short, TASK.sample(8)
    capture = dl.Capture(dl.Sites(("resid", "model_input"), steps=1, layers=[0, 3]))
    with Store(tmp_path / "store") as store:
        for start in (0, 4):
            seeds = list(range(start, start + 4))
            store.add(model.run(mazes[start : start + 4], seeds, interventions=[capture], decode=False))
    grid = logistic_from_store(Store(tmp_path / "store"), model, TASK, mazes, labels=["wall_right", "start"], folds=2)
    assert grid.groups == 8
    assert grid.missing == ("random",)
    # In the batches of the stored runs: the same shapes give the same bits, and a tie is decided the same way.
    asked = {"labels": ["wall_right", "start"], "controls": ("input",), "batch": 4}
    data = collect(model, TASK, mazes, steps=1, layers=[0, 3], **asked)  # type: ignore[arg-type]
    stored = store["s01/cond/L03/resid/video"].tensor()
    np.testing.assert_array_equal(data[1].features["L03"], stored[:, -1].flatten(1, 2))
    fold = fold_of_runs([m.id for m in mazes], 2)
    x, y = data[1].features["L03"], data[1].labels["wall_right"].values
    hits = 0
    for number in (0, 1):
        train, test = fold != number, fold == number
        probe = LinearProbe().fit(x[train].reshape(-1, 128), y[train].ravel())
        hits += int((probe.predict(x[test].reshape(-1, 128)) == y[test].ravel()).sum())
    assert grid.scores[1, "L03", "wall_right", "none"].accuracy(np.ones((1, 8)))[0] == pytest.approx(hits / y.size)
    with pytest.raises(EvidenceError, match="distance: a logistic probe tells classes apart"):
        logistic_from_store(Store(tmp_path / "store"), model, TASK, mazes, labels=["distance"])
    with pytest.raises(EvidenceError, match="instances that were not given"):
        logistic_from_store(Store(tmp_path / "store"), model, TASK, mazes[:3])
    with pytest.raises(MadeForAnother):
        logistic_from_store(Store(tmp_path / "store"), random_twin(model), TASK, mazes)


def test_reading_changes_no_run(short: dl.VideoDiT) -> None:
    mazes = TASK.sample(2)
    plain = short.run(mazes, [0, 1], decode=False)
    collect(short, TASK, mazes, steps=2)
    assert torch.equal(plain.latents, short.run(mazes, [0, 1], decode=False).latents)
