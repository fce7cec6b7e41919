"""What a capture keeps, and that it never is the live tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import InputError
from dit_lens.interventions import reduce
from tests.interventions.by_hand import GRID, WIDTH, check, make_at, noise
from tests.subjects import Subject

SITE = "s00/cond/L00/resid/video"
RESID = dl.Sites("resid")


def keep(capture: dl.Capture, activation: Tensor, site: str = SITE) -> Any:
    kept: dict[str, Tensor] = {}
    assert capture(activation, make_at(site, len(activation), kept=kept)) is None  # type: ignore[func-returns-value]
    return kept[capture.name]


VIEWS = {
    "whole": None,
    "identity": lambda x: x,
    "one frame": lambda x: x[:, 1],
    "last channels": lambda x: x[..., 2:],
    "flat": lambda x: x.flatten(1),
    "turned": lambda x: x.movedim(-1, 1),
    "spread": lambda x: x[:, :1].expand_as(x),
    "detached": lambda x: x.detach(),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("to", [None, "cpu"])
def test_a_capture_is_no_view_of_the_live_tensor(view: str, to: str | None) -> None:
    activation = noise(2, *GRID, WIDTH)
    function = VIEWS[view]
    kept = keep(dl.Capture(RESID, reduce=function, to=to), activation)
    before = kept.clone()
    assert torch.equal(kept, activation if function is None else function(activation))
    activation.zero_()
    assert torch.equal(kept, before)
    assert kept.any()


def test_a_capture_of_a_part_does_not_hold_the_whole() -> None:
    kept = keep(dl.Capture(RESID, reduce=lambda x: x[:, 1]), noise(2, *GRID, WIDTH))
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_a_new_tensor_is_kept_without_a_further_copy() -> None:
    made: list[Tensor] = []

    def double(x: Tensor) -> Tensor:
        made.append(x * 2)
        return made[-1]

    assert keep(dl.Capture(RESID, reduce=double), noise(2, *GRID, WIDTH)).data_ptr() == made[0].data_ptr()


def test_a_capture_carries_no_gradients() -> None:
    activation = noise(2, *GRID, WIDTH).requires_grad_()
    assert not keep(dl.Capture(RESID, reduce=lambda x: x * 2), activation).requires_grad


@pytest.mark.parametrize("name", ["token_mean", "frame_mean", "norm"])
def test_reductions_are_known_by_name(name: str) -> None:
    activation = noise(2, *GRID, WIDTH)
    named = keep(dl.Capture(RESID, reduce=name), activation)
    assert torch.equal(named, keep(dl.Capture(RESID, reduce=getattr(reduce, name)), activation))


def test_a_reduction_is_told_where_it_is_when_it_asks() -> None:
    def scaled(x: Tensor, at: dl.At) -> Tensor:
        assert at.site.sigma is not None
        return x * at.site.sigma

    activation = noise(2, *GRID, WIDTH)
    seen = keep(dl.Capture(RESID, reduce=scaled), activation, "s02/cond/L00/resid/video")
    assert torch.equal(seen, activation * 0.5)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"reduce": "mean"}, "'mean'.*token_mean, frame_mean, norm, or a callable"),
        ({"reduce": 3}, "3.*callable"),
        ({"to": "gpu"}, r"'gpu'\) is no device.*'cuda:0'"),
    ],
)
def test_bad_settings_are_refused_when_they_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        dl.Capture(RESID, **settings)


@pytest.mark.parametrize(
    ("capture", "names"),
    [
        (dl.Capture(RESID, reduce=reduce.top_k(7)), "set for 7 at s00/cond/L00/resid/video"),
        (dl.Capture(RESID, reduce=reduce.project(torch.ones(5, 2))), r"set for 5 at.*0\.\.5"),
        (dl.Capture(RESID, reduce=reduce.tokens(25)), "there are 24"),
        (dl.Capture(RESID.at(tokens=dl.Tokens(frames=0)), reduce=reduce.tokens(9)), "there are 8"),
        (dl.Capture(RESID.at(tokens=dl.Tokens(mask=torch.ones(GRID, dtype=torch.bool))), reduce="frame_mean"),
         r"\(2, 24, 6\) has no frames"),
    ],
)  # fmt: skip
def test_reductions_that_do_not_fit_are_refused_before_the_run(capture: dl.Capture, names: str) -> None:
    with pytest.raises(InputError, match=names):
        check(capture)


def test_ones_own_reduction_is_not_tried_before_the_run() -> None:
    check(dl.Capture(RESID, reduce=lambda x: x.flatten(1)[:, x.flatten(1)[0].argmax().item()]))


@pytest.mark.parametrize(("function", "given"), [(lambda x: x.mean(), r"\(\)"), (lambda x: x[0], r"\(3, 2, 4, 6\)"),
                                                 (lambda x: 1.0, "float")])  # fmt: skip
def test_a_reduction_must_keep_the_rows(function: Any, given: str) -> None:
    with pytest.raises(InputError, match=rf"gave {given} at {SITE}.*2 rows"):
        keep(dl.Capture(RESID, reduce=function), noise(2, *GRID, WIDTH))


def test_a_reduced_capture_in_a_run_is_the_reduction_of_the_whole(organism: Subject) -> None:
    sites = dl.Sites(("resid", "latents", "velocity"), steps=[0, 2])
    captures = {name: dl.Capture(sites, reduce=name, name=name) for name in ("token_mean", "frame_mean", "norm")}
    captures["top"] = dl.Capture(sites, reduce=reduce.top_k(3), name="top")
    run = organism.run(interventions=[dl.Capture(sites), *captures.values()])
    for site, whole in run.captured().items():
        latent = site.component != "resid"
        last = whole.movedim(1, -1) if latent else whole
        assert torch.equal(run.captured("token_mean")[site], whole.mean(dim=(2, 3, 4) if latent else (1, 2, 3)))
        assert torch.equal(run.captured("frame_mean")[site], last.mean(dim=(2, 3)))
        torch.testing.assert_close(run.captured("norm")[site], last.norm(dim=-1))
        assert run.captured("top")[site].shape == (*last.shape[:-1], 2, 3)
