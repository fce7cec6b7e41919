"""Where a direction moves an activation, and how far."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import InputError
from dit_lens.interventions.steer import Steer
from tests.interventions.by_hand import GRID, LATENT, WIDTH, check, make_at, noise
from tests.subjects import Subject

RESID = dl.Sites("resid")
SITE, STATE = "s00/cond/L00/resid/video", "s01/-/-/latents/video"
OWN, DIRECTION = noise(2, *GRID, WIDTH), noise(WIDTH, seed=1)
UNIT = DIRECTION / DIRECTION.norm()


def steered(direction: Tensor = DIRECTION, activation: Tensor = OWN, site: str = SITE, **settings: Any) -> Tensor:
    moved = Steer(dl.Sites(dl.Site.parse(site).component), direction, **settings)(activation, make_at(site))
    assert isinstance(moved, Tensor)
    assert moved.dtype == activation.dtype
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit", ["absolute", "norm"])
def test_a_step_of_no_size_is_the_identity_bit_for_bit(dtype: torch.dtype, unit: str) -> None:
    own = OWN.to(dtype)
    own[0, 0, 0, 0] = -0.0
    moved = steered(activation=own, scale=0, unit=unit)
    assert torch.equal(moved.view(torch.uint8), own.view(torch.uint8))


def test_every_token_moves_along_the_direction() -> None:
    torch.testing.assert_close(steered(scale=3), OWN + 3 * UNIT)
    torch.testing.assert_close(steered(scale=3, normalize=False), OWN + 3 * DIRECTION)


def test_the_unit_norm_is_each_tokens_own() -> None:
    moved = steered(scale=0.5, unit="norm")
    torch.testing.assert_close((moved - OWN).norm(dim=-1), 0.5 * OWN.norm(dim=-1))
    torch.testing.assert_close(moved, OWN + 0.5 * OWN.norm(dim=-1, keepdim=True) * UNIT)


def test_a_direction_may_differ_among_tokens() -> None:
    per_frame = noise(3, 1, 1, WIDTH)
    moved = steered(per_frame, normalize=False, scale=2)
    torch.testing.assert_close(moved[:, 1], OWN[:, 1] + 2 * per_frame[1])
    torch.testing.assert_close(steered(per_frame), OWN + per_frame / per_frame.norm())


@pytest.mark.parametrize("unit", ["absolute", "norm"])
def test_on_the_latent_grid_channels_are_the_second_axis(unit: str) -> None:
    state, direction = noise(2, *LATENT), noise(LATENT[0], seed=1)
    check(Steer(dl.Sites("latents"), direction, unit=unit))
    own = state.norm(dim=1, keepdim=True) if unit == "norm" else 1
    expected = state + own * (direction / direction.norm()).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(steered(direction, state, STATE, unit=unit), expected)
    masked = steered(direction, state.flatten(2), STATE, unit=unit)
    torch.testing.assert_close(masked, expected.flatten(2))
    spread = direction.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(steered(spread, state, STATE, unit=unit), expected)


def test_narrow_dtypes_are_rounded_once() -> None:
    own = OWN.bfloat16()
    assert torch.equal(steered(activation=own, scale=3), (own.float() + 3 * UNIT).bfloat16())


@given(st.floats(-5, 5), st.floats(0.01, 100))
def test_the_length_of_a_normalized_direction_does_not_matter(scale: float, length: float) -> None:
    torch.testing.assert_close(steered(length * DIRECTION, scale=scale), steered(scale=scale), rtol=1e-4, atol=1e-4)


@given(st.floats(-5, 5))
def test_a_step_can_be_taken_back(scale: float) -> None:
    back = steered(activation=steered(scale=scale), scale=-scale)
    torch.testing.assert_close(back, OWN, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"direction": torch.zeros(WIDTH)}, "norm 0 cannot be normalized"),
        ({"direction": torch.full((WIDTH,), float("nan"))}, "norm nan"),
        ({"direction": torch.full((WIDTH,), float("inf")), "normalize": False}, "norm inf"),
        ({"direction": torch.ones(())}, r"float32 \(\)"),
        ({"direction": torch.ones(WIDTH, dtype=torch.int64)}, "int64"),
        ({"direction": [1.0]}, "got list"),
        ({"direction": DIRECTION, "scale": float("inf")}, "scale=inf.*finite"),
        ({"direction": DIRECTION, "scale": "much"}, "scale='much'.*finite"),
        ({"direction": DIRECTION, "unit": "std"}, "'std'.*'absolute', 'norm'"),
    ],
)
def test_bad_settings_are_refused_when_they_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        Steer(RESID, **settings)


def test_no_step_along_nothing_is_allowed_when_nothing_is_divided() -> None:
    assert torch.equal(steered(torch.zeros(WIDTH), normalize=False), OWN)


@pytest.mark.parametrize(
    ("steer", "names"),
    [
        (Steer(RESID, torch.ones(7)), r"\(7,\) at s00/cond/L00/resid/video: need \(6,\).*\(3, 2, 4, 6\)"),
        (Steer(dl.Sites("latents"), torch.ones(8)), r"\(8,\) at s00/-/-/latents/video: need \(5,\)"),
        (Steer(RESID.at(tokens=dl.Tokens(frames=0)), torch.ones(3, 1, 1, 6)), r"\(3, 1, 1, 6\).*\(1, 2, 4, 6\)"),
        (Steer(RESID, torch.ones(1)), r"\(1,\) at s00/cond/L00/resid/video: need \(6,\)"),
        (Steer(RESID, torch.ones(2, 3, 2, 4, 6)), r"\(2, 3, 2, 4, 6\)"),
    ],
)
def test_directions_that_do_not_fit_are_refused_before_the_run(steer: Steer, names: str) -> None:
    with pytest.raises(InputError, match=names):
        check(steer)


def test_a_text_stream_is_checked_where_it_is_met() -> None:
    steer = Steer(RESID.at(stream="text"), torch.ones(7))
    check(steer)
    with pytest.raises(InputError, match=r"\(7,\) at s00/cond/L00/resid/text: need \(6,\)"):
        steer(noise(2, 9, WIDTH), make_at("s00/cond/L00/resid/text"))


def test_steering_a_run(organism: Subject) -> None:
    sites, site = dl.Sites("resid", steps=1, layers=2), dl.Site(1, "cond", 2, "resid")
    direction = noise(organism.run(interventions=[dl.Capture(sites)])[site].shape[-1])
    plain = organism.run(interventions=[dl.Capture(sites)])
    moved = organism.run(interventions=[Steer(sites, direction, scale=4), dl.Capture(sites)])
    torch.testing.assert_close(moved[site] - plain[site], (4 * direction / direction.norm()).expand_as(plain[site]))
    still = organism.run(interventions=[Steer(dl.Sites(("resid", "delta", "attn")), direction, scale=0)])
    assert torch.equal(still.latents, plain.latents)
