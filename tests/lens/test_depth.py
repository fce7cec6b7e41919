"""The depth lens."""

from __future__ import annotations

import math
from functools import cache

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import InputError, MadeForAnother, SiteError
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.lens.depth import MEASURES, depth_lens
from dit_lens.lens.preview import Preview
from dit_lens.probing.rows.random_weights import RandomTwin
from dit_lens.results.intervals import over_instances
from dit_lens.sites.sites import Sites
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
            lens = depth_lens(subject.model, run, sites=Sites(steps=step), branch=branch)
            assert torch.equal(lens.velocities[0, -1], replay.velocities[branch])
            assert torch.equal(lens.velocities[:, -1], lens.velocity)
            assert torch.equal(lens.x0hat[:, -1], lens.own_x0hat)


def test_depth_lens_of_an_earlier_layer_equals_skipping_every_later_block(organism: Subject) -> None:
    """The oracle: the model's own tail, with the later blocks replaced by the identity."""
    run = organism.run(record=True)
    velocities = depth_lens(organism.model, run, sites=Sites(steps=1)).velocities[0]
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
        assert torch.equal(velocities[layer], skipped)
        assert not torch.equal(velocities[layer], velocities[-1])


def test_depth_lens_reads_the_layers_asked_for(organism: Subject) -> None:
    run = organism.run(record=True)
    whole = depth_lens(organism.model, run)
    some = depth_lens(organism.model, run, sites=Sites(steps=[0, 2], layers=[1, 3]))
    assert (some.reading.steps, some.reading.layers) == ((0, 2), (1, 3))
    assert torch.equal(some.x0hat, whole.x0hat[[0, 2]][:, [1, 3]])
    assert torch.equal(some.own_x0hat, whole.own_x0hat[[0, 2]])
    decoded = some.decode(organism.model)
    assert decoded.shape[:4] == (2, 2, 1, 9)
    # The last bits of a convolution depend on its batch, and a pixel may be rounded to the other side.
    one = some.decode(organism.model, sites=Sites(steps=0, layers=3))
    assert one.shape[:2] == (1, 1)
    other, own = (np.abs(one[0, 0].astype(int) - decoded[0, i]).max() for i in range(2))
    assert own <= 1 < other
    with pytest.raises(SiteError, match="layer 0 was not read; there are layers 1, 3"):
        some.decode(organism.model, sites=Sites(layers=[0]))
    with pytest.raises(SiteError, match="step 1 was not read; there are steps 0, 2"):
        some.decode(organism.model, sites=Sites(steps=1))
    last = some.decode(organism.model, sites=Sites(steps=0, layers=-1), frames=[0, -1])
    assert np.array_equal(last, one[:, :, :, [0, -1]])
    with pytest.raises(SiteError, match="select nothing"):
        some.decode(organism.model, sites=Sites(layers=[]))
    preview = Preview.fit(organism.model, some.x0hat[0, :, 0], some.x0hat[0, :, 0])
    drawn = some.decode(organism.model, sites=Sites(steps=0, layers=3), frames=[2], preview=preview)
    assert np.array_equal(drawn[0, 0], preview.video(some.x0hat[0, 1], 2))


def test_the_decoded_answer_of_the_last_layer_at_the_last_step_is_the_video(shipped: Subject) -> None:
    maze = dl.tasks.Maze(4).sample(1, seed=3)[0]
    run = shipped.model.run(maze, seed=0, record=True)
    lens = depth_lens(shipped.model, run, sites=Sites(steps=-1, layers=-1))
    assert np.abs(lens.decode(shipped.model)[0, 0].astype(int) - run.frames).max() <= 1


def test_depth_lens_needs_a_recorded_run_and_things_that_it_has(organism: Subject) -> None:
    run = organism.run(record=True)
    with pytest.raises(InputError, match="record=True"):
        depth_lens(organism.model, organism.run())
    with pytest.raises(SiteError, match=r"steps 0\.\.2"):
        depth_lens(organism.model, run, sites=Sites(steps=7))
    with pytest.raises(SiteError, match=r"layers 0\.\.3"):
        depth_lens(organism.model, run, sites=Sites(layers=9))
    with pytest.raises(SiteError, match="unknown branch 'stg'"):
        depth_lens(organism.model, run, branch="stg")
    with pytest.raises(SiteError, match="latent frame"):
        depth_lens(organism.model, run, sites=Sites(tokens=Tokens(frames=[99])))
    with pytest.raises(SiteError, match="text stream"):
        depth_lens(organism.model, run, sites=Sites(tokens=Tokens(positions=[0])))
    with pytest.raises(SiteError, match="depth_lens reads resid; 'attn' is none of them"):
        depth_lens(organism.model, run, sites=Sites("attn"))
    with pytest.raises(InputError, match="unknown measure 'loss'"):
        depth_lens(organism.model, run).plot(measure="loss")


def test_a_run_of_another_model_is_not_read_and_a_lens_not_decoded_by_one(organism: Subject) -> None:
    run = organism.run(record=True)
    lens, other = depth_lens(organism.model, run), dl.organisms.with_identity_blocks(organism.model, [1]).model
    assert other.id != organism.model.id
    both = f"made by model {organism.model.id}, this is {other.id}"
    reads = {
        "replay": lambda: other.replay(run, 0),
        "gradients": lambda: other.gradients(run, 0, lambda replay: replay.x0hat.sum(), dl.Sites("resid", layers=0)),
        "depth lens": lambda: depth_lens(other, run),
        "contributions": lambda: dl.contributions(other, run),
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
    lens = depth_lens(organism.model, organism.run(record=True))
    assert lens.table[["low", "high"]].isna().all(axis=None)
    assert (lens.table["n"] == 1).all()
    np.testing.assert_allclose(lens.table["value"], lens.samples["value"])
    # Of two instances, one with two seeds, the mean is of theirs and lies between the ends.
    samples = {"instance": ["a", "a", "b", "c"], "seed": 0, "measure": "x", "value": [1.0, 3.0, 4.0, np.nan]}
    (mean,) = over_instances(pd.DataFrame(samples)).itertuples()
    assert (mean.value, mean.n) == (3.0, 2)
    assert mean.low == 2
    assert mean.high == 4


def test_reading_changes_nothing(organism: Subject) -> None:
    before, run = organism.run(), organism.run(record=True)
    depth_lens(organism.model, run, sites=Sites(steps=1, tokens=Tokens(frames=[0])))
    assert torch.equal(organism.run().latents, before.latents)
    assert torch.equal(run.latents, before.latents)


def test_some_tokens_in_every_family(family: tuple[Family, dl.Run]) -> None:
    """Disjoint parts together are the whole; what was not read is the model's own; all tokens are the plain lens."""
    subject, run = family
    model, grid = subject.model, run.geometry.grid
    generator = torch.Generator().manual_seed(0)
    part = torch.randint(3, grid, generator=generator)
    step, branch = run.geometry.steps - 1, run.geometry.branches[-1]
    sites = Sites(steps=step, layers=[0, -1])
    whole = depth_lens(model, run, sites=sites, branch=branch)
    assert torch.equal(whole.velocities[:, -1], whole.velocity)
    assert bool(whole.read.all())
    every = depth_lens(model, run, sites=sites.at(tokens=Tokens(mask=torch.ones(grid).bool())), branch=branch)
    assert torch.equal(every.velocities, whole.velocities)
    together, covered = torch.zeros_like(whole.velocities), torch.zeros(whole.read.shape, dtype=torch.int)
    for i in range(3):
        lens = depth_lens(model, run, sites=sites.at(tokens=Tokens(mask=part == i)), branch=branch)
        share = float((part == i).sum()) / math.prod(grid)
        assert float(lens.read.float().mean()) == pytest.approx(share)
        assert torch.equal(
            lens.velocities[..., ~lens.read], whole.velocity[:, None][..., ~lens.read].expand(-1, 2, -1, -1, -1)
        )
        assert not torch.equal(lens.velocities[:, 0], whole.velocity)
        together[..., lens.read] = lens.velocities[..., lens.read]
        covered += lens.read.int()
    assert bool((covered == 1).all())
    assert torch.equal(together, whole.velocities)


def test_the_cells_that_were_read_are_those_of_the_tokens(organism: Subject) -> None:
    run = organism.run(record=True)
    lens = depth_lens(organism.model, run, sites=Sites(steps=0, layers=0, tokens=Tokens(frames=[1, 2], columns=(1, 3))))
    expected = torch.zeros(run.geometry.latent_grid, dtype=torch.bool)
    expected[1:3, :, 1:3] = True
    assert run.geometry.grid == run.geometry.latent_grid  # a token of this model is one cell
    assert torch.equal(lens.read, expected)
    # Distances are over these cells alone: elsewhere there is nothing to tell apart.
    row = lens.table.set_index("measure")["value"]
    a, b = lens.velocities[0, 0][..., lens.read], lens.velocity[0][..., lens.read]
    assert row["velocity_distance"] == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-5)
    assert row["velocity_cosine"] == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), rel=1e-5)


def test_the_table_names_what_it_is_of_and_ends_at_the_model(two_experts: Subject) -> None:
    run = two_experts.model.run(
        two_experts.inputs[0], [3, 4], num_inference_steps=STEPS, guidance_scale=2.0, decode=False, record=True
    )
    lens = depth_lens(two_experts.model, run, sites=Sites(steps=[0, -1]), branch="uncond")
    columns = ["step", "sigma", "expert", "branch", "layer", "kind", "component", "stream", "lens"]
    assert list(lens.samples) == [*columns, "instance", "seed", "measure", "value"]
    assert list(lens.table) == [*columns, "measure", "value", "low", "high", "n"]
    for step, expert in ((0, "high_noise"), (STEPS - 1, "low_noise")):
        table = lens.samples[lens.samples["step"] == step]
        assert set(table["expert"]) == {expert}
        assert len(table) == two_experts.model.layers * 2 * len(MEASURES)
        assert set(table["sigma"]) == {run.sigmas[step]}
        assert set(table["branch"]) == {"uncond"}
        assert sorted(set(table["seed"])) == [3, 4]
        values = table.set_index(["layer", "measure"])["value"].sort_index()
        for of in ("velocity", "x0hat"):
            np.testing.assert_allclose(values[two_experts.model.layers - 1, f"{of}_cosine"], 1, rtol=1e-12)
            assert (values[two_experts.model.layers - 1, f"{of}_distance"] == 0).all()
        assert (values[0, "velocity_distance"] > 1e-3).all()


def test_the_picture_has_one_point_for_every_layer(organism: Subject) -> None:
    lens = depth_lens(organism.model, organism.run(record=True), sites=Sites(steps=[0, 2]))
    for measure in MEASURES:
        axis = lens.plot(measure=measure)
        own = lens.table[(lens.table["measure"] == measure) & (lens.table["step"] == 2)]
        np.testing.assert_allclose(axis.lines[1].get_ydata(), own["value"])
        assert axis.get_ylabel() == measure
        matplotlib.pyplot.close(axis.figure)
