"""The tuned lens."""

from __future__ import annotations

import json
import weakref
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, MadeForAnother, NotFinite, SiteError, StoreError
from dit_lens.files.weights import read_weights, write_weights
from dit_lens.lens.depth import depth_lens
from dit_lens.lens.tuned import compare
from dit_lens.lens.tuned.bands import NoiseBand, band_of, make_bands
from dit_lens.lens.tuned.compare import compare_lenses
from dit_lens.lens.tuned.fit import fit_tuned_lens, train_tuned_lens
from dit_lens.lens.tuned.recipe import TunedLensRecipe
from dit_lens.lens.tuned.runs import Runs, groups_of
from dit_lens.lens.tuned.sums import ResidualSums
from dit_lens.lens.tuned.tuned_lens import TunedLens
from dit_lens.organisms.build import OrganismConfig, random_pipeline
from dit_lens.runs.seeds import derive, row_seeds
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
from tests.forged import rewrite, spoilt
from tests.subjects import Subject, subject_of

matplotlib.use("Agg")

TASK = dl.tasks.Maze(4, frames=5)
WIDTH = 16


@cache
def small(layers: int = 3) -> dl.VideoDiT:
    config = OrganismConfig(layers=layers, heads=2, head_width=WIDTH // 2, ffn=32, vae_base=8, frames=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = random_pipeline(config)
    return dl.VideoDiT(pipeline, defaults={**config.run_defaults, "num_inference_steps": 4})


@cache
def trained(objective: str = "residual") -> TunedLens:
    recipe = TunedLensRecipe(objective=objective, start="residual", bands=2, batch=4)
    return train_tuned_lens(small(), TASK, runs=6, validation=4, recipe=recipe)


def affine(tokens: int = 400, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals of channels that are not alike, and an affine function of them with a little noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator) * torch.arange(1, width + 1) + 3
    w, noise = torch.randn(width, width, generator=generator), torch.randn(tokens, width, generator=generator)
    return x, x + x @ w * 0.3 + 2 + 0.1 * noise


# Sums and their solution.


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0])
def test_the_closed_form_is_ridge_regression_towards_the_identity(penalty: float) -> None:
    x, y = affine()
    sums = ResidualSums(6)
    sums.add(x, y)
    _, matrix, bias = next(sums.solutions([penalty]))
    a = x.double().numpy()
    centred, target = a - a.mean(0), (y - x).double().numpy()
    strength = penalty * np.trace(centred.T @ centred) / 6
    # By least squares on rows that ask for W = 0, and a column of ones for the bias.
    rows = np.vstack([np.hstack([centred, np.ones((len(a), 1))]), np.sqrt(strength) * np.eye(6, 7)])
    solved = np.linalg.lstsq(rows, np.vstack([target, np.zeros((6, 6))]), rcond=None)[0]
    np.testing.assert_allclose(matrix, solved[:6], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(bias, solved[6] - a.mean(0) @ solved[:6], rtol=1e-6, atol=1e-9)


def test_errors_from_sums_are_those_of_the_tokens_and_sums_do_not_depend_on_the_batches() -> None:
    x, y = affine()
    sums, parts = ResidualSums(6), ResidualSums(6)
    sums.add(x, y)
    for some in torch.arange(400).split(37):
        parts.add(x[some][None, :, None], y[some][None, :, None])
    matrix, bias = torch.randn(6, 6, dtype=torch.float64) * 0.1, torch.randn(6, dtype=torch.float64)
    wide, last = x.double(), y.double()
    for tuned, expected in (((), wide), ((matrix, bias), wide + wide @ matrix + bias)):
        by_hand = float((expected - last).square().sum() / last.square().sum())
        assert sums.error(*tuned) == pytest.approx(by_hand, rel=1e-9)
        assert parts.error(*tuned) == pytest.approx(by_hand, rel=1e-9)
    assert parts.n == 400


def test_a_large_penalty_is_the_identity_but_for_the_bias() -> None:
    x, y = affine()
    sums = ResidualSums(6)
    sums.add(x, y)
    _, matrix, bias = next(sums.solutions([1e12]))
    assert float(matrix.abs().max()) < 1e-9
    torch.testing.assert_close(bias, (y.double() - x.double()).mean(0))


# Bands.


def test_bands_cover_every_noise_level_of_every_expert_and_straddle_none() -> None:
    levels = [(1.0, "high"), (0.95, "high"), (0.9, "high"), (0.7, "low"), (0.4, "low")]
    bands = make_bands(levels, 2)
    assert [b.expert for b in bands] == ["high", "high", "low", "low"]
    assert [b.low for b in bands] == pytest.approx([0.975, 0, 0.55, 0])
    assert [b.high for b in bands] == pytest.approx([inf, 0.975, inf, 0.55])
    for sigma, expert in levels:
        assert bands[band_of(bands, sigma, expert)].holds(sigma, expert)
        assert sum(band.holds(sigma, expert) for band in bands) == 1
    # An edge on which the experts meet, one below all levels, and one between two levels of one expert.
    bands = make_bands(levels, (0.8, 0.1, 0.5))
    assert [(b.low, b.high, b.expert) for b in bands] == [(0.0, inf, "high"), (0.5, inf, "low"), (0.0, 0.5, "low")]
    assert all(NoiseBand.from_json(json.loads(json.dumps(b.to_json()))) == b for b in bands)
    with pytest.raises(InputError, match=r"no band holds sigma 0\.7; there are: high, sigma from 0"):
        band_of(bands, 0.7, None)
    with pytest.raises(InputError, match="no band holds sigma nan"):
        band_of(make_bands([(1.0, None)], 1), nan, None)


def test_more_bands_than_steps_are_one_for_each_step() -> None:
    assert [(b.low, b.high) for b in make_bands([(1.0, None), (0.5, None)], 5)] == [(0.75, inf), (0.0, 0.75)]
    for wrong in (0, -1, True, (), (0.5, nan), (0.0,), (-1.0,)):
        with pytest.raises(InputError, match="bands="):
            make_bands([(1.0, None)], wrong)


# Training.


@pytest.mark.parametrize("objective", ["residual", "velocity"])
def test_training_lowers_the_error_on_other_instances(objective: str) -> None:
    tuned = trained(objective)
    table = tuned.table
    assert len(table) == 2 * 2  # bands, and layers but the last
    assert table["used"].all()
    assert (table["velocity_validation_tuned"] < 0.8 * table["velocity_validation_plain"]).all()
    assert (table["residual_validation_tuned"] < 0.8 * table["residual_validation_plain"]).all()
    assert (table["penalty"].notna() == (objective == "residual")).all()
    assert tuned.record.recipe.objective == objective
    assert len(tuned.record.train) == 6
    assert len(tuned.record.validation) == 4
    # The validation shares no noise with any pass of the training.
    seen = 6 * (2 if objective == "velocity" else 1)
    seeds = row_seeds(derive(0, "train"), seen), row_seeds(derive(0, "validation"), 4)
    assert tuned.record.run_seeds == {*seeds[0], *seeds[1]}
    assert len(tuned.record.run_seeds) == seen + 4


@pytest.mark.parametrize("part", ["validation", "train"])
def test_the_recorded_errors_are_those_that_the_depth_lens_shows(part: str) -> None:
    """Of the validation runs, and of every second of the training runs, with the seeds that they had."""
    model = small()
    tuned = train_tuned_lens(model, TASK, runs=6, validation=3, recipe=TunedLensRecipe(bands=2, batch=4), seed=20)
    if part == "validation":
        instances, seeds = TASK.sample(3, 20, "val"), row_seeds(derive(20, "validation"), 3)
    else:
        instances, seeds = TASK.sample(6, 20, "train")[::2], row_seeds(derive(20, "train"), 6)[::2]
    assert set(i.id for i in instances) <= set(getattr(tuned.record, part))
    run = model.run(instances, seeds, record=True, decode=False)
    sums = np.zeros((2, 2, 3))
    for step in range(4):
        band = band_of(tuned.record.bands, run.calls[step].sigma, None)
        for i, translator in enumerate((None, tuned)):
            lens = depth_lens(model, run, sites=Sites(steps=step), translator=translator)
            error = (lens.velocities[0] - lens.velocity).double().square().flatten(1).sum(1)
            sums[band, :, i] += error[:2].numpy()
        sums[band, :, 2] += float(lens.velocity.double().square().sum())
    table = tuned.table
    shown = sums[..., :2] / sums[..., 2:]
    expected = table[[f"velocity_{part}_plain", f"velocity_{part}_tuned"]].to_numpy().reshape(2, 2, 2)
    np.testing.assert_allclose(shown, expected, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_step_size_falls_linearly_to_0_however_many_calls_a_step_has(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    class Kept(torch.optim.Adam):
        def step(self, *args: Any, **more: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **more)

    monkeypatch.setattr(torch.optim, "Adam", Kept)
    recipe = TunedLensRecipe(objective="velocity", bands=1, batch=2, passes=2, rate=0.01)
    train_tuned_lens(small(), TASK, runs=4, validation=2, recipe=recipe, guidance_scale=guidance)
    count = 2 * 2 * 4  # passes, batches and denoising steps
    np.testing.assert_allclose(rates, 0.01 * (1 - np.arange(count) / count))


def test_gradient_steps_lower_the_error_of_the_velocity() -> None:
    errors = [
        train_tuned_lens(
            small(),
            TASK,
            runs=4,
            validation=2,
            recipe=TunedLensRecipe(objective="velocity", start="identity", bands=1, batch=4, passes=passes, rate=0.02),
            num_inference_steps=2,
        ).table["velocity_train_tuned"]
        for passes in (1, 4)
    ]
    assert (errors[1] < errors[0]).all()


def test_training_is_the_same_twice_and_leaves_the_model_as_it_was() -> None:
    model = small()
    before = model.run(TASK.sample(1, 5)[0], decode=False).latents
    recipe = TunedLensRecipe(bands=2, batch=4, start="residual")
    again = train_tuned_lens(model, TASK, runs=6, validation=4, recipe=recipe)
    assert again.record == trained().record
    assert all(torch.equal(again.matrices[place], x) for place, x in trained().matrices.items())
    assert torch.equal(model.run(TASK.sample(1, 5)[0], decode=False).latents, before)
    assert all(p.grad is None and p.requires_grad for p in model.pipeline.transformer.parameters())


def test_no_more_than_the_activations_of_two_steps_are_alive() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    for reading in Runs(small(), batch=2).readings([(i, k) for k, i in enumerate(TASK.sample(4, 0, "train"))], "train"):
        alive.append(weakref.ref(reading.residuals[0]))
        assert sum(ref() is not None for ref in alive) <= 2
    assert len(alive) == 2 * 4  # batches and steps


def test_where_nothing_can_improve_the_identity_is_kept() -> None:
    """A model whose blocks after the first change nothing: the residual stream is the last one from there on."""
    model = dl.organisms.with_identity_blocks(small(1), [1, 2]).model
    tuned = train_tuned_lens(model, TASK, runs=6, validation=4, recipe=TunedLensRecipe(bands=1, batch=4))
    assert not tuned.table["used"].any()
    assert tuned.matrices == {}
    residual = torch.randn(2, 3, WIDTH)
    assert tuned(residual, 0, 0.5) is residual


def test_several_tasks_and_two_experts(tmp_path: Path) -> None:
    subject = subject_of("two_experts")
    tasks = [dl.tasks.Maze(4), dl.tasks.Move(4)]
    tuned = train_tuned_lens(
        subject.model,
        tasks,
        runs=8,
        validation=4,
        sites=Sites(layers=[0, 2]),
        recipe=TunedLensRecipe(bands=1, batch=4),
        branch="uncond",
        num_inference_steps=3,
        guidance_scale=2.0,
    )
    assert [band.expert for band in tuned.record.bands] == ["high_noise", "low_noise"]
    assert set(tuned.table["layer"]) == {0, 2}
    # A lens of some layers can be saved and read again.
    assert TunedLens.load(tuned.save(tmp_path / "some.safetensors")).record == tuned.record
    assert len(tuned.record.tasks) == 2
    assert tuned.record.branch == "uncond"
    with pytest.raises(InputError, match=r"no band holds sigma 0\.5; there are: high_noise"):
        tuned(torch.zeros(1, tuned.record.width), 0, 0.5)


@torch.no_grad()
def test_training_is_refused_where_it_would_mean_nothing() -> None:
    model, some = small(), TASK.sample(4, 0, "train")
    with pytest.raises(EvidenceError, match="too few"):
        train_tuned_lens(model, TASK, runs=1, validation=4)
    untrained = dl.load_organism("maze", random=True)
    with pytest.raises(EvidenceError, match=r"96 tokens in the band .* 128 channels; make more runs"):
        train_tuned_lens(untrained, TASK, runs=2, validation=2, num_inference_steps=2, num_frames=5)
    with pytest.raises(EvidenceError, match=rf"1 instances are in both training and validation: {some[3].id}"):
        fit_tuned_lens(model, some, [some[3], *TASK.sample(2, 0, "val")])
    with pytest.raises(InputError, match="unknown objective 'x0hat'; one of residual, velocity"):
        TunedLensRecipe(objective="x0hat")
    with pytest.raises(InputError, match="unknown start 'zero'; one of identity, residual"):
        TunedLensRecipe(start="zero")
    for name, wrong in {"bands": "3", "penalties": (0.0,), "passes": 0, "batch": True, "rate": -1.0}.items():
        with pytest.raises(InputError, match=f"{name}="):
            TunedLensRecipe(**{name: wrong})
    with pytest.raises(InputError, match=r"fitted at all steps, got steps=\[0\]"):
        train_tuned_lens(model, TASK, runs=4, validation=2, sites=Sites(steps=[0]))
    with pytest.raises(SiteError, match="a tuned lens reads resid; 'delta' is none of them"):
        train_tuned_lens(model, TASK, runs=4, validation=2, sites=Sites("delta"))
    with pytest.raises(InputError, match="no layer to translate before the last, 2"):
        train_tuned_lens(model, TASK, runs=4, validation=2, sites=Sites(layers=-1))
    with pytest.raises(InputError, match=r"num_inference_steps=\[0, 1\]: need a whole number"):
        train_tuned_lens(model, TASK, runs=4, validation=2, num_inference_steps=[0, 1])
    with pytest.raises(SiteError, match="unknown branch 'stg'"):
        train_tuned_lens(model, TASK, runs=4, validation=2, branch="stg")
    weight = model.pipeline.transformer.blocks[1].ffn.net[2].bias
    before = weight.clone()
    try:
        weight[0] = nan
        with pytest.raises(NotFinite):
            train_tuned_lens(model, TASK, runs=4, validation=2)
    finally:
        weight.copy_(before)


# Using it.


def test_the_lens_translates_what_it_was_trained_for_and_nothing_else() -> None:
    tuned, model = trained(), small()
    run = model.run(TASK.sample(2, 3), [7, 8], record=True, decode=False)
    at = Sites(steps=1)
    plain, lens = depth_lens(model, run, sites=at), depth_lens(model, run, sites=at, translator=tuned)
    assert (plain.lens, lens.lens) == ("plain", "tuned")
    assert torch.equal(lens.velocities[:, -1], plain.velocity)
    assert not torch.equal(lens.velocities[:, 0], plain.velocities[:, 0])
    # Layer by layer the identity is the plain lens, bit for bit.
    some = depth_lens(model, run, sites=at, translator=tuned.without([(band, 0) for band in range(2)]))
    assert torch.equal(some.velocities[:, 0], plain.velocities[:, 0])
    assert torch.equal(some.velocities[:, 1], lens.velocities[:, 1])
    # Tokens: a part of the translated whole.
    mask = torch.rand(run.geometry.grid, generator=torch.Generator().manual_seed(0)) < 0.5
    part = depth_lens(model, run, sites=at.at(tokens=Tokens(mask=mask)), translator=tuned)
    torch.testing.assert_close(part.velocities[..., part.read], lens.velocities[..., part.read], rtol=0, atol=1e-6)
    assert torch.equal(part.velocities[:, 0][..., ~part.read], plain.velocity[..., ~part.read])
    # The other band has another translator.
    residual = torch.randn(5, WIDTH)
    ends = [tuned(residual, 0, run.sigmas[step]) for step in (0, 3)]
    assert not torch.equal(*ends)
    assert tuned(residual.bfloat16(), 0, 1.0).dtype == torch.bfloat16
    with pytest.raises(MadeForAnother, match=r"width 16, got \(5, 17\)"):
        tuned(torch.zeros(5, 17), 0, 0.5)
    with pytest.raises(SiteError, match=r"layers 0\.\.2"):
        tuned(residual, 3, 0.5)


def test_another_model_is_refused_by_name(organism: Subject) -> None:
    run = organism.run(record=True)
    both = f"{trained().record.model_id} .*3 layers of width 16.* {organism.model.id} .*4 layers of width 128"
    with pytest.raises(MadeForAnother, match=both):
        depth_lens(organism.model, run, translator=trained())
    with pytest.raises(MadeForAnother, match=both):
        compare_lenses(organism.model, TASK, trained(), instances=2)


def test_another_branch_than_that_of_the_training_is_refused() -> None:
    model, tuned = small(), trained()
    run = model.run(TASK.sample(1)[0], 0, guidance_scale=2.0, record=True, decode=False)
    assert depth_lens(model, run, branch="cond", translator=tuned).lens == "tuned"
    with pytest.raises(MadeForAnother, match="trained on the branch 'cond', this is 'uncond'"):
        depth_lens(model, run, branch="uncond", translator=tuned)


def test_a_saved_lens_is_the_same_lens(tmp_path: Path) -> None:
    tuned = trained()
    path = tuned.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(path, small())
    assert again.record == tuned.record
    residual = torch.randn(4, WIDTH)
    for layer in range(3):
        for sigma in (1.0, 0.3):
            assert torch.equal(again(residual, layer, sigma), tuned(residual, layer, sigma))
    pd.testing.assert_frame_equal(again.table, tuned.table)
    with pytest.raises(MadeForAnother, match=f"{tuned.record.model_id} .* {small(4).id}"):
        TunedLens.load(path, small(4))
    with pytest.raises(InputError, match=r"lens.npz"):
        tuned.save(tmp_path / "lens.npz")


def test_files_that_are_damaged_or_of_another_lens_are_refused(tmp_path: Path) -> None:
    path = trained().save(tmp_path / "lens.safetensors")
    content, (tensors, record) = path.read_bytes(), read_weights(path)
    with pytest.raises(InputError, match=r"no tuned lens 'labyrinth'.* ship: "):
        TunedLens.load("labyrinth")

    def refused(match: str) -> None:
        with pytest.raises(StoreError, match=match):
            TunedLens.load(path)
        path.write_bytes(content)

    path.write_bytes(content[:-8])
    refused("record is that of other weights")
    path.write_bytes(content.replace(b'\\"used\\":true', b'\\"used\\":null', 1))
    refused("does not have the checksum")
    rewrite(path, {**record, "width": 17}, tensors)
    refused("not those of its record")
    name, data = next(iter(tensors)), trained().record.to_json()
    write_weights(path, {k: x for k, x in tensors.items() if k != name}, data)
    refused(f"not those of its record.*{name}")
    write_weights(path, {**tensors, name: tensors[name] * nan}, data)
    refused("not finite")
    TunedLens.load(path)


def test_no_wrong_record_is_read(tmp_path: Path) -> None:
    path = trained().save(tmp_path / "lens.safetensors")
    tensors, record = read_weights(path)
    for change, _, given in spoilt(record):
        rewrite(path, given, tensors)
        place, _, value = change.partition(" = ")
        if place.startswith("settings") or (place.startswith("errors.") and place.endswith("penalty")):
            continue  # arguments may be anything, and a penalty nothing or any number
        if place.startswith("errors.") and not place.endswith(("sigma_low", "sigma_high")) and value == "-1":
            continue
        if value == "(left out)" and place.startswith(("tasks.", "train.", "validation.", "versions.", "recipe.pen")):
            continue
        with pytest.raises(StoreError):
            TunedLens.load(path)
    rewrite(path, record, tensors)
    assert TunedLens.load(path).record == trained().record


# Both lenses side by side.


def test_of_a_task_that_scores_nothing_only_the_lenses_are_compared() -> None:
    mazes = TASK.sample(2)
    own = dl.tasks.Labelled(mazes, {"steps": [maze.steps for maze in mazes]})
    found = compare_lenses(small(), own, trained(), instances=2)
    assert "velocity_cosine" in found.measures
    assert not {"strict", "total", "agreement", "legality"} & set(found.measures)


def test_the_comparison_is_of_held_out_runs_paired_by_run(tmp_path: Path) -> None:
    tuned, model = trained(), small()
    found = compare_lenses(model, TASK, tuned, instances=3, batch=2)
    table = found.table
    assert set(table["n"]) == {3}
    assert sorted(set(table["step"])) == [0, 2]  # the first of each band
    assert set(table["branch"]) == {"cond"}
    assert set(table["kind"]) == {small().geometry().layer(0).kind}
    assert set(found.measures) == set(table["measure"]) >= {"velocity_cosine", "strict", "agreement", "legality"}
    values = table.pivot_table(index=["measure", "step", "layer"], columns="lens", values="value")
    np.testing.assert_allclose(values["tuned - plain"], values["tuned"] - values["plain"], atol=1e-12)
    last = values.xs(2, level="layer")
    np.testing.assert_allclose(last["tuned - plain"], 0, atol=1e-15)
    better = table.query("lens == 'tuned - plain' and measure == 'velocity_distance' and layer < 2")
    assert (better["high"] < 0).all()
    axis = found.plot(measure="velocity_distance", step=2)
    assert [line.get_label() for line in axis.lines] == ["plain", "tuned"]
    for line in axis.lines:
        np.testing.assert_allclose(line.get_ydata(), values.loc["velocity_distance", 2][line.get_label()])
    matplotlib.pyplot.close(axis.figure)
    with pytest.raises(InputError, match="no measure 'loss' of step 0"):
        found.plot(measure="loss")
    again = dl.LensComparison.load(found.save(tmp_path / "comparison"))
    pd.testing.assert_frame_equal(again.table, table, check_exact=True)


def test_instances_and_noise_that_the_lens_has_seen_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = TASK.sample(4, 0, "val")
    with pytest.raises(EvidenceError, match=f"1 instances are not held out.*{seen[1].id}"):
        compare_lenses(small(), TASK, trained(), instances=[*TASK.sample(2), seen[1]])
    with pytest.raises(InputError, match="one task at a time"):
        compare_lenses(small(), [TASK, TASK], trained(), instances=seen)
    for purpose in ("train", "validation"):
        monkeypatch.setattr(compare, "derive", lambda seed, _, own=purpose: derive(seed, own))
        with pytest.raises(EvidenceError, match=r"2 seeds of runs are not held out, .* give another seed"):
            compare_lenses(small(), TASK, trained(), instances=TASK.sample(2))


def test_the_steps_of_a_comparison_are_a_selection_and_one_instance_has_no_interval() -> None:
    tuned, model = trained(), small()
    given = {"instances": 1, "decode": False}
    found = compare_lenses(model, TASK, tuned, sites=Sites(steps=-1, layers=[0, 2]), **given)
    assert set(found.table["step"]) == {3}
    assert set(found.table["layer"]) == {0, 2}
    assert found.table[["low", "high"]].isna().all(axis=None)
    every = compare_lenses(model, TASK, tuned, sites=Sites(), num_inference_steps=3, **given)
    assert sorted(set(every.table["step"])) == [0, 1, 2]
    with pytest.raises(SiteError, match=r"no step 4; this run has steps 0\.\.3"):
        compare_lenses(model, TASK, tuned, sites=Sites(steps=[4]), **given)
    with pytest.raises(SiteError, match="of branch 'uncond' and branch='cond'"):
        compare_lenses(model, TASK, tuned, sites=Sites(branches="uncond"), **given)


def test_what_acts_between_calls_is_in_the_runs_that_are_compared() -> None:
    given = {"instances": 1, "decode": False}
    noise = dl.Noise(Sites(("latents", "embed"), steps=1), "add")
    plain = compare_lenses(small(), TASK, trained(), **given).samples
    noisy = compare_lenses(small(), TASK, trained(), interventions=[noise], **given).samples
    changed = plain["value"] != noisy["value"]
    assert set(plain[changed]["step"]) == {2}  # of 0 and 2: the state after the noise


def test_rows_are_shuffled_and_those_of_other_pictures_kept_apart() -> None:
    model, tasks = small(), (TASK, dl.tasks.Maze(4, frames=5, goals=2))
    rows = [(i, 100 * k + n) for k, task in enumerate(tasks) for n, i in enumerate(task.sample(5, 0, "train"))]
    prompts = [({"prompt": "a word"}, 7), ({"prompt": "another"}, 8)]
    together, apart = groups_of(rows), groups_of([*rows, *prompts])
    assert len(together) == 1
    assert sorted(seed for _, seed in together[0]) == [seed for _, seed in rows]
    assert {given.task for given, _ in together[0][:5]} == {given.task for given, _ in rows}
    assert groups_of(rows) == together
    assert sorted(len(group) for group in apart) == [2, 10]
    made = list(Runs(model, batch=4).made(rows, "train"))
    assert [len(run.rows) for run in made] == [4, 4, 2]
    assert {row.seed for run in made for row in run.rows} == {seed for _, seed in rows}


def test_a_comparison_under_interventions_reads_under_them() -> None:
    tuned, model = trained(), small()
    halved = dl.intervention(Sites("resid", layers=0))(lambda activation, at: activation / 2)
    given = {"instances": 2, "decode": False, "sites": Sites(steps=0)}
    plain = compare_lenses(model, TASK, tuned, **given).table
    edited = compare_lenses(model, TASK, tuned, interventions=[halved], **given).table
    last = edited.query("lens == 'plain' and measure == 'velocity_distance'").set_index("layer")["value"]
    assert last[2] == 0  # the model under the intervention, not the one of the run without
    assert not np.allclose(plain["value"], edited["value"])


# What ships.


@pytest.mark.parametrize("name", ["maze", "puzzles"])
def test_the_shipped_lenses_are_of_the_shipped_models_and_read_earlier_layers_better(name: str) -> None:
    model = dl.load_organism(name)
    tuned = TunedLens.load(name, model)
    assert tuned.record.train
    task = dl.organisms.organism_tasks(name)[0]
    table = compare_lenses(model, task, tuned, instances=2, sites=Sites(steps=[0]), decode=False).table
    by_lens = table.query("measure == 'velocity_distance'").pivot_table(index="layer", columns="lens", values="value")
    assert (by_lens["tuned"][:-1] < by_lens["plain"][:-1]).all()
    with pytest.raises(MadeForAnother):
        TunedLens.load(name, dl.load_organism(name, random=True))
