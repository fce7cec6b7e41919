"""Every schedule against the arithmetic of the scheduler it was read from."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dit_lens.errors import InputError, SiteError, UnsupportedModel
from dit_lens.runs.schedule import Schedule

# UniPC builds its Karras sigmas with a NumPy call that torch tensors do not know yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SHAPE = (2, 4, 3, 2, 5)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
COGVIDEOX = {"prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": True, **ZERO_SNR}
LTX = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
COSMOS = {"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, "final_sigmas_type": "sigma_min"}


def on(scheduler: Any, steps: int, **settings: Any) -> Any:
    scheduler.set_timesteps(steps, **settings)
    return scheduler


def ltx(steps: int) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, **LTX)
    mu = calculate_shift(2000, 1024, 4096, 0.95, 2.05)
    return on(scheduler, steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


def mochi(steps: int) -> Any:
    sigmas = np.array(linear_quadratic_schedule(steps, 0.025))
    return on(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), steps, sigmas=sigmas)


def hunyuan(steps: int) -> Any:
    return on(FlowMatchEulerDiscreteScheduler(shift=7.0), steps, sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])


def ddpm_custom(steps: int) -> Any:
    scheduler = DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(timesteps=[900 - 100 * s for s in range(steps)])
    return scheduler


# As published with the models: diffusers' conversion scripts, and the sigmas that the pipelines hand over.
PUBLISHED: dict[str, Callable[[int], Any]] = {
    "wan-480p": lambda n: on(UniPCMultistepScheduler(flow_shift=3.0, **FLOW), n),
    "wan-720p": lambda n: on(UniPCMultistepScheduler(flow_shift=5.0, **FLOW), n),
    "wan-euler": lambda n: on(FlowMatchEulerDiscreteScheduler(shift=5.0), n),
    "cosmos-2.5": lambda n: on(
        UniPCMultistepScheduler(use_karras_sigmas=True, sigma_max=200.0, sigma_min=0.01, **FLOW), n
    ),
    "sana-dpm": lambda n: on(DPMSolverMultistepScheduler(flow_shift=8.0, **FLOW), n),
    "ltx": ltx,
    "hunyuan": hunyuan,
    "mochi": mochi,
    "cogvideox-ddim": lambda n: on(CogVideoXDDIMScheduler(**COGVIDEOX), n),
    "cogvideox-dpm": lambda n: on(CogVideoXDPMScheduler(**COGVIDEOX), n),
    "cogvideox-1.5": lambda n: on(CogVideoXDPMScheduler(snr_shift_scale=1.0, **COGVIDEOX), n),
    "cosmos": lambda n: on(EDMEulerScheduler(prediction_type="epsilon", **COSMOS), n),
    "allegro": lambda n: on(EulerAncestralDiscreteScheduler(), n),
    "latte": lambda n: on(DDIMScheduler(clip_sample=False), n),
}


def typed(cls: Any, prediction: str, **settings: Any) -> Callable[[int], Any]:
    return lambda n: on(cls(prediction_type=prediction, **settings), n)


OTHERS: dict[str, Callable[[int], Any]] = {
    f"{cls.__name__}-{prediction}": typed(cls, prediction, **settings)
    for cls, settings in [
        (UniPCMultistepScheduler, {}),
        (DPMSolverMultistepScheduler, {}),
        (DDIMScheduler, {"clip_sample": False}),
        (DDPMScheduler, {"clip_sample": False}),
        (CogVideoXDDIMScheduler, {}),
        (CogVideoXDPMScheduler, {}),
        (EulerDiscreteScheduler, {}),
    ]
    for prediction in ("epsilon", "v_prediction", "sample")
} | {
    "ancestral-v-zero-snr": typed(EulerAncestralDiscreteScheduler, "v_prediction", **ZERO_SNR),
    "euler-v-zero-snr": typed(EulerDiscreteScheduler, "v_prediction", **ZERO_SNR),
    "euler-leading-min": typed(
        EulerDiscreteScheduler, "epsilon", timestep_spacing="leading", final_sigmas_type="sigma_min"
    ),
    "euler-log-linear": typed(EulerDiscreteScheduler, "epsilon", interpolation_type="log_linear"),
    "euler-karras": typed(EulerDiscreteScheduler, "v_prediction", use_karras_sigmas=True),
    "edm-v": typed(EDMEulerScheduler, "v_prediction", sigma_data=1.0, sigma_schedule="exponential"),
    "ddim-v-zero-snr": typed(DDIMScheduler, "v_prediction", clip_sample=False, **ZERO_SNR),
    "ddim-last-not-one": typed(DDIMScheduler, "epsilon", clip_sample=False, set_alpha_to_one=False),
    "ddpm-custom": ddpm_custom,
    "unipc-v-zero-snr": typed(UniPCMultistepScheduler, "v_prediction", **ZERO_SNR),
    "unipc-min": typed(UniPCMultistepScheduler, "epsilon", final_sigmas_type="sigma_min"),
    "dpm-min-karras": typed(
        DPMSolverMultistepScheduler, "epsilon", final_sigmas_type="sigma_min", use_karras_sigmas=True
    ),
    "dpm-sde-flow": typed(
        DPMSolverMultistepScheduler, "flow_prediction", algorithm_type="sde-dpmsolver++", use_flow_sigmas=True
    ),
    "flow-stochastic": lambda n: on(FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True), n),
}
ALL = PUBLISHED | OTHERS
STOCHASTIC = {"allegro", "ancestral-v-zero-snr", "cogvideox-dpm", "cogvideox-1.5", "ddpm-custom", "dpm-sde-flow"}
STOCHASTIC |= {"flow-stochastic", *(name for name in ALL if name.startswith(("CogVideoXDPM", "DDPM")))}
every = pytest.mark.parametrize("name", ALL)


def draw(seed: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def at(scheduler: Any, s: int) -> Any:
    """A copy of the scheduler as it stands before step s."""
    scheduler = copy.deepcopy(scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(s)
        scheduler._init_step_index(scheduler.timesteps[s])
    scheduler.is_scale_input_called = True
    return scheduler


def stepped(scheduler: Any, s: int, state: Tensor, prediction: Tensor) -> tuple[Tensor, ...]:
    """What ``scheduler.step`` returns at step s, with fresh noise of seed 0."""
    timestep, options = scheduler.timesteps[s], {}
    if isinstance(scheduler, CogVideoXDPMScheduler):
        options = {"old_pred_original_sample": None, "timestep_back": None}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = torch.Generator().manual_seed(0)
    return scheduler.step(prediction, timestep=timestep, sample=state, return_dict=False, **options)


def own_clean(scheduler: Any, s: int, state: Tensor, prediction: Tensor) -> Tensor:
    """x0hat as the scheduler itself has it."""
    scheduler = at(scheduler, s)
    if isinstance(scheduler, UniPCMultistepScheduler | DPMSolverMultistepScheduler):
        return scheduler.convert_model_output(prediction, sample=state)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # a step straight to the end
        scheduler.sigmas[s + 1] = scheduler.sigmas[-1]
        return stepped(scheduler, s, state, prediction)[0]
    return stepped(scheduler, s, state, prediction)[1]


@pytest.mark.parametrize("steps", [5, 7])
@every
def test_clean_is_the_schedulers_own_at_every_step(name: str, steps: int) -> None:
    scheduler = ALL[name](steps)
    schedule = Schedule.of(scheduler)
    assert schedule.steps == steps
    assert len(schedule.alphas) == len(schedule.sigmas) == steps + 1
    for s in range(steps):
        state, prediction = draw(s), draw(100 + s)
        own = own_clean(scheduler, s, state, prediction)
        size = abs(schedule.skips[s]) * state.abs() + abs(schedule.outs[s]) * prediction.abs()
        error = (schedule.clean(s, state, prediction) - own).abs()
        # Four roundings on either side, relative to the terms: these may cancel.
        assert (error <= 8 * torch.finfo(torch.float32).eps * size).all(), (s, (error / size).max())


FLOW_NAMES = ["wan-480p", "wan-720p", "wan-euler", "cosmos-2.5", "sana-dpm", "ltx", "hunyuan"]


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_flow_matching_is_exact(name: str) -> None:
    scheduler = ALL[name](6)
    schedule = Schedule.of(scheduler)
    assert schedule.kind == "flow"
    assert schedule.sigmas == tuple(float(sigma) for sigma in scheduler.sigmas)
    for s in range(6):
        state, velocity = draw(s), draw(10 + s)
        assert torch.equal(schedule.clean(s, state, velocity), state - schedule.sigma(s) * velocity)
        assert torch.equal(schedule.clean(s, state, velocity), own_clean(scheduler, s, state, velocity))
        # As in a run in bfloat16: the state in float32, the prediction as the transformer gave it.
        velocity = velocity.bfloat16()
        assert torch.equal(schedule.clean(s, state, velocity), state - schedule.sigma(s) * velocity)


def test_mochi_rises_and_points_to_the_video() -> None:
    scheduler = mochi(6)
    schedule = Schedule.of(scheduler)
    assert (schedule.sigmas[0], schedule.alphas[0], schedule.sigmas[-1], schedule.alphas[-1]) == (1.0, 0.0, 0.0, 1.0)
    x0, noise = draw(0), draw(1)
    for s in range(6):
        state = schedule.noisy(s, x0, noise)
        torch.testing.assert_close(schedule.prediction(s, state, x0), x0 - noise, rtol=0, atol=1e-4)
        assert torch.equal(schedule.clean(s, state, noise), own_clean(scheduler, s, state, noise))


@pytest.mark.parametrize("name", sorted(ALL.keys() - STOCHASTIC))
def test_the_right_prediction_leads_down_the_levels(name: str) -> None:
    """Had the model known x0, the scheduler's steps would go through `noisy` at every level, the last included."""
    scheduler = ALL[name](5)
    schedule = Schedule.of(scheduler)
    x0, noise = draw(0, torch.float64), draw(1, torch.float64)
    state = schedule.noisy(0, x0, noise)
    scheduler.is_scale_input_called = True
    for s in range(5):
        state = stepped(scheduler, s, state, schedule.prediction(s, state, x0))[0].double()
        expected = schedule.alphas[s + 1] * x0 + schedule.sigmas[s + 1] * noise
        # The schedulers' levels are float32, and so are the states of some.
        torch.testing.assert_close(state, expected, rtol=0, atol=2e-5 * max(1.0, schedule.sigmas[s]))


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_stochastic_steps_reach_the_next_level(name: str) -> None:
    """The share of x0 to rounding; the variance of the noise, old and fresh, over 2^16 values."""
    scheduler = ALL[name](5)
    schedule = Schedule.of(scheduler)
    x0, noise = (draw(seed, torch.float64, (1, 16, 4, 32, 32)) for seed in (1, 2))
    for s in range(5):
        without, with_video = (
            stepped(at(scheduler, s), s, state, schedule.prediction(s, state, clean))[0].double()
            for clean in (torch.zeros_like(x0), x0)
            for state in [schedule.noisy(s, clean, noise)]
        )
        share = schedule.alphas[s + 1] * x0
        torch.testing.assert_close(with_video - without, share, rtol=0, atol=2e-5 * max(1.0, schedule.sigma(s)))
        assert without.std().item() == pytest.approx(schedule.sigmas[s + 1], rel=0.02, abs=1e-6)


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("name", ["cogvideox-ddim", "latte", "ddim-last-not-one", "ddim-v-zero-snr"])
def test_ddim_counts_its_last_step_back(name: str, steps: int) -> None:
    """Also where the steps do not divide the training timesteps."""
    scheduler = ALL[name](steps)
    schedule = Schedule.of(scheduler)
    x0, noise = draw(0, torch.float64), draw(1, torch.float64)
    state = schedule.noisy(steps - 1, x0, noise)
    final = stepped(scheduler, steps - 1, state, schedule.prediction(steps - 1, state, x0))[0]
    torch.testing.assert_close(final, schedule.alphas[-1] * x0 + schedule.sigmas[-1] * noise, rtol=0, atol=1e-5)


@every
def test_noisy_is_the_schedulers_own(name: str) -> None:
    scheduler = ALL[name](7)
    schedule = Schedule.of(scheduler)
    for s in range(7):
        x0, noise, timestep = draw(s), draw(50 + s), scheduler.timesteps[s : s + 1]
        if not hasattr(scheduler, "scale_noise"):
            own = at(scheduler, s).add_noise(x0, noise, timestep)
        elif scheduler.config.invert_sigmas:
            # diffusers does not invert here: its "sigma" is taken for the share of the noise, so swap the two.
            own = at(scheduler, s).scale_noise(noise, timestep, x0)
        else:
            own = at(scheduler, s).scale_noise(x0, timestep, noise)
        torch.testing.assert_close(
            schedule.noisy(s, x0, noise), own, rtol=1e-6, atol=1e-6 * max(1.0, schedule.sigma(s))
        )


@every
def test_model_input_is_the_schedulers_own(name: str) -> None:
    scheduler = ALL[name](7)
    schedule = Schedule.of(scheduler)
    for s in range(7):
        state = schedule.noisy(s, draw(s), draw(50 + s))
        own = getattr(at(scheduler, s), "scale_model_input", lambda state, timestep: state)
        torch.testing.assert_close(
            schedule.model_input(s, state), own(state, scheduler.timesteps[s]), rtol=1e-6, atol=0
        )


@cache
def schedule_of(name: str) -> Schedule:
    return Schedule.of(ALL[name](7))


points = {
    "name": st.sampled_from(sorted(ALL)),
    "s": st.integers(0, 6),
    "seed": st.integers(0, 2**20),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
    "size": st.floats(1e-2, 1e2),
}


@given(**points)
def test_clean_and_prediction_undo_each_other(name: str, s: int, seed: int, dtype: torch.dtype, size: float) -> None:
    schedule, eps = schedule_of(name), torch.finfo(dtype).eps
    state, prediction = size * draw(seed, dtype), draw(seed + 1, dtype)
    skip, out = abs(schedule.skips[s]), abs(schedule.outs[s])
    x0hat = schedule.clean(s, state, prediction)
    assert x0hat.dtype == dtype
    terms = x0hat.abs() + skip * state.abs() + out * prediction.abs()
    again = schedule.prediction(s, state, x0hat)
    assert ((again - prediction).abs() <= 4 * eps * terms / out).all()
    assert ((schedule.clean(s, state, again) - x0hat).abs() <= 8 * eps * terms).all()


@given(**points)
def test_a_noised_video_has_its_parts(name: str, s: int, seed: int, dtype: torch.dtype, size: float) -> None:
    schedule, eps = schedule_of(name), torch.finfo(dtype).eps
    x0, noise = size * draw(seed, dtype), draw(seed + 1, dtype)
    state = schedule.noisy(s, x0, noise)
    prediction = schedule.prediction(s, state, x0)
    alpha, sigma, skip, out = (v[s] for v in (schedule.alphas, schedule.sigmas, schedule.skips, schedule.outs))
    terms = x0.abs() + abs(skip) * state.abs() + abs(out) * prediction.abs()
    assert ((schedule.clean(s, state, prediction) - x0).abs() <= 8 * eps * terms).all()
    # The state was rounded once when it was made, the prediction carries the error of `terms`.
    allowed = 4 * eps * (state.abs() + alpha * terms) / sigma
    assert ((schedule.noise(s, state, prediction) - noise).abs() <= allowed).all()


@every
def test_noise_agrees_with_the_clean_estimate(name: str) -> None:
    schedule = schedule_of(name)
    for s in range(7):
        state, prediction = schedule.noisy(s, draw(1, torch.float64), draw(2, torch.float64)), draw(3, torch.float64)
        x0hat, noise = schedule.clean(s, state, prediction), schedule.noise(s, state, prediction)
        torch.testing.assert_close(schedule.noisy(s, x0hat, noise), state, rtol=1e-9, atol=1e-9)
        if schedule.kind == "epsilon":
            torch.testing.assert_close(noise, prediction, rtol=1e-9, atol=1e-9)


@every
def test_half_precision_gives_float32(name: str) -> None:
    schedule = schedule_of(name)
    for s in range(7):
        state, prediction = draw(s, torch.bfloat16), draw(10 + s, torch.bfloat16)
        exact = schedule.clean(s, state.double(), prediction.double())
        x0hat = schedule.clean(s, state, prediction)
        allowed = torch.finfo(torch.bfloat16).eps * abs(schedule.outs[s]) * prediction.abs() + 1e-6 * exact.abs() + 1e-6
        assert ((x0hat - exact).abs() <= allowed).all()
        results = [x0hat, schedule.prediction(s, state, x0hat), schedule.noise(s, state, prediction)]
        results += [schedule.noisy(s, state, prediction), schedule.model_input(s, state)]
        assert {r.dtype for r in results} == {torch.float32}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_is_what_a_noise_solver_converts_to(prediction: str) -> None:
    scheduler = on(UniPCMultistepScheduler(prediction_type=prediction, predict_x0=False), 7)
    schedule = Schedule.of(scheduler)
    for s in range(7):
        state, output = draw(s), draw(10 + s)
        own = at(scheduler, s).convert_model_output(output, sample=state)
        atol = 8 * torch.finfo(torch.float32).eps * 5 * (1 + 1 / schedule.sigma(s))  # values up to 5
        torch.testing.assert_close(schedule.noise(s, state, output), own, rtol=0, atol=atol)


KINDS = {"wan-480p": "flow", "mochi": "flow", "cogvideox-dpm": "v_prediction", "cosmos": "edm", "allegro": "epsilon"}


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    assert schedule_of(name).kind == KINDS[name]


@every
def test_a_snapshot_does_not_follow_the_scheduler(name: str) -> None:
    scheduler = ALL[name](5)
    schedule = Schedule.of(scheduler)
    before = json.dumps(asdict(schedule))
    fresh = ALL[name](7)
    for attribute in ("sigmas", "alphas_cumprod", "timesteps"):
        if hasattr(scheduler, attribute):
            getattr(scheduler, attribute).zero_()
    vars(scheduler).update(vars(fresh))
    assert json.dumps(asdict(schedule)) == before
    assert json.dumps(asdict(Schedule.of(scheduler))) != before


def test_steps_that_a_schedule_does_not_have() -> None:
    schedule = schedule_of("ltx")
    for step in (-1, 7):
        for method in (schedule.sigma, schedule.alpha):
            with pytest.raises(SiteError, match=r"steps 0\.\.6"):
                method(step)
        with pytest.raises(SiteError, match=r"steps 0\.\.6"):
            schedule.clean(step, draw(0), draw(1))


class Subclass(UniPCMultistepScheduler):
    pass


REFUSED = {
    "heun": (lambda: on(FlowMatchHeunDiscreteScheduler(), 4), "FlowMatchHeunDiscreteScheduler.*2 times a step"),
    "heun-epsilon": (lambda: on(HeunDiscreteScheduler(), 4), "HeunDiscreteScheduler.*epsilon.*2 times a step"),
    "deis": (
        lambda: on(DEISMultistepScheduler(), 4),
        "DEISMultistepScheduler.*epsilon.*not known; known are FlowMatch",
    ),
    "subclass": (lambda: on(Subclass(**FLOW), 4), "Subclass.*flow_prediction.*not known"),
    "no-scheduler": (object, "object.*not stated.*not known"),
    "ancestral-sample": (
        lambda: on(EulerAncestralDiscreteScheduler(prediction_type="sample"), 4),
        "EulerAncestralDiscreteScheduler.*sample.*known are epsilon, v_prediction$",
    ),
    "edm-sample": (lambda: on(EDMEulerScheduler(prediction_type="sample"), 4), "EDMEulerScheduler.*sample.*known are"),
    "clipped": (lambda: on(DDIMScheduler(), 4), "DDIMScheduler.*epsilon.*clip_sample"),
    "thresholded": (lambda: on(UniPCMultistepScheduler(thresholding=True), 4), "UniPC.*thresholding"),
    "learned": (
        lambda: on(DPMSolverMultistepScheduler(variance_type="learned_range"), 4),
        "DPMSolverMultistepScheduler.*variance_type",
    ),
    "flow-sigmas-only": (
        lambda: on(UniPCMultistepScheduler(use_flow_sigmas=True), 4),
        "UniPC.*epsilon.*use_flow_sigmas=True",
    ),
    "flow-prediction-only": (
        lambda: on(DPMSolverMultistepScheduler(prediction_type="flow_prediction"), 4),
        "DPMSolver.*flow_prediction.*use_flow_sigmas=False",
    ),
    "epsilon-of-pure-noise": (
        lambda: on(DDIMScheduler(clip_sample=False, **ZERO_SNR), 4),
        "DDIMScheduler.*epsilon.*step 0 alpha is 0",
    ),
    "cosmos-2": (
        lambda: on(FlowMatchEulerDiscreteScheduler(), 4, sigmas=np.geomspace(80.0, 0.002, 4)),
        "FlowMatchEulerDiscreteScheduler.*step 0 alpha is -79 and sigma 80",
    ),
    "no-noise": (
        lambda: on(FlowMatchEulerDiscreteScheduler(), 3, sigmas=[1.0, 0.5, 0.0]),
        "FlowMatchEulerDiscreteScheduler.*step 2 alpha is 1 and sigma 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_scheduler_and_reason(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=message):
        Schedule.of(make())


@pytest.mark.parametrize("cls", [FlowMatchEulerDiscreteScheduler, EDMEulerScheduler, CogVideoXDDIMScheduler])
def test_a_scheduler_without_steps(cls: Any) -> None:
    with pytest.raises(InputError, match=rf"{cls.__name__} has no steps yet"):
        Schedule.of(cls())
