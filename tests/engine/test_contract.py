"""What an intervention may do is the same at every site of every family, and everything else is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.engine.vae import to_bytes
from dit_lens.errors import DonorError, InputError, NotFinite
from dit_lens.families.tiny.pipelines import TINY
from tests.subjects import Edit

FAMILIES = list(TINY)
PLACES = ("latents", "model_input", "embed", "attn", "ffn", "delta", "resid", "velocity")


@cache
def built(name: str, dtype: torch.dtype = torch.float32) -> tuple[dl.VideoDiT, Any, dict[str, Any]]:
    tiny = TINY[name]
    model = dl.VideoDiT(tiny.build().to(dtype))
    model.pipeline.set_progress_bar_config(disable=True)
    return model, tiny.inputs()[0], {**tiny.settings, "num_inference_steps": 2}


def run(name: str, *interventions: Any, dtype: torch.dtype = torch.float32, **more: Any) -> dl.Run:
    model, given, settings = built(name, dtype)
    return model.run(given, 3, interventions=interventions, **{"decode": False, **settings, **more})


def has(name: str, component: str) -> bool:
    model, given, settings = built(name)
    geometry = model.geometry(given, **settings)
    return component in geometry.shapes


def sites(name: str, component: str) -> dl.Sites:
    # Where the pipeline overwrites frames of the state, those that it leaves.
    model, given, settings = built(name)
    fixed = model.geometry(given, **settings).fixed_frames
    tokens = dl.Tokens(frames=[1]) if component == "latents" and fixed else dl.Tokens()
    layers = {"layers": 1} if component in ("attn", "ffn", "delta", "resid") else {}
    return dl.Sites(component, steps=1, tokens=tokens, **layers)  # type: ignore[arg-type]


# -- changes in place


@pytest.mark.parametrize("component", PLACES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_change_in_place_is_refused(name: str, component: str) -> None:
    if not has(name, component):
        pytest.skip(f"{name} has no {component}")
    clean = run(name).latents
    for function in (lambda x, at: x.mul_(2), lambda x, at: _none(x.mul_(2))):
        with pytest.raises(InputError, match=rf"Edit changed the activation at s01/\S*/{component}/video in place"):
            run(name, Edit(sites(name, component), function))
    assert torch.equal(run(name).latents, clean)


def _none(_: Any) -> None:
    return None


def test_changes_in_place_of_a_part_of_a_donor_and_in_a_reduction_are_seen() -> None:
    name = "wan2.1-t2v"
    part = dl.Sites("resid", steps=1, layers=1, tokens=dl.Tokens(frames=0))
    masked = part.at(
        tokens=dl.Tokens(mask=torch.ones(built(name)[0].geometry(**built(name)[2]).grid, dtype=torch.bool))
    )
    text = dl.Sites("model_input", steps=0)
    for given in (part, masked, text):
        with pytest.raises(InputError, match="in place"):
            run(name, Edit(given, lambda x, at: x.add_(1)))
        with pytest.raises(InputError, match="Capture changed the activation"):
            run(name, dl.Capture(given, reduce=lambda x: x.clamp_(0)))
    with pytest.raises(InputError, match="in place"):
        run(name, Edit(part, lambda x, at: x[:, 0].zero_()))  # a view counts as well


def test_changes_in_place_are_seen_in_inference_mode() -> None:
    name = "wan2.1-t2v"
    expected = run(name, dl.Capture(dl.Sites("delta"))).latents
    with torch.inference_mode():
        assert torch.equal(run(name, dl.Capture(dl.Sites("delta"))).latents, expected)
        with pytest.raises(InputError, match="in place"):
            run(name, Edit(dl.Sites("delta", layers=1), lambda x, at: _none(x.mul_(2))))


def test_what_comes_with_an_activation_is_not_changed_either() -> None:
    text = dl.Sites("resid", layers=0, stream="text")
    clean = run("mochi", dl.Capture(text)).latents
    for name, site, change in (
        ("mochi", text, lambda x, at: _none(at.text_valid.fill_(True))),
        ("wan2.1-t2v", dl.Sites("latents", steps=1), lambda x, at: _none(at.x0hat.mul_(0))),
    ):
        with pytest.raises(InputError, match="Edit changed what `at` carries at s0"):
            run(name, Edit(site, change, reads_only=True))
    assert torch.equal(run("mochi").latents, clean)


def test_one_tensor_that_is_kept_again_and_again_is_refused() -> None:
    total = torch.zeros(())

    def running(x: Tensor) -> Tensor:
        return total.add_(x.norm()).reshape(1)

    with pytest.raises(InputError, match=r"kept at s00/\S* was changed in place afterwards.*must return a copy"):
        run("wan2.1-t2v", dl.Capture(dl.Sites("delta", branches="cond"), reduce=running))
    kept = run("wan2.1-t2v", dl.Capture(dl.Sites("delta", branches="cond"), reduce=lambda x: running(x).clone()))
    values = torch.cat(list(kept.captures[""].values()))
    assert (values.diff() > 0).all()


# -- dtypes


@pytest.mark.parametrize("component", PLACES)
@pytest.mark.parametrize("name", FAMILIES)
def test_another_dtype_is_cast_to_the_sites_own(name: str, component: str) -> None:
    if not has(name, component):
        pytest.skip(f"{name} has no {component}")

    def halved(x: Tensor, at: dl.At) -> Tensor:
        return x * 0.5

    expected = run(name, Edit(sites(name, component), halved)).latents
    wide = run(name, Edit(sites(name, component), lambda x, at: x.double() * 0.5)).latents
    assert wide.dtype == expected.dtype
    assert torch.equal(wide, expected)
    for function, got in ((lambda x, at: x > 0, "torch.bool"), (lambda x, at: x.long(), "torch.int64")):
        with pytest.raises(
            DonorError, match=rf"Edit returned {got} at s01/\S*; need floating point, best torch.float32"
        ):
            run(name, Edit(sites(name, component), function))


@pytest.mark.parametrize("component", PLACES)
@pytest.mark.parametrize("name", ["wan2.1-t2v", "hunyuanvideo", "ltx-video", "cogvideox-1.5"])
def test_float32_in_a_half_precision_model_is_rounded_once(name: str, component: str) -> None:
    dtype = torch.bfloat16
    found = [
        run(name, Edit(sites(name, component), function), dtype=dtype).latents
        for function in (lambda x, at: x.float() * 1.3, lambda x, at: (x.float() * 1.3).to(x.dtype))
    ]
    assert torch.equal(*found)
    assert not torch.equal(found[0], run(name, dtype=dtype).latents)


# -- captures inside a bypassed block


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_of_a_bypassed_block_can_be_captured(name: str) -> None:
    every = dl.Bypass(dl.Sites("delta", layers=1, stream="all"))
    parts = dl.Capture(dl.Sites(("attn", "ffn", "resid")))
    bypassed, both = run(name, every), run(name, every, parts)
    assert torch.equal(both.latents, bypassed.latents)
    assert both.ledger.block_forwards > bypassed.ledger.block_forwards
    layers = both.geometry.layers
    clean = run(name, parts)
    branch = clean.geometry.branches[0]
    for component in ("attn", "ffn", "resid"):
        found = both.stack(component, step=0, branch=branch)
        assert len(found) == layers == len(clean.stack(component, step=0, branch=branch))
        # Up to the bypassed block nothing differs: its own parts are what it computes of the clean stream.
        assert torch.equal(found[0], clean.stack(component, step=0, branch=branch)[0])
    assert torch.equal(both.stack("attn", step=0, branch=branch)[1], clean.stack("attn", step=0, branch=branch)[1])
    assert torch.equal(both.stack("resid", step=0, branch=branch)[1], both.stack("resid", step=0, branch=branch)[0])


def test_what_stands_before_a_bypass_sees_what_it_takes_away() -> None:
    name, delta = "wan2.1-t2v", dl.Sites("delta", layers=1)
    keep, bypass = dl.Capture(delta), dl.Bypass(delta)
    clean, before, after = run(name, keep), run(name, keep, bypass), run(name, bypass, keep)
    site = next(iter(clean.captures[""]))
    assert torch.equal(before[site], clean[site])
    assert not after[site].any()
    assert torch.equal(before.latents, after.latents)
    doubled = Edit(delta, lambda x, at: 2 * x)
    assert torch.equal(run(name, doubled, bypass).latents, before.latents)
    assert not torch.equal(run(name, bypass, Edit(delta, lambda x, at: x + 1)).latents, before.latents)


@pytest.mark.parametrize("name", ["wan2.1-t2v", "mochi"])
def test_the_ledger_leaves_bypassed_blocks_out_wherever_the_run_ends(name: str) -> None:
    bypass = dl.Bypass(dl.Sites("delta", steps=0, layers=1, stream="all"))
    until = dl.Capture(dl.Sites("resid", steps=0, layers=1))
    short, longer = (run(name, bypass, *more, stop_after="last site") for more in ((), (until,)))
    calls = run(name, dl.Capture(dl.Sites("velocity", steps=0)), stop_after=0).ledger.calls
    layers, rows = short.geometry.layers, 1
    before_last = (calls - 1) * (layers - 1)  # of branches that are calls of their own, all but the last are whole
    per_call = len(short.geometry.branches) // calls
    assert short.ledger.block_forwards == longer.ledger.block_forwards == rows * per_call * (before_last + 1)


# -- not finite


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_plain_or_recorded_run_that_is_not_finite_is_refused(value: float, record: bool) -> None:
    tiny = TINY["wan2.1-t2v"]
    model = dl.VideoDiT(tiny.build(), defaults=tiny.settings)
    good = model.run(tiny.inputs()[0], 3, record=True, decode=False)
    weight = model.pipeline.transformer.proj_out.weight.data
    weight[0, 0] = value
    with pytest.raises(NotFinite, match="at s00/cond/-/velocity/video"):
        model.run(tiny.inputs()[0], 3, record=record, decode=False)
    good.model_id = model.id  # the weights are those of the run, but for one that is broken
    with pytest.raises(NotFinite, match="at s01/cond/-/velocity/video"):
        model.replay(good, 1)


def test_nan_in_complex_captures_and_in_gradients_is_refused() -> None:
    site = dl.Sites("delta", steps=0, layers=0)
    with pytest.raises(NotFinite, match="values are NaN or infinite at s00"):
        run("wan2.1-t2v", dl.Capture(site, reduce=lambda x: torch.fft.fft(x.flatten(1)) / 0))
    model, given, settings = built("wan2.1-t2v")
    record = model.run(given, 3, decode=False, record=True, **settings)
    with pytest.raises(NotFinite, match="gradients: the metric is nan"):
        model.gradients(record, 0, lambda replay: replay.x0hat.sum() * float("nan"), site)
    with pytest.raises(NotFinite, match=r"derivatives are NaN or infinite at s00/cond/L00/delta"):
        model.gradients(record, 0, lambda replay: (replay.x0hat * 0).sum().abs().sqrt(), site)
    flat = model.gradients(record, 0, lambda replay: torch.zeros(()), site)
    assert not any(gradient.any() for gradient in flat.gradients.values())
    assert flat.gradients


def test_a_scheduler_or_a_vae_that_makes_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, settings = built("wan2.1-t2v")
    step = model.pipeline.scheduler.step
    with monkeypatch.context() as patch:
        patch.setattr(model.pipeline.scheduler, "step", lambda *a, **k: (step(*a, **k)[0] * float("nan"),))
        with pytest.raises(NotFinite, match="at s01/-/-/latents/video"):
            model.run(given, 3, decode=False, **settings)
    pixels = torch.zeros(1, 1, 2, 2, 3).numpy()
    pixels[0, 0, 0, 0] = float("nan")
    with pytest.raises(NotFinite, match="the VAE decoded 3 values that are NaN"):
        to_bytes(pixels)
    weight = next(model.pipeline.vae.decoder.parameters()).data
    before = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(NotFinite, match="the VAE decoded"):
            model.run(given, 3, **settings)
        with pytest.raises(NotFinite, match="the VAE decoded"):
            model.decode(run("wan2.1-t2v").latents)
    finally:
        weight.copy_(before)
