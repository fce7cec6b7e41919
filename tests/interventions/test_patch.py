"""Whose activation a patch puts where, and how much of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import DonorError, InputError
from dit_lens.sites.geometry import Pixels
from tests.interventions.by_hand import GRID, LATENT, SIGMAS, WIDTH, check, make_at, make_geometry, make_run
from tests.interventions.by_hand import noise as draw
from tests.subjects import Subject, different

RESID = dl.Sites("resid", steps=0, layers=0, branches="cond")
SITE = "s00/cond/L00/resid/video"
OWN, OTHER = draw(2, *GRID, WIDTH), draw(2, *GRID, WIDTH, seed=1)


def patched(patch: dl.Patch, activation: Tensor = OWN, site: str = SITE, **more: Any) -> Tensor:
    return patch(activation, make_at(site, len(activation), **more))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modes_say_how_much_of_the_donor(dtype: torch.dtype) -> None:
    own, donor = OWN.to(dtype), make_run({SITE: OTHER.to(dtype)})
    other = OTHER.to(dtype)
    assert torch.equal(patched(dl.Patch(donor, RESID), own), other)
    assert torch.equal(patched(dl.Patch(donor, RESID, mode="add", weight=-1), own), own - other)
    assert torch.equal(patched(dl.Patch(donor, RESID, mode="interpolate", weight=0), own), own)
    assert torch.equal(patched(dl.Patch(donor, RESID, mode="interpolate", weight=1), own), other)
    half = patched(dl.Patch(donor, RESID, mode="interpolate", weight=0.25), own)
    torch.testing.assert_close(half, (0.75 * own.float() + 0.25 * other.float()).to(dtype))


@given(st.floats(-2, 2))
def test_interpolating_towards_oneself_is_the_identity(weight: float) -> None:
    assert torch.equal(patched(dl.Patch(OWN, RESID, mode="interpolate", weight=weight)), OWN)


def test_rows_of_the_same_activation_can_be_exchanged() -> None:
    assert torch.equal(patched(dl.Patch("rows", RESID, rows=[1, 0])), OWN.flip(0))
    assert torch.equal(patched(dl.Patch.from_row(1, RESID)), OWN[1:].expand_as(OWN))
    assert torch.equal(patched(dl.Patch("rows", RESID, rows=range(2), mode="interpolate", weight=0.3)), OWN)


def test_one_row_of_a_donor_can_serve_all() -> None:
    donor = make_run({SITE: OTHER})
    assert torch.equal(patched(dl.Patch(donor, RESID, rows=1)), OTHER[1:].expand_as(OWN))
    assert torch.equal(patched(dl.Patch(OTHER, RESID, rows=-2)), OTHER[:1].expand_as(OWN))


def test_a_tensor_may_leave_out_axes_between_rows_and_channels() -> None:
    per_row = draw(2, WIDTH)
    assert torch.equal(patched(dl.Patch(per_row, RESID)), per_row[:, None, None, None].expand_as(OWN))


PARTS: dict[str, tuple[dl.Tokens, Callable[[Tensor], Tensor]]] = {
    "frame": (dl.Tokens(frames=1), lambda x: x[:, 1:2]),
    "rows": (dl.Tokens(rows=(1, 2), columns=(0, 3)), lambda x: x[:, :, 1:2, 0:3]),
    "mask": (dl.Tokens(mask=torch.arange(24).reshape(GRID) % 2 == 0), lambda x: x.flatten(1, 3)[:, ::2]),
    "box": (dl.Tokens(box=(0, 8, 8, 24)), lambda x: x[:, :, 0:1, 1:3]),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_patch_of_some_tokens_takes_these_of_the_donor(part: str) -> None:
    tokens, take = PARTS[part]
    geometry = make_geometry(pixels=Pixels(9, 16, 32, 4))
    at = make_at(SITE)
    at = dl.At(at.site, at.rows, at.keep, geometry)
    patch = dl.Patch(make_run({SITE: OTHER}), RESID.at(tokens=tokens))
    check(patch, geometry=geometry)
    assert torch.equal(patch(take(OWN), at), take(OTHER))


def test_frames_of_the_state_lie_on_its_third_axis() -> None:
    site = "s01/-/-/latents/video"
    own, other = draw(2, *LATENT), draw(2, *LATENT, seed=1)
    patch = dl.Patch(make_run({site: other}), dl.Sites("latents", steps=1, tokens=dl.Tokens(frames=2)))
    check(patch)
    assert torch.equal(patched(patch, own[:, :, 2:], site), other[:, :, 2:])


@pytest.mark.parametrize("site", ["s00/cond/L00/resid/text", "s00/cond/L00/head.1/text", "s00/cond/L00/head.1/video"])
def test_text_streams_and_heads_are_patched_as_they_are_captured(site: str) -> None:
    address = dl.Site.parse(site)
    sites = dl.Sites(address.component, steps=0, layers=0, branches="cond", stream=address.stream, heads=1)
    shape = (7, WIDTH) if address.stream == "text" else (*GRID, WIDTH)
    patch = dl.Patch(make_run({site: draw(2, *shape)}), sites)
    check(patch)
    assert torch.equal(patched(patch, draw(2, *shape, seed=1), site), draw(2, *shape))


def test_a_text_of_another_length_is_refused_where_it_is_met() -> None:
    site = "s00/cond/L00/resid/text"
    patch = dl.Patch(make_run({site: draw(2, 7, WIDTH)}), RESID.at(stream="text"))
    check(patch)
    with pytest.raises(DonorError, match=rf"\(2, 7, 6\); at {site} it must be \(rows, 8, 6\)"):
        patched(patch, draw(2, 8, WIDTH), site)


# -- pairing by noise level --------------------------------------------------------------------------------------------


def test_runs_of_different_step_counts_are_paired_by_sigma() -> None:
    captures = {f"s{s:02d}/cond/L00/resid/video": draw(2, *GRID, WIDTH, seed=s) for s in range(8)}
    donor = make_run(captures, sigmas=tuple(1 - s / 8 for s in range(9)))
    patch = dl.Patch(donor, RESID.at(steps="all"), pair="sigma")
    check(patch)
    for step in range(4):
        site = f"s{step:02d}/cond/L00/resid/video"
        assert torch.equal(patched(patch, OWN, site), captures[f"s{2 * step:02d}/cond/L00/resid/video"])
    assert torch.equal(patched(patch, OWN, SITE, sigma=0.96), captures[SITE])


def test_a_level_that_is_too_far_is_refused() -> None:
    donor = make_run({SITE: OTHER})
    patch = dl.Patch(donor, RESID.at(steps=1), pair="sigma", sigma_tolerance=0.2)
    with pytest.raises(DonorError, match=r"s01/cond/L00.*sigma 0.75.*s00/cond/L00/resid/video at sigma 1,.*=0.2"):
        patched(patch, OWN, "s01/cond/L00/resid/video")
    assert torch.equal(
        patched(dl.Patch(donor, RESID, pair="sigma", sigma_tolerance=0.25), OWN, SITE, sigma=0.75), OTHER
    )


def test_a_donor_of_another_schedule_is_refused() -> None:
    donor = make_run({SITE: OTHER}, sigmas=SIGMAS)
    patch = dl.Patch(donor, RESID)
    assert torch.equal(patched(patch, OWN, SITE, sigma=0.96), OTHER)
    with pytest.raises(DonorError, match=r"is at sigma 0.5, the donor's at sigma 1, further away.*or pair='sigma'"):
        patched(patch, OWN, SITE, sigma=0.5)
    with pytest.raises(DonorError, match=r"the reference's at sigma 1, further away"):
        patched(dl.Ablate(RESID, mode="mean", reference=donor), OWN, SITE, sigma=0.5)


def test_a_sigma_donor_needs_the_same_place() -> None:
    donor = make_run({SITE: OTHER}, sigmas=SIGMAS)
    with pytest.raises(DonorError, match=r"captured no step of s00/cond/L01/resid/video.*there are s00/cond/L00"):
        check(dl.Patch(donor, RESID.at(layers=1), pair="sigma"))
    with pytest.raises(DonorError, match=r"\(2, 5\).*\(rows, 3, 2, 4, 6\)"):
        check(dl.Patch(make_run({SITE: draw(2, 5)}), RESID, pair="sigma"))


# -- bad settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"donor": OTHER, "mode": "swap"}, "'swap'.*'replace', 'add', 'interpolate'"),
        ({"donor": OTHER, "weight": 0.5}, "only 'add' and 'interpolate' take a weight"),
        ({"donor": OTHER, "mode": "add", "weight": float("nan")}, "weight=nan"),
        ({"donor": OTHER, "pair": "timestep"}, "'step', 'sigma'"),
        ({"donor": OTHER, "pair": "sigma"}, "the donor must be a Run"),
        ({"donor": OTHER, "sigma_tolerance": -1}, "sigma_tolerance=-1.*at least 0"),
        ({"donor": "rows"}, "rows= must say"),
        ({"donor": OTHER, "rows": [0.5]}, "rows=.0.5.*whole"),
        ({"donor": OTHER, "rows": ()}, "at least one row"),
    ],
)
def test_bad_settings_are_refused_when_they_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        dl.Patch(sites=RESID, **settings)


def test_a_row_that_the_batch_does_not_have_is_refused() -> None:
    with pytest.raises(DonorError, match=r"rows=2\): the donor has rows 0\.\.1"):
        check(dl.Patch.from_row(2, RESID))
    with pytest.raises(DonorError, match=r"a Replay or a tensor.*got str"):
        check(dl.Patch("row", RESID))


def test_rows_exchanged_in_a_run_are_those_of_a_donor(organism: Subject) -> None:
    sites = dl.Sites("delta", steps=1, layers=2)
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "decode": False}
    plain = organism.model.run(organism.inputs[0], (1, 2), interventions=[dl.Capture(sites)], **settings)
    swaps = [dl.Patch("rows", sites, rows=(1, 0)), dl.Patch(plain, sites, rows=(1, 0))]
    runs = [organism.model.run(organism.inputs[0], (1, 2), interventions=[swap], **settings) for swap in swaps]
    assert torch.equal(runs[0].latents, runs[1].latents)
    assert different(runs[0].latents, plain.latents)
