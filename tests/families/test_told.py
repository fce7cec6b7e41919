"""What blocks and the output head are told besides their residual streams: read, edited, refused, in every family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.engine.layout import as_before, per_row
from dit_lens.errors import DidNotFire, DonorError, EvidenceError, InputError, SiteError, UnsupportedModel
from dit_lens.families.base import bind
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.families.told import apart, side_by_side
from dit_lens.interventions.base import FromFunction
from dit_lens.sites.site import MODULATIONS, TOLD_COMPONENTS
from dit_lens.validation.told_checks import check_flow
from dit_lens.validation.witness import Subject
from tests.subjects import forward_hooks

Arguments = Mapping[str, Any]
Expected = Mapping[tuple[str, str], Callable[[Arguments], Tensor]]


def cat(*names: str) -> Callable[[Arguments], Tensor]:
    return lambda given: torch.cat([given[name] for name in names], dim=-1)


def words(name: str) -> Callable[[Arguments], Tensor]:
    """From a bias of 0 and -10000."""
    return lambda given: (given[name][:, 0] > -5000).float()[..., None]


_WAN: Expected = {("context", "text"): cat("encoder_hidden_states"), ("modulation", "video"): cat("temb")}
_WAN_IMAGE: Expected = {
    ("context", "text"): lambda given: given["encoder_hidden_states"][:, 5:],
    ("context", "image"): lambda given: given["encoder_hidden_states"][:, :5],
    ("modulation", "video"): cat("temb"),
}
_COGVIDEOX: Expected = {("modulation", "video"): cat("temb")}
_LTX: Expected = {**_WAN, ("mask", "text"): words("encoder_attention_mask")}
#: By tiny pipeline, all that its first block is told: from the arguments of its forward.
EXPECTED: Mapping[str, Expected] = {
    **dict.fromkeys(("wan2.1-t2v", "wan2.2-a14b", "wan2.2-ti2v", "wan2.2-ti2v-image", "skyreels-v2"), _WAN),
    **dict.fromkeys(("wan2.1-i2v", "skyreels-v2-i2v"), _WAN_IMAGE),
    **dict.fromkeys(("cogvideox-1.0", "cogvideox-1.5"), _COGVIDEOX),
    "cosmos": {
        ("context", "text"): cat("encoder_hidden_states"),
        ("modulation", "video"): cat("embedded_timestep", "temb"),
    },
    "hunyuanvideo": {
        ("modulation", "video"): cat("temb"),
        ("mask", "text"): lambda given: given["attention_mask"][:, 0, 0, 24:, None].float(),
    },
    "hunyuanvideo-1.5": {
        ("modulation", "video"): cat("temb"),
        ("mask", "text"): lambda given: given["attention_mask"][..., None].float(),
    },
    "mochi": {
        ("modulation", "video"): cat("temb"),
        ("mask", "text"): lambda given: given["encoder_attention_mask"][..., None].float(),
    },
    "allegro": _LTX,
    "ltx-video": _LTX,
    "ltx-2": {
        ("context", "text"): cat("encoder_hidden_states"),
        ("context", "audio"): cat("audio_hidden_states"),
        ("context", "audio_text"): cat("audio_encoder_hidden_states"),
        ("modulation", "video"): cat("temb", "temb_ca_scale_shift", "temb_ca_gate", "temb_prompt"),
        ("modulation", "audio"): cat(
            "temb_audio", "temb_ca_audio_scale_shift", "temb_ca_audio_gate", "temb_prompt_audio"
        ),
        ("mask", "text"): words("encoder_attention_mask"),
        ("mask", "audio_text"): words("audio_encoder_attention_mask"),
    },
}
#: Families whose pooled prompt is part of the modulation.
POOLED = ("hunyuanvideo", "mochi")
MASKED = tuple(name for name, expected in EXPECTED.items() if ("mask", "text") in expected)


@cache
def subject_of(name: str) -> Subject:
    tiny = TINY[name]
    return Subject(dl.VideoDiT(tiny.build()), tiny.inputs(), dict(tiny.settings))


@cache
def twins_of(name: str) -> dl.Run:
    """One step of two rows of one noise and different inputs, everything told captured."""
    subject = subject_of(name)
    keep = [everything(name), dl.Capture(dl.Sites("velocity", steps=0))]
    return subject.run(keep, inputs=subject.own_inputs, seed=[11, 11], record=True, stop_after=0)


def everything(name: str) -> dl.Capture:
    components = tuple(dict.fromkeys(component for component, _ in EXPECTED[name]))
    return dl.Capture(dl.Sites((*components, "head_modulation"), steps=0, stream="all"))


def velocity(name: str, branch: str = "cond") -> Tensor:
    return twins_of(name)[dl.Site(0, branch, None, "velocity")]


def of_the_other(name: str, sites: dl.Sites) -> FromFunction:
    return FromFunction(sites, lambda x, at: twins_of(name)[at.site][[1, 0]])


def replayed(name: str, *edits: Any, **more: Any) -> Tensor:
    found: Tensor = subject_of(name).model.replay(twins_of(name), 0, edits, **more).velocities["cond"]
    return found


def test_the_table_is_of_every_family() -> None:
    assert set(EXPECTED) == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_a_layer_says_what_it_is_told(name: str) -> None:
    geometry = twins_of(name).geometry
    for kind in geometry.kinds:
        told = {(c, s) for s, components in kind.components.items() for c in components if c in TOLD_COMPONENTS}
        assert told == set(EXPECTED[name])
    assert geometry.streams == (("video", "text") if name.startswith(("hunyuan", "mochi", "cog")) else ("video",))


@pytest.mark.parametrize("name", TINY)
def test_what_is_read_is_what_the_blocks_forward_was_given(name: str) -> None:
    subject = subject_of(name)
    run = subject.run([everything(name)])
    for call, blocks in zip(run.calls, subject.plain.calls, strict=True):
        for branch in call.branches if call.step == 0 else ():
            for layer, block in enumerate(blocks):
                for (component, stream), expected in EXPECTED[name].items():
                    given = expected(block.met.arguments)[call.rows(branch)]
                    read = run[dl.Site(0, branch, layer, component, stream)]
                    assert torch.equal(read, given), (branch, layer, component, stream)


@pytest.mark.parametrize("name", TINY)
def test_put_back_in_its_place_each_alone_changes_no_bit(name: str) -> None:
    for site in twins_of(name).captures[""]:
        if site.branch == "cond" and site.layer in (None, 1) and site.component != "velocity":
            sites = dl.Sites(site.component, 0, site.layer or "all", "cond", site.stream)
            same = FromFunction(sites, lambda x, at: x.clone())
            assert torch.equal(replayed(name, same), velocity(name)), site


@pytest.mark.parametrize("name", TINY)
def test_context_alone_moves_the_prediction_and_an_equal_time_nothing(name: str) -> None:
    for component, stream in EXPECTED[name]:
        moved = not torch.equal(
            replayed(name, of_the_other(name, dl.Sites(component, 0, 1, "cond", stream))), velocity(name)
        )
        differ = twins_of(name)[dl.Site(0, "cond", 1, component, stream)]
        assert moved == (not torch.equal(differ[0], differ[1])), (component, stream)
        if component == "modulation":
            assert moved == (name in POOLED)
        if (component, stream) == ("context", "text"):
            assert moved
    head = replayed(name, of_the_other(name, dl.Sites("head_modulation", 0, branches="cond")))
    assert torch.equal(head, velocity(name)) == (name not in POOLED)


@pytest.mark.parametrize("name", TINY)
def test_streams_and_what_is_told_are_all_that_the_rest_of_the_model_knows(name: str) -> None:
    assert "worst" in check_flow(subject_of(name))


@pytest.mark.parametrize("name", TINY)
def test_without_one_of_what_differs_the_other_rows_prediction_is_missed(name: str) -> None:
    """Each door that differs between the rows is needed: the identity of flow cannot hold by chance."""
    run, swapped = twins_of(name), velocity(name)[[1, 0]]
    embed = subject_of(name).run(
        [dl.Capture(dl.Sites("embed", steps=0, stream="all"))],
        inputs=subject_of(name).own_inputs, seed=[11, 11], stop_after=0,
    )  # fmt: skip
    streams = FromFunction(dl.Sites("embed", 0, stream="all"), lambda x, at: embed[at.site][[1, 0]])
    doors = {key: run[dl.Site(0, "cond", 0, *key)] for key in EXPECTED[name]}
    differ = [key for key, x in doors.items() if not torch.equal(x[0], x[1])]
    for left_out in differ:
        given = [of_the_other(name, dl.Sites(c, 0, stream=s)) for c, s in doors if (c, s) != left_out]
        head = [of_the_other(name, dl.Sites("head_modulation", 0))]
        error = float((replayed(name, streams, *given, *head) - swapped).abs().max())
        assert error > 1e-5 * float(swapped.abs().max()), left_out


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("component", ["modulation", "head_modulation"])
def test_an_edit_is_of_its_branch_and_step_alone(name: str, component: str) -> None:
    subject = subject_of(name)
    keep = dl.Capture(dl.Sites("velocity", steps=[0, 1]))
    before = subject.run([keep])
    noise = dl.Noise(dl.Sites(component, steps=1, layers=2, branches="uncond"), "add", dose=1.0)
    after = subject.run([noise, keep])
    moved = [str(s) for s in before.captures[""] if not torch.equal(before[s], after[s])]
    assert moved == ["s01/uncond/-/velocity/video"]


@pytest.mark.parametrize("name", TINY)
def test_the_parts_of_a_block_sum_to_its_update_under_an_edited_modulation(name: str) -> None:
    """So gates that a family computes itself see the edit."""
    geometry = twins_of(name).geometry
    parts = tuple(c for c in geometry.kinds[1].components["video"] if c not in (*TOLD_COMPONENTS, "resid"))
    keep = dl.Capture(dl.Sites((*parts, "resid"), steps=0, layers=1, branches="cond"))
    steered = FromFunction(dl.Sites("modulation", 0, 1), lambda x, at: 1.5 * x + 0.1)
    found = subject_of(name).model.replay(twins_of(name), 0, [steered, keep])
    read = {site.component: x.double() for site, x in found.captures[""].items()}
    error = (read["delta"] - sum(read[c] for c in parts if c != "delta")).abs().max()
    assert float(error) <= 8 * torch.finfo(torch.float32).eps * float(read["resid"].abs().max())


@pytest.mark.parametrize("name", [n for n in TINY if n != "ltx-2"])
def test_a_replay_from_a_layer_is_told_the_same(name: str) -> None:
    subject = subject_of(name)
    keep = dl.Capture(dl.Sites("resid", steps=0, layers=1, stream="all"))
    run = subject.run([keep], record=True, stop_after=0)
    edits = [dl.Noise(dl.Sites("modulation", 0, 3), "add"), dl.Noise(dl.Sites("head_modulation", 0), "add")]
    if ("context", "text") in EXPECTED[name]:
        edits.append(dl.Noise(dl.Sites("context", 0, [2, 3], stream="text"), "add"))
    whole, late = (subject.model.replay(run, 0, edits, from_layer=layer) for layer in (0, 2))
    assert torch.equal(whole.guided, late.guided)
    assert not torch.equal(whole.guided, subject.model.replay(run, 0).guided)
    with pytest.raises(SiteError, match="before step 0, layer 2"):
        subject.model.replay(run, 0, [dl.Capture(dl.Sites("modulation", 0, 1))], from_layer=2)


@pytest.mark.parametrize("name", MASKED)
def test_a_word_that_is_masked_is_masked_in_the_models_own_form(name: str) -> None:
    subject = subject_of(name)
    last = {branch: int(v.sum(dim=1).min()) - 1 for branch, v in twins_with_mask(name).text_valid.items()}["cond"]
    sites = dl.Sites("mask", 0, 1, "cond", "text", dl.Tokens(positions=last))
    seen = dl.Capture(sites.at(tokens=dl.Tokens()))
    inputs = (subject.inputs[0],) * 2
    run = subject.run([dl.Ablate(sites), seen], inputs=inputs, record=True, stop_after=0)
    mask = run[dl.Site(0, "cond", 1, "mask", "text")]
    assert (mask[:, last] == 0).all()
    assert set(mask.unique().tolist()) == {0.0, 1.0}

    block = subject.architecture.blocks(subject.model.pipeline.transformer)[1]
    argument = "attention_mask" if name.startswith("hunyuan") else "encoder_attention_mask"

    def by_hand(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = bind(block, args, kwargs)[argument].clone()
        rows = slice(-2, None)  # the conditional ones
        cell = 24 + last if given.ndim == 4 else last
        given[rows, ..., cell] = 0 if given.dtype == torch.bool or name == "mochi" else -10000.0
        place = 3 if len(args) > 3 else None
        return (args, {**kwargs, argument: given}) if place is None else ((*args[:3], given, *args[4:]), kwargs)

    plain = subject.run([dl.Capture(dl.Sites("velocity", 0))], inputs=inputs, stop_after=0)
    call = next(call for call in run.calls if "cond" in call.branches)
    transformer = subject.model.pipeline.transformer
    with torch.no_grad(), forward_hooks(block, by_hand, before=True):
        output = transformer(*call.args, **call.kwargs)[0][call.rows("cond")]
    made = subject.model.replay(run, 0, [dl.Ablate(sites)]).velocities["cond"]
    unpacked = subject.architecture.unpack(output, tuple(run.geometry.shapes["latents"]))
    assert torch.equal(made, unpacked)
    assert not torch.equal(made, plain[dl.Site(0, "cond", None, "velocity")])


@cache
def twins_with_mask(name: str) -> dl.Run:
    subject = subject_of(name)
    return subject.run([dl.Capture(dl.Sites("mask", 0, stream="text"))], inputs=(subject.inputs[0],) * 2, stop_after=0)


@pytest.mark.parametrize("name", ["allegro", "ltx-video"])
def test_a_context_of_another_number_of_words_is_refused(name: str) -> None:
    """In LTX-2 the text's connector fills the padding, and every position is read."""
    patch = dl.Patch("rows", dl.Sites("context", 0, 1, "cond", "text"), rows=(1, 0))
    with pytest.raises(DonorError, match="the donor's text has 5, 8 words"):
        subject_of(name).run([patch], stop_after=0)


def test_steering_goes_along_the_last_axis() -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    for sites in (
        dl.Sites("modulation", 0, 1),
        dl.Sites("context", 0, 1, stream="text"),
        dl.Sites("head_modulation", 0),
    ):
        seen: list[Tensor] = []
        before = FromFunction(sites, lambda x, at, seen=seen: seen.append(x.clone()))
        replayed("wan2.1-t2v", before, dl.Steer(sites, direction, 2.0, normalize=False), before)
        one, two = seen[0], seen[-1] if len(seen) == 2 else seen[1]
        assert torch.equal(two, one + 2.0 * direction)
        with pytest.raises(InputError, match=r"need \(32,\)"):
            replayed("wan2.1-t2v", dl.Steer(sites, direction[:7]))


def test_an_image_and_a_text_in_one_argument_are_told_apart() -> None:
    name, at_block = "wan2.1-i2v", (0, 1, "cond")
    seen = dl.Capture(dl.Sites("context", *at_block, stream="all"))
    zero = dl.Ablate(dl.Sites("context", *at_block, stream="image"))
    noisy = FromFunction(dl.Sites("context", *at_block, stream="text"), lambda x, at: x + 1)
    found = subject_of(name).model.replay(twins_of(name), 0, [zero, noisy, seen])
    text, image = (dl.Site(0, "cond", 1, "context", stream) for stream in ("text", "image"))
    assert not found[image].any()
    assert torch.equal(found[text], twins_of(name)[text] + 1)


@pytest.mark.parametrize(("name", "blocks"), [("wan2.1-t2v", 0), ("ltx-video", 0), ("mochi", 4), ("cosmos", 4)])
def test_a_run_for_the_heads_modulation_alone_stops_where_it_is_met(name: str, blocks: int) -> None:
    subject = subject_of(name)
    branches = subject.architecture.calls(subject.model.pipeline, subject.settings)[0]
    both = dl.Sites("head_modulation", steps=0, branches=branches)
    run = subject.run([dl.Capture(both)], stop_after="last site")
    assert run.ledger.block_forwards == 2 * blocks * len(branches)


def test_a_lens_reads_the_edited_head_or_refuses() -> None:
    """Where the head is told by its embedder the edit is in what is kept; behind the blocks it is not."""
    edit = dl.Noise(dl.Sites("head_modulation", 0), "add")
    wan = subject_of("wan2.1-t2v")
    last = dl.Sites("resid", steps=0, layers=-1, branches="cond")
    found = wan.model.replay(twins_of("wan2.1-t2v"), 0, [edit, dl.Capture(last)])
    (residual,) = found.captures[""].values()
    call = twins_of("wan2.1-t2v").recorded(0)[0]
    assert torch.equal(wan.model.read_out(call, residual, found.conditioning["cond"]), found.velocities["cond"])
    mochi = subject_of("mochi")
    found = mochi.model.replay(twins_of("mochi"), 0, [edit, dl.Capture(last)])
    (residual,) = found.captures[""].values()
    with pytest.raises(InputError, match="edited head_modulation"):
        mochi.model.read_out(twins_of("mochi").recorded(0)[0], residual, found.conditioning["cond"])


_FRAME, _ROW, _TEXT = dl.Tokens(frames=0), dl.Tokens(rows=(0, 1)), "text"
REFUSED: Mapping[str, tuple[str, dl.Sites, str]] = {
    "the video's context": ("wan2.1-i2v", dl.Sites("context"), "context has text, image"),
    "the video's mask": ("mochi", dl.Sites(("resid", "mask")), "mask has no stream video; it has text"),
    "a context that is a stream": ("mochi", dl.Sites("context", stream=_TEXT), "has no context"),
    "a text's embedding": ("wan2.1-t2v", dl.Sites(("embed", "context"), stream=_TEXT), "embed has no stream text"),
    "a text's modulation": ("mochi", dl.Sites("modulation", stream=_TEXT), "modulation has video"),
    "tokens of a modulation": ("wan2.1-t2v", dl.Sites("modulation", tokens=_FRAME), "modulation has no tokens"),
    "tokens of the head's": ("wan2.1-t2v", dl.Sites("head_modulation", tokens=_ROW), "head_modulation has no tokens"),
    "the text's head": ("mochi", dl.Sites("head_modulation", stream=_TEXT), "head_modulation belongs to the video"),
    "frames of a text": ("ltx-video", dl.Sites("context", stream=_TEXT, tokens=_FRAME), "text stream has positions"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_model_is_not_told_is_refused_with_what_it_is(what: str) -> None:
    name, sites, sentence = REFUSED[what]
    with pytest.raises(SiteError, match=sentence):
        subject_of(name).run([dl.Capture(sites)], stop_after=0)


@pytest.mark.parametrize(
    ("name", "edit", "sentence"),
    [
        ("ltx-video", lambda x: x * 0.5, "need 1 where attention may read"),
        ("hunyuanvideo", lambda x: x + 1, "need 1 where attention may read"),
        ("ltx-video", torch.zeros_like, "nothing to read"),
        ("mochi", lambda x: x.flip(1), "before the padding"),
    ],
)
def test_a_mask_that_the_model_cannot_have_is_refused(
    name: str, edit: Callable[[Tensor], Tensor], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        replayed(name, FromFunction(dl.Sites("mask", 0, 1, stream="text"), lambda x, at: edit(x)))


def test_what_makes_no_sense_of_what_is_told_is_refused() -> None:
    with pytest.raises(InputError, match=r"Noise\(mode='add'\) at mask"):
        dl.Noise(dl.Sites("mask", stream="text"), "add")
    for component in MODULATIONS:
        with pytest.raises(InputError, match="has no tokens"):
            dl.Ablate(dl.Sites(component), "mean", reference=torch.zeros(1, 6, 32), over="tokens")
        for reduce in ("token_mean", "frame_mean"):
            with pytest.raises(InputError, match=r"no tokens|no frames"):
                replayed("wan2.2-ti2v", dl.Capture(dl.Sites(component, 0, 1), reduce=reduce, name=reduce))
    for component in (*TOLD_COMPONENTS, "head_modulation"):
        with pytest.raises(SiteError, match="Bypass cannot leave out"):
            dl.Bypass(dl.Sites(component))
        with pytest.raises(EvidenceError, match="is none of them"):
            dl.Readout(dl.Sites(component))


def test_entries_that_serve_all_rows_or_belong_several_to_each_are_given_by_row() -> None:
    one, several = torch.randn(1, 6, 4), torch.randn(6, 4)
    assert torch.equal(per_row(one, 3), one.expand(3, 6, 4))
    assert torch.equal(as_before(per_row(one, 3), one), one.expand(3, 6, 4))
    assert torch.equal(per_row(several, 2)[1], several[3:])
    assert torch.equal(as_before(per_row(several, 2), several), several)
    with pytest.raises(UnsupportedModel, match="6 entries for 4 rows"):
        per_row(several, 4)


def test_several_tensors_are_one_and_several_again() -> None:
    tensors = [torch.randn(2, 3, 4), torch.randn(2, 3, 5).half()]
    whole = side_by_side(tensors)
    assert whole is not None
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(apart(whole, tensors), tensors, strict=True))
    assert side_by_side([]) is None
    with pytest.raises(UnsupportedModel, match=r"\(2, 1\), \(2, 3\)"):
        side_by_side([torch.randn(2, 3, 4), torch.randn(2, 1, 4)])


def test_a_mask_that_a_call_is_not_given_is_not_offered() -> None:
    subject = subject_of("ltx-video")
    transformer, hand = subject.model.pipeline.transformer, lambda m, a, k: (a, {**k, "encoder_attention_mask": None})
    with forward_hooks(transformer.transformer_blocks[1], hand, before=True), pytest.raises(DidNotFire, match="mask"):
        subject.run([dl.Capture(dl.Sites("mask", 0, stream="text"))])
