"""The step lens and the depth lens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

import dit_lens as dl
from dit_lens.errors import InputError, SiteError
from dit_lens.lens import depth_lens, step_lens
from dit_lens.schedule import Schedule
from tests.subjects import STEPS, Subject


def test_depth_lens_at_the_last_layer_is_the_model_bit_for_bit(subject: Subject, guidance: float) -> None:
    run = subject.run(guidance=guidance, record=True)
    for step in range(STEPS):
        replay = subject.model.replay(run, step)
        for branch in run.geometry.branches:
            lens = depth_lens(subject.model, run, step, branch=branch)
            assert torch.equal(lens.velocities[-1], replay.velocities[branch])


def test_depth_lens_of_an_earlier_layer_equals_skipping_every_later_block(organism: Subject) -> None:
    """The oracle: the model's own tail, with the later blocks replaced by the identity."""
    run = organism.run(record=True)
    lens = depth_lens(organism.model, run, 1)
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
        assert torch.equal(lens.velocities[layer], skipped)
        assert not torch.equal(lens.velocities[layer], lens.velocities[-1])


def test_depth_lens_reads_the_layers_asked_for(organism: Subject) -> None:
    run = organism.run(record=True)
    whole, some = depth_lens(organism.model, run, 0), depth_lens(organism.model, run, 0, layers=[1, 3])
    assert some.layers == (1, 3)
    assert torch.equal(some.x0hat, whole.x0hat[[1, 3]])
    assert some.frames(organism.model, layers=[3]).shape[:3] == (1, 1, 9)


def test_depth_lens_needs_a_recorded_run(organism: Subject) -> None:
    with pytest.raises(InputError, match="record=True"):
        depth_lens(organism.model, organism.run(), 0)
    with pytest.raises(SiteError, match=r"layers 0\.\.3"):
        depth_lens(organism.model, organism.run(record=True), 0, layers=9)


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
