"""What an ablated activation is replaced by, written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import DitLensError, DonorError, InputError
from dit_lens.interventions.ablate import Ablate
from tests.interventions.by_hand import GRID, LATENT, WIDTH, check, make_at, make_run, noise
from tests.subjects import Subject, different

RESID = dl.Sites("resid", steps=0, layers=0, branches="cond")
SITE = "s00/cond/L00/resid/video"
OWN, REFERENCE = noise(2, *GRID, WIDTH), noise(4, *GRID, WIDTH, seed=1)
RUN = make_run({SITE: REFERENCE})


def ablated(activation: Tensor = OWN, site: str = SITE, sites: dl.Sites = RESID, **settings: Any) -> Tensor:
    result = Ablate(sites, **settings)(activation, make_at(site, len(activation)))
    assert result.dtype == activation.dtype
    assert result.shape == activation.shape
    return result


def test_zero_is_zero() -> None:
    assert torch.equal(ablated(), torch.zeros_like(OWN))


@pytest.mark.parametrize("reference", [RUN, REFERENCE], ids=["run", "tensor"])
def test_the_mean_is_the_references(reference: dl.Run | Tensor) -> None:
    result = ablated(mode="mean", reference=reference)
    assert torch.equal(result, REFERENCE.mean(dim=0, keepdim=True).expand_as(OWN))
    chosen = ablated(mode="mean", reference=reference, rows=[0, -1])
    torch.testing.assert_close(chosen[1], (REFERENCE[0] + REFERENCE[3]) / 2)


def test_the_mean_over_tokens_leaves_channels_alone() -> None:
    result = ablated(mode="mean", reference=RUN, over="tokens")
    assert torch.equal(result, result[:1, :1, :1, :1].expand_as(OWN))
    torch.testing.assert_close(result[0, 0, 0, 0], REFERENCE.flatten(0, 3).mean(dim=0))


def test_the_mean_over_tokens_is_of_the_selected_ones() -> None:
    sites = RESID.at(tokens=dl.Tokens(frames=1))
    result = ablated(OWN[:, 1:2], sites=sites, mode="mean", reference=RUN, over="tokens")
    torch.testing.assert_close(result[0, 0, 0, 0], REFERENCE[:, 1].flatten(0, 2).mean(dim=0))


def test_on_the_latent_grid_channels_are_the_second_axis() -> None:
    site, given_ = "s01/-/-/latents/video", noise(3, *LATENT)
    sites, reference = dl.Sites("latents", steps=1, tokens=dl.Tokens(frames=[0, 2])), make_run({site: given_})
    own = noise(3, *LATENT, seed=1)[:, :, [0, 2]]
    result = ablated(own, site, sites, mode="mean", reference=reference, over="tokens")
    expected = given_[:, :, [0, 2]].mean(dim=(0, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(result, expected.expand_as(own))


def test_narrow_dtypes_are_averaged_in_float32() -> None:
    many = noise(200, 3).bfloat16()
    result = ablated(OWN[:2, 0, 0, 0, :3].bfloat16(), mode="mean", reference=many)
    assert torch.equal(result[0], many.float().mean(dim=0).bfloat16())


@given(st.integers(2, 6), st.integers(-7, 7))
def test_resampling_the_batch_leaves_no_row_its_own(count: int, shift: int) -> None:
    ablate, rows = Ablate(RESID, mode="resample", shift=shift), noise(count, 3)
    if shift % count == 0:
        with pytest.raises(DonorError, match=rf"shift={shift}\): row 0 would be given its own"):
            check(ablate, rows=count)
    else:
        check(ablate, rows=count)
        result = ablate(rows, make_at(SITE, count))
        assert torch.equal(result, rows.roll(-shift, 0))
        assert not (result == rows).all(dim=1).any()


def test_resampling_a_reference() -> None:
    assert torch.equal(ablated(mode="resample", reference=RUN), REFERENCE[1:3])
    assert torch.equal(ablated(mode="resample", reference=RUN, shift=3), REFERENCE[[3, 0]])
    assert torch.equal(ablated(mode="resample", reference=REFERENCE, rows=(2, 2)), REFERENCE[[2, 2]])
    assert torch.equal(ablated(mode="resample", rows=(1, 1)), OWN[[1, 1]])


def test_a_reference_of_other_instances_may_have_one_row() -> None:
    other = make_run({SITE: REFERENCE[:1]}, rows=(dl.Row("another", 0),))
    ablate = Ablate(RESID, mode="resample", reference=other)
    check(ablate, rows=1)
    assert torch.equal(ablate(OWN[:1], make_at(SITE, 1)), REFERENCE[:1])
    with pytest.raises(DonorError, match=r"row 0 would be given its own.*Row\(instance='one', seed=0\)"):
        check(Ablate(RESID, mode="resample", reference=make_run({SITE: REFERENCE[:1]})), rows=1)


BAD: dict[str, tuple[type[DitLensError], str, Callable[[], Ablate]]] = {
    "mode": (InputError, "'noise'.*'zero', 'mean', 'resample'", lambda: Ablate(RESID, mode="noise")),
    "mean of nothing": (InputError, "needs a reference", lambda: Ablate(RESID, mode="mean")),
    "zero of a reference": (InputError, "no reference", lambda: Ablate(RESID, reference=RUN)),
    "zero of rows": (InputError, "no rows", lambda: Ablate(RESID, rows=(0,))),
    "over": (InputError, "'rows', 'tokens'", lambda: Ablate(RESID, mode="mean", reference=RUN, over="frames")),
    "resample over tokens": (InputError, "only 'mean'", lambda: Ablate(RESID, mode="resample", over="tokens")),
    "no rows": (InputError, "at least one row", lambda: Ablate(RESID, mode="resample", rows=())),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_when_they_are_named(case: str) -> None:
    error, names, make = BAD[case]
    with pytest.raises(error, match=names):
        make()


MISFITS: dict[str, tuple[str, Ablate]] = {
    "kind": ("reference must be a Run, a Replay or a tensor.*list", Ablate(RESID, "mean", reference=[1.0])),  # type: ignore[arg-type]
    "no shape": (r"\(\)", Ablate(RESID, "mean", reference=torch.ones(()))),
    "another site": (r"reference did not capture s00/cond/L01/resid/video \(whole and unnamed\)",
                     Ablate(RESID.at(layers=1), "mean", reference=RUN)),
    "another shape": (r"\(4, 7\); at s00/cond/L00/resid/video it must be \(rows, 3, 2, 4, 6\)",
                      Ablate(RESID, "mean", reference=noise(4, 7))),
    "a part": (r"\(2, 1, 2, 4, 6\)", Ablate(RESID, "mean", reference=make_run({SITE: OWN[:, :1]}))),
    "row that is not there": (r"rows=\(0, 4\)\): the reference has rows 0\.\.3",
                              Ablate(RESID, "mean", reference=RUN, rows=(0, 4))),
    "too few rows": (r"names 1 rows for 2", Ablate(RESID, "resample", reference=RUN, rows=(0,))),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_references_that_do_not_fit_are_refused_before_the_run(case: str) -> None:
    names, ablate = MISFITS[case]
    with pytest.raises(DonorError, match=names):
        check(ablate)


def test_ablating_in_a_run(organism: Subject) -> None:
    sites = dl.Sites("attn", steps=1, layers=2)
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "decode": False}
    see, site = dl.Capture(sites), dl.Site(1, "cond", 2, "attn")
    plain = organism.model.run(organism.inputs[0], (1, 2, 3), interventions=[see], **settings)
    expected = {
        Ablate(sites): torch.zeros_like(plain[site]),
        Ablate(sites, "mean", reference=plain): plain[site].mean(dim=0, keepdim=True).expand_as(plain[site]),
        Ablate(sites, "resample"): plain[site].roll(-1, 0),
        Ablate(sites, "resample", reference=plain, shift=2): plain[site].roll(-2, 0),
    }
    for ablate, value in expected.items():
        run = organism.model.run(organism.inputs[0], (1, 2, 3), interventions=[ablate, see], **settings)
        torch.testing.assert_close(run[site], value, rtol=0, atol=1e-6)
        assert different(run.latents, plain.latents)
