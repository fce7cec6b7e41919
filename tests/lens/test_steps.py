"""The step lens."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import InputError, MadeForAnother, SiteError
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.lens.preview import Preview
from dit_lens.lens.steps import MEASURES, StepLens, step_lens
from dit_lens.runs.schedule import Schedule
from dit_lens.tasks import agreement
from dit_lens.validation.witness import Subject as Family
from tests.subjects import STEPS, Subject

matplotlib.use("Agg")


@cache
def family_of(name: str) -> Family:
    tiny = TINY[name]
    return Family(dl.VideoDiT(tiny.build()), tiny.inputs(), dict(tiny.settings))


@pytest.fixture(params=list(TINY))
def family(request: pytest.FixtureRequest) -> Family:
    return family_of(request.param)


def test_step_lens_changes_nothing_and_ends_where_the_sampler_ends(subject: Subject, guidance: float) -> None:
    lens = step_lens(
        subject.model,
        subject.inputs[0],
        subject.seeds[0],
        branches="all",
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        decode=False,
    )
    assert torch.equal(lens.run.latents, subject.run(guidance=guidance).latents)
    if subject.name != "two_experts":  # UniPC's last step is no Euler step; its x0hat is checked below
        # The last Euler step goes to sigma 0, which is x0hat itself.
        torch.testing.assert_close(lens.x0hat[-1], lens.run.latents)


class Spy:
    """What the scheduler itself takes for the clean video, at every step of the running pipeline."""

    def __init__(self, scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Tensor] = []
        kind = type(scheduler)
        step = kind.step

        def spied(scheduler: Any, prediction: Tensor, *args: Any, **kwargs: Any) -> Any:
            before = copy.deepcopy(scheduler)
            result = step(scheduler, prediction, *args, **kwargs)
            self.seen.append(self._clean(before, scheduler, step, prediction, args, kwargs, result))
            return result

        monkeypatch.setattr(kind, "step", spied)

    @staticmethod
    def _clean(before: Any, after: Any, step: Any, prediction: Tensor, args: Any, kwargs: Any, result: Any) -> Tensor:
        if isinstance(after, UniPCMultistepScheduler | DPMSolverMultistepScheduler):
            clean: Tensor = after.model_outputs[-1]  # its own convert_model_output
        elif isinstance(after, FlowMatchEulerDiscreteScheduler):  # a step straight to the end
            index = after.step_index - 1
            before.sigmas[index + 1] = before.sigmas[-1]
            clean = step(before, prediction, *args, **{**kwargs, "return_dict": False})[0]
        elif isinstance(result, tuple) and len(result) > 1:
            clean = result[1]
        else:
            clean = step(before, prediction, *args, **{**kwargs, "return_dict": True}).pred_original_sample
        return clean.clone()


def check_against_scheduler(family: Family, lens: StepLens, seen: list[Tensor]) -> None:
    architecture, latent = family.architecture, lens.x0hat.shape[2:]
    # LTX-2 steps its audio too, and Cosmos first converts both branches in one batch.
    own = [architecture.unpack(x, latent) for x in seen if x.numel() == lens.x0hat[0].numel()]
    assert len(own) == len(lens.x0hat)
    free = [f for f in range(latent[1]) if f not in lens.run.geometry.fixed_frames]
    for estimate, clean in zip(lens.x0hat, own, strict=True):
        torch.testing.assert_close(estimate[:, :, free], clean[:, :, free].float(), rtol=2e-5, atol=2e-5)


def test_x0hat_is_what_the_scheduler_of_the_running_pipeline_has(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(family.model.pipeline.scheduler, monkeypatch)
    lens = step_lens(family.model, family.inputs[0], 0, decode=False, **family.settings)
    check_against_scheduler(family, lens, spy.seen)


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS: dict[str, tuple[str, Any]] = {
    "euler": ("wan2.1-t2v", FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "dpm": ("wan2.1-t2v", DPMSolverMultistepScheduler(flow_shift=3.0, **FLOW)),
    "unipc-epsilon": ("wan2.1-t2v", UniPCMultistepScheduler()),
    "ddim-v": ("allegro", DDIMScheduler(prediction_type="v_prediction", clip_sample=False)),
    "euler-sample": ("allegro", EulerDiscreteScheduler(prediction_type="sample")),
    "cogvideox-dpm-sample": ("cogvideox-1.0", CogVideoXDPMScheduler(prediction_type="sample")),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_other_schedulers_in_the_same_pipelines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_of(SCHEDULERS[name][0])
    monkeypatch.setattr(family.model.pipeline, "scheduler", SCHEDULERS[name][1])
    spy = Spy(family.model.pipeline.scheduler, monkeypatch)
    lens = step_lens(family.model, family.inputs[0], 0, decode=False, **family.settings)
    check_against_scheduler(family, lens, spy.seen)


def test_branches_combine_to_the_guided_estimate_and_a_record_gives_the_same(family: Family) -> None:
    more = {"record": True, "decode": False, **family.settings}
    lens = step_lens(family.model, family.inputs[0], 0, branches="all", **more)
    run = lens.run
    assert set(lens.estimates) == {"guided", *run.geometry.branches}
    recorded = StepLens.of(run, "all")
    for branch, estimates in lens.estimates.items():
        assert torch.equal(recorded.estimates[branch], estimates), branch
        if branch != "guided":
            replayed = family.model.replay(run, 1).velocities[branch]
            assert torch.equal(estimates[1], run.clean(1, run.states[1], replayed))
            assert not torch.equal(estimates[1], lens.x0hat[1])
    assert (recorded.sigmas, recorded.alphas, recorded.experts) == (lens.sigmas, lens.alphas, lens.experts)
    assert lens.sigmas == run.sigmas[: len(lens.sigmas)]
    only = StepLens.of(run, ["cond"])
    assert list(only.estimates) == ["guided", "cond"]


def test_x0hat_of_classifier_free_guidance_is_the_same_combination_of_the_branches(text_to_video: Subject) -> None:
    run = text_to_video.run(guidance=2.0, record=True)
    lens = StepLens.of(run, "all")
    combined = lens.branch("uncond") + 2.0 * (lens.branch("cond") - lens.branch("uncond"))
    torch.testing.assert_close(lens.x0hat, combined, rtol=1e-5, atol=1e-5)


def test_unguided_the_one_branch_is_the_guided_estimate(organism: Subject) -> None:
    lens = StepLens.of(organism.run(record=True), "all")
    assert torch.equal(lens.branch("cond"), lens.x0hat)


def test_the_table_has_the_numbers_of_its_definition(two_experts: Subject) -> None:
    run = two_experts.model.run(
        list(two_experts.inputs), [3, 4], num_inference_steps=STEPS, guidance_scale=1.0, decode=False, record=True
    )
    lens = StepLens.of(run)
    table = lens.frame()
    assert list(table.columns) == ["step", "sigma", "alpha", "expert", "branch", "instance", "seed", *MEASURES]
    assert len(table) == STEPS * 2
    row = table[(table.step == 1) & (table.seed == 4)].iloc[0]
    x, before, end = (t.flatten().double().numpy() for t in (lens.x0hat[1, 1], lens.x0hat[0, 1], run.latents[1]))
    assert row.cosine == pytest.approx(x @ end / np.linalg.norm(x) / np.linalg.norm(end), rel=1e-9)
    assert row.distance == pytest.approx(np.linalg.norm(x - end) / np.linalg.norm(end), rel=1e-9)
    assert row.change == pytest.approx(np.linalg.norm(x - before) / np.linalg.norm(before), rel=1e-9)
    assert (row.sigma, row.alpha) == (run.schedule.sigma(1), run.schedule.alpha(1))
    assert table[table.step == 0].change.isna().all()
    assert set(table.expert) == {"high_noise", "low_noise"}
    assert list(table[table.seed == 3].expert) == [c.expert for c in run.calls]


def test_the_plot_shows_every_branch_and_the_change_of_expert(two_experts: Subject) -> None:
    lens = StepLens.of(two_experts.run(guidance=2.0, record=True), "all")
    axis = lens.plot()
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["guided", "cond", "uncond"]
    table = lens.frame()
    guided = table[table.branch == "guided"]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), guided.cosine)
    assert "step, and its sigma" in axis.get_xlabel()
    change = 1 + int(guided.expert.eq("high_noise").sum()) - 1.5
    assert any(line.get_linestyle() == ":" and line.get_xdata()[0] == change for line in axis.lines)
    assert len(lens.plot(measure="change").lines[0].get_xdata()) == STEPS - 1
    with pytest.raises(SiteError, match="cosine, distance, change"):
        lens.plot(measure="colour")


def test_decoding_chosen_steps_and_frames_in_shared_batches(text_to_video: Subject) -> None:
    model = text_to_video.model
    run = model.run(
        list(text_to_video.inputs), [1, 2], num_inference_steps=STEPS, decode=False, record=True, guidance_scale=2.0
    )
    lens, sizes = StepLens.of(run, ["cond"]), []
    whole = np.stack([model.decode(x) for x in lens.x0hat])
    assert np.array_equal(lens.decode(model, steps=-1), whole[-1:])
    decode = model.pipeline.vae.decode
    model.pipeline.vae.decode = lambda z, **more: (sizes.append(tuple(z.shape[:3:2])), decode(z, **more))[1]
    try:
        some = lens.decode(model, steps=[0, 2], frames=[0, 1], batch=3)
    finally:
        del model.pipeline.vae.decode
    # Rows and batches differ in the last bits of matrix products, and so by a rounding.
    assert np.abs(some.astype(int) - whole[[0, 2]][:, :, :2]).max() <= 1
    latent_frame = run.geometry.pixels.latent_frame(1)
    assert sizes == [(3, latent_frame + 1), (1, latent_frame + 1)]
    assert lens.decode(model, steps=0, branch="cond", frames=-1).shape == (1, 2, 1, *whole.shape[3:])
    assert not np.array_equal(lens.decode(model, steps=0, branch="cond"), whole[:1])


def test_what_does_not_exist_is_named(text_to_video: Subject) -> None:
    model, given = text_to_video.model, (text_to_video.inputs[0], 0)
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "decode": False}
    with pytest.raises(SiteError, match=r"uncond.*cond"):
        step_lens(model, *given, branches=["uncond"], **settings)
    plain = step_lens(model, *given, **settings)
    with pytest.raises(InputError, match="record=True"):
        StepLens.of(plain.run)
    run = text_to_video.run(record=True)
    with pytest.raises(SiteError, match="no branch 'stg'; this run has cond and 'guided'"):
        StepLens.of(run, "stg")
    lens = StepLens.of(run)
    with pytest.raises(SiteError, match="has no branch 'cond'; it has guided"):
        lens.decode(model, branch="cond")
    with pytest.raises(SiteError, match=rf"no step {STEPS}.*steps 0\.\.{STEPS - 1}"):
        lens.decode(model, steps=[0, STEPS])
    with pytest.raises(SiteError, match=r"no frame 99.*frames 0\.\.4"):
        lens.decode(model, frames=99)
    # Also of the same family, and with a VAE of the same shape.
    for other in (family_of("mochi").model, dl.organisms.with_identity_blocks(model, [0]).model):
        with pytest.raises(MadeForAnother, match=f"read from model {model.id}, this is {other.id}"):
            lens.decode(other)
    for wrong in ([0, 1], "all", True):
        with pytest.raises(InputError, match=r"num_inference_steps=.*need a whole number"):
            step_lens(model, text_to_video.inputs[0], num_inference_steps=wrong)


def test_a_run_that_was_stopped_has_the_steps_it_did(organism: Subject) -> None:
    run = organism.run(record=True, stop_after=1)
    assert len(StepLens.of(run).x0hat) == 2
    lens = step_lens(
        organism.model,
        organism.inputs[0],
        organism.seeds[0],
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        stop_after=1,
    )
    assert torch.equal(lens.x0hat, StepLens.of(run).x0hat)


def test_interventions_are_seen(organism: Subject) -> None:
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "decode": False, "branches": "all"}
    given = (organism.model, organism.inputs[0], organism.seeds[0])
    plain = step_lens(*given, **settings)
    zeroed = step_lens(*given, interventions=[dl.Ablate(dl.Sites("velocity", steps=1))], **settings)
    assert torch.equal(plain.x0hat[0], zeroed.x0hat[0])
    # Without a velocity the state itself is the clean estimate.
    assert not torch.equal(plain.x0hat[1], zeroed.x0hat[1])
    assert torch.equal(zeroed.branch("cond")[1], zeroed.x0hat[1])


@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_x0hat_is_the_schedulers_own_conversion(scheduler: str) -> None:
    state, velocity = torch.randn(2, 1, 4, 2, 3, 3)
    if scheduler == "unipc":
        made = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3)
        made.set_timesteps(5)
        made._init_step_index(made.timesteps[2])
        own = made.convert_model_output(velocity, sample=state)
        sigma = float(made.sigmas[2])
    else:
        made = FlowMatchEulerDiscreteScheduler(shift=3)
        made.set_timesteps(5)
        sigma = float(made.sigmas[2])
        # Euler's step is linear in sigma: carried on to sigma 0 it arrives at the clean estimate.
        stepped = made.step(velocity, made.timesteps[2], state, return_dict=False)[0]
        own = state + (stepped - state) * sigma / (sigma - float(made.sigmas[3]))
    torch.testing.assert_close(Schedule.of(made).clean(2, state, velocity), own)


def test_step_lens_of_the_shipped_model_shows_the_answer_forming(shipped: Subject) -> None:
    task = dl.tasks.Maze()
    mazes = task.sample(6, seed=1)
    lens = step_lens(shipped.model, mazes, seed=list(range(6)))
    frames = lens.decode(shipped.model, steps=[0, 9], frames=-1)
    final = task.read_answer(lens.run.frames[:, -1], mazes).marks
    overlap = [agreement(task.read_answer(f[:, -1], mazes).marks, final).mean() for f in frames]
    assert overlap[1] == 1
    assert overlap[0] < overlap[1]
    cosine = lens.frame().groupby("step").cosine.mean()
    assert cosine[0] < cosine[5] < cosine[9]
    assert cosine[9] == pytest.approx(1, abs=1e-6)


def test_the_preview_stands_in_for_the_vae_at_its_size(organism: Subject) -> None:
    run = organism.run(record=True)
    lens, model = StepLens.of(run), organism.model
    latents = torch.randn(4, *run.latents.shape[1:], generator=torch.Generator().manual_seed(0))
    preview = Preview.fit(model, latents, groups=range(4))
    whole = lens.decode(model, steps=[0, 2])
    drawn = lens.decode(model, steps=[0, 2], preview=preview)
    assert drawn.shape == whole.shape
    assert np.array_equal(lens.decode(model, steps=[0, 2], frames=[0, -1], preview=preview), drawn[:, :, [0, -1]])
