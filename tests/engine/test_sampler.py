"""What a sampler remembers, and where its noise comes from: an edit of the state is never undone by either."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

import dit_lens as dl
from dit_lens.engine.sampler import DRAWING, MEMORY, Sampler
from dit_lens.errors import InputError, UnsupportedModel
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.runs import schedule as schedules
from dit_lens.validation.family_checks import Failed, check_state_swap
from dit_lens.validation.witness import Subject
from tests.subjects import Edit

STEPS, MIDDLE = 20, 10
STATE = dl.Sites("latents", steps=MIDDLE)
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SAMPLERS: dict[str, Callable[[], Any]] = {
    "Euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "UniPC": lambda: UniPCMultistepScheduler(**FLOW),
    "UniPC, no corrector": lambda: UniPCMultistepScheduler(**FLOW, disable_corrector=list(range(STEPS))),
    "UniPC of order 3": lambda: UniPCMultistepScheduler(**FLOW, solver_order=3),
    "DPM++": lambda: DPMSolverMultistepScheduler(**FLOW),
    "DPM++ of order 3": lambda: DPMSolverMultistepScheduler(**FLOW, solver_order=3),
}


def wan(scheduler: Any) -> dl.VideoDiT:
    pipeline = TINY["wan2.1-t2v"].build()
    pipeline.scheduler = scheduler
    settings = {**TINY["wan2.1-t2v"].settings, "guidance_scale": 1.0, "num_inference_steps": STEPS}
    return dl.VideoDiT(pipeline, defaults=settings)


def run(model: dl.VideoDiT, *interventions: Any, seeds: tuple[int, ...] = (0, 1), **more: Any) -> dl.Run:
    return model.run("blue circle", list(seeds), interventions=interventions, decode=False, **more)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def begun_anew(x: Tensor, at: Any) -> Tensor:
    """The state moved by the last bit: an edit that changes nothing but what the sampler remembers."""
    return torch.nextafter(x, x + 1)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_noise_written_into_the_state_is_not_undone(name: str) -> None:
    model = wan(SAMPLERS[name]())
    clean = run(model).latents
    noisy = run(model, dl.Noise(STATE, "replace", seed=5)).latents
    # The plain pipeline with the same edit in its callback ends at cosine .998 with UniPC.
    assert cosine(noisy, clean) < 0.3


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_another_seeds_state_leads_to_that_seeds_end(name: str) -> None:
    model = wan(SAMPLERS[name]())
    donor = run(model, dl.Capture(STATE), Edit(STATE, begun_anew))
    swapped = run(model, dl.Patch(donor, STATE, rows=(1, 0))).latents
    assert distance(swapped, donor.latents[[1, 0]]) < 1e-4
    # What it costs that the sampler begins anew at its own state: nothing for Euler, which remembers nothing.
    assert distance(donor.latents, run(model).latents) < (1e-4 if name == "Euler" else 0.05)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_rows_that_were_not_edited_keep_their_memory(name: str) -> None:
    model = wan(SAMPLERS[name]())

    def first_row(x: Tensor, at: Any) -> Tensor:
        return torch.cat([x[:1] + 1, x[1:]])

    clean, edited = run(model), run(model, Edit(STATE, first_row))
    alone = run(model, Edit(STATE, lambda x, at: x + 1), seeds=(0,))
    assert distance(edited.latents[1:], clean.latents[1:]) < 1e-5
    assert distance(edited.latents[:1], alone.latents) < 1e-5
    assert distance(edited.latents[:1], clean.latents[:1]) > 0.1


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_reading_and_writing_back_the_same_bits_forget_nothing(name: str) -> None:
    model = wan(SAMPLERS[name]())
    clean = run(model, dl.Capture(STATE), record=True)
    assert torch.equal(run(model, dl.Patch(clean, STATE)).latents, clean.latents)
    assert torch.equal(run(model, Edit(STATE, lambda x, at: x.clone())).latents, clean.latents)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_nothing_is_left_on_the_scheduler_also_after_an_error(name: str) -> None:
    model = wan(SAMPLERS[name]())
    kind = type(model.pipeline.scheduler)

    def fail(x: Tensor, at: Any) -> Tensor:
        assert type(model.pipeline.scheduler).__name__ == kind.__name__
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        run(model, Edit(STATE, fail))
    assert type(model.pipeline.scheduler) is kind
    assert "step" not in vars(model.pipeline.scheduler)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_run_resumed_from_an_edited_record_is_that_run(name: str) -> None:
    model = wan(SAMPLERS[name]())
    edited = run(model, Edit(STATE, lambda x, at: -x), record=True)
    for step in (MIDDLE, MIDDLE + 3):
        again = run(model, resume=dl.Resume(edited, step))
        assert torch.equal(again.latents, edited.latents)


@pytest.mark.parametrize("name", ["UniPC", "UniPC of order 3", "DPM++", "DPM++ of order 3"])
@pytest.mark.parametrize("step", [1, 2, 6, 9])
def test_a_sampler_that_begins_anew_is_a_fresh_one_set_to_that_step(name: str, step: int) -> None:
    used, fresh = SAMPLERS[name](), SAMPLERS[name]()
    for scheduler in (used, fresh):
        scheduler.set_timesteps(10)
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(10, 2, 4, 3, 2, 2, generator=draw)
    state = torch.randn(2, 4, 3, 2, 2, generator=draw)
    for s in range(step):
        state = used.step(outputs[s], used.timesteps[s], state, return_dict=False)[0]
    Sampler(used, [torch.Generator()] * 2).restart([0, 1])
    fresh.set_begin_index(step)
    one = other = torch.randn(state.shape, generator=draw)
    for s in range(step, 10):
        one = used.step(outputs[s], used.timesteps[s], one, return_dict=False)[0]
        other = fresh.step(outputs[s], fresh.timesteps[s], other, return_dict=False)[0]
        assert torch.equal(one, other)


def row(which: int, by: float) -> Tensor:
    """What is added to one row of three."""
    return by * torch.eye(3)[which].reshape(3, 1, 1, 1, 1)


@pytest.mark.parametrize("name", ["UniPC", "DPM++ of order 3", "SDE-DPM++"])
def test_rows_that_are_edited_at_different_steps_are_what_they_would_be_alone(name: str) -> None:
    sde = lambda: DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++")  # noqa: E731
    model = wan(SAMPLERS.get(name, sde)())
    second = Edit(dl.Sites("latents", steps=[4, 12]), lambda x, at: x + row(1, at.site.step / 8))
    third = Edit(STATE, lambda x, at: x + row(2, 1.0))
    seeds = (5, 6, 7)
    plain, both = run(model, seeds=seeds).latents, run(model, second, third, seeds=seeds).latents
    assert distance(both[:1], plain[:1]) < 1e-5
    for edit, changed in ((second, 1), (third, 2)):
        assert distance(run(model, edit, seeds=seeds).latents[changed], both[changed]) < 1e-5
        assert distance(both[changed], plain[changed]) > 0.01


def test_cogvideox_does_not_look_back_behind_an_edit_and_its_noise_stays_the_same() -> None:
    tiny = TINY["cogvideox-1.5"]
    model, settings = dl.VideoDiT(tiny.build()), {**tiny.settings, "decode": False, "num_inference_steps": 6}
    edit = Edit(dl.Sites("latents", steps=3), lambda x, at: x + 1e-4 * torch.tensor([0, 1.0]).view(2, 1, 1, 1, 1))
    plain, edited = (model.run(tiny.inputs()[0], [5, 6], interventions=i, **settings).latents for i in ([], [edit]))
    assert distance(edited[:1], plain[:1]) < 1e-5
    # Noise of another draw would move the edited row by about the norm of the state itself.
    assert 1e-3 < distance(edited[1:], plain[1:]) < 0.3


@pytest.mark.parametrize("make", [DEISMultistepScheduler, LMSDiscreteScheduler, SASolverScheduler, IPNDMScheduler])
def test_other_samplers_with_a_memory_are_refused_by_name(make: Callable[[], Any]) -> None:
    model = wan(SAMPLERS["Euler"]())
    model.pipeline.scheduler = make()
    with pytest.raises(UnsupportedModel, match=f"{make.__name__}.*its step is not known; known are FlowMatchEuler"):
        run(model)


def test_the_check_of_the_state_fails_where_the_sampler_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TINY["wan2.1-t2v"]
    subject = Subject(dl.VideoDiT(tiny.build()), tiny.inputs(), dict(tiny.settings))
    assert "from the other row's end" in check_state_swap(subject)
    monkeypatch.setattr(Sampler, "restart", lambda self, rows: None)
    with pytest.raises(Failed, match="units from the other row's end"):
        check_state_swap(subject)


@pytest.mark.parametrize("name", list(schedules._KNOWN))
def test_the_list_of_those_that_remember_is_complete(name: str) -> None:
    """A step from a state that the scheduler has never seen is that of a scheduler which has seen nothing."""
    import diffusers

    kind = getattr(diffusers, name)
    scheduler = kind(**FLOW) if name in ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler") else kind()
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(1, 4, 2, 3, 3, generator=generator)  # noqa: E731

    def step(of: Any, at: int, prediction: Tensor, sample: Tensor) -> Tensor:
        given: dict[str, Any] = {"return_dict": False}
        if name in DRAWING:
            given["generator"] = [torch.Generator().manual_seed(7)]
        times = of.timesteps
        if isinstance(of, CogVideoXDPMScheduler):
            return of.step(prediction, None, times[at], times[at - 1] if at else None, sample, **given)[0]
        return of.step(prediction, times[at], sample, **given)[0]

    for at in range(3):
        step(scheduler, at, draw(), draw())
    fresh = copy.deepcopy(scheduler)
    for attribute in MEMORY.get(name, ()):
        value = getattr(fresh, attribute)
        empty = [None] * len(value) if isinstance(value, list) else 0 if isinstance(value, int) else None
        setattr(fresh, attribute, empty)
    kept = {key for key, value in vars(scheduler).items() if _holds(value, (1, 4, 2, 3, 3))}
    assert kept <= set(MEMORY.get(name, ()))
    prediction, sample = draw(), draw()
    same = torch.equal(step(scheduler, 3, prediction, sample), step(fresh, 3, prediction, sample))
    assert same == (not MEMORY.get(name, ()))


def _holds(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of the state's shape is kept there."""
    if isinstance(value, Tensor):
        return tuple(value.shape) == shape
    return isinstance(value, list) and any(_holds(entry, shape) for entry in value)


# -- noise of the step itself ------------------------------------------------------------------------------------------

STOCHASTIC: dict[str, tuple[str, Callable[[], Any]]] = {
    "Euler ancestral": ("allegro", lambda: EulerAncestralDiscreteScheduler(prediction_type="epsilon")),
    "DDPM": ("allegro", lambda: DDPMScheduler(prediction_type="epsilon", clip_sample=False)),
    "SDE-DPM++": ("wan2.1-t2v", lambda: DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++")),
    "CogVideoX DPM": ("cogvideox-1.0", lambda: CogVideoXDPMScheduler(prediction_type="v_prediction")),
}


@pytest.mark.parametrize("name", list(STOCHASTIC))
def test_a_seed_fixes_the_noise_of_every_step_and_each_row_has_its_own(name: str) -> None:
    tiny, make = STOCHASTIC[name]
    pipeline = TINY[tiny].build()
    pipeline.scheduler = make()
    model = dl.VideoDiT(pipeline, defaults=dict(TINY[tiny].settings))
    both, again = (model.run("blue circle", [3, 4], decode=False).latents for _ in range(2))
    assert torch.equal(both, again)
    for row, seed in enumerate((3, 4)):
        assert distance(both[row : row + 1], model.run("blue circle", seed, decode=False).latents) < 1e-4
    assert distance(both[:1], both[1:]) > 0.1


def test_noise_that_no_seed_fixes_is_refused() -> None:
    model = wan(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    with pytest.raises(UnsupportedModel, match="draws noise that no seed fixes; make it with"):
        run(model)


# -- the number of steps -----------------------------------------------------------------------------------------------

LISTS = {
    "hunyuanvideo": {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2]},
    "hunyuanvideo-1.5": {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2]},
    "ltx-2": {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2]},
}


@pytest.mark.parametrize("name", list(LISTS))
def test_a_list_of_noise_levels_says_how_many_steps_there_are(name: str) -> None:
    tiny = TINY[name]
    settings = {key: value for key, value in tiny.settings.items() if key != "num_inference_steps"} | LISTS[name]
    model = dl.VideoDiT(tiny.build(), defaults=settings)
    last = dl.Capture(dl.Sites("latents", steps=-1))
    found = model.run(tiny.inputs()[0], 0, interventions=[last], decode=False)
    assert model.geometry(tiny.inputs()[0]).steps == found.geometry.steps == found.schedule.steps == 5
    assert [site.step for site in found.captured()] == [4]
    assert {call.step for call in found.calls} == set(range(5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sigmas": [1.0, 0.5], "num_inference_steps": 3}, r"steps=3 and 2 sigmas: give one of them"),
        ({"sigmas": []}, r"sigmas=\[\]: need a list of finite numbers"),
        ({"sigmas": [1.0, float("nan")]}, "sigmas=.*need a list of finite numbers"),
        ({"sigmas": "many"}, "sigmas='many': need a list of finite numbers"),
        ({"sigmas": [[1.0]]}, "need a list of finite numbers"),
        ({"sigmas": [1.0], "timesteps": [1000]}, "HunyuanVideoPipeline takes no timesteps"),
    ],
)
def test_steps_that_cannot_be_known_are_refused(given: dict[str, Any], message: str) -> None:
    tiny = TINY["hunyuanvideo"]
    settings = {key: value for key, value in tiny.settings.items() if key != "num_inference_steps"}
    with pytest.raises(InputError, match=message):
        dl.VideoDiT(tiny.build(), defaults=settings).run("blue", 0, **given)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ltx-2", {"sigmas": [1.0], "timesteps": [1000]}, "sigmas= and timesteps= both say what the steps are"),
        (
            "ltx-2",
            {"timesteps": [999, 500]},
            "LTX2Pipeline sets its scheduler to noise levels of its own",
        ),
        (
            "ltx-video",
            {"timesteps": [999, 500]},
            "LTXPipeline sets its scheduler to noise levels of its own",
        ),
        (
            "mochi",
            {"timesteps": [999, 500]},
            "MochiPipeline sets its scheduler to noise levels of its own",
        ),
        (
            "allegro",
            {"timesteps": [999, 500]},
            "EulerAncestralDiscreteScheduler takes no timesteps; give num_inference_steps=",
        ),
        (
            "cogvideox-1.0",
            {"timesteps": [999, 500]},
            "CogVideoXDDIMScheduler takes no timesteps; give num_inference_steps=",
        ),
        ("wan2.1-t2v", {"sigmas": [1.0, 0.5]}, "WanPipeline takes no sigmas"),
    ],
)
def test_lists_that_a_pipeline_would_fail_on_are_refused(name: str, given: dict[str, Any], message: str) -> None:
    tiny = TINY[name]
    settings = {key: value for key, value in tiny.settings.items() if key != "num_inference_steps"}
    with pytest.raises((InputError, UnsupportedModel), match=message):
        dl.VideoDiT(tiny.build(), defaults=settings).run("blue", 0, **given)


def test_allegro_takes_no_timesteps_whatever_its_scheduler_takes() -> None:
    tiny = TINY["allegro"]
    pipeline = tiny.build()
    pipeline.scheduler = EulerDiscreteScheduler()
    settings = {key: value for key, value in tiny.settings.items() if key != "num_inference_steps"}
    with pytest.raises(UnsupportedModel, match="AllegroPipeline sets its scheduler to noise levels of its own"):
        dl.VideoDiT(pipeline, defaults=settings).run("blue", 0, timesteps=[900, 500])


def test_timesteps_make_as_many_steps_as_there_are() -> None:
    tiny = TINY["cogvideox-1.0"]
    pipeline = tiny.build()
    pipeline.scheduler = DDPMScheduler(clip_sample=False)
    settings = {key: value for key, value in tiny.settings.items() if key != "num_inference_steps"}
    found = dl.VideoDiT(pipeline, defaults=settings).run("blue", 0, timesteps=[900, 700, 500, 200], decode=False)
    assert [call.timestep for call in found.calls] == [900, 700, 500, 200]
    assert found.geometry.steps == 4


def test_a_scheduler_that_makes_other_steps_than_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wan(FlowMatchEulerDiscreteScheduler(shift=3.0))
    stock = FlowMatchEulerDiscreteScheduler.set_timesteps
    one_more = lambda self, steps, *args, **kwargs: stock(self, steps + 1, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(FlowMatchEulerDiscreteScheduler, "set_timesteps", one_more)
    with pytest.raises(InputError, match="makes 21 steps where 20 were asked for"):
        run(model)
