"""Where interventions only read, nothing waits for them, and they see what they see where they may edit."""

from __future__ import annotations

import weakref
from collections.abc import Generator
from functools import cache
from typing import Any

import pytest
import torch
from nnsight.intervention.interleaver import Mediator, OutOfOrderError
from torch import Tensor

import dit_lens as dl
from dit_lens.engine.envoys import Ask, _undo_all
from dit_lens.errors import InputError, NotFinite, PipelineBusy
from dit_lens.families.tiny.pipelines import TINY
from tests.subjects import Edit, leftovers

FAMILIES = list(TINY)
RESID = dl.Sites("resid")


@cache
def built(name: str) -> tuple[dl.VideoDiT, Any, dict[str, Any]]:
    tiny = TINY[name]
    model = dl.VideoDiT(tiny.build())
    model.pipeline.set_progress_bar_config(disable=True)
    return model, tiny.inputs()[0], {**tiny.settings, "num_inference_steps": 2}


def run(name: str, *interventions: Any, **more: Any) -> dl.Run:
    model, given, settings = built(name)
    return model.run(given, 3, interventions=interventions, **{"decode": False, **settings, **more})


def idle() -> Edit:
    """Changes nothing and might have: the model has to wait for every value of its call."""
    return Edit(dl.Sites("resid", layers=0), lambda x, at: None)


def everywhere(name: str) -> list[dl.Capture]:
    """Captures of every component and stream of a family."""
    model, given, settings = built(name)
    geometry = model.geometry(given, **settings)
    found = []
    for component in (c for c in geometry.shapes if c not in ("latents", "guided")):
        for stream in geometry.streams:
            sites = dl.Sites(component, stream=stream)
            try:
                sites.resolve(geometry)
            except dl.DitLensError:  # this stream has none of it
                continue
            found.append(dl.Capture(sites))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_reading_alone_sees_what_reading_beside_edits_sees(name: str) -> None:
    captures = everywhere(name)
    alone, beside = run(name, *captures), run(name, *captures, idle())
    assert torch.equal(alone.latents, beside.latents)
    assert torch.equal(alone.latents, run(name).latents)
    assert list(alone.captures[""]) == list(beside.captures[""])  # in the same order
    assert {site.component for site in alone.captures[""]} >= {"model_input", "embed", "delta", "resid", "velocity"}
    assert all(torch.equal(x, beside[site]) for site, x in alone.captures[""].items())
    assert alone.ledger.captured_bytes == beside.ledger.captured_bytes
    assert alone.ledger.block_forwards == beside.ledger.block_forwards
    assert leftovers(built(name)[0].pipeline) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_reading_beside_an_edit_that_changes_is_what_each_would_be_alone(name: str) -> None:
    edit = Edit(dl.Sites("delta", layers=1, steps=1), lambda x, at: 2 * x)
    mixed, edited = run(name, dl.Capture(RESID), edit), run(name, edit)
    assert torch.equal(mixed.latents, edited.latents)
    # The first step only reads, and nothing has been changed there yet.
    clean = run(name, dl.Capture(RESID))
    first = [site for site in clean.captures[""] if site.step == 0]
    assert first
    assert all(torch.equal(mixed[site], clean[site]) for site in first)
    assert not all(torch.equal(mixed[site], x) for site, x in clean.captures[""].items())


def switches(monkeypatch: pytest.MonkeyPatch, *interventions: Any) -> int:
    """How often the model stood still for a worker."""
    switch, counted = Mediator.switch, list[None]()

    def counting(self: Any, *args: Any) -> Any:
        counted.append(None)
        return switch(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Mediator, "switch", counting)
        run("wan2.1-t2v", *interventions)
    return len(counted)


def test_the_model_waits_for_nothing_that_only_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = everywhere("wan2.1-t2v")
    assert switches(monkeypatch, *everything) == 0
    assert switches(monkeypatch, *everything, idle()) > len(everything)


def _double(x: Tensor) -> Tensor:
    return x.mul_(2)


@pytest.mark.parametrize("component", ["model_input", "embed", "attn", "resid", "velocity"])
def test_a_reading_that_changes_in_place_is_refused(component: str) -> None:
    sites = dl.Sites(component)
    for reading in (Edit(sites, lambda x, at: _none(_double(x)), reads_only=True), dl.Capture(sites, reduce=_double)):
        with pytest.raises(InputError, match=rf"changed the activation at s00/\S*/{component}/video in place"):
            run("wan2.1-t2v", reading)
    assert leftovers(built("wan2.1-t2v")[0].pipeline) == []


def _none(x: Tensor) -> None:
    return None


@pytest.mark.parametrize("beside", [(), (idle(),)], ids=["alone", "beside an edit"])
def test_a_reading_that_returns_a_replacement_is_refused(beside: tuple[Edit, ...]) -> None:
    reading = Edit(dl.Sites("resid", layers=1), lambda x, at: 2 * x, reads_only=True)
    with pytest.raises(InputError, match=r"Edit says that it only reads and returned .* at s00/cond/L01/resid/video"):
        run("wan2.1-t2v", reading, *beside)


def test_what_is_not_finite_is_named_as_it_is_met() -> None:
    seen: list[int] = []

    def broken(x: Tensor, at: dl.At) -> Tensor:
        seen.append(at.site.layer or 0)
        return x * (float("nan") if at.site.layer == 1 else 1.0)

    with pytest.raises(NotFinite, match=r"at s00/cond/L01/resid/video; visited so far: s00/cond/L00/resid/video"):
        run("wan2.1-t2v", dl.Capture(RESID, reduce=broken))
    assert seen == [0, 1]  # nothing after it is met


@pytest.mark.parametrize("beside", [(), (idle(),)], ids=["alone", "beside an edit"])
def test_no_whole_output_outlives_the_moment_in_which_it_is_reduced(beside: tuple[Edit, ...]) -> None:
    model = built("wan2.1-t2v")[0]
    outputs: list[Any] = []
    alive: list[int] = []

    def pooled(x: Tensor) -> Tensor:
        alive.append(sum(output() is not None for output in outputs))
        return x.flatten(1, -2).mean(dim=1)

    def note(_module: Any, _args: Any, output: Tensor) -> None:
        outputs.append(weakref.ref(output))

    handles = [block.register_forward_hook(note) for block in model.pipeline.transformer.blocks]
    try:
        taken = run("wan2.1-t2v", dl.Capture(RESID, reduce=pooled), *beside)
    finally:
        for handle in handles:
            handle.remove()
    assert len(outputs) == len(taken.captures[""]) > 2
    assert max(alive) <= 1  # of the outputs before, the one that the block was given
    assert not any(output() is not None for output in outputs)


@pytest.mark.parametrize("beside", [(), (idle(),)], ids=["alone", "beside an edit"])
def test_a_run_ends_at_the_last_site_that_is_read(beside: tuple[Edit, ...]) -> None:
    model = built("wan2.1-t2v")[0]
    blocks = model.pipeline.transformer.blocks
    ran: list[int] = []
    handles = [block.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, block in enumerate(blocks)]
    last = dl.Capture(dl.Sites("resid", steps=0, layers=0))
    edits = [Edit(dl.Sites("resid", steps=0, layers=0), edit.function) for edit in beside]
    try:
        taken = run("wan2.1-t2v", last, *edits, stop_after="last site")
    finally:
        for handle in handles:
            handle.remove()
    branches = len(taken.geometry.branches)
    assert len(taken.captures[""]) == branches
    # All branches but the last are whole calls; the last one breaks off within the block.
    assert ran == list(range(len(blocks))) * (branches - 1)
    assert taken.ledger.block_forwards == len(blocks) * (branches - 1) + 1


def test_the_transformer_called_by_hand_by_what_reads_is_refused() -> None:
    model = built("wan2.1-t2v")[0]
    call = run("wan2.1-t2v", record=True).calls[0]
    before = run("wan2.1-t2v").latents

    def inside(x: Tensor) -> Tensor:
        model.pipeline.transformer(*call.args, **call.kwargs)
        return x

    with pytest.raises(PipelineBusy, match="was called while a run of it is active"):
        run("wan2.1-t2v", dl.Capture(RESID, reduce=inside))
    assert leftovers(model.pipeline) == []
    assert torch.equal(run("wan2.1-t2v").latents, before)


def test_what_the_model_never_comes_to_is_an_error() -> None:
    model = built("wan2.1-t2v")[0]
    run("wan2.1-t2v")
    tree: Any = next(iter(model._trees.values()))

    def walk() -> Generator[Ask, Any, None]:
        yield Ask("blocks.0", "output")

    with pytest.raises(OutOfOrderError, match=r"never came to the output of blocks\.0"):
        tree.look(lambda: None, walk(), (("blocks.0", "output"),))
    assert leftovers(model.pipeline) == []


def test_a_ctrl_c_while_things_are_put_back_leaves_none_of_them() -> None:
    done: list[str] = []

    def interrupted() -> None:
        done.append("second")
        if done.count("second") == 1:
            raise KeyboardInterrupt

    undo = [lambda: done.append("first"), interrupted, lambda: done.append("third")]
    with pytest.raises(KeyboardInterrupt):
        _undo_all(undo)
    assert done == ["third", "second", "second", "first"]
    assert not undo
