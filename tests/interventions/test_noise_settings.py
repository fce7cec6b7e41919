"""Noise that cannot be what it says is refused; noise in runs reaches the state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import dit_lens as dl
from dit_lens.errors import InputError, SiteError
from dit_lens.interventions.noise import Noise
from tests.interventions.by_hand import GEOMETRY, SIGMAS
from tests.subjects import Subject, different

LATENTS, VELOCITY, RESID = dl.Sites("latents"), dl.Sites("velocity"), dl.Sites("resid")


@pytest.mark.parametrize(
    ("sites", "settings", "names"),
    [
        (LATENTS, {"mode": "gauss"}, "'gauss'.*'replace', 'add', 'renoise', 'velocity'"),
        (LATENTS, {"mode": "add", "dose": -1}, "dose=-1.*at least 0"),
        (LATENTS, {"mode": "add", "dose": float("inf")}, "dose=inf.*finite"),
        (LATENTS, {"mode": "renoise", "dose": 1.5}, r"dose=1.5.*0\.\.1"),
        (LATENTS, {"mode": "velocity"}, "at latents: only at velocity"),
        (VELOCITY, {"mode": "add"}, "at velocity: only at latents"),
        (RESID, {"mode": "renoise"}, "at resid: only at latents"),
        (dl.Sites("model_input"), {"mode": "replace"}, "model_input: only at.*the sampler's state is latents"),
        (dl.Sites("guided"), {"mode": "velocity"}, "at guided: only at velocity"),
        (LATENTS.at(tokens=dl.Tokens(frames=0)), {"mode": "add", "frames": 1}, r"frames=1\).*tokens frames=0.*one of"),
    ],
)
def test_bad_settings_are_refused_when_they_are_named(sites: dl.Sites, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        Noise(sites, **settings)


def test_frames_are_short_for_tokens() -> None:
    short = Noise(LATENTS, "add", frames=[0, 2])
    assert short.sites == Noise(LATENTS.at(tokens=dl.Tokens(frames=[0, 2])), "add").sites
    assert replace(short, dose=2.0).sites == short.sites
    within = Noise(LATENTS.at(tokens=dl.Tokens(rows=(0, 2))), "add", frames=1)
    assert within.sites.tokens == dl.Tokens(frames=1, rows=(0, 2))
    with pytest.raises(SiteError, match="pixel_frames"):
        Noise(LATENTS.at(tokens=dl.Tokens(pixel_frames=(0, 2))), "add", frames=1)


def test_energy_that_depends_on_the_run_is_refused() -> None:
    with pytest.raises(InputError, match=r"at resid.*only latents and velocity"):
        Noise(RESID, "add").energy(GEOMETRY, SIGMAS)
    with pytest.raises(InputError, match="2 sigmas for 4 steps"):
        Noise(LATENTS, "add").energy(GEOMETRY, SIGMAS[:2])
    with pytest.raises(InputError, match=r"dose of 1.7\d* to match; the most is 1"):
        Noise(LATENTS.at(steps=0), "renoise", frames=0).matched(Noise(LATENTS.at(steps=0), "add"), GEOMETRY, SIGMAS)


# -- in runs -----------------------------------------------------------------------------------------------------------

SEE = dl.Capture(dl.Sites(("latents", "model_input")))


def test_noise_at_a_step_replaces_the_samplers_state(organism: Subject) -> None:
    plain = organism.run(interventions=[SEE])
    run = organism.run(interventions=[Noise(LATENTS.at(steps=1), "replace"), SEE])
    state, site = run["s01/-/-/latents/video"], dl.Site(1, None, None, "latents")
    at = dl.At(site, run.rows, lambda name, tensor: None, run.geometry)
    assert torch.equal(state, at.noise(state))
    # The denoiser is given this state, and steps that follow go on from it.
    assert torch.equal(run["s01/cond/-/model_input/video"][:, : state.shape[1]], state)
    assert torch.equal(run["s00/-/-/latents/video"], plain["s00/-/-/latents/video"])
    assert different(run["s02/-/-/latents/video"], plain["s02/-/-/latents/video"])
    assert torch.equal(organism.run(interventions=[Noise(LATENTS.at(steps=1), "replace")]).latents, run.latents)


def test_noise_in_a_frame_leaves_the_others_at_the_first_step(organism: Subject) -> None:
    plain = organism.run(interventions=[SEE])["s00/-/-/latents/video"]
    state = organism.run(interventions=[Noise(LATENTS, "add", frames=2), SEE])["s00/-/-/latents/video"]
    assert torch.equal(state[:, :, [0, 1, 3, 4]], plain[:, :, [0, 1, 3, 4]])
    assert different(state[:, :, 2], plain[:, :, 2])


@pytest.mark.parametrize("mode", ["add", "renoise"])
def test_no_dose_leaves_a_run_as_it_is(organism: Subject, mode: str) -> None:
    run = organism.run(interventions=[Noise(LATENTS, mode, dose=0)])
    assert torch.equal(run.latents, organism.run().latents)


def test_renoising_keeps_the_clean_estimate_of_the_step_before(organism: Subject) -> None:
    plain = organism.run(record=True, interventions=[dl.Capture(dl.Sites(("latents", "guided")))])
    run = organism.run(interventions=[Noise(LATENTS.at(steps=2), "renoise"), SEE])
    site = dl.Site(2, None, None, "latents")
    x0hat = plain.clean(1, plain.states[1], plain["s01/-/-/guided/video"])
    alpha, sigma = plain.schedule.alpha(2), plain.schedule.sigma(2)
    at = dl.At(site, run.rows, lambda name, tensor: None, run.geometry)
    torch.testing.assert_close(run[site], alpha * x0hat + sigma * at.noise(x0hat), rtol=0, atol=1e-5)


def test_noise_in_predictions_moves_the_guided_one_by_the_dose(organism: Subject) -> None:
    see = dl.Capture(dl.Sites("guided", steps=0))
    plain = organism.run(guidance=3.0, interventions=[see])["s00/-/-/guided/video"]
    moved = organism.run(guidance=3.0, interventions=[Noise(VELOCITY, "velocity", dose=0.1), see])
    change = moved["s00/-/-/guided/video"] - plain
    at = dl.At(dl.Site(0, None, None, "velocity"), moved.rows, lambda name, tensor: None, moved.geometry)
    torch.testing.assert_close(change, 0.1 * at.noise(plain), rtol=0, atol=1e-5)


def test_matched_noise_takes_the_geometry_and_sigmas_of_a_run(organism: Subject) -> None:
    plain = organism.run()
    at_step = Noise(LATENTS.at(steps=0), "replace")
    at_frame = Noise(LATENTS, "replace", frames=0).matched(at_step, plain.geometry, plain.sigmas)
    frames, steps = plain.geometry.latent_grid[0], plain.geometry.steps
    assert at_frame.dose**2 == pytest.approx(frames / steps)
    assert different(organism.run(interventions=[at_frame]).latents, plain.latents)
