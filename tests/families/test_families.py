"""What every family's file says of its transformer, against what torch's hooks see in the pipeline called by hand."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.validation.witness import SeenBlock, Subject


@cache
def subject_of(name: str) -> Subject:
    tiny = TINY[name]
    return Subject(dl.VideoDiT(tiny.build()), tiny.inputs(), dict(tiny.settings))


@pytest.fixture(params=list(TINY))
def subject(request: pytest.FixtureRequest) -> Subject:
    return subject_of(request.param)


def terms(seen: SeenBlock, stream: str) -> dict[str, Tensor]:
    return {t.component: t.value(seen.met) for t in seen.block.terms if t.stream == stream}


def test_the_setting_is_worth_testing(subject: Subject) -> None:
    geometry = subject.model.geometry(subject.inputs[0], **subject.settings)
    assert len(set(geometry.grid)) == 3
    assert geometry.layers >= 4
    assert {"cond", "uncond"} <= set(geometry.branches)
    assert subject.inputs[0] != subject.inputs[1]


@torch.no_grad()
def test_the_sum_rule_means_something_for_every_term_is_large_against_its_error(subject: Subject) -> None:
    for seen in subject.plain.calls[0]:
        for stream, after in seen.after.items():
            for component, value in terms(seen, stream).items():
                assert value.abs().max() > 1e-4 * after.abs().max(), (seen.path, component, stream)


@torch.no_grad()
def test_a_blocks_update_is_the_sum_of_its_terms_and_of_no_fewer(subject: Subject) -> None:
    for seen in subject.plain.calls[0]:
        for stream, after in seen.after.items():
            values = terms(seen, stream)
            total = seen.before[stream].double() + sum(v.double() for v in values.values())
            ulp = float(after.abs().max()) * torch.finfo(after.dtype).eps
            assert float((total - after).abs().max()) <= 8 * ulp
            for component, value in values.items():
                assert float((total - value - after).abs().max()) > 8 * ulp, (seen.path, component, stream)


@torch.no_grad()
def test_the_latents_have_the_shape_stated_in_both_layouts(subject: Subject) -> None:
    architecture = subject.architecture
    latent = architecture.latent(subject.model.pipeline, subject.settings)
    output = subject.plain.outputs[0][0]
    prediction = architecture.unpack(output, latent)
    assert prediction.shape[1:] == latent
    assert torch.equal(architecture.pack(prediction, latent), output)
    tokens = math.prod(architecture.grid(subject.model.pipeline.transformer, latent))
    width = architecture.width(subject.model.pipeline.transformer)
    assert subject.plain.calls[0][0].before["video"].shape[1:] == (tokens, width)


def test_a_smaller_guidance_leaves_one_branch(subject: Subject) -> None:
    if "guidance_scale" not in subject.settings or "true_cfg_scale" in subject.settings:
        pytest.skip("guided by something else than guidance_scale")
    off = {k: 0.0 for k in ("stg_scale", "modality_scale") if k in subject.settings}
    settings = {**subject.settings, **off, "guidance_scale": 1.0}
    run = subject.model.run(subject.inputs[0], 0, decode=False, **settings)
    assert run.geometry.branches == ("cond",)
    assert run.ledger.denoiser_forwards == settings["num_inference_steps"]
