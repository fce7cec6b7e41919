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
from dit_lens.sites.geometry import Layer, Pixels
from dit_lens.sites.select import indices, show
from dit_lens.sites.site import COMPONENTS, LAYER_COMPONENTS, STEP_COMPONENTS, TOLD_COMPONENTS

#: Two dual-stream blocks, then two joint ones whose attention has a bias of its own.
DUAL = Layer("dual", {"video": ("attn", "ffn", "delta", "resid"), "text": ("attn", "ffn", "delta", "resid")},
             {"video": 2, "text": 2})  # fmt: skip
JOINT = Layer("joint-single", {"video": ("attn", "ffn", "bias", "delta", "resid"), "text": ("delta", "resid")})
GEOMETRY = dl.Geometry(
    steps=3, layers=4, branches=("cond", "uncond"), grid=(5, 2, 4), streams=("video", "text"),
    shapes={"latents": (8, 10, 4, 8)}, kinds=(DUAL, DUAL, JOINT, JOINT), pixels=Pixels(37, 32, 64, temporal=4),
)  # fmt: skip


@st.composite
def sites(draw: st.DrawFn) -> dl.Site:
    component = draw(st.sampled_from(COMPONENTS))
    branch = None if component in STEP_COMPONENTS else draw(st.sampled_from(["cond", "uncond", "stg", "modality"]))
    layer = draw(st.integers(0, 200)) if component in LAYER_COMPONENTS else None
    head = draw(st.integers(0, 99)) if component == "head" else None
    stream = draw(st.sampled_from(["video", "text"]))
    return dl.Site(draw(st.integers(0, 2000)), branch, layer, component, stream, head)


ends = st.none() | st.integers(-9, 9)
selects = (
    st.just("all")
    | st.integers(-9, 9)
    | st.lists(st.integers(-9, 9), min_size=1)
    | st.builds(slice, ends, ends, st.none() | st.sampled_from([1, 2, -1]))
)
boxes = st.none() | st.tuples(st.integers(0, 4), st.integers(5, 9))
pixel_boxes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(10, 32), st.integers(10, 64))
masks = st.builds(lambda bits: np.array(bits).reshape(5, 2, 4), st.lists(st.booleans(), min_size=40, max_size=40))
by_grid = st.builds(dl.Tokens, selects, boxes, boxes)
tokens = (
    by_grid
    | st.builds(lambda box, frames: dl.Tokens(box=box, pixel_frames=frames), pixel_boxes, boxes)
    | st.builds(lambda mask: dl.Tokens(mask=mask), masks)
    | st.builds(lambda positions: dl.Tokens(positions=positions), selects)
)
chosen_components = st.sampled_from(COMPONENTS) | st.lists(st.sampled_from(COMPONENTS), min_size=1).map(tuple)
chosen_branches = st.sampled_from(["all", "cond", "uncond"]) | st.just(("cond", "uncond"))
selections = st.builds(
    dl.Sites,
    chosen_components,
    selects,
    selects,
    chosen_branches,
    st.sampled_from(["video", "text", "all"]),
    tokens,
    selects,
)


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
    ("select", "text"),
    [(slice(1, None), "1:"), (slice(None, 3), ":3"), (slice(2, 5), "2:5"), (slice(None), ":"),
     (slice(0, 9, 2), "0:9:2"), ([4, 1], "4,1"), (3, "3"), ("all", "all")],
)  # fmt: skip
def test_a_selection_is_shown_as_python_writes_it(select: Any, text: str) -> None:
    assert show(select) == text


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (dl.Site(3, "cond", 5, "delta"), "s03/cond/L05/delta/video"),
        (dl.Site(0, "uncond", None, "velocity"), "s00/uncond/-/velocity/video"),
        (dl.Site(12, None, None, "latents"), "s12/-/-/latents/video"),
        (dl.Site(3, "cond", 5, "head", "text", 11), "s03/cond/L05/head.11/text"),
    ],
)
def test_the_canonical_string_reads_as_documented(site: dl.Site, text: str) -> None:
    assert str(site) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s3",
        "s03/cond/L05/head/video",
        "s03/cond/L05/resid.1/video",
        "s03/cond/L05/nothing/video",
        "s03/cond/05/delta/video",
    ],
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


def test_everything_is_every_step_branch_layer_and_head_once_and_nothing_that_a_layer_lacks() -> None:
    absent = ("pos", "cross_attn", "a2v", *TOLD_COMPONENTS)
    everything = dl.Sites(tuple(c for c in COMPONENTS if c not in absent)).resolve(GEOMETRY)
    dual, joint = 2 + 4, 5
    assert len(everything) == len(set(everything)) == 3 * (2 + 2 * (4 + 2 * dual + 2 * joint))
    assert [s.step for s in everything] == sorted(s.step for s in everything)


def test_a_component_that_only_some_layers_have_is_chosen_where_it_is() -> None:
    assert [s.layer for s in dl.Sites("bias", steps=0, branches="cond").resolve(GEOMETRY)] == [2, 3]
    heads = dl.Sites("head", steps=0, branches="cond", heads=-1, stream="all").resolve(GEOMETRY)
    assert [(s.layer, s.stream, s.head) for s in heads] == [
        (0, "video", 1), (0, "text", 1), (1, "video", 1), (1, "text", 1)
    ]  # fmt: skip


def test_a_stream_of_its_own_has_its_own_sites() -> None:
    text = dl.Sites(("embed", "resid"), steps=0, layers=1, branches="cond", stream="text").resolve(GEOMETRY)
    assert [str(s) for s in text] == ["s00/cond/-/embed/text", "s00/cond/L01/resid/text"]
    both = dl.Sites("resid", steps=0, layers=1, branches="cond", stream="all").resolve(GEOMETRY)
    assert [s.stream for s in both] == ["video", "text"]


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
    "component": (
        {"component": "mlp"},
        "latents, model_input, embed, context, modulation, mask, head, .*resid, head_modulation, velocity, guided",
    ),
    "component of no layer": (
        {"component": "cross_attn"},
        r"layer 0 \(dual\) has no cross_attn .* has attn, ffn, delta",
    ),
    "component of another layer": ({"component": "bias", "layers": [1, 2]}, "layer 1 .* no bias"),
    "heads of no layer": ({"component": "head", "layers": 2}, "do not sum to the attention"),
    "head": ({"component": "head", "layers": 0, "heads": 2}, r"heads 0\.\.1"),
    "latents of text": ({"component": "latents", "stream": "text"}, "latents belongs to the video"),
    "positions of video": ({"tokens": dl.Tokens(positions=0)}, "select in a text stream"),
    "frames of text": ({"stream": "text", "tokens": dl.Tokens(frames=0)}, "the text stream has positions"),
    "mask": ({"tokens": dl.Tokens(mask=np.ones((5, 2, 3), bool))}, r"\(5, 2, 3\).*\(5, 2, 4\)"),
    "mask of text": ({"stream": "text", "tokens": dl.Tokens(mask=np.ones((2, 3), bool))}, r"\(N,\).*\(2, 3\)"),
    "box": ({"tokens": dl.Tokens(box=(0, 0, 33, 64))}, "32 x 64 pixels"),
    "pixel frames": ({"tokens": dl.Tokens(pixel_frames=(0, 38))}, r"frames 0\.\.36"),
    "layer": ({"layers": 4}, r"layers 0\.\.3"),
    "step": ({"steps": 3}, r"steps 0\.\.2"),
    "branch": ({"branches": "stg"}, "cond, uncond"),
    "stream": ({"stream": "audio"}, "video, text"),
    "frame": ({"tokens": dl.Tokens(frames=5)}, r"latent frames 0\.\.4"),
    "row": ({"tokens": dl.Tokens(rows=(0, 3))}, r"rows 0\.\.1"),
    "column": ({"tokens": dl.Tokens(columns=(2, 5))}, r"columns 0\.\.3"),
    "empty box": ({"tokens": dl.Tokens(rows=(1, 1))}, r"rows 0\.\.1"),
    "frame of latents": ({"component": "latents", "tokens": dl.Tokens(frames=10)}, r"latent frames 0\.\.9"),
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

CUBE = dl.Geometry(steps=1, layers=1, branches=("cond",), grid=(9, 9, 9))


@given(by_grid)
def test_take_and_put_touch_the_selected_tokens_and_no_other(selected: dl.Tokens) -> None:
    numbers = torch.arange(9**3).reshape(1, 9, 9, 9, 1)
    try:
        selected.resolve(CUBE)
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


@given(by_grid)
def test_on_the_latent_grid_the_same_cells_are_selected_behind_the_channels(selected: dl.Tokens) -> None:
    numbers = torch.arange(9**3).reshape(1, 9, 9, 9, 1)
    try:
        selected.resolve(CUBE)
    except SiteError:
        return
    on_tokens = selected.take(numbers)[..., 0]
    on_cells = selected.take(numbers.permute(0, 4, 1, 2, 3), "latents")[:, 0]
    assert torch.equal(on_tokens, on_cells)
    zeroed = selected.put(numbers.permute(0, 4, 1, 2, 3), torch.zeros_like(on_cells)[:, None], "velocity")
    assert torch.equal(zeroed[0, 0], selected.put(numbers, torch.zeros_like(on_tokens)[..., None])[0, ..., 0])


@pytest.mark.parametrize("shape", [(5, 2, 4), (2, 4)], ids=["grid", "every frame"])
def test_a_mask_selects_the_tokens_where_it_is_true(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.5
    numbers = torch.arange(2 * 40).reshape(2, 5, 2, 4, 1)
    selected = dl.Tokens(mask=mask).resolve(GEOMETRY)
    expected = numbers.numpy()[:, np.broadcast_to(mask, (5, 2, 4))]
    assert np.array_equal(selected.take(numbers).numpy(), expected)
    changed = selected.put(numbers, torch.full_like(torch.from_numpy(expected), -1))
    assert np.array_equal((changed < 0).numpy()[0, ..., 0], np.broadcast_to(mask, (5, 2, 4)))
    assert dl.Tokens(mask=mask) == dl.Tokens(mask=torch.from_numpy(mask))
    assert hash(dl.Tokens(mask=mask)) == hash(dl.Tokens(mask=torch.from_numpy(mask)))


def test_positions_and_masks_select_in_a_text_stream() -> None:
    words = torch.arange(2 * 6 * 3).reshape(2, 6, 3)
    assert torch.equal(dl.Tokens(positions=[0, -1]).take(words), words[:, [0, 5]])
    mask = np.array([True, False, False, True, False, False])
    assert torch.equal(dl.Tokens(mask=mask).take(words), words[:, [0, 3]])
    put = dl.Tokens(positions=slice(1, 3)).put(words, torch.zeros(2, 2, 3, dtype=words.dtype))
    assert torch.equal((put == words).all(dim=-1)[0], torch.tensor([True, False, False, True, True, True]))


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [((0, 0, 32, 64), (0, 2), (0, 4)), ((0, 0, 1, 1), (0, 1), (0, 1)), ((15, 15, 17, 17), (0, 2), (0, 2)),
     ((16, 48, 32, 64), (1, 2), (3, 4)), ((16, 31, 17, 33), (1, 2), (1, 3))],
)  # fmt: skip
def test_a_box_in_pixels_is_every_token_that_it_touches(box: Any, rows: Any, columns: Any) -> None:
    assert dl.Tokens(box=box).resolve(GEOMETRY) == dl.Tokens(rows=rows, columns=columns)
    # On the latent grid (10, 4, 8) a cell is 8 pixels wide, not 16.
    top, left, bottom, right = box
    cells = dl.Tokens(box=box).resolve(GEOMETRY, component="latents")
    assert cells == dl.Tokens(rows=(top // 8, -(-bottom // 8)), columns=(left // 8, -(-right // 8)))


@pytest.mark.parametrize(
    ("pixels", "latent"), [((0, 1), (0,)), ((1, 2), (1,)), ((0, 5), (0, 1)), ((4, 6), (1, 2)), ((36, 37), (9,))]
)
def test_pixel_frames_are_the_latent_frames_of_a_causal_vae(pixels: Any, latent: tuple[int, ...]) -> None:
    """The first latent frame holds one pixel frame, every further one four."""
    assert dl.Tokens(pixel_frames=pixels).resolve(GEOMETRY, component="latents").frames == latent
    two_by_two = tuple(dict.fromkeys(f // 2 for f in latent))
    assert dl.Tokens(pixel_frames=pixels).resolve(GEOMETRY).frames == two_by_two


@pytest.mark.parametrize(
    "arguments",
    [{"mask": np.ones(3)}, {"mask": np.ones(3, bool), "frames": 1}, {"box": (0, 0, 1, 1), "rows": (0, 1)},
     {"pixel_frames": (0, 1), "frames": 0}, {"mask": np.zeros((5, 2, 4), bool)}, {"frames": np.array([0.5, 1])},
     {"frames": np.array([True, False])}, {"rows": np.array([0.0, 2.0])}, {"rows": (0, 1, 2)}, {"columns": 1},
     {"box": (0, 0, 1)}, {"pixel_frames": (0, True)}],
    ids=["numbers", "mask and frames", "box and rows", "two kinds of frames", "an empty mask", "parts of frames",
         "a mask of frames", "parts of rows", "three ends", "one end", "three sides", "a truth"],
)  # fmt: skip
def test_tokens_that_contradict_themselves_are_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(SiteError):
        dl.Tokens(**arguments)


def test_arrays_of_whole_numbers_select_as_lists_do() -> None:
    given = dl.Tokens(frames=np.array([0, 2]), rows=np.array([0, 2]), positions=np.int64(1))
    assert given == dl.Tokens(frames=(0, 2), rows=(0, 2), positions=1)
    assert not given.is_all
    sites = dl.Sites(steps=torch.tensor([0, 2]), layers=np.arange(2), tokens=dl.Tokens(columns=torch.tensor([1, 3])))
    assert sites == dl.Sites(steps=(0, 2), layers=(0, 1), tokens=dl.Tokens(columns=(1, 3)))
    assert dl.Sites.from_json(json.loads(json.dumps(sites.to_json()))).resolve(GEOMETRY) == sites.resolve(GEOMETRY)


@pytest.mark.parametrize("name", ["component", "branches", "stream"])
@pytest.mark.parametrize("given", [None, (), 3, ("cond", None)])
def test_names_are_one_or_a_list(name: str, given: Any) -> None:
    with pytest.raises(SiteError, match=f"{name}=.*: need a name, or a list of names"):
        dl.Sites(**{name: given})
