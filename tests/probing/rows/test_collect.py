"""Collected features are the model's, the controls what they say, and the twin is given the same inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, MadeForAnother, SiteError, UnsupportedModel
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.probing.fit.estimators import LinearProbe
from dit_lens.probing.logistic import logistic_from_store
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.data import Source, fold_of_runs
from dit_lens.probing.rows.random_weights import RandomTwin
from dit_lens.probing.rows.readout import Readout
from dit_lens.probing.rows.sources import ForwardNoise, invert
from dit_lens.runs.seeds import row_seeds
from dit_lens.store.store import Store
from dit_lens.tasks import Labelled, Maze, Permanence
from dit_lens.tasks.evidence import labels_of
from tests.engine.modes import load_lora
from tests.subjects import Subject

TASK = Maze(size=4, lengths=(3, 8))


@pytest.fixture(name="short")
def _short(organism: Subject) -> dl.VideoDiT:
    """The random organism at three steps, without guidance."""
    defaults = organism.model.defaults | {"num_inference_steps": 3, "guidance_scale": 1.0}
    return dl.VideoDiT(organism.pipeline, defaults=defaults)


def block(step: int, layer: int) -> str:
    return f"s{step:02d}/cond/L{layer:02d}/resid/video"


def test_the_twin_has_other_weights_and_the_same_everything_else(two_experts: Subject) -> None:
    assert RandomTwin(dl.load_organism("maze"), 3).id == dl.load_organism("maze", random=True, seed=3).id
    twin, again, other = (RandomTwin(two_experts.model, seed) for seed in (0, 0, 1))
    assert twin.id == again.id
    assert len({twin.id, other.id, two_experts.model.id}) == 3
    assert twin.pipeline.vae is two_experts.pipeline.vae
    assert twin.pipeline.config["boundary_ratio"] == 0.9
    confined = dl.organisms.load_planted("frames", "early").model
    processors = [type(b.attn1.processor) for b in confined.pipeline.transformer.blocks]
    assert [type(b.attn1.processor) for b in RandomTwin(confined).pipeline.transformer.blocks] == processors


def test_in_the_twin_an_adapter_adds_nothing(tmp_path: Path) -> None:
    """The twin of a model with a LoRA adapter is that of the model without, and other parameters are refused."""
    tiny = TINY["wan2.1-t2v"]
    plain, adapted = (dl.VideoDiT(tiny.build(), defaults=tiny.settings) for _ in range(2))
    load_lora(adapted.pipeline, tmp_path, "one")
    one, other = (RandomTwin(m).run(tiny.inputs()[0], 0, num_inference_steps=2, decode=False) for m in (plain, adapted))
    torch.testing.assert_close(one.latents, other.latents)
    adapted.pipeline.transformer.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(UnsupportedModel, match="extra is not in the transformer's configuration"):
        RandomTwin(adapted)


def test_random_sites_are_of_the_trained_models_own_inputs(short: dl.VideoDiT) -> None:
    mazes = TASK.sample(3)
    data = collect(short, TASK, mazes, replace(Readout.of(steps=[0, 2]), random_seed=9), batch=2, seed=4)
    run = short.run(mazes, row_seeds(4, 3), record=True, decode=False)
    here = dl.Capture(dl.Sites(("embed", "resid"), steps=2))
    replay = RandomTwin(short, 9).replay(run, 2, [here])
    assert {str(site) for site in replay.captures[""]} == set(data[2].features) == set(data[2].random)
    for site, given in replay.captures[""].items():
        np.testing.assert_allclose(data[2].random[str(site)], given[:, -1].flatten(1, 2), atol=1e-4)
    assert data[2].groups == [maze.id for maze in mazes]
    assert data[2].sigma == run.schedule.sigma(2)
    assert (data[2].source, data[2].level) == ("sample", "cell")


def test_controls_can_be_switched_off(short: dl.VideoDiT) -> None:
    data = collect(short, TASK, 2, Readout(dl.Sites("resid", steps=0, layers=1), controls=("position",)))[0]
    assert list(data.features) == [block(0, 1)]
    assert (data.input, data.random) == (None, {})
    assert data.position is not None
    assert data.groups == [maze.id for maze in TASK.sample(2)]
    with pytest.raises(EvidenceError, match="unknown controls 'luck'"):
        Readout(controls=("luck",))
    for none in ([], 0):
        with pytest.raises(EvidenceError, match=r"collect needs instances of task .*; got none"):
            collect(short, TASK, none)


def test_the_default_features_are_those_of_captures_bit_for_bit(short: dl.VideoDiT) -> None:
    mazes = TASK.sample(2)
    data = collect(short, TASK, mazes, seed=[3, 8])
    keep = dl.Capture(dl.Sites(("embed", "resid", "model_input"), branches="cond"))
    run = short.run(mazes, [3, 8], interventions=[keep], decode=False)
    assert sorted(data) == [0, 1, 2]
    for step, part in data.items():
        own = [site for site in run.captured() if site.step == step and site.component != "model_input"]
        assert list(part.features) == [str(site) for site in own]
        for site in own:
            np.testing.assert_array_equal(part.features[str(site)], run[site][:, -1].flatten(1, 2))
        given = run[f"s{step:02d}/cond/-/model_input"][:, :, -1].flatten(2).transpose(1, 2)
        np.testing.assert_array_equal(part.input, given)


@pytest.mark.parametrize("component", ["delta", "attn", "cross_attn", "ffn", "head"])
def test_every_component_is_read_as_it_is_captured(short: dl.VideoDiT, component: str) -> None:
    sites = dl.Sites(component, steps=1, layers=[0, 2], tokens=dl.Tokens(frames=[0, -1]))
    mazes = TASK.sample(2)
    data = collect(short, TASK, mazes, Readout(sites), seed=[1, 2])[1]
    run = short.run(mazes, [1, 2], interventions=[dl.Capture(sites.at(tokens=dl.Tokens()))], decode=False)
    assert list(data.features) == [str(site) for site in run.captured()]
    for site, given in run.captured().items():
        np.testing.assert_array_equal(data.features[str(site)], given[:, [0, -1]].flatten(1, 3))
        assert data.random[str(site)].shape == data.features[str(site)].shape
    grid = dl.probe_grid({1: collect(short, TASK, 8, Readout(sites), labels=["start"])[1]}, folds=2)
    assert set(grid.table["component"]) == {component}
    assert grid.missing == ()


def test_interventions_are_read_after_they_have_changed_the_model(short: dl.VideoDiT) -> None:
    mazes = TASK.sample(2)
    readout = Readout(dl.Sites("resid", steps=1, layers=[0, 3]))
    nothing, given = dl.Ablate(dl.Sites("resid", steps=1, layers=1)), dl.Ablate(dl.Sites("model_input", steps=1))
    plain = collect(short, TASK, mazes, readout)[1]
    without = collect(short, TASK, mazes, readout, interventions=[nothing])[1]
    np.testing.assert_array_equal(plain.features[block(1, 0)], without.features[block(1, 0)])
    assert np.abs(plain.features[block(1, 3)] - without.features[block(1, 3)]).max() > 0.01
    # The twin has the same inputs, whatever is changed inside the model; and those that are changed before it.
    np.testing.assert_array_equal(plain.random[block(1, 3)], without.random[block(1, 3)])
    blind = collect(short, TASK, mazes, readout, interventions=[given])[1]
    assert not blind.input.any()
    assert np.abs(plain.random[block(1, 3)] - blind.random[block(1, 3)]).max() > 0.01


@pytest.mark.parametrize("source", ["forward-noise", "invert"])
def test_states_of_a_source_are_what_is_read(short: dl.VideoDiT, source: Source) -> None:
    model, mazes = short, TASK.sample(2)
    sampled = replace(Readout.of(steps=[1, 2], layers=3), controls=("input",))
    data = collect(model, TASK, mazes, replace(sampled, source=source), seed=[1, 2], labels=["on_path"])
    clean = model.encode(TASK.render(mazes))
    keep = dl.Capture(dl.Sites(("resid", "model_input"), steps=2, layers=3))
    if source == "forward-noise":
        run = model.run(mazes, [1, 2], interventions=[ForwardNoise(clean), keep], decode=False)
    else:
        states = invert(model, mazes, clean).states
        write = dl.intervention(dl.Sites("latents"))(lambda state, at: states[at.site.step])
        run = model.run(mazes, [1, 2], interventions=[write, keep], decode=False)
    read = data[2]
    assert read.source == source
    np.testing.assert_allclose(read.features[block(2, 3)], run[block(2, 3)][:, -1].flatten(1, 2), atol=1e-3)
    given = run["s02/cond/-/model_input/video"][:, :, -1].flatten(2).transpose(1, 2)
    np.testing.assert_allclose(read.input, given, atol=1e-3)
    other = collect(model, TASK, mazes, sampled, seed=[1, 2], labels=["on_path"])[2]
    assert np.abs(other.features[block(2, 3)] - read.features[block(2, 3)]).max() > 0.01


def test_tokens_of_a_model_whose_patches_hold_several_cells() -> None:
    """Patches of 2 x 2 latent cells of 8 pixels: a token is four cells of the task."""
    spec, task = TINY["wan2.1-i2v"], Permanence(size=4, frames=5)
    model = dl.VideoDiT(spec.build(), defaults={"num_frames": 5, "num_inference_steps": 2, "guidance_scale": 1.0})
    problems = task.sample(2)
    with pytest.raises(EvidenceError, match="level='token'"):
        collect(model, task, problems)
    readout = Readout(dl.Sites("resid", steps=1), level="token")
    found = collect(model, task, problems, readout, labels=["object", "row"])[1]
    # Two latent frames of 2 x 2 tokens; the input of each is 36 channels of 4 latent cells.
    assert found.features[block(1, 3)].shape == (2, 8, 32)
    assert found.input.shape == (2, 8, 144)
    assert found.random[block(1, 3)].shape == (2, 8, 32)
    cells = task.labels(problems, 2)["object"].values.reshape(2, 2, 2, 2, 2, 2)
    assert np.array_equal(found.labels["object"].values, cells.any(axis=(3, 5)).reshape(2, 8))


def test_the_drawn_answer_is_a_label_of_decoded_runs() -> None:
    model, task = dl.load_organism("maze"), dl.organisms.organism_tasks("maze")[0]
    mazes = task.sample(2)
    data = collect(model, task, mazes, Readout.of(steps=0, layers=0), decode=True)
    assert "on_path" in data[0].labels
    run = model.run(mazes, row_seeds(0, 2))
    drawn = labels_of(task, mazes, 5, run.frames)["drawn"].values[:, -1].reshape(2, -1)
    assert drawn.any(axis=1).all()
    np.testing.assert_array_equal(data[0].labels["drawn"].values, drawn)


def test_logistic_probes_from_a_store_score_as_those_in_memory(short: dl.VideoDiT, tmp_path: Path) -> None:
    model, mazes = short, TASK.sample(8)
    capture = dl.Capture(dl.Sites(("resid", "model_input"), steps=1, layers=[0, 3]))
    with Store(tmp_path / "store") as store:
        for run in model.runs(mazes, 0, batch=4, interventions=[capture], decode=False):
            store.add(run)
    stored, asked = Store(tmp_path / "store"), ["wall_right", "start"]
    grid = logistic_from_store(model, TASK, stored, mazes, labels=asked, folds=2)
    assert grid.groups == 8
    assert grid.missing == ("random",)
    assert grid.sites == [block(1, 0), block(1, 3)]
    # In the batches of the stored runs: the same shapes give the same bits, and a tie is decided the same way.
    readout = replace(Readout.of(steps=1, layers=[0, 3]), controls=("input",))
    data = collect(model, TASK, mazes, readout, labels=asked, batch=4)[1]
    np.testing.assert_array_equal(data.features[block(1, 3)], stored[block(1, 3)].tensor()[:, -1].flatten(1, 2))
    fold = fold_of_runs([m.id for m in mazes], 2)
    for control, x in (("none", data.features[block(1, 3)]), ("input", data.input)):
        assert x is not None
        y, hits = data.labels["wall_right"].values, 0
        for number in (0, 1):
            train, test = fold != number, fold == number
            probe = LinearProbe().fit(x[train].reshape(-1, x.shape[-1]), y[train].ravel())
            hits += int((probe.predict(x[test].reshape(-1, x.shape[-1])) == y[test].ravel()).sum())
        scores = grid.scores_of(block(1, 3), "wall_right")[control]
        assert scores.accuracy(np.ones((1, 8)))[0] == pytest.approx(hits / y.size)
    with pytest.raises(EvidenceError, match="distance: a logistic probe tells classes apart"):
        logistic_from_store(model, TASK, stored, mazes, labels=["distance"])
    with pytest.raises(EvidenceError, match="instances that were not given"):
        logistic_from_store(model, TASK, stored, mazes[:3])
    with pytest.raises(EvidenceError, match="no site of branch 'uncond' that a probe reads"):
        logistic_from_store(model, TASK, stored, mazes, Readout(branch="uncond"))
    with pytest.raises(MadeForAnother):
        logistic_from_store(RandomTwin(model), TASK, stored, mazes)


def test_reading_changes_no_run(short: dl.VideoDiT) -> None:
    mazes = TASK.sample(2)
    plain = short.run(mazes, [0, 1], decode=False)
    collect(short, TASK, mazes, Readout(dl.Sites(steps=2)), seed=[0, 1])
    assert torch.equal(plain.latents, short.run(mazes, [0, 1], decode=False).latents)


# -- other streams and what is refused


def test_texts_are_read_by_clip_without_padding_and_by_position() -> None:
    """A joint-attention family, whose texts of two lengths are padded to the same."""
    spec = TINY["hunyuanvideo"]
    model = dl.VideoDiT(spec.build(), defaults=dict(spec.settings))
    inputs = ["red circle", "blue circle goes behind red square and comes out"]
    task = Labelled(inputs, {"colour": ["red", "blue"], "long": [False, True]})
    sites = dl.Sites("resid", steps=0, layers=0, branches="cond", stream="text")
    data = collect(model, task, task.sample(2), Readout(sites, level="clip"), seed=[0, 1])[0]
    run = model.run(task.sample(2), [0, 1], interventions=[dl.Capture(sites)], decode=False)
    ((site, given),) = run.captured().items()
    valid = run.text_valid["cond"]
    assert not valid.all()
    expected = torch.stack([x[v].mean(0) for x, v in zip(given, valid, strict=True)])[:, None]
    np.testing.assert_allclose(data.features[str(site)], expected, atol=1e-6)
    assert data.input is None  # the model's input is the video's
    assert data.random[str(site)].shape == data.features[str(site)].shape
    first = Readout(sites.at(tokens=dl.Tokens(positions=[0, 1])), level="token")
    read = collect(model, task, task.sample(2), first, labels=["long"], seed=[0, 1])[0]
    np.testing.assert_array_equal(read.features[str(site)], given[:, :2])
    assert read.labels["long"].values.tolist() == [[False, False], [True, True]]
    with pytest.raises(EvidenceError, match="padding in some rows"):
        collect(model, task, task.sample(2), Readout(sites, level="token"), labels=["long"])
    with pytest.raises(EvidenceError, match="rows of a text are of level 'token' or 'clip'"):
        collect(model, task, task.sample(2), Readout(sites))


def test_what_no_probe_reads_is_refused_before_anything_runs(
    short: dl.VideoDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing may run")

    monkeypatch.setattr(dl.VideoDiT, "run", forbidden)
    for wrong, match in (
        ({"sites": dl.Sites("velocity")}, "'velocity' is none of them"),
        ({"sites": dl.Sites(stream=("video", "text"))}, "one stream at a time"),
        ({"sites": dl.Sites(branches="uncond")}, "give branch= alone"),
        ({"level": "pixel"}, "one of clip, frame, cell, token"),
        ({"pool": "median"}, "one of mean, max"),
        ({"source": "dream"}, "one of sample, forward-noise, invert"),
    ):
        with pytest.raises((EvidenceError, SiteError), match=match):
            Readout(**wrong)
    for readout, options, match in (
        (Readout(dl.Sites(steps=7)), {}, "no step 7"),
        (Readout(dl.Sites(tokens=dl.Tokens(rows=(0, 1)))), {}, "whole latent frames"),
        (Readout(branch="uncond"), {}, "unknown branch 'uncond'"),
        (Readout(), {"stop_after": 1}, "probes choose that themselves"),
        (Readout(), {"seed": [1, 2, 3]}, "3 seeds for 2 instances"),
        (Readout(), {"labels": ["colour"]}, "no label colour"),
    ):
        with pytest.raises((EvidenceError, SiteError, InputError), match=match):
            collect(short, TASK, TASK.sample(2), readout, **options)
    with pytest.raises(EvidenceError, match="give the instances themselves"):
        collect(short, TASK, 2, seed=[1, 2])
