"""The attention lens on every family, against softmaxes in double precision of what the model's attention was given.

Where the video and the text lie, and which attention of a block is which, is written down here once more by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import UnsupportedModel
from dit_lens.families.tiny.pipelines import TINY
from tests.lens.attention.one_step import OneStep, attention

STEP = 1
EXACT = 1e-6

#: Families of joint attention: which comes first.
JOINT = {
    "hunyuanvideo": "video", "hunyuanvideo-1.5": "video", "mochi": "video",
    "cogvideox-1.0": "text", "cogvideox-1.5": "text",
}  # fmt: skip
#: Place of an attention among those that a block computes in one call; by default first itself, then the text.
PLACES = {
    "wan2.1-i2v": {"self": 0, "image": 1, "cross": 2},
    "skyreels-v2-i2v": {"self": 0, "image": 1, "cross": 2},
    "ltx-2": {"self": 0, "cross": 2},
}
SEEING = ("wan2.1-i2v", "skyreels-v2-i2v")
CASES = [
    (name, kind)
    for name in TINY
    for kind in ("self", *([] if name in JOINT else ["cross"]), *(["image"] if name in SEEING else []))
]


@dataclass
class Scored:
    """One attention: what it was given and what the model's own function made of it."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    output: Tensor

    def map(self) -> Tensor:
        """(B, heads, queries, keys) in double precision."""
        scores = self.query.double() @ self.key.double().mT / self.query.shape[-1] ** 0.5
        if self.mask is not None and self.mask.dtype == torch.bool:
            scores = torch.where(self.mask, scores, -torch.inf)
        elif self.mask is not None:
            scores = scores + self.mask
        return scores.softmax(-1)


@dataclass
class Record:
    """Every attention of every block, by call and layer."""

    calls: list[dict[int, list[Scored]]] = field(default_factory=list)
    layer: int | None = None

    def enter(self, layer: int) -> None:
        if layer == 0:
            self.calls.append({})
        self.layer = layer
        self.calls[-1][layer] = []

    def leave(self) -> None:
        self.layer = None


@contextmanager
def recorded(model: dl.VideoDiT, expert: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """Torch's attention replaced by itself with a notebook."""
    record, own = Record(), F.scaled_dot_product_attention

    def noting(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        assert more.get("scale") is None
        assert not more.get("is_causal")
        assert key.shape[1] == query.shape[1]
        output = own(query, key, value, attn_mask=attn_mask, **more)
        if record.layer is not None:
            record.calls[-1][record.layer].append(Scored(query, key, value, attn_mask, output))
        return output

    handles = []
    for layer, block in enumerate(model.architecture.blocks(model.experts[expert])):
        handles.append(block.register_forward_pre_hook(lambda *_, layer=layer: record.enter(layer)))
        handles.append(block.register_forward_hook(lambda *_: record.leave()))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(F, "scaled_dot_product_attention", noting)
            yield record
    finally:
        for handle in handles:
            handle.remove()


@cache
def run_of(name: str) -> tuple[dl.VideoDiT, dl.Run]:
    """Two rows with different prompts (and pictures, where several are taken), recorded."""
    tiny = TINY[name]
    model, (one, other) = dl.VideoDiT(tiny.build()), tiny.inputs()
    if name in SEEING:
        other = {**other, "image": one["image"]}
    settings = {**tiny.settings, "num_inference_steps": STEP + 1}
    return model, model.run([one, other], [1, 2], record=True, decode=False, **settings)


def own_scores(name: str, kind: str, branch: str, monkeypatch: pytest.MonkeyPatch) -> list[list[Scored]]:
    """What each layer computed for each of the two rows: B x layers."""
    model, run = run_of(name)
    call = next(c for c in run.recorded(STEP) if branch in c.branches)
    with recorded(model, call.expert, monkeypatch) as record:
        model.replay(run, STEP)
    start = 2 * call.branches.index(branch)
    found = []
    for scored in record.calls[call.nth].values():
        if name == "mochi":
            found.append(scored[start : start + 2])
            continue
        s = scored[PLACES.get(name, {"self": 0, "cross": 1})[kind]]
        rows = [slice(r, r + 1) for r in (start, start + 1)]
        masks = [None if s.mask is None else s.mask[r] if len(s.mask) > 1 else s.mask for r in rows]
        found.append([
            Scored(s.query[r], s.key[r], s.value[r], m, s.output[r]) for r, m in zip(rows, masks, strict=True)
        ])  # fmt: skip
    return found


def video_first(name: str, tokens: int, whole: Tensor, axis: int) -> Tensor:
    """[text; video] turned into [video; text]."""
    text = whole.shape[axis] - tokens
    return whole.roll(-text, axis) if JOINT.get(name) == "text" else whole


def rounding(terms: int) -> float:
    """How far two sums of so many terms in single precision may lie apart (the model's own is one of them)."""
    return float(4 * torch.finfo(torch.float32).eps * terms**0.5)


def branches_of(name: str) -> tuple[str, ...]:
    return run_of(name)[1].geometry.branches


def region_of(kind: str) -> dl.Tokens:
    return dl.Tokens(frames=1, rows=(0, 1)) if kind == "self" else dl.Tokens(positions=[0, 2])


@cache
def reading(name: str, kind: str, branch: str, layers: Any = "all") -> OneStep:
    model, run = run_of(name)
    return attention(
        model, run, STEP, kind=kind, branch=branch, layers=layers, region=region_of(kind), keep_maps=True
    )  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_maps_are_the_softmax_of_what_the_model_used_and_give_its_output(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = 528 if name == "allegro" else 24
    for branch in [b for b in branches_of(name) if (name, b) != ("ltx-2", "stg")]:
        found = reading(name, kind, branch)
        assert found.maps is not None
        scores = own_scores(name, kind, branch, monkeypatch)
        assert len(scores) == len(found.layers) == 4
        for layer, of_layer in enumerate(scores):
            for row, scored in enumerate(of_layer):
                expected = scored.map()[0]
                output, value, maps = scored.output[0], scored.value[0], found.maps[layer, row]
                if kind == "self":
                    expected = video_first(name, tokens, video_first(name, tokens, expected, 1), 2)[:, :tokens]
                    output, value = (video_first(name, tokens, x, 1) for x in (output, value))
                used = expected.shape[-1]
                assert (maps[..., :used] - expected).abs().max() < EXACT
                assert (maps[..., used:] == 0).all()  # Mochi leaves the padding of the text out
                error = (maps[..., :used] @ value - output[:, :tokens]).abs().max()
                assert error < rounding(used) * value.abs().max()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_reduction_is_that_of_the_maps(name: str, kind: str) -> None:
    _, run = run_of(name)
    grid, tokens = run.geometry.grid, run.geometry.grid[0] * run.geometry.grid[1] * run.geometry.grid[2]
    found = reading(name, kind, "cond")
    assert found.maps is not None
    assert found.region is not None
    by_frame = found.maps.double().unflatten(3, (grid[0], -1)).mean(4)  # (layers, B, heads, F, keys)
    others = by_frame if kind != "self" else by_frame[..., tokens:]
    if kind == "self":
        video = by_frame[..., :tokens].unflatten(-1, grid)
        assert found.frames is not None
        assert (found.frames - video.sum((-1, -2))).abs().max() < EXACT
        assert (found.region - video[..., 1, 0, :].sum(-1)).abs().max() < EXACT
    else:
        assert found.frames is None
        assert (found.region - by_frame[..., [0, 2]].sum(-1)).abs().max() < EXACT
    on_others = found.image if kind == "image" else found.text
    if others.shape[-1]:
        assert on_others is not None
        assert (on_others - others).abs().max() < EXACT
    entropy = torch.special.entr(found.maps.double()).sum(-1).unflatten(3, (grid[0], -1)).mean(4)
    assert (found.entropy - entropy).abs().max() < EXACT
    assert float(found.entropy_share.max()) <= 1 + EXACT


@pytest.mark.parametrize("name", ["wan2.1-t2v", "skyreels-v2", "cosmos", "allegro", "ltx-video"])
def test_maps_times_values_are_what_the_output_projection_is_given(name: str) -> None:
    """Seen by hooks on the family's own modules alone."""
    model, run = run_of(name)
    seen: dict[str, Tensor] = {}
    module = model.architecture.blocks(model.experts[None])[2].attn1
    call = next(c for c in run.recorded(STEP) if "cond" in c.branches)
    handles = [
        module.to_v.register_forward_hook(lambda _m, _i, out: seen.setdefault(f"v{len(seen) // 2}", out)),
        module.to_out[0].register_forward_pre_hook(lambda _m, given: seen.setdefault(f"z{len(seen) // 2}", given[0])),
    ]
    try:
        model.replay(run, STEP)
    finally:
        for handle in handles:
            handle.remove()
    value, given = (seen[f"{x}{call.nth}"][call.rows("cond")] for x in "vz")
    maps = reading(name, "self", "cond", layers=2).maps
    assert maps is not None
    mixed = maps[0] @ value.unflatten(-1, (2, -1)).transpose(1, 2)
    error = (mixed.transpose(1, 2).flatten(2) - given).abs().max()
    assert error < rounding(maps.shape[-1]) * value.abs().max()


@pytest.mark.parametrize("name", list(JOINT))
def test_a_family_of_joint_attention_has_no_cross_attention_and_says_so(name: str) -> None:
    with pytest.raises(UnsupportedModel, match="share one softmax"):
        reading(name, "cross", "cond")


def test_words_that_the_model_masks_or_leaves_out_have_no_mass_at_all() -> None:
    """ "move the blue circle" has fewer words than the text has positions."""
    for name in ("hunyuanvideo", "hunyuanvideo-1.5", "mochi", "ltx-video", "allegro"):
        text = reading(name, "self" if name in JOINT else "cross", "cond").text
        assert text is not None
        assert (text.amax((0, 2, 3)) > 1e-3).any(-1).all()
        assert (text[..., -1] == 0).all() or (text[..., 0] == 0).all()


def test_a_branch_that_leaves_attention_out_is_refused_for_those_layers_alone() -> None:
    with pytest.raises(UnsupportedModel, match="layer 1: the model leaves attn1 out"):
        reading("ltx-2", "self", "stg")
    assert reading("ltx-2", "self", "stg", layers=(0, 2, 3)).layers == (0, 2, 3)


def test_a_model_without_an_image_encoder_has_no_attention_to_images() -> None:
    with pytest.raises(UnsupportedModel, match="reads text and no image"):
        reading("wan2.1-t2v", "image", "cond")


def test_the_expert_of_the_step_is_read() -> None:
    model, run = run_of("wan2.2-a14b")
    experts = list(dl.attention(model, run, sites=dl.Sites("head", layers=0)).reading.experts)
    assert experts == [c.expert for c in run.calls if c.branch == "cond"]
    assert set(experts) <= {"high_noise", "low_noise"}
