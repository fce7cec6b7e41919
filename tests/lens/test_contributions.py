"""Direct contributions to the velocity."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

import dit_lens as dl
from dit_lens.errors import InputError, SiteError, UnsupportedModel
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.lens.contributions import FrozenHead, contributions
from dit_lens.sites.site import TERM_COMPONENTS
from dit_lens.validation.witness import Subject as Family
from tests.subjects import Subject

matplotlib.use("Agg")


@cache
def family_of(name: str) -> tuple[Family, dl.Run]:
    tiny = TINY[name]
    family = Family(dl.VideoDiT(tiny.build()), tiny.inputs(), dict(tiny.settings))
    return family, family.run(record=True)


@pytest.fixture(params=list(TINY))
def family(request: pytest.FixtureRequest) -> tuple[Family, dl.Run]:
    return family_of(request.param)


def ulps(a: Tensor, b: Tensor, *parts: Tensor) -> float:
    """Largest difference, in units in the last place of the largest value that was summed."""
    scale = max(float(x.abs().max()) for x in (a, b, *parts))
    return float((a.double() - b.double()).abs().max()) / (scale * torch.finfo(a.dtype).eps)


def test_the_parts_sum_to_the_models_velocity_in_every_family(family: tuple[Family, dl.Run]) -> None:
    subject, run = family
    for branch in run.geometry.branches:
        found = contributions(subject.model, run, sites=dl.Sites(steps=1), branch=branch)
        deltas = contributions(subject.model, run, sites=dl.Sites("delta", steps=1), branch=branch)
        own = subject.model.replay(run, 1).velocities[branch]
        assert torch.equal(found.velocity[0], own)
        embed = found.embed[0]
        terms = [x for values in found.values.values() for x in values[0]]
        total = embed.double() + found.constant[0] + sum(x.double() for x in terms)
        assert ulps(own, total.float(), embed, *terms) <= 16
        by_layer = sum(values[0].double() for values in found.values.values())
        # A delta is the difference of two residual streams, exact only to the last place of these.
        assert ulps(deltas.values["delta"][0], by_layer.float(), embed, *terms) <= 16
        # The sums are no accident of parts that are next to nothing.
        assert min(float(x.abs().max()) for x in deltas.values["delta"][0]) > 1e-4 * float(own.abs().max())
        assert float(embed.abs().max()) > 1e-4 * float(own.abs().max())


def test_the_table_knows_which_layers_have_what_and_its_shares_sum_to_one(family: tuple[Family, dl.Run]) -> None:
    subject, run = family
    samples = contributions(subject.model, run, sites=dl.Sites(steps=0)).samples
    table = samples.pivot(index=["layer", "component", "instance", "seed"], columns="measure", values="value")
    table = table.reset_index()
    for k in range(run.geometry.layers):
        has = [c for c in run.geometry.layer(k).components["video"] if c in TERM_COMPONENTS]
        assert sorted(set(table.loc[table["layer"] == k, "component"])) == sorted(has)
    sums = table.groupby(["instance", "seed"])["share"].sum()
    assert len(sums) == 2
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    np.testing.assert_allclose(table["share"], table["cosine"] * table["norm"], rtol=1e-6, atol=1e-12)


def test_the_scale_is_frozen_at_the_whole_residual(organism: Subject) -> None:
    """By hand: the layer norm's scale from the last residual, the part centred by its own mean, then the projection."""
    run = organism.run(record=True)
    found = contributions(organism.model, run, sites=dl.Sites("attn", steps=1, layers=[2]))
    keep = [dl.Capture(dl.Sites("attn", layers=2)), dl.Capture(dl.Sites("resid", layers=3))]
    replay = organism.model.replay(run, 1, keep)
    part, whole = (replay.captures[""][dl.Site(1, "cond", k, c)] for k, c in ((2, "attn"), (3, "resid")))
    dit = organism.pipeline.transformer
    scale = (whole.var(dim=-1, unbiased=False, keepdim=True) + dit.norm_out.eps).rsqrt()
    temb = replay.conditioning["cond"]["condition_embedder"][0]
    _, modulation = (dit.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
    centred = (part - part.mean(dim=-1, keepdim=True)) * scale * (1 + modulation[:, :, None, None])
    patches = F.linear(centred, dit.proj_out.weight)
    p_t, p_h, p_w = dit.config.patch_size
    assert (p_t, p_h, p_w) == (1, 1, 1)
    torch.testing.assert_close(found.values["attn"][0, 0], patches.permute(0, 4, 1, 2, 3))


class Wrong(nn.Module):
    """An output norm that is followed by something that is not linear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.layer_norm(x, x.shape[-1:]))


class Written(nn.Module):
    """RMS norms of three kinds, one after the other: torch's, diffusers' and one that is written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.theirs = nn.RMSNorm(width), RMSNorm(width, eps=1e-6)
        nn.init.normal_(self.own.weight)
        nn.init.normal_(self.theirs.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.theirs(self.own(x))
        return x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()


@torch.no_grad()
def test_heads_with_other_norms_are_frozen_and_what_is_not_affine_is_refused(organism: Subject) -> None:
    run = organism.run(record=True)
    replay = organism.model.replay(run, 0, [dl.Capture(dl.Sites("resid", layers=3))])
    residual = next(iter(replay.captures[""].values()))
    transformer, norm = organism.pipeline.transformer, organism.pipeline.transformer.norm_out
    given = (organism.model, run.recorded(0)[0], residual, replay.conditioning["cond"])
    try:
        torch.manual_seed(0)
        transformer.norm_out = Written(residual.shape[-1])
        head = FrozenHead(*given)
        parts = torch.randn(3, *residual.shape)
        rest = head.linear(residual - parts.sum(dim=0))
        total = head.constant + rest + sum(head.linear(part) for part in parts)
        torch.testing.assert_close(total, head.velocity, rtol=0, atol=3e-5 * float(rest.abs().max()))
        transformer.norm_out = Wrong()
        with pytest.raises(UnsupportedModel, match="is not affine in the residual"):
            FrozenHead(*given)
    finally:
        transformer.norm_out = norm


@torch.no_grad()
def test_a_head_that_is_not_affine_is_refused_in_bfloat16_too() -> None:
    tiny = TINY["wan2.1-t2v"]
    pipeline = tiny.build()
    transformer = pipeline.transformer.to(torch.bfloat16)
    family = Family(dl.VideoDiT(pipeline), tiny.inputs(), dict(tiny.settings))
    run = family.run(record=True)
    assert contributions(family.model, run).velocity.dtype == torch.bfloat16
    replay = family.model.replay(run, 0, [dl.Capture(dl.Sites("resid", layers=-1, branches="cond"))])
    transformer.norm_out = Wrong()
    call = next(c for c in run.recorded(0) if "cond" in c.branches)
    with pytest.raises(UnsupportedModel, match="is not affine in the residual"):
        FrozenHead(family.model, call, next(iter(replay.captures[""].values())), replay.conditioning["cond"])


def test_one_layer_or_component_is_what_it_is_among_all(organism: Subject) -> None:
    run = organism.run(record=True)
    every = contributions(organism.model, run)
    one = contributions(organism.model, run, sites=dl.Sites("ffn", steps=[0, 2], layers=[1, 3]))
    assert torch.equal(one.values["ffn"], every.values["ffn"][[0, 2]][:, [1, 3]])
    assert torch.equal(one.velocity, every.velocity[[0, 2]])
    assert (one.reading.steps, one.reading.layers) == ((0, 2), (1, 3))
    assert list(one.values) == ["ffn"]
    assert list(every.values) == ["attn", "cross_attn", "ffn"]


def test_reading_changes_nothing(organism: Subject) -> None:
    before, run = organism.run(), organism.run(record=True)
    contributions(organism.model, run, sites=dl.Sites(steps=1))
    assert torch.equal(organism.run().latents, before.latents)


def test_bad_input(organism: Subject) -> None:
    run = organism.run(record=True)
    with pytest.raises(InputError, match="record=True"):
        contributions(organism.model, organism.run())
    with pytest.raises(SiteError, match=r"no contribution of 'a2v'; .* attn, cross_attn, ffn, delta"):
        contributions(organism.model, run, sites=dl.Sites("a2v"))
    with pytest.raises(SiteError, match=r"contributions reads resid, pos, attn.*; 'head' is none of them"):
        contributions(organism.model, run, sites=dl.Sites("head"))
    with pytest.raises(SiteError, match="need a name, or a list of names"):
        contributions(organism.model, run, sites=dl.Sites(()))
    with pytest.raises(SiteError, match="unknown branch 'uncond'"):
        contributions(organism.model, run, branch="uncond")
    with pytest.raises(SiteError, match=r"layers 0\.\.3"):
        contributions(organism.model, run, sites=dl.Sites(layers=4))
    with pytest.raises(InputError, match="unknown measure 'loss'"):
        contributions(organism.model, run).plot(measure="loss")


def test_the_picture_has_a_curve_for_every_component(organism: Subject) -> None:
    found = contributions(organism.model, organism.run(record=True))
    axis = found.plot()
    table = found.table[(found.table["measure"] == "share") & (found.table["step"] == 0)]
    for line in axis.lines[:3]:
        expected = table.loc[table["component"] == line.get_label(), "value"]
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert axis.get_ylabel() == "share"
    matplotlib.pyplot.close(axis.figure)
    nothing = replace(found, velocity=found.velocity * 2)
    halved = nothing.table.query("measure == 'share' and step == 0")["value"]
    np.testing.assert_allclose(halved * 2, table["value"])
