"""Addresses: canonical strings, JSON, selection, order."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dit_lens as dl
from dit_lens.errors import SiteError
from dit_lens.sites import COMPONENTS, LAYER_COMPONENTS, STEP_COMPONENTS, indices

GEOMETRY = dl.Geometry(steps=3, layers=4, branches=("cond", "uncond"), grid=(5, 2, 4))


@st.composite
def sites(draw: st.DrawFn) -> dl.Site:
    component = draw(st.sampled_from(COMPONENTS))
    branch = None if component in STEP_COMPONENTS else draw(st.sampled_from(["cond", "uncond", "stg", "modality"]))
    layer = draw(st.integers(0, 200)) if component in LAYER_COMPONENTS else None
    return dl.Site(
        draw(st.integers(0, 2000)), branch, layer, component, draw(st.sampled_from(["video", "text", "audio"]))
    )


ends = st.none() | st.integers(-9, 9)
selects = (
    st.just("all")
    | st.integers(-9, 9)
    | st.lists(st.integers(-9, 9), min_size=1)
    | st.builds(slice, ends, ends, st.none() | st.sampled_from([1, 2, -1]))
)
boxes = st.none() | st.tuples(st.integers(0, 4), st.integers(5, 9))
tokens = st.builds(dl.Tokens, selects, boxes, boxes)
chosen_components = st.sampled_from(COMPONENTS) | st.lists(st.sampled_from(COMPONENTS), min_size=1).map(tuple)
chosen_branches = st.sampled_from(["all", "cond", "uncond"]) | st.just(("cond", "uncond"))
selections = st.builds(dl.Sites, chosen_components, selects, selects, chosen_branches, st.just("video"), tokens)


@given(sites())
def test_a_canonical_string_read_back_is_the_same_site(site: dl.Site) -> None:
    assert dl.Site.parse(str(site)) == site


@given(st.lists(sites(), unique=True))
def test_different_sites_have_different_strings(many: list[dl.Site]) -> None:
    assert len({str(site) for site in many}) == len(many)


@given(selections)
def test_a_selection_written_to_json_and_read_back_is_the_same(selection: dl.Sites) -> None:
    assert dl.Sites.from_json(json.loads(json.dumps(selection.to_json()))) == selection


@given(selections)
def test_a_selection_prints_itself(selection: dl.Sites) -> None:
    text = str(selection)
    assert all(component in text for component in selection.components)
    assert ("tokens" in text) == (selection.tokens != dl.Tokens())


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (dl.Site(3, "cond", 5, "delta"), "s03/cond/L05/delta/video"),
        (dl.Site(0, "uncond", None, "velocity"), "s00/uncond/-/velocity/video"),
        (dl.Site(12, None, None, "latents"), "s12/-/-/latents/video"),
    ],
)
def test_the_canonical_string_reads_as_documented(site: dl.Site, text: str) -> None:
    assert str(site) == text


@pytest.mark.parametrize(
    "text", ["", "s3", "s03/cond/L05/nothing/video", "s03/cond/05/delta/video", "s03/cond/L05/delta"]
)
def test_what_is_no_site_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SiteError, match="s03/cond/L05/delta/video"):
        dl.Site.parse(text)


def test_sigma_and_expert_ride_along_and_do_not_make_another_site() -> None:
    plain = dl.Site(1, "cond", 2, "resid")
    dressed = dl.Site(1, "cond", 2, "resid", sigma=0.5, expert="low_noise")
    assert plain == dressed
    assert hash(plain) == hash(dressed)
    assert str(plain) == str(dressed)


# -- selection ---------------------------------------------------------------------------------------------------------

SELECTIONS: list[tuple[Any, list[int]]] = [
    ("all", [0, 1, 2, 3, 4]),
    (2, [2]),
    (-1, [4]),
    (slice(1, 3), [1, 2]),
    (slice(-2, None), [3, 4]),
    (slice(None, None, 2), [0, 2, 4]),
    (slice(3, 99), [3, 4]),
    ([3, 1], [1, 3]),
    ([-1, 4, 0], [0, 4]),
    (range(1, 4), [1, 2, 3]),
    ((0, 2), [0, 2]),
    (slice(None, None, -2), [0, 2, 4]),
    (np.int64(3), [3]),
    (np.array([2, 0]), [0, 2]),
    (lambda i: i % 2 == 1, [1, 3]),
]


@pytest.mark.parametrize(("select", "expected"), SELECTIONS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_selection_picks_these_indices_in_order(select: Any, expected: list[int]) -> None:
    assert indices(select, 5, "layer") == expected


@pytest.mark.parametrize(
    "select", [5, -6, [0, 5], "some", 1.5, True, [True], ["a"], [], slice(5, 9), lambda i: False, None, [None]]
)
def test_what_is_out_of_range_or_picks_nothing_is_refused_with_the_range(select: Any) -> None:
    with pytest.raises(SiteError, match=r"layers 0\.\.4"):
        indices(select, 5, "layer")


@given(selects, st.integers(1, 9))
def test_a_selection_agrees_with_plain_indexing_of_a_list(select: Any, size: int) -> None:
    every = list(range(size))
    try:
        if select == "all":
            expected = every
        elif isinstance(select, slice):
            expected = sorted(every[select])
        else:
            expected = sorted({every[i] for i in ([select] if isinstance(select, int) else select)})
    except IndexError:
        expected = []
    if expected:
        assert indices(select, size, "step") == expected
    else:
        with pytest.raises(SiteError):
            indices(select, size, "step")


# -- resolving ---------------------------------------------------------------------------------------------------------


def test_sites_resolve_in_execution_order_whatever_order_they_were_given_in() -> None:
    chosen = dl.Sites(("guided", "velocity", "resid", "delta", "latents", "model_input", "embed"), [1], [2, 0])
    assert [str(s) for s in chosen.resolve(GEOMETRY)] == [
        "s01/-/-/latents/video",
        *(
            f"s01/{branch}/{rest}/video"
            for branch in ("cond", "uncond")
            for rest in ("-/model_input", "-/embed", "L00/delta", "L00/resid", "L02/delta", "L02/resid", "-/velocity")
        ),
        "s01/-/-/guided/video",
    ]


def test_everything_is_every_step_branch_and_layer_once() -> None:
    everything = dl.Sites(COMPONENTS).resolve(GEOMETRY)
    assert len(everything) == len(set(everything)) == 3 * (2 + 2 * (3 + 2 * 4))
    assert [s.step for s in everything] == sorted(s.step for s in everything)


def test_one_branch_can_be_chosen() -> None:
    assert {s.branch for s in dl.Sites("resid", branches="uncond").resolve(GEOMETRY)} == {"uncond"}
    assert {s.branch for s in dl.Sites("resid", branches=("cond",)).resolve(GEOMETRY)} == {"cond"}
    several = dl.Sites("velocity", steps=0, branches=("uncond", "cond", "uncond")).resolve(GEOMETRY)
    assert [s.branch for s in several] == ["cond", "uncond"]


def test_at_is_a_copy_with_changes() -> None:
    base = dl.Sites("delta", steps=0)
    assert base.at(layers=3) == dl.Sites("delta", steps=0, layers=3)
    assert base == dl.Sites("delta", steps=0)


BAD_SITES: dict[str, tuple[dict[str, Any], str]] = {
    "component": ({"component": "mlp"}, "latents, model_input, embed, delta, resid, velocity, guided"),
    "layer": ({"layers": 4}, r"layers 0\.\.3"),
    "step": ({"steps": 3}, r"steps 0\.\.2"),
    "branch": ({"branches": "stg"}, "cond, uncond"),
    "stream": ({"stream": "audio"}, "video"),
    "frame": ({"tokens": dl.Tokens(frames=5)}, r"latent frames 0\.\.4"),
    "row": ({"tokens": dl.Tokens(rows=(0, 3))}, r"rows 0\.\.1"),
    "column": ({"tokens": dl.Tokens(columns=(2, 5))}, r"columns 0\.\.3"),
    "empty box": ({"tokens": dl.Tokens(rows=(1, 1))}, r"rows 0\.\.1"),
    "tokens of latents": ({"component": "latents", "tokens": dl.Tokens(frames=0)}, "residual stream"),
}


@pytest.mark.parametrize("what", list(BAD_SITES))
def test_sites_that_the_model_does_not_have_are_refused_with_those_it_has(what: str) -> None:
    arguments, valid = BAD_SITES[what]
    with pytest.raises(SiteError, match=valid):
        dl.Sites(**arguments).resolve(GEOMETRY)


def test_numpy_integers_are_integers_everywhere() -> None:
    chosen = dl.Sites(steps=np.int64(2), layers=np.arange(2))
    assert chosen.resolve(GEOMETRY) == dl.Sites(steps=2, layers=[0, 1]).resolve(GEOMETRY)
    assert json.dumps(chosen.to_json()) == json.dumps(dl.Sites(steps=2, layers=[0, 1]).to_json())
    assert "2" in str(chosen)


def test_a_predicate_has_no_json() -> None:
    with pytest.raises(SiteError, match="list the indices"):
        dl.Sites(layers=lambda k: k > 1).to_json()


# -- tokens ------------------------------------------------------------------------------------------------------------


@given(tokens)
def test_take_and_put_touch_the_selected_tokens_and_no_other(selected: dl.Tokens) -> None:
    grid = (9, 9, 9)
    numbers = torch.arange(9**3).reshape(1, *grid, 1)
    try:
        selected.validate(grid)
    except SiteError:
        return
    frames = range(9) if selected.frames == "all" else indices(selected.frames, 9, "latent frame")
    rows, columns = (range(*(box or (0, 9))) for box in (selected.rows, selected.columns))
    expected = {(f * 9 + r) * 9 + c for f in frames for r in rows for c in columns}
    assert set(selected.take(numbers).flatten().tolist()) == expected
    replaced = selected.put(numbers, -selected.take(numbers) - 1)
    changed = (replaced != numbers).flatten().nonzero().flatten().tolist()
    assert set(changed) == expected
    assert numbers.min() == 0
