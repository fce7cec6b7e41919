"""Equivalences of a run, bit for bit: with the plain pipeline, with raw torch hooks, with itself, with the donor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

import dit_lens as dl
from tests.subjects import (
    ALL_EDITABLE,
    SEED,
    STEPS,
    Edit,
    Subject,
    capture,
    different,
    equal_frames,
    forward_hooks,
    raw_captures,
)


def blocks_of(subject: Subject, step: int) -> Any:
    """The block list of the expert that does a step, as the recorded calls of a run name it."""
    expert = subject.run(record=True).calls[step].expert
    return getattr(subject.pipeline, "transformer_2" if expert == "low_noise" else "transformer").blocks


# -- the plain pipeline ------------------------------------------------------------------------------------------------


def test_a_run_with_nothing_attached_is_the_plain_pipeline(subject: Subject, guidance: float) -> None:
    run = subject.run(guidance=guidance, decode=True)
    assert torch.equal(run.latents, subject.plain(guidance=guidance))
    assert run.frames is not None
    assert equal_frames(run.frames, subject.plain(guidance=guidance, output_type="np"))
    assert different(run.latents, subject.run(1, guidance).latents)


def test_guidance_changes_the_result(subject: Subject) -> None:
    assert different(subject.run(guidance=1.0).latents, subject.run(guidance=2.0).latents)


def test_capturing_everything_changes_nothing(subject: Subject, guidance: float) -> None:
    run = subject.run(guidance=guidance, record=True, interventions=[capture()])
    assert torch.equal(run.latents, subject.plain(guidance=guidance))
    branches = len(run.geometry.branches)
    assert len(run.captured()) == STEPS * (2 + branches * (3 + 2 * subject.model.layers))


def test_decode_of_the_final_latents_is_what_the_pipeline_decodes(subject: Subject) -> None:
    run = subject.run(decode=True)
    assert np.array_equal(subject.model.decode(run.latents), run.frames)


def test_an_edit_of_latents_equals_the_plain_pipeline_with_a_callback_that_edits(
    subject: Subject, guidance: float
) -> None:
    noise = torch.randn(subject.run().latents.shape, generator=torch.Generator().manual_seed(1))

    def callback(pipeline: Any, step: int, _timestep: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        # The state of step 1 is what the callback at the end of step 0 hands on.
        if step == 0 and isinstance(pipeline.scheduler, UniPCMultistepScheduler):
            # What it remembers is of the path before the edit, and would undo it.
            order = pipeline.scheduler.config.solver_order
            vars(pipeline.scheduler).update(
                model_outputs=[None] * order, timestep_list=[None] * order, lower_order_nums=0, last_sample=None
            )
        return {"latents": given["latents"] + noise} if step == 0 else given

    add = Edit(dl.Sites("latents", steps=1), lambda state, at: state + noise)
    run = subject.run(guidance=guidance, interventions=[add])
    assert torch.equal(run.latents, subject.plain(guidance=guidance, callback_on_step_end=callback))
    assert different(run.latents, subject.run(guidance=guidance).latents)


def test_an_edit_of_latents_at_step_0_equals_the_latents_argument(subject: Subject, guidance: float) -> None:
    noise = torch.randn(subject.run().latents.shape, generator=torch.Generator().manual_seed(1))
    edited = subject.run(guidance=guidance, interventions=[dl.Patch(noise, dl.Sites("latents", steps=0))])
    assert torch.equal(edited.latents, subject.plain(guidance=guidance, latents=noise))
    assert torch.equal(edited.latents, subject.run(guidance=guidance, latents=noise).latents)


# -- identity and full swap --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ALL_EDITABLE)
def test_ones_own_activation_patched_in_is_the_identity(subject: Subject, guidance: float, component: str) -> None:
    own = subject.run(guidance=guidance, interventions=[capture(component)])
    patched = subject.run(guidance=guidance, interventions=[dl.Patch(own, dl.Sites(component))])
    assert torch.equal(patched.latents, own.latents)


def test_all_of_ones_own_activations_patched_in_together_are_the_identity(subject: Subject, guidance: float) -> None:
    own = subject.run(guidance=guidance, interventions=[capture()])
    patched = subject.run(guidance=guidance, interventions=[dl.Patch(own, dl.Sites(ALL_EDITABLE)), capture("guided")])
    assert torch.equal(patched.latents, own.latents)


@pytest.mark.parametrize("component", ALL_EDITABLE)
def test_another_runs_activation_patched_in_is_not_the_identity(subject: Subject, component: str) -> None:
    donor = subject.run(1, interventions=[capture(component)])
    patched = subject.run(interventions=[dl.Patch(donor, dl.Sites(component))])
    assert different(patched.latents, subject.run().latents)


@pytest.mark.parametrize("step", range(STEPS))
def test_the_whole_residual_of_a_donor_at_any_layer_gives_the_donors_velocity(
    subject: Subject, guidance: float, step: int
) -> None:
    donor = subject.run(1, guidance, interventions=[capture("resid", "velocity", steps=step)])
    own = subject.run(guidance=guidance, record=True, interventions=[capture("velocity", steps=step)])
    sites = [dl.Site(step, branch, None, "velocity") for branch in own.geometry.branches]
    assert all(different(own[site], donor[site]) for site in sites)
    for layer in range(subject.model.layers):
        swap = dl.Patch(donor, dl.Sites("resid", steps=step, layers=layer))
        swapped = subject.model.replay(own, step, [swap, capture("velocity", steps=step)])
        assert all(torch.equal(swapped.captures[""][site], donor[site]) for site in sites), f"layer {layer}"
        assert all(torch.equal(swapped.velocities[site.branch], donor[site]) for site in sites), f"layer {layer}"


def test_the_whole_residual_of_a_donor_gives_its_velocity_inside_the_running_pipeline_too(
    subject: Subject, guidance: float
) -> None:
    donor = subject.run(1, guidance, interventions=[capture("resid", "velocity")])
    for step in range(STEPS):
        swap = dl.Patch(donor, dl.Sites("resid", steps=step, layers=subject.model.layers - 2 - step))
        run = subject.run(guidance=guidance, interventions=[swap, capture("velocity", steps=step)])
        assert all(torch.equal(tensor, donor[site]) for site, tensor in run.captured().items())


# -- raw torch hooks ---------------------------------------------------------------------------------------------------


def test_captures_equal_raw_torch_hooks(subject: Subject) -> None:
    run = subject.run(interventions=[capture()])
    with raw_captures(subject) as seen:
        subject.plain()
    for name, tensors in seen.items():
        sites = [s for s in run.captured() if s.component == name]
        assert len(sites) == len(tensors)
        for site, tensor in zip(sites, tensors, strict=True):
            assert torch.equal(run[site].reshape(tensor.shape), tensor), str(site)


def test_a_delta_patch_equals_a_raw_torch_hook_that_does_the_same(subject: Subject) -> None:
    sites = dl.Sites("delta", steps=1, layers=2)
    donor = subject.run(1, interventions=[dl.Capture(sites)])
    given = donor["s01/cond/L02/delta/video"].flatten(1, 3)
    count = 0

    def hook(_module: Any, args: tuple[Tensor, ...], _kwargs: Any, output: Tensor) -> Tensor | None:
        nonlocal count
        count += 1
        # An expert's block counts its own calls; the others are left alone.
        return output + (given - (output - args[0])) if count == place else None

    place = calls_before(subject, 1) + 1
    with forward_hooks(blocks_of(subject, 1)[2], hook):
        expected = subject.plain()
    assert torch.equal(subject.run(interventions=[dl.Patch(donor, sites)]).latents, expected)
    assert different(expected, subject.plain())


def test_a_residual_merge_equals_a_raw_torch_hook_that_does_the_same(subject: Subject) -> None:
    seeds = [1, 2, 3]
    merge = dl.Merge(dl.Sites("resid", steps=0, layers=1), group=3)
    run = subject.model.run(
        subject.inputs[0], seeds, num_inference_steps=STEPS, guidance_scale=1.0, decode=False, interventions=[merge]
    )
    done = []

    def hook(_module: Any, _args: Any, _kwargs: Any, output: Tensor) -> Tensor | None:
        done.append(True)
        return None if len(done) > 1 else torch.cat([output.mean(dim=0, keepdim=True), output[1:]])

    many = {
        "prompt": [subject.inputs[0]["prompt"]] * 3,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
    }
    with forward_hooks(blocks_of(subject, 0)[1], hook):
        expected = subject.plain(**many)
    assert torch.equal(run.latents, expected)
    assert different(expected[:1], subject.plain(**many)[:1])


# -- replay, head, guided ----------------------------------------------------------------------------------------------


def test_a_replayed_step_is_the_runs_and_its_last_residual_through_the_head_is_the_velocity(
    subject: Subject, guidance: float
) -> None:
    run = subject.run(guidance=guidance, record=True, interventions=[capture("resid", "velocity", "guided", "latents")])
    for step in range(STEPS):
        again = subject.model.replay(run, step)
        assert torch.equal(again.guided, run[dl.Site(step, None, None, "guided")])
        assert torch.equal(run.states[step], run[dl.Site(step, None, None, "latents")])
        for call in (c for c in run.calls if c.step == step):
            velocity = run[dl.Site(step, call.branch, None, "velocity")]
            assert torch.equal(again.velocities[call.branch], velocity)
            last = run[dl.Site(step, call.branch, subject.model.layers - 1, "resid")].flatten(1, 3)
            expert = subject.model.experts[call.expert]
            head = subject.model.architecture.head(expert, last, again.conditioning[call.branch], run.geometry.grid)
            assert torch.equal(head, velocity)


def test_a_replay_with_interventions_equals_the_run_with_them(subject: Subject, guidance: float) -> None:
    donor = subject.run(1, guidance, interventions=[capture("delta", steps=1)])
    patch = dl.Patch(donor, dl.Sites("delta", steps=1, layers=[1, 2]))
    recorded = subject.run(guidance=guidance, record=True)
    run = subject.run(guidance=guidance, interventions=[patch, capture("velocity", "guided", steps=1)])
    replayed = subject.model.replay(recorded, 1, [patch])
    assert torch.equal(replayed.guided, run["s01/-/-/guided/video"])
    assert torch.equal(replayed.velocities["cond"], run["s01/cond/-/velocity/video"])


def test_x0hat_of_a_replay_is_the_state_less_sigma_times_the_guided_prediction(subject: Subject) -> None:
    run = subject.run(guidance=2.0, record=True, interventions=[capture("guided", "latents", steps=1)])
    expected = run["s01/-/-/latents/video"] - run.sigmas[1] * run["s01/-/-/guided/video"]
    assert torch.equal(subject.model.replay(run, 1).x0hat, expected)


def test_the_guided_capture_is_what_the_scheduler_was_given(
    subject: Subject, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    step = subject.pipeline.scheduler.step

    def spy(prediction: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(prediction.clone())
        return step(prediction, *args, **kwargs)

    monkeypatch.setattr(subject.pipeline.scheduler, "step", spy)
    own = subject.run(1, guidance, interventions=[capture("velocity", steps=1)])
    given.clear()
    # Also with an edit of the velocity, which the scheduler must be given and the capture must show.
    edit = dl.Patch(own, dl.Sites("velocity", steps=1, branches="cond"))
    run = subject.run(guidance=guidance, interventions=[edit, capture("guided")])
    assert len(given) == STEPS
    assert all(torch.equal(run[dl.Site(s, None, None, "guided")], g) for s, g in enumerate(given))


def test_the_second_experts_own_guidance_scale_is_the_one_that_guided_shows(
    two_experts: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    step = two_experts.pipeline.scheduler.step

    def spy(prediction: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(prediction.clone())
        return step(prediction, *args, **kwargs)

    monkeypatch.setattr(two_experts.pipeline.scheduler, "step", spy)
    run = two_experts.run(guidance=2.0, guidance_scale_2=4.0, record=True, interventions=[capture("guided")])
    assert torch.equal(run.latents, two_experts.plain(guidance=2.0, guidance_scale_2=4.0))
    for s, g in enumerate(given[:STEPS]):
        assert torch.equal(run[dl.Site(s, None, None, "guided")], g), f"step {s}"
        assert torch.equal(two_experts.model.replay(run, s).guided, g), f"replay of step {s}"


# -- steps, branches, experts, sigmas ----------------------------------------------------------------------------------


def test_steps_are_denoising_steps_whatever_the_guidance(subject: Subject) -> None:
    for guidance, branches in ((1.0, ("cond",)), (2.0, ("cond", "uncond"))):
        run = subject.run(guidance=guidance)
        expected = [(step, nth, branch) for step in range(STEPS) for nth, branch in enumerate(branches)]
        assert [(c.step, c.nth, c.branch) for c in run.calls] == expected


def test_sigmas_and_timesteps_are_the_schedulers(subject: Subject) -> None:
    run = subject.run(guidance=2.0, interventions=[capture("latents", "delta", "velocity", "guided")])
    scheduler = subject.pipeline.scheduler
    assert run.sigmas == tuple(float(s) for s in scheduler.sigmas)
    assert len(run.sigmas) == STEPS + 1
    assert all(c.sigma == run.sigmas[c.step] for c in run.calls)
    assert all(c.timestep == float(scheduler.timesteps[c.step]) for c in run.calls)
    assert all(site.sigma == run.sigmas[site.step] for site in run.captured())


def test_two_experts_are_named_by_the_boundary(two_experts: Subject, guidance: float) -> None:
    run = two_experts.run(guidance=guidance, num_inference_steps=4, interventions=[capture("resid", layers=0)])
    names = ["high_noise" if call.timestep >= 900 else "low_noise" for call in run.calls]
    assert [call.expert for call in run.calls] == names
    assert set(names) == {"high_noise", "low_noise"}
    assert [site.expert for site in run.captured()] == names


def test_a_model_of_one_expert_names_none(organism: Subject) -> None:
    assert {call.expert for call in organism.run().calls} == {None}


def test_the_uncond_branch_is_the_one_that_is_given_the_negative_prompt(subject: Subject) -> None:
    see = capture("velocity", steps=0)
    one = subject.run(guidance=2.0, interventions=[see])
    two = subject.run(guidance=2.0, interventions=[see], negative_prompt="blue square")
    assert torch.equal(one["s00/cond/-/velocity/video"], two["s00/cond/-/velocity/video"])
    assert different(one["s00/uncond/-/velocity/video"], two["s00/uncond/-/velocity/video"])


def test_an_edit_of_one_branch_leaves_the_other_as_it_was(subject: Subject) -> None:
    plain = subject.run(guidance=2.0, interventions=[capture("velocity", steps=0)])
    zero = dl.Patch(torch.zeros(1, 1, 1, 1, 1), dl.Sites("delta", steps=0, branches="uncond"))
    run = subject.run(guidance=2.0, interventions=[zero, capture("velocity", steps=0)])
    assert torch.equal(run["s00/cond/-/velocity/video"], plain["s00/cond/-/velocity/video"])
    assert different(run["s00/uncond/-/velocity/video"], plain["s00/uncond/-/velocity/video"])


# -- body --------------------------------------------------------------------------------------------------------------


def test_body_sees_every_call_with_its_name(subject: Subject, guidance: float) -> None:
    seen = []

    def body(call: dl.Call, dit: Any) -> None:
        seen.append((call.step, call.branch, call.nth, call.expert, call.sigma, dit.blocks[1].output.clone()))

    run = subject.run(guidance=guidance, body=body)
    known = subject.run(guidance=guidance, interventions=[capture("resid", layers=1)])
    assert torch.equal(run.latents, known.latents)
    assert [s[:5] for s in seen] == [(c.step, c.branch, c.nth, c.expert, c.sigma) for c in known.calls]
    for *_, tensor, site in ((*s, site) for s, site in zip(seen, known.captured(), strict=True)):
        assert torch.equal(tensor, known[site].flatten(1, 3))


def test_body_and_interventions_each_read_in_their_own_order(subject: Subject, guidance: float) -> None:
    norms = []

    def body(call: dl.Call, dit: Any) -> None:
        # Blocks 0 and 2 around the interventions' 3, 1 and 0: in one shared invoke this order could not be served.
        first = dit.blocks[0].output.norm()
        norms.append((float(first), float(dit.blocks[2].output.norm())))

    late, early = (dl.Capture(dl.Sites("resid", layers=k), name=str(k)) for k in (3, 1))
    both = dl.Capture(dl.Sites("delta", layers=[0]), name="0")
    run = subject.run(guidance=guidance, body=body, interventions=[late, early, both])
    assert torch.equal(run.latents, subject.plain(guidance=guidance))
    known = subject.run(guidance=guidance, interventions=[capture("resid", "delta")])
    for name in ("3", "1", "0"):
        assert all(torch.equal(tensor, known[site]) for site, tensor in run.captured(name).items())
    for call, (first, second) in zip(known.calls, norms, strict=True):
        assert first == float(known[dl.Site(call.step, call.branch, 0, "resid")].flatten(1, 3).norm())
        assert second == float(known[dl.Site(call.step, call.branch, 2, "resid")].flatten(1, 3).norm())


def test_what_body_writes_changes_the_run_as_a_raw_hook_would(subject: Subject, guidance: float) -> None:
    def body(call: dl.Call, dit: Any) -> None:
        if call.expert != "low_noise":
            dit.blocks[1].output = dit.blocks[1].output * 2

    with forward_hooks(subject.pipeline.transformer.blocks[1], lambda _m, _a, _k, output: output * 2):
        expected = subject.plain(guidance=guidance)
    assert torch.equal(subject.run(guidance=guidance, body=body).latents, expected)
    assert different(expected, subject.plain(guidance=guidance))


def test_interventions_see_what_body_and_each_other_wrote_only_in_execution_order(organism: Subject) -> None:
    double = dl.Patch(torch.zeros(1, 1, 1, 1, 1), dl.Sites("resid", steps=0, layers=0))
    before = dl.Capture(dl.Sites("resid", steps=0, layers=0), name="before")
    after = dl.Capture(dl.Sites("resid", steps=0, layers=0), name="after")
    run = organism.run(interventions=[before, double, after])
    site = dl.Site(0, "cond", 0, "resid")
    assert run.captured("before")[site].any()
    assert not run.captured("after")[site].any()


@pytest.mark.parametrize("component", ALL_EDITABLE)
def test_the_order_of_the_list_is_the_order_at_one_site(subject: Subject, component: str) -> None:
    sites = dl.Sites(component, steps=1, layers=1)
    triple, plus_one = Edit(sites, lambda x, at: x * 3), Edit(sites, lambda x, at: x + 1)
    ((site, x),) = subject.run(interventions=[dl.Capture(sites)]).captured().items()
    for edits, expected in (((triple, plus_one), x * 3 + 1), ((plus_one, triple), (x + 1) * 3)):
        found = subject.run(interventions=[*edits, dl.Capture(sites)])[site]
        # An edited delta is added to the stream and read off it again, which rounds.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4 if component == "delta" else 0)


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_of_a_batch_equal_their_own_single_runs(subject: Subject, guidance: float) -> None:
    seeds = (3, 4)
    settings = {"num_inference_steps": STEPS, "guidance_scale": guidance, "decode": False}
    batch = subject.model.run(list(subject.inputs), seeds, **settings)
    for row, (one, seed) in enumerate(zip(subject.inputs, seeds, strict=True)):
        alone = subject.model.run(one, seed, **settings)
        # Of the state's own scale: 1e-5 is what float32 leaves of it over three steps of matrices of another height.
        tolerance = 1e-5 * float(alone.latents.abs().max())
        torch.testing.assert_close(batch.latents[row : row + 1], alone.latents, rtol=0, atol=tolerance)
    assert (batch.latents[0] - batch.latents[1]).abs().max() > 1e-2


def test_rows_with_latents_given_keep_each_their_own(organism: Subject) -> None:
    noise = torch.randn(2, 8, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "decode": False}
    batch = organism.model.run(list(organism.inputs), [3, 4], latents=noise, **settings)
    for row, one in enumerate(organism.inputs):
        alone = organism.model.run(one, 3, latents=noise[row : row + 1], **settings)
        torch.testing.assert_close(batch.latents[row : row + 1], alone.latents, rtol=0, atol=1e-5)


def test_one_input_and_several_seeds_are_rows_of_that_input(subject: Subject) -> None:
    run = subject.model.run(subject.inputs[0], [3, 4], num_inference_steps=2, guidance_scale=1.0, decode=False)
    assert [row.seed for row in run.rows] == [3, 4]
    assert len({row.instance for row in run.rows}) == 1
    alone = subject.model.run(subject.inputs[0], 4, num_inference_steps=2, guidance_scale=1.0, decode=False).latents
    tolerance = 1e-5 * float(alone.abs().max())
    torch.testing.assert_close(run.latents[1:], alone, rtol=0, atol=tolerance)


def test_interventions_are_told_step_sigma_expert_and_rows(two_experts: Subject) -> None:
    told = []

    def note(_x: Tensor, at: dl.At) -> None:
        told.append((str(at.site), at.site.sigma, at.site.expert, [row.seed for row in at.rows]))

    look = Edit(dl.Sites(("latents", "delta", "guided"), layers=1), note, reads_only=True)
    run = two_experts.run(num_inference_steps=2, interventions=[look])
    experts = [call.expert for call in run.calls]
    expected = []
    for step in (0, 1):
        expected.append((f"s0{step}/-/-/latents/video", run.sigmas[step], None, [SEED]))
        expected.append((f"s0{step}/cond/L01/delta/video", run.sigmas[step], experts[step], [SEED]))
        expected.append((f"s0{step}/-/-/guided/video", run.sigmas[step], None, [SEED]))
    assert told == expected


# -- stopping, ids -----------------------------------------------------------------------------------------------------


def test_a_run_that_stops_early_has_the_state_of_a_whole_run_and_pays_for_no_more(subject: Subject) -> None:
    whole = subject.run(record=True)
    stopped = subject.run(stop_after=0)
    assert torch.equal(stopped.latents, whole.states[1])
    assert stopped.frames is None
    assert stopped.ledger.calls == 1
    assert torch.equal(subject.run().latents, whole.latents)


def test_the_id_is_the_same_for_the_same_run_and_another_for_any_other(organism: Subject) -> None:
    donor = organism.run(1, interventions=[capture("delta")])
    noises = torch.randn(2, 1, 8, 5, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    patch = [dl.Patch(donor, dl.Sites("delta", layers=k)) for k in (0, 1)]
    kinds: list[dict[str, Any]] = [
        {}, {"which": 1}, {"guidance": 2.0}, {"num_inference_steps": 2},
        {"interventions": patch[:1]}, {"interventions": patch[1:]}, {"latents": noises[0]}, {"latents": noises[1]},
    ]  # fmt: skip
    ids = [organism.run(**kind).id for kind in kinds]
    assert len(set(ids)) == len(kinds)
    assert ids == [organism.run(**kind).id for kind in kinds]


# -- helpers -----------------------------------------------------------------------------------------------------------


def calls_before(subject: Subject, step: int) -> int:
    """How many calls the expert of a step has had before it, at guidance 1."""
    calls = subject.run().calls
    return sum(call.expert == calls[step].expert for call in calls[:step])
