"""Means, medians and weighted means of rows, known beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import InputError
from tests.interventions.by_hand import check, make_at, noise
from tests.subjects import Subject

RESID = dl.Sites("resid")
SITE = "s00/cond/L00/resid/video"
ROWS = noise(6, 3, 4)


def merged(activation: Tensor = ROWS, site: str = SITE, **settings: Any) -> Tensor:
    return dl.Merge(RESID, **settings)(activation, make_at(site, len(activation)))


def weighted(weights: Any, **settings: Any) -> Tensor:
    return merged(how="weighted", weights=weights, **settings)


@pytest.mark.parametrize("how", ["mean", "median"])
def test_only_the_receiver_changes(how: str) -> None:
    result = merged(group=3, receiver=1, how=how)
    assert torch.equal(result[[0, 2, 3, 5]], ROWS[[0, 2, 3, 5]])
    assert not torch.equal(result[[1, 4]], ROWS[[1, 4]])


def test_the_receiver_gets_the_mean() -> None:
    assert torch.equal(merged(group=3, receiver=1)[1], ROWS[:3].mean(dim=0))


def test_the_median_is_of_every_element_and_of_two_in_the_middle_their_mean() -> None:
    assert torch.equal(merged(group=3, how="median")[3], ROWS[3:].median(dim=0).values)
    ordered = ROWS[:4].sort(dim=0).values
    assert torch.equal(merged(ROWS[:4], group=4, how="median")[0], ordered[1:3].mean(dim=0))


def test_one_outlier_moves_the_mean_and_not_the_median() -> None:
    rows = torch.ones(3, 2)
    rows[2] = 1000
    assert merged(rows, how="median")[0].tolist() == [1, 1]
    assert merged(rows)[0].tolist() == [334, 334]


def test_weights_are_divided_by_their_sum() -> None:
    torch.testing.assert_close(weighted((1, 2, 1))[0], 0.25 * ROWS[0] + 0.5 * ROWS[1] + 0.25 * ROWS[2])
    assert torch.equal(weighted((2, 4, 2)), weighted((1, 2, 1)))


def test_a_weight_of_one_row_alone_gives_that_row() -> None:
    assert torch.equal(weighted((0, 5, 0))[[0, 3]], ROWS[[1, 4]])
    assert torch.equal(weighted((1, 0, 0)), ROWS)


def test_weights_may_leave_the_span_of_the_rows() -> None:
    torch.testing.assert_close(weighted((-1, 2), group=2)[0], 2 * ROWS[1] - ROWS[0])


def test_all_rows_may_receive() -> None:
    result = weighted((1, 1, 2), receiver="all")
    assert torch.equal(result[:3], result[:1].expand(3, 3, 4))
    assert torch.equal(result[3:], result[3:4].expand(3, 3, 4))
    torch.testing.assert_close(result[3], (ROWS[3] + ROWS[4] + 2 * ROWS[5]) / 4)


def test_weights_may_depend_on_the_step() -> None:
    def fading(step: int) -> tuple[float, ...]:
        return (step, 1, 0)

    assert torch.equal(weighted(fading)[0], ROWS[1])
    later = weighted(fading, site="s03/cond/L00/resid/video")
    torch.testing.assert_close(later[0], 0.75 * ROWS[0] + 0.25 * ROWS[1])


def test_narrow_dtypes_are_rounded_once() -> None:
    rows = noise(3, 50).bfloat16()
    exact = (rows.float() * torch.tensor([0.2, 0.3, 0.5])[:, None]).sum(dim=0)
    assert torch.equal(merged(rows, how="weighted", weights=(2, 3, 5))[0], exact.bfloat16())


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.01))
def test_a_merge_of_equal_rows_is_the_identity(weights: list[float]) -> None:
    rows = ROWS[:1].expand(3, 3, 4)
    for how, given_weights in (("mean", None), ("median", None), ("weighted", weights)):
        torch.testing.assert_close(merged(rows, how=how, weights=given_weights), rows)


@given(st.permutations([0, 1, 2]), st.sampled_from(["mean", "median"]))
def test_donors_may_change_places(order: list[int], how: str) -> None:
    torch.testing.assert_close(merged(ROWS[order], how=how, receiver="all"), merged(ROWS[:3], how=how, receiver="all"))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"how": "mode"}, "'mode'.*'mean', 'median', 'weighted'"),
        ({"how": "weighted"}, "weights=None.*'weighted' takes weights"),
        ({"weights": (1, 1, 1)}, "how='mean'.*no other"),
        ({"how": "weighted", "weights": (1, 1)}, "need 3 numbers"),
        ({"how": "weighted", "weights": (1, -3, 1)}, "sum must be positive, it is -1"),
        ({"how": "weighted", "weights": (1, -1, 0)}, "sum must be positive, it is 0"),
        ({"how": "weighted", "weights": (1, float("nan"), 0)}, "nan.*finite number"),
    ],
)
def test_bad_settings_are_refused_when_they_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        dl.Merge(RESID, **settings)


def test_weights_are_asked_for_every_step_before_the_run() -> None:
    def short(step: int) -> tuple[float, ...]:
        return (1,) * (3 - (step == 2))

    merge = dl.Merge(RESID, how="weighted", weights=short)
    with pytest.raises(InputError, match=r"at step 2: need 3"):
        check(merge, rows=3)
    check(dl.Merge(RESID.at(steps=[0, 1]), how="weighted", weights=short), rows=3)


def test_a_weighted_merge_in_a_run_is_the_weighted_mean(organism: Subject) -> None:
    sites = dl.Sites("resid", steps=1, layers=2)
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "decode": False}
    plain = organism.model.run(organism.inputs[0], (1, 2, 3), interventions=[dl.Capture(sites)], **settings)
    merge = dl.Merge(sites, how="weighted", weights=lambda step: (1, step, 0))
    run = organism.model.run(organism.inputs[0], (1, 2, 3), interventions=[merge, dl.Capture(sites)], **settings)
    site = dl.Site(1, "cond", 2, "resid")
    torch.testing.assert_close(run[site][0], plain[site][:2].mean(dim=0))
    assert torch.equal(run[site][1:], plain[site][1:])
