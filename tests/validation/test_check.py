"""Every family does what its file says, and a file that says something else is found out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import CheckFailed
from dit_lens.families import registry
from dit_lens.families.base import Architecture
from dit_lens.families.registry import architecture_of
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.families.wan import WAN
from dit_lens.validation.check import check, check_family
from dit_lens.validation.family_checks import CHECKS
from dit_lens.validation.witness import Subject as CheckSubject
from tests.subjects import Subject


@pytest.mark.parametrize("name", list(TINY))
def test_a_family_does_what_its_file_says(name: str) -> None:
    report = check_family(name)
    assert report.passed, str(report)
    assert list(report.checks) == list(CHECKS)
    assert len(set(report.grid)) == 3
    assert len(report.branches) > 1


@pytest.mark.parametrize("name", list(TINY))
def test_a_family_is_the_same_when_loaded_from_a_folder(name: str, tmp_path: Any) -> None:
    tiny = TINY[name]
    built = tiny.build()
    built.save_pretrained(tmp_path)
    loaded, kept = dl.VideoDiT(tmp_path), dl.VideoDiT(built)
    tiny.ready(loaded.pipeline)
    runs = [m.run(tiny.inputs()[0], 3, decode=False, **tiny.settings) for m in (loaded, kept)]
    assert loaded.architecture is kept.architecture
    assert loaded.id == kept.id
    torch.testing.assert_close(runs[0].latents, runs[1].latents, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", list(TINY))
def test_a_family_decodes_its_own_latents_as_its_pipeline_does(name: str) -> None:
    tiny = TINY[name]
    model = dl.VideoDiT(tiny.build())
    run = model.run(tiny.inputs()[0], 3, **tiny.settings)
    assert run.frames is not None
    decoded = model.decode(run.latents)
    assert decoded.shape == run.frames.shape
    assert abs(decoded.astype(int) - run.frames.astype(int)).max() <= 1


def test_the_shipped_model_does_what_its_familys_file_says(shipped: Subject) -> None:
    report = check(shipped.model, "maze").require()
    assert report.family == "wan"


# -- files that say something else -------------------------------------------------------------------------------------


def _block(architecture: Architecture, **changes: Any) -> Architecture:
    (name, block), *rest = architecture.stacks
    return replace(architecture, stacks=((name, replace(block, **changes)), *rest))


def _without_gate(architecture: Architecture) -> Architecture:
    terms = architecture.stacks[0][1].terms
    bare = replace(terms[0], value=lambda met: met["attn1.output"])
    return _block(architecture, terms=(bare, *terms[1:]))


def _rotated_head(transformer: Any, residual: Tensor, conditioning: Any, grid: Any) -> Tensor:
    return WAN.head(transformer, residual, conditioning, grid).roll(1, dims=-1)


def _heads_without_bias(architecture: Architecture) -> Architecture:
    terms = architecture.stacks[0][1].terms
    return _block(architecture, terms=(replace(terms[0], headless=None), *terms[1:]))


WRONG: dict[str, tuple[str, str, Callable[[Architecture], Architecture]]] = {
    "an attention without its gate": ("sum rule", r"s00/cond/L00/delta/video differs by", _without_gate),
    "heads without the bias": ("heads", "blocks.0, video: heads are", _heads_without_bias),
    "a head that reads askew": ("depth lens", "s00/cond: last layer", lambda a: replace(a, head=_rotated_head)),
    "branches the other way round": ("branches", r"moved \['uncond'\], expected \['cond'\]",
                                     lambda a: replace(a, calls=lambda p, s: (("uncond",), ("cond",)))),
    "a grid on its side": ("token grid", r"expected \(", lambda a: replace(
        a, grid=lambda t, latent: (latent[1], latent[3] // 2, latent[2] // 2))),
    "guidance of another kind": ("schedule", r"s00/-/-/guided: .* from what scheduler.step was given",
                                 lambda a: replace(a, guide=lambda v, scales, state, sigma: v["cond"])),
    "events out of order": ("layers", "the family's file says",
                            lambda a: _block(a, events=tuple(reversed(a.stacks[0][1].events)))),
}  # fmt: skip


@pytest.mark.parametrize("what", list(WRONG))
def test_a_file_that_says_something_else_is_found_out(what: str) -> None:
    named, names, spoil = WRONG[what]
    model = dl.VideoDiT(TINY["wan2.1-t2v"].build())
    model.architecture = spoil(model.architecture)
    report = check(model, "spoiled", **TINY["wan2.1-t2v"].settings)
    assert not report.passed
    assert not report.checks[named].passed, str(report)
    with pytest.raises(CheckFailed, match=r"spoiled \(wan\)"):
        report.require()
    assert re.search(names, report.checks[named].detail), report.checks[named].detail


def test_a_family_can_be_registered_from_outside() -> None:
    pipeline = TINY["wan2.1-t2v"].build()
    mine = replace(architecture_of(pipeline), family="mine")
    dl.register(mine)
    try:
        assert architecture_of(pipeline) is mine
        assert dl.VideoDiT(pipeline).architecture.family == "mine"
    finally:
        registry._registered.remove(mine)
    assert architecture_of(pipeline).family == "wan"


# -- schedulers other than the published ones --------------------------------------------------------------------------

SCHEDULERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "Wan, Euler": ("wan2.1-t2v", lambda: FlowMatchEulerDiscreteScheduler(shift=5.0)),
    "Wan, DPM++": ("wan2.1-t2v", lambda: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)),
    "TI2V, Euler": ("wan2.2-ti2v", lambda: FlowMatchEulerDiscreteScheduler(shift=5.0)),
    "HunyuanVideo, UniPC": ("hunyuanvideo", lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=7.0)),
    "CogVideoX 1.0, DPM": ("cogvideox-1.0", lambda: CogVideoXDPMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)),
    "CogVideoX 1.5, DDIM": ("cogvideox-1.5", lambda: CogVideoXDDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)),
    "CogVideoX 1.0, epsilon": ("cogvideox-1.0", lambda: CogVideoXDDIMScheduler(prediction_type="epsilon")),
    "Allegro, Euler": ("allegro", lambda: EulerDiscreteScheduler(prediction_type="epsilon")),
    "Allegro, v-prediction": ("allegro", lambda: EulerDiscreteScheduler(prediction_type="v_prediction")),
    "Allegro, DDIM": ("allegro", lambda: DDIMScheduler(clip_sample=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_a_run_knows_what_its_scheduler_does_whichever_it_is(name: str) -> None:
    tiny, make = SCHEDULERS[name]
    pipeline = TINY[tiny].build()
    pipeline.scheduler = make()
    subject = CheckSubject(dl.VideoDiT(pipeline), TINY[tiny].inputs(), dict(TINY[tiny].settings))
    for name in ("untouched", "schedule", "resume"):
        CHECKS[name](subject)
    assert subject.base.schedule.steps == subject.settings["num_inference_steps"]


def test_a_scheduler_that_is_not_understood_is_refused_by_name() -> None:
    pipeline = TINY["wan2.1-t2v"].build()
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(dl.errors.UnsupportedModel, match="FlowMatchHeunDiscreteScheduler"):
        dl.VideoDiT(pipeline).run("blue", 0, **TINY["wan2.1-t2v"].settings)
