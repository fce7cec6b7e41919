"""What noise is put where, in doses that can be told beforehand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import InputError
from dit_lens.interventions.noise import Noise
from tests.interventions.by_hand import GEOMETRY, GRID, LATENT, SIGMAS, STEPS, WIDTH, make_at, noise
from tests.subjects import different

LATENTS, VELOCITY = dl.Sites("latents"), dl.Sites("velocity")
STATE, PREDICTION, RESID = "s01/-/-/latents/video", "s01/cond/-/velocity/video", "s01/cond/L00/resid/video"
X, X0HAT = noise(2, *LATENT), noise(2, *LATENT, seed=1)


def noisy(mode: str, activation: Tensor = X, site: str = STATE, at: Any = None, **settings: Any) -> Tensor:
    at = at or make_at(site, len(activation), x0hat=X0HAT)
    result = Noise(dl.Sites(at.site.component), mode, **settings)(activation, at)
    assert result.dtype == activation.dtype
    return result


def fresh(activation: Tensor = X, site: str = STATE, seed: int = 0) -> Tensor:
    return make_at(site, len(activation)).noise(activation, seed)


# -- each mode ---------------------------------------------------------------------------------------------------------


def test_replace_leaves_nothing_but_noise() -> None:
    assert torch.equal(noisy("replace"), fresh())
    assert torch.equal(noisy("replace", X0HAT, dose=0.5, seed=3), 0.5 * fresh(seed=3))
    assert not noisy("replace", dose=0).any()


def test_add_is_in_units_of_sigma() -> None:
    assert torch.equal(noisy("add", dose=2), X + 2 * 0.75 * fresh())


def test_renoise_keeps_the_clean_estimate_and_the_noise_level() -> None:
    alpha, sigma = 0.25, 0.75
    own = (X - alpha * X0HAT) / sigma
    torch.testing.assert_close(noisy("renoise"), alpha * X0HAT + sigma * fresh())
    torch.testing.assert_close(noisy("renoise", dose=0.6), alpha * X0HAT + sigma * (0.8 * own + 0.6 * fresh()))


def test_renoise_of_pure_noise_needs_no_clean_estimate() -> None:
    at = make_at("s00/-/-/latents/video")
    expected = 0.8 * X + 0.6 * at.noise(X)
    torch.testing.assert_close(noisy("renoise", at=at, dose=0.6), expected)
    almost = make_at("s00/-/-/latents/video", sigma=80.0, alpha=1.0)
    torch.testing.assert_close(noisy("renoise", 80 * X, at=almost, dose=0.6), 80 * expected, rtol=0, atol=1e-3)
    with pytest.raises(InputError, match=r"s00/-/-/latents/video.*alpha 0.3 and sigma 0.7.*steps from 1 on"):
        noisy("renoise", at=make_at("s00/-/-/latents/video", sigma=0.7))


def test_renoise_in_one_frame_takes_the_estimate_of_this_frame() -> None:
    part = Noise(LATENTS, "renoise", frames=2)(X[:, :, 2:], make_at(STATE, x0hat=X0HAT))
    expected = 0.25 * X0HAT[:, :, 2:] + 0.75 * fresh(X[:, :, 2:])
    torch.testing.assert_close(part, expected)


def test_velocity_noise_is_shared_by_the_branches() -> None:
    cond, uncond = (noisy("velocity", X, f"s01/{b}/-/velocity/video", dose=0.5) - X for b in ("cond", "uncond"))
    torch.testing.assert_close(cond, uncond)
    assert different(cond, noisy("velocity", X, "s02/cond/-/velocity/video", dose=0.5) - X)
    # Classifier-free guidance moves by the same, whatever its scale.
    torch.testing.assert_close(uncond + 5 * (cond - uncond), 0.5 * fresh(X, "s01/-/-/velocity/video"))


@pytest.mark.parametrize("shape", [GRID, (7,)])
def test_on_the_token_grid_the_unit_is_the_standard_deviation_of_a_row(shape: tuple[int, ...]) -> None:
    own = noise(2, *shape, WIDTH) * torch.tensor([1.0, 10.0]).reshape(2, *[1] * len(shape), 1) + 3
    std = torch.stack([row.std(correction=0) for row in own]).reshape(2, *[1] * len(shape), 1)
    torch.testing.assert_close(noisy("add", own, RESID, dose=3), own + 3 * std * fresh(own, RESID))
    torch.testing.assert_close(noisy("replace", own, RESID), std * fresh(own, RESID))


@pytest.mark.parametrize(
    ("mode", "site"), [("add", STATE), ("add", RESID), ("renoise", STATE), ("velocity", PREDICTION)]
)
def test_no_dose_is_the_identity_bit_for_bit(mode: str, site: str) -> None:
    own = -torch.zeros(2, *LATENT)
    assert torch.equal(noisy(mode, own, site, dose=0).view(torch.uint8), own.view(torch.uint8))


def test_rows_are_what_they_would_be_alone() -> None:
    assert torch.equal(noisy("add")[:1], noisy("add", X[:1], at=make_at(STATE, 1)))
    assert different(fresh()[0], fresh()[1])


# -- doses -------------------------------------------------------------------------------------------------------------


def injected(given_noise: Noise, rows: int) -> Tensor:
    """Measured squared norm of what a run's sites are given, by row, where there is nothing else: (rows,)."""
    total = torch.zeros(rows)
    for site in given_noise.sites.resolve(GEOMETRY):
        if site.branch == "uncond":
            continue
        at = make_at(str(site), rows, x0hat=torch.zeros(rows, *LATENT))
        nothing = given_noise.sites.tokens.take(torch.zeros(rows, *LATENT), site.component)
        scale = 1 if site.component == "latents" else SIGMAS[site.step]
        total += (scale * given_noise(nothing, at)).square().flatten(1).sum(dim=1)
    return total


AT_STEP = Noise(LATENTS.at(steps=1), "replace")
CONTROLS = {
    "frame": Noise(LATENTS, "replace", frames=1),
    "add": Noise(LATENTS, "add", frames=[0, 2]),
    "renoise": Noise(LATENTS, "renoise"),
    "velocity": Noise(VELOCITY, "velocity"),
    "mask": Noise(LATENTS.at(tokens=dl.Tokens(mask=torch.ones(4, 8, dtype=torch.bool).tril())), "add"),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_matched_noise_puts_in_as_much_as_its_reference(control: str) -> None:
    matched, rows = CONTROLS[control].matched(AT_STEP, GEOMETRY, SIGMAS), 200
    expected = AT_STEP.energy(GEOMETRY, SIGMAS)
    assert expected == 5 * 3 * 4 * 8
    assert matched.energy(GEOMETRY, SIGMAS) == pytest.approx(expected)
    for each in (AT_STEP, matched):
        measured = injected(each, rows)
        error = float(measured.std() / rows**0.5)
        assert abs(float(measured.mean()) - expected) < 4 * error
        assert error < 0.02 * expected


@given(st.sets(st.integers(0, STEPS - 1), min_size=1), st.sets(st.integers(0, 2), min_size=1),
       st.sampled_from(["replace", "add", "renoise"]), st.floats(0.1, 1))  # fmt: skip
def test_energy_grows_with_steps_frames_and_the_square_of_the_dose(
    steps: set[int], frames: set[int], mode: str, dose: float
) -> None:
    given_noise = Noise(LATENTS.at(steps=sorted(steps)), mode, dose, frames=sorted(frames))
    level = sum(1 if mode == "replace" else SIGMAS[s] ** 2 for s in steps)
    assert given_noise.energy(GEOMETRY, SIGMAS) == pytest.approx(dose**2 * level * len(frames) * 5 * 4 * 8)
    assume(mode != "renoise")
    twice = replace(given_noise, dose=2 * dose)
    assert given_noise.matched(twice, GEOMETRY, SIGMAS).dose == pytest.approx(2 * dose)
