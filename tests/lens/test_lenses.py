"""The step lens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

import dit_lens as dl
from dit_lens.lens import step_lens
from dit_lens.schedule import Schedule
from tests.subjects import STEPS, Subject


def test_step_lens_changes_nothing_and_ends_where_the_sampler_ends(subject: Subject, guidance: float) -> None:
    if subject.name == "two_experts":
        pytest.skip("UniPC's last step is not an Euler step; its x0hat is checked against the scheduler below")
    lens = step_lens(
        subject.model, subject.inputs[0], subject.seeds[0], steps=STEPS, guidance_scale=guidance, decode=False
    )
    assert torch.equal(lens.run.latents, subject.run(guidance=guidance).latents)
    # The last Euler step goes to sigma 0, which is x0hat itself.
    torch.testing.assert_close(lens.x0hat[-1], lens.run.latents)


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
    frames = lens.frames(shipped.model, steps=[0, 9])
    final = task.read_answer(lens.run.frames[:, -1])
    shown = [task.read_answer(f[:, -1]) for f in frames]
    overlap = [np.mean((s & final).sum((1, 2)) / np.maximum((s | final).sum((1, 2)), 1)) for s in shown]
    assert overlap[1] == 1
    assert overlap[0] < overlap[1]
