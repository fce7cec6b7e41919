"""The depth lens."""

from __future__ import annotations

import math
from functools import cache

import matplotlib
import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import InputError, MadeForAnother, SiteError
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.lens.depth import MEASURES, depth_lens
from dit_lens.lens.preview import Preview
from dit_lens.probing.rows.random_weights import RandomTwin
from dit_lens.results.intervals import mean_over_instances, means_over_instances
from dit_lens.sites.tokens import Tokens
from dit_lens.validation.witness import Subject as Family
from tests.subjects import STEPS, Subject

matplotlib.use("Agg")


@cache
def family_of(name: str) -> tuple[Family, dl.Run]:
    tiny = TINY[name]
    family = Family(dl.VideoDiT(tiny.build()), tiny.inputs(), dict(tiny.settings))
    return family, family.run(record=True)


@pytest.fixture(params=list(TINY))
def family(request: pytest.FixtureRequest) -> tuple[Family, dl.Run]:
    return family_of(request.param)


def test_depth_lens_at_the_last_layer_is_the_model_bit_for_bit(subject: Subject, guidance: float) -> None:
    run = subject.run(guidance=guidance, record=True)
    for step in range(STEPS):
        replay = subject.model.replay(run, step)
        for branch in run.geometry.branches:
            lens = depth_lens(subject.model, run, step, branch=branch)
            assert torch.equal(lens.velocities[-1], replay.velocities[branch])
            assert torch.equal(lens.velocities[-1], lens.velocity)
            assert torch.equal(lens.x0hat[-1], lens.own_x0hat)


def test_depth_lens_of_an_earlier_layer_equals_skipping_every_later_block(organism: Subject) -> None:
    """The oracle: the model's own tail, with the later blocks replaced by the identity."""
    run = organism.run(record=True)
    lens = depth_lens(organism.model, run, 1)
    for layer in range(organism.model.layers - 1):
        hooks = [
            block.register_forward_hook(lambda _module, inputs, _output: inputs[0])
            for block in organism.pipeline.transformer.blocks[layer + 1 :]
        ]
        try:
            skipped = organism.model.replay(run, 1).velocities["cond"]
        finally:
            for hook in hooks:
                hook.remove()
        assert torch.equal(lens.velocities[layer], skipped)
        assert not torch.equal(lens.velocities[layer], lens.velocities[-1])


def test_depth_lens_reads_the_layers_asked_for(organism: Subject) -> None:
    run = organism.run(record=True)
    whole, some = depth_lens(organism.model, run, 0), depth_lens(organism.model, run, 0, layers=[1, 3])
    assert some.layers == (1, 3)
    assert torch.equal(some.x0hat, whole.x0hat[[1, 3]])
    decoded = some.decode(organism.model)
    assert decoded.shape[:3] == (2, 1, 9)
    # The last bits of a convolution depend on its batch, and a pixel may be rounded to the other side.
    one = some.decode(organism.model, layers=[3])
    assert np.abs(one[0].astype(int) - decoded[1]).max() <= 1 < np.abs(one[0].astype(int) - decoded[0]).max()
    with pytest.raises(SiteError, match="layer 0 was not read; this lens has layers 1, 3"):
        some.decode(organism.model, layers=[0])
    assert np.array_equal(some.decode(organism.model, layers=-1, frames=[0, -1]), one[:, :, [0, -1]])
    assert np.array_equal(some.decode(organism.model, layers="all"), decoded)
    with pytest.raises(SiteError, match="select nothing"):
        some.decode(organism.model, layers=[])
    preview = Preview.fit(organism.model, some.x0hat[:, 0], some.x0hat[:, 0])
    drawn = some.decode(organism.model, layers=3, frames=[2], preview=preview)
    assert np.array_equal(drawn[0], preview.video(some.x0hat[1], 2))


def test_the_decoded_answer_of_the_last_layer_at_the_last_step_is_the_video(shipped: Subject) -> None:
    maze = dl.tasks.Maze(4).sample(1, seed=3)[0]
    run = shipped.model.run(maze, seed=0, record=True)
    lens = depth_lens(shipped.model, run, run.geometry.steps - 1, layers=-1)
    assert np.abs(lens.decode(shipped.model)[0].astype(int) - run.frames).max() <= 1


def test_depth_lens_needs_a_recorded_run_and_things_that_it_has(organism: Subject) -> None:
    run = organism.run(record=True)
    with pytest.raises(InputError, match="record=True"):
        depth_lens(organism.model, organism.run(), 0)
    with pytest.raises(InputError, match=r"steps 0\.\.2"):
        depth_lens(organism.model, run, 7)
    with pytest.raises(SiteError, match=r"layers 0\.\.3"):
        depth_lens(organism.model, run, 0, layers=9)
    with pytest.raises(SiteError, match="unknown branch 'stg'"):
        depth_lens(organism.model, run, 0, branch="stg")
    with pytest.raises(SiteError, match="latent frame"):
        depth_lens(organism.model, run, 0, tokens=Tokens(frames=[99]))
    with pytest.raises(SiteError, match="text stream"):
        depth_lens(organism.model, run, 0, tokens=Tokens(positions=[0]))
    with pytest.raises(SiteError, match="unknown measure 'loss'"):
        depth_lens(organism.model, run, 0).plot(measure="loss")


def test_a_run_of_another_model_is_not_read_and_a_lens_not_decoded_by_one(organism: Subject) -> None:
    run = organism.run(record=True)
    lens, other = depth_lens(organism.model, run, 0), dl.organisms.with_identity_blocks(organism.model, [1]).model
    assert other.id != organism.model.id
    both = f"made by model {organism.model.id}, this is {other.id}"
    reads = {
        "replay": lambda: other.replay(run, 0),
        "gradients": lambda: other.gradients(run, 0, lambda replay: replay.x0hat.sum(), dl.Sites("resid", layers=0)),
        "depth lens": lambda: depth_lens(other, run, 0),
        "contributions": lambda: dl.contributions(other, run, 0),
    }
    for read in reads.values():
        with pytest.raises(MadeForAnother, match=both):
            read()
    with pytest.raises(MadeForAnother, match=f"read from model {organism.model.id}, this is {other.id}"):
        lens.decode(other)
    with pytest.raises(MadeForAnother, match="this preview was fitted to VAE"):
        lens.decode(organism.model, preview=Preview.load("maze"))


def test_a_twin_with_random_weights_reads_the_runs_of_its_model_and_of_no_other(organism: Subject) -> None:
    run, twin = organism.run(record=True), RandomTwin(organism.model)
    own = organism.model.replay(run, 0).velocities["cond"]
    read = twin.replay(run, 0).velocities["cond"]
    assert read.shape == own.shape
    assert not torch.equal(read, own)
    with pytest.raises(MadeForAnother, match="made by model"):
        RandomTwin(twin).replay(run, 0)


def test_one_instance_has_no_interval(organism: Subject) -> None:
    table = depth_lens(organism.model, organism.run(record=True), 0).frame()
    one = means_over_instances(table, ["layer"], "velocity_distance")
    assert one[["low", "high"]].isna().all(axis=None)
    assert (one["n"] == 1).all()
    np.testing.assert_allclose(one["velocity_distance"], table["velocity_distance"])
    # Of two instances, one with two seeds, the mean is of theirs and lies between the ends.
    names, values = ["a", "a", "b", "c"], np.array([1.0, 3.0, 4.0, np.nan])
    interval, count = mean_over_instances(values, names)
    assert (interval.value, count) == (3.0, 2)
    assert interval.low == 2
    assert interval.high == 4


def test_reading_changes_nothing(organism: Subject) -> None:
    before, run = organism.run(), organism.run(record=True)
    depth_lens(organism.model, run, 1, tokens=Tokens(frames=[0]))
    assert torch.equal(organism.run().latents, before.latents)
    assert torch.equal(run.latents, before.latents)


def test_some_tokens_in_every_family(family: tuple[Family, dl.Run]) -> None:
    """Disjoint parts together are the whole; what was not read is the model's own; all tokens are the plain lens."""
    subject, run = family
    model, grid = subject.model, run.geometry.grid
    generator = torch.Generator().manual_seed(0)
    part = torch.randint(3, grid, generator=generator)
    step, branch = run.geometry.steps - 1, run.geometry.branches[-1]
    whole = depth_lens(model, run, step, layers=[0, -1], branch=branch)
    assert torch.equal(whole.velocities[-1], whole.velocity)
    assert bool(whole.read.all())
    every = depth_lens(model, run, step, layers=[0, -1], branch=branch, tokens=Tokens(mask=torch.ones(grid).bool()))
    assert torch.equal(every.velocities, whole.velocities)
    together, covered = torch.zeros_like(whole.velocities), torch.zeros(whole.read.shape, dtype=torch.int)
    for i in range(3):
        lens = depth_lens(model, run, step, layers=[0, -1], branch=branch, tokens=Tokens(mask=part == i))
        share = float((part == i).sum()) / math.prod(grid)
        assert float(lens.read.float().mean()) == pytest.approx(share)
        assert torch.equal(
            lens.velocities[:, :, :, ~lens.read], whole.velocity[None][..., ~lens.read].expand(2, -1, -1, -1)
        )
        assert not torch.equal(lens.velocities[0], whole.velocity)
        together[..., lens.read] = lens.velocities[..., lens.read]
        covered += lens.read.int()
    assert bool((covered == 1).all())
    assert torch.equal(together, whole.velocities)


def test_the_cells_that_were_read_are_those_of_the_tokens(organism: Subject) -> None:
    run = organism.run(record=True)
    lens = depth_lens(organism.model, run, 0, layers=0, tokens=Tokens(frames=[1, 2], columns=(1, 3)))
    expected = torch.zeros(run.geometry.latent_grid, dtype=torch.bool)
    expected[1:3, :, 1:3] = True
    assert run.geometry.grid == run.geometry.latent_grid  # a token of this model is one cell
    assert torch.equal(lens.read, expected)
    # Distances are over these cells alone: elsewhere there is nothing to tell apart.
    row = lens.frame().iloc[0]
    a, b = lens.velocities[0][..., lens.read], lens.velocity[..., lens.read]
    assert row["velocity_distance"] == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-5)
    assert row["velocity_cosine"] == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), rel=1e-5)


def test_the_table_names_what_it_is_of_and_ends_at_the_model(two_experts: Subject) -> None:
    run = two_experts.model.run(
        two_experts.inputs[0], [3, 4], num_inference_steps=STEPS, guidance_scale=2.0, decode=False, record=True
    )
    tables = [depth_lens(two_experts.model, run, step, branch="uncond").frame() for step in (0, STEPS - 1)]
    assert [set(t["expert"]) for t in tables] == [{"high_noise"}, {"low_noise"}]
    for step, table in zip((0, STEPS - 1), tables, strict=True):
        assert len(table) == two_experts.model.layers * 2
        assert set(table["sigma"]) == {run.sigmas[step]}
        assert set(table["branch"]) == {"uncond"}
        assert sorted(set(table["seed"])) == [3, 4]
        last = table[table["layer"] == two_experts.model.layers - 1]
        np.testing.assert_allclose(last[["velocity_cosine", "x0hat_cosine"]], 1, rtol=1e-12)
        assert (last[["velocity_distance", "x0hat_distance"]] == 0).all(axis=None)
        assert (table[table["layer"] == 0]["velocity_distance"] > 1e-3).all()


def test_the_picture_has_one_point_for_every_layer(organism: Subject) -> None:
    lens = depth_lens(organism.model, organism.run(record=True), 0)
    for measure in MEASURES:
        axis = lens.plot(measure=measure)
        np.testing.assert_allclose(axis.lines[0].get_ydata(), lens.frame()[measure])
        assert axis.get_ylabel() == measure
        matplotlib.pyplot.close(axis.figure)
