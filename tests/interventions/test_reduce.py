"""Each reduction against the same written out by hand, on every layout of an activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dit_lens.errors import InputError
from dit_lens.interventions import reduce
from dit_lens.interventions.reduce import takes_at
from tests.interventions.by_hand import GRID, LATENT, WIDTH, make_at, noise

VIDEO, TEXT, STATE = "s00/cond/L00/resid/video", "s00/cond/L00/resid/text", "s01/-/-/latents/video"
LAYOUTS = {
    "tokens": (VIDEO, noise(2, *GRID, WIDTH)),
    "masked tokens": (VIDEO, noise(2, 7, WIDTH)),
    "text": (TEXT, noise(2, 7, WIDTH)),
    "latents": (STATE, noise(2, *LATENT)),
    "masked latents": (STATE, noise(2, LATENT[0], 7)),
}


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> tuple[Any, Tensor, Tensor]:
    """Where it is, an activation, and the same as (B, N, channels)."""
    site, activation = LAYOUTS[request.param]
    last = activation.movedim(1, -1) if "latents" in request.param else activation
    return make_at(site), activation, last.reshape(2, -1, last.shape[-1])


def test_the_mean_over_tokens_leaves_rows_and_channels(layout: tuple[Any, Tensor, Tensor]) -> None:
    at, activation, flat = layout
    torch.testing.assert_close(reduce.token_mean(activation, at), flat.mean(dim=1))


def test_the_norm_is_of_each_token(layout: tuple[Any, Tensor, Tensor]) -> None:
    at, activation, flat = layout
    norms = reduce.norm(activation, at)
    assert norms.ndim == activation.ndim - 1
    torch.testing.assert_close(norms.flatten(1), flat.square().sum(dim=-1).sqrt())


def test_a_projection_gives_the_coordinates_along_its_columns(layout: tuple[Any, Tensor, Tensor]) -> None:
    at, activation, flat = layout
    basis = noise(flat.shape[-1], 3, seed=1)
    seen = reduce.project(basis)(activation, at)
    assert seen.shape[-1] == 3
    torch.testing.assert_close(seen.flatten(1, -2), flat @ basis)


def test_channels_are_those_asked_for_in_their_order(layout: tuple[Any, Tensor, Tensor]) -> None:
    at, activation, flat = layout
    assert torch.equal(reduce.channels([3, -1])(activation, at).flatten(1, -2), flat[..., [3, -1]])


def test_random_tokens_are_the_same_for_one_size_and_differ_by_seed(layout: tuple[Any, Tensor, Tensor]) -> None:
    at, activation, flat = layout
    subset = reduce.tokens(4, seed=2)
    chosen: Tensor = subset.indices(flat.shape[1])  # type: ignore[attr-defined]
    assert len(set(chosen.tolist())) == 4
    assert torch.equal(subset(activation, at), flat[:, chosen])
    assert torch.equal(subset(activation + 1, at), flat[:, chosen] + 1)
    other = [reduce.tokens(4, seed=s).indices(flat.shape[1]).tolist() for s in range(5)]  # type: ignore[attr-defined]
    assert len({tuple(o) for o in other}) > 1


def test_top_k_gives_signed_values_and_their_channels(layout: tuple[Any, Tensor, Tensor]) -> None:
    at, activation, flat = layout
    found = reduce.top_k(2)(activation, at).flatten(1, -3)
    values, where = found[..., 0, :], found[..., 1, :].long()
    order = flat.abs().argsort(dim=-1, descending=True)[..., :2]
    assert torch.equal(where, order)
    assert torch.equal(values, flat.gather(-1, order))


def test_top_k_of_bfloat16_names_channels_that_bfloat16_cannot_hold() -> None:
    activation = torch.zeros(1, 1, 400, dtype=torch.bfloat16)
    activation[..., 389] = -3
    assert reduce.top_k(1)(activation).flatten().tolist() == [-3, 389]


def test_the_mean_over_frames_keeps_them() -> None:
    tokens, state = LAYOUTS["tokens"][1], LAYOUTS["latents"][1]
    torch.testing.assert_close(reduce.frame_mean(tokens, make_at(VIDEO))[:, 1], tokens[:, 1].mean(dim=(1, 2)))
    torch.testing.assert_close(reduce.frame_mean(state, make_at(STATE))[:, 1], state[:, :, 1].mean(dim=(2, 3)))
    assert tuple(reduce.frame_mean(state, make_at(STATE)).shape) == (2, 3, 5)
    with pytest.raises(InputError, match=rf"frame_mean at {TEXT}.*\(2, 7, 6\) has no frames"):
        reduce.frame_mean(LAYOUTS["text"][1], make_at(TEXT))


@given(st.integers(1, 9), st.integers(0, 5))
def test_a_subset_is_rising_and_within_its_tokens(count: int, seed: int) -> None:
    chosen = reduce.tokens(count, seed).indices(9).tolist()  # type: ignore[attr-defined]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    assert set(chosen) <= set(range(9))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "basis of no matrix": (lambda: reduce.project(noise(6)), r"shape \(channels, k\), got torch.float32 \(6,\)"),
    "basis of integers": (lambda: reduce.project(torch.ones(6, 2, dtype=torch.int64)), "int64"),
    "basis of another width": (lambda: reduce.project(noise(7, 2))(noise(2, 4, 6), make_at(TEXT)), "L00/resid.*0..5"),
    "no channels": (lambda: reduce.channels([]), "at least one"),
    "channel that is not there": (lambda: reduce.channels([6])(noise(2, 4, 6)), r"\(6,\).*channels 0\.\.5"),
    "no tokens": (lambda: reduce.tokens(0), r"count=0.*at least 1"),
    "too many tokens": (lambda: reduce.tokens(5)(noise(2, 4, 6)), "count=5.*there are 4"),
    "half a channel": (lambda: reduce.top_k(0.5), "k=0.5"),  # type: ignore[arg-type]
    "too many channels": (lambda: reduce.top_k(7)(noise(2, 4, 6)), r"set for 7.*0\.\.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_reduced_is_refused(case: str) -> None:
    make, names = BAD[case]
    with pytest.raises(InputError, match=names):
        make()


def test_at_goes_to_reductions_that_declare_it() -> None:
    assert takes_at(reduce.norm)
    assert takes_at(lambda x, at: x)
    assert takes_at(lambda x, where: x)
    assert takes_at(reduce.top_k(1))
    assert not takes_at(lambda x: x)
    assert not takes_at(lambda x, eps=1e-6: x)
    assert not takes_at(torch.Tensor.norm)
    assert not takes_at(torch.sigmoid)
