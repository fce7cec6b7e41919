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

#: The guided estimate and that of every branch.
BOTH = dl.Sites(("guided", "velocity"))


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
        sites=BOTH,
        seed=subject.seeds[0],
        num_inference_steps=STEPS,
        guidance_scale=guidance,
    )
    assert torch.equal(lens.final, subject.run(guidance=guidance).latents)
    if subject.name != "two_experts":  # UniPC's last step is no Euler step; its x0hat is checked below
        # The last Euler step goes to sigma 0, which is x0hat itself.
        torch.testing.assert_close(lens.x0hat[-1], lens.final)


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
    fixed = family.model.geometry(family.inputs[0], **family.settings).fixed_frames
    free = [f for f in range(latent[1]) if f not in fixed]
    for estimate, clean in zip(lens.x0hat, own, strict=True):
        torch.testing.assert_close(estimate[:, :, free], clean[:, :, free].float(), rtol=2e-5, atol=2e-5)


def test_x0hat_is_what_the_scheduler_of_the_running_pipeline_has(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(family.model.pipeline.scheduler, monkeypatch)
    lens = step_lens(family.model, family.inputs[0], **family.settings)
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
    lens = step_lens(family.model, family.inputs[0], **family.settings)
    check_against_scheduler(family, lens, spy.seen)


def test_branches_combine_to_the_guided_estimate_and_a_record_gives_the_same(family: Family) -> None:
    lens = step_lens(family.model, family.inputs[0], sites=BOTH, **family.settings)
    run = family.model.run(family.inputs[0], record=True, decode=False, **family.settings)
    assert set(lens.estimates) == {"guided", *run.geometry.branches}
    recorded = step_lens(family.model, run, sites=BOTH)
    assert torch.equal(recorded.final, lens.final)
    for branch, estimates in lens.estimates.items():
        assert torch.equal(recorded.estimates[branch], estimates), branch
        if branch != "guided":
            replayed = family.model.replay(run, 1).velocities[branch]
            assert torch.equal(estimates[1], run.clean(1, run.states[1], replayed))
            assert not torch.equal(estimates[1], lens.x0hat[1])
    assert (recorded.sigmas, recorded.alphas, recorded.experts) == (lens.sigmas, lens.alphas, lens.experts)
    assert lens.sigmas == run.sigmas[: len(lens.sigmas)]
    only = step_lens(family.model, run, sites=BOTH.at(branches="cond", steps=1))
    assert list(only.estimates) == ["guided", "cond"]
    assert torch.equal(only.x0hat, lens.x0hat[1:2])


def test_x0hat_of_classifier_free_guidance_is_the_same_combination_of_the_branches(text_to_video: Subject) -> None:
    run = text_to_video.run(guidance=2.0, record=True)
    lens = step_lens(text_to_video.model, run, sites=BOTH)
    combined = lens.branch("uncond") + 2.0 * (lens.branch("cond") - lens.branch("uncond"))
    torch.testing.assert_close(lens.x0hat, combined, rtol=1e-5, atol=1e-5)


def test_unguided_the_one_branch_is_the_guided_estimate(organism: Subject) -> None:
    lens = step_lens(organism.model, organism.run(record=True), sites=BOTH)
    assert torch.equal(lens.branch("cond"), lens.x0hat)


def test_the_table_has_the_numbers_of_its_definition(two_experts: Subject) -> None:
    run = two_experts.model.run(
        list(two_experts.inputs), [3, 4], num_inference_steps=STEPS, guidance_scale=1.0, decode=False, record=True
    )
    lens = step_lens(two_experts.model, run)
    samples, places = lens.samples, ["step", "sigma", "expert", "branch", "alpha"]
    assert list(samples) == [*places, "instance", "seed", "measure", "value"]
    assert list(lens.table) == [*places, "measure", "value", "low", "high", "n"]
    assert len(samples) == STEPS * 2 * len(MEASURES)
    table = samples.pivot(index=[*places, "instance", "seed"], columns="measure", values="value").reset_index()
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
    lens = step_lens(two_experts.model, two_experts.run(guidance=2.0, record=True), sites=BOTH)
    axis = lens.plot()
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["guided", "cond", "uncond"]
    guided = lens.table.query("branch == 'guided' and measure == 'cosine'")
    np.testing.assert_allclose(axis.lines[0].get_ydata(), guided["value"])
    assert "step, and its sigma" in axis.get_xlabel()
    change = 1 + int(guided.expert.eq("high_noise").sum()) - 1.5
    assert any(line.get_linestyle() == ":" and line.get_xdata()[0] == change for line in axis.lines)
    assert len(lens.plot(measure="change").lines[0].get_xdata()) == STEPS - 1
    with pytest.raises(InputError, match="cosine, distance, change"):
        lens.plot(measure="colour")


def test_decoding_chosen_steps_and_frames_in_shared_batches(text_to_video: Subject) -> None:
    model = text_to_video.model
    run = model.run(
        list(text_to_video.inputs), [1, 2], num_inference_steps=STEPS, decode=False, record=True, guidance_scale=2.0
    )
    lens, sizes = step_lens(model, run, sites=BOTH.at(branches="cond")), []
    whole = np.stack([model.decode(x) for x in lens.x0hat])
    assert np.array_equal(lens.decode(model, sites=dl.Sites(steps=-1)), whole[-1:])
    decode = model.pipeline.vae.decode
    model.pipeline.vae.decode = lambda z, **more: (sizes.append(tuple(z.shape[:3:2])), decode(z, **more))[1]
    try:
        some = lens.decode(model, sites=dl.Sites(steps=[0, 2]), frames=[0, 1], batch=3)
    finally:
        del model.pipeline.vae.decode
    # Rows and batches differ in the last bits of matrix products, and so by a rounding.
    assert np.abs(some.astype(int) - whole[[0, 2]][:, :, :2]).max() <= 1
    latent_frame = run.geometry.pixels.latent_frame(1)
    assert sizes == [(3, latent_frame + 1), (1, latent_frame + 1)]
    assert lens.decode(model, sites=dl.Sites(steps=0), branch="cond", frames=-1).shape == (1, 2, 1, *whole.shape[3:])
    assert not np.array_equal(lens.decode(model, sites=dl.Sites(steps=0), branch="cond"), whole[:1])


def test_what_does_not_exist_is_named(text_to_video: Subject) -> None:
    model, settings = text_to_video.model, {"num_inference_steps": STEPS, "guidance_scale": 1.0}
    with pytest.raises(SiteError, match="unknown branch 'uncond'; this run has cond"):
        step_lens(model, text_to_video.inputs[0], sites=BOTH.at(branches="uncond"), **settings)
    run = text_to_video.run(record=True)
    with pytest.raises(SiteError, match="unknown branch 'stg'; this run has cond"):
        step_lens(model, run, sites=BOTH.at(branches="stg"))
    with pytest.raises(SiteError, match="has no branch 'guided'; it has cond"):
        step_lens(model, run, sites=dl.Sites("velocity")).x0hat  # noqa: B018
    lens = step_lens(model, run)
    with pytest.raises(SiteError, match="has no branch 'cond'; it has guided"):
        lens.decode(model, branch="cond")
    with pytest.raises(SiteError, match=rf"no step {STEPS}.*steps 0\.\.{STEPS - 1}"):
        lens.decode(model, sites=dl.Sites(steps=[0, STEPS]))
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
    lens = step_lens(organism.model, organism.run(record=True, stop_after=1))
    whole = step_lens(organism.model, organism.run(record=True))
    assert lens.steps == (0, 1)
    assert torch.equal(lens.x0hat, whole.x0hat[:2])
    inside = organism.run(
        record=True, stop_after="last site", interventions=[dl.Capture(dl.Sites("resid", steps=1, layers=0))]
    )
    assert step_lens(organism.model, inside).steps == (0,)


def test_a_change_is_since_the_step_before_and_no_other(organism: Subject) -> None:
    run = organism.run(record=True)
    whole, some = (
        step_lens(organism.model, run, sites=dl.Sites("guided", steps=steps)).table for steps in ("all", [0, 2])
    )
    assert some[some["measure"] == "change"]["value"].isna().all()
    same = whole[(whole["step"] == 2) & (whole["measure"] == "cosine")]["value"].item()
    assert some[(some["step"] == 2) & (some["measure"] == "cosine")]["value"].item() == same


def test_interventions_are_seen(organism: Subject) -> None:
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "seed": organism.seeds[0], "sites": BOTH}
    given = (organism.model, organism.inputs[0])
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
    run = shipped.model.run(mazes, list(range(6)), record=True)
    lens = step_lens(shipped.model, run)
    frames = lens.decode(shipped.model, sites=dl.Sites(steps=[0, 9]), frames=-1)
    assert run.frames is not None
    final = task.read_answer(run.frames[:, -1], mazes).marks
    overlap = [agreement(task.read_answer(f[:, -1], mazes).marks, final).mean() for f in frames]
    assert overlap[1] == 1
    assert overlap[0] < overlap[1]
    cosine = lens.table.query("measure == 'cosine'").set_index("step")["value"]
    assert cosine[0] < cosine[5] < cosine[9]
    assert cosine[9] == pytest.approx(1, abs=1e-6)


def test_the_preview_stands_in_for_the_vae_at_its_size(organism: Subject) -> None:
    run = organism.run(record=True)
    lens, model = step_lens(organism.model, run), organism.model
    latents = torch.randn(4, *run.latents.shape[1:], generator=torch.Generator().manual_seed(0))
    preview = Preview.fit(model, latents, groups=range(4))
    some = dl.Sites(steps=[0, 2])
    whole = lens.decode(model, sites=some)
    drawn = lens.decode(model, sites=some, preview=preview)
    assert drawn.shape == whole.shape
    assert np.array_equal(lens.decode(model, sites=some, frames=[0, -1], preview=preview), drawn[:, :, [0, -1]])


def test_a_run_that_was_stopped_has_no_end_to_compare_with(organism: Subject) -> None:
    """Where it stopped is a noisy state, and likeness to it says nothing."""
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "record": True, "decode": False}
    guided = dl.Capture(dl.Sites("guided", steps=STEPS - 1))
    for stop, ended in ((1, False), ("last site", False), (STEPS - 1, True), (None, True)):
        run = organism.model.run(
            organism.inputs[0],
            organism.seeds[0],
            stop_after=stop,
            interventions=[guided] if stop != 1 else (),
            **settings,
        )
        assert run.ended is ended
        lens = step_lens(organism.model, run)
        values = lens.table.set_index("measure")["value"]
        assert values[["cosine", "distance"]].notna().all() == ended
        assert values["change"].notna().any()
        if not ended:
            assert lens.final is None
            with pytest.raises(InputError, match="stopped before its last step and has no cosine to its end"):
                lens.plot()
            lens.plot(measure="change")
