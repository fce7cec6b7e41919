"""States from sampling, from the noised true video and from its inversion."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, UnsupportedModel
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.probing.rows.sources import ForwardNoise, invert, require_source
from dit_lens.tasks import Maze
from tests.subjects import Subject


def tiny(name: str) -> tuple[dl.VideoDiT, Any]:
    """A tiny model at its own settings, and two inputs for it."""
    spec = TINY[name]
    return dl.VideoDiT(spec.build(), defaults=dict(spec.settings)), list(spec.inputs())


#: One of each kind of schedule: flow solver, inverted sigmas, packed latents, v prediction, two experts, scaled input.
FAMILIES = ("wan2.2-a14b", "mochi", "ltx-video", "cogvideox-1.0", "cosmos")


@pytest.mark.parametrize("name", FAMILIES)
def test_noised_states_have_each_steps_level_in_every_family(name: str) -> None:
    model, inputs = tiny(name)
    plain = model.run(inputs, [1, 2], record=True, decode=False)
    clean = torch.randn(plain.latents.shape, generator=torch.Generator().manual_seed(0))
    run = model.run(inputs, [1, 2], record=True, decode=False, interventions=[ForwardNoise(clean)])
    alphas, sigmas = plain.schedule.alphas, plain.schedule.sigmas
    noise = (run.states[0].float() - alphas[0] * clean) / sigmas[0]
    # The noise is that of the row's own first state, and the same at every step.
    torch.testing.assert_close(noise * sigmas[0], plain.states[0].float(), atol=1e-4, rtol=1e-4)
    for step, state in enumerate(run.states):
        expected = plain.schedule.noisy(step, clean, noise)
        torch.testing.assert_close(state.float(), expected, atol=1e-3 * sigmas[0], rtol=1e-3)


def test_in_flow_matching_the_first_noised_state_is_the_sampled_one(shipped: Subject) -> None:
    mazes = Maze(6).sample(2)
    plain = shipped.model.run(mazes, [0, 1], record=True, stop_after=0)
    clean = shipped.model.encode(Maze(6).render(mazes))
    noised = shipped.model.run(mazes, [0, 1], record=True, stop_after=0, interventions=[ForwardNoise(clean)])
    assert torch.equal(plain.states[0], noised.states[0])


def test_sampling_from_the_inverted_noise_returns_to_the_true_video(shipped: Subject) -> None:
    """Measured on 8 mazes, away from the truth in units of its spread: .078 after DDIM inversion, .032 after 5 rounds,
    and .31 of videos that are sampled from fresh noise.
    """
    model, task = shipped.model, Maze(6)
    mazes = task.sample(2, seed=0)
    clean = model.encode(task.render(mazes))
    away = {}
    for rounds in (1, 5):
        found = invert(model, mazes, clean, rounds=rounds)
        start = dl.Patch(found.noise, dl.Sites("latents", steps=0))
        back = model.run(mazes, 0, interventions=[start], guidance_scale=1.0, decode=False)
        away[rounds] = float((back.latents - clean).square().mean().sqrt() / clean.std())
    assert away[5] < 0.06
    assert away[5] < 0.7 * away[1]


def test_each_inverted_state_steps_to_the_next(text_to_video: Subject) -> None:
    """On random weights, whose prediction hardly depends on the state, the fixed point is exact."""
    model = text_to_video.model
    clean = torch.randn(1, 8, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    found = invert(model, text_to_video.inputs[0], clean, rounds=30, num_inference_steps=3)
    start = dl.Patch(found.noise, dl.Sites("latents", steps=0))
    run = model.run(
        text_to_video.inputs[0],
        9,
        num_inference_steps=3,
        guidance_scale=1.0,
        decode=False,
        record=True,
        interventions=[start],
    )
    for step in range(3):
        torch.testing.assert_close(run.states[step], found.states[step], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(run.latents, clean, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_given_a_state_is_refused_with_the_reason() -> None:
    for name, reason in (("wan2.2-ti2v-image", "overwrites latent frame 0"), ("ltx-2", "audio")):
        model, inputs = tiny(name)
        geometry = model.geometry(inputs[0])
        for source in ("forward-noise", "invert"):
            with pytest.raises(UnsupportedModel, match=reason):
                require_source(model, source, geometry)
        require_source(model, "sample", geometry)


def test_bad_input_is_refused(text_to_video: Subject) -> None:
    model = text_to_video.model
    with pytest.raises(EvidenceError, match="one of sample, forward-noise, invert"):
        require_source(model, "denoise", model.geometry())
    with pytest.raises(InputError, match="rounds=0"):
        invert(model, text_to_video.inputs[0], torch.zeros(1), rounds=0)
    with pytest.raises(InputError, match="clean is"):
        invert(model, text_to_video.inputs[0], torch.zeros(1, 8, 3, 4, 4), num_inference_steps=3)
