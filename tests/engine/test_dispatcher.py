"""What a run leaves in the pipeline (nothing), and what its ledger counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import NotFinite
from tests.subjects import STEPS, Edit, Subject, capture, forward_hooks, leftovers


class Broken(RuntimeError):
    """An error that no library raises."""


def break_down(*_: Any) -> None:
    raise Broken("on purpose")


def spoil(x: Tensor, at: dl.At) -> Tensor:
    return torch.full_like(x, float("nan"))


# -- clean-up ----------------------------------------------------------------------------------------------------------

FAILING: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "an intervention in a block": ({"interventions": [Edit(dl.Sites("delta", steps=1, layers=2), break_down)]}, Broken),
    "an intervention at the input": ({"interventions": [Edit(dl.Sites("model_input", steps=1), break_down)]}, Broken),
    "an intervention at the state": ({"interventions": [Edit(dl.Sites("latents", steps=1), break_down)]}, Broken),
    "an intervention at the first state": ({"interventions": [Edit(dl.Sites("latents", steps=0), break_down)]}, Broken),
    "the body": ({"body": break_down}, Broken),
    "NaN in a block": ({"interventions": [Edit(dl.Sites("resid", layers=0), spoil)]}, NotFinite),
    "NaN in the state": ({"interventions": [Edit(dl.Sites("latents", steps=1), spoil)]}, NotFinite),
    "the pipeline itself": ({"num_videos_per_prompt": 2}, ValueError),
}


@pytest.mark.parametrize("cause", list(FAILING))
def test_a_run_that_fails_leaves_nothing_behind_and_the_pipeline_gives_the_same_bits(
    subject: Subject, guidance: float, cause: str
) -> None:
    before = subject.plain(guidance=guidance)
    arguments, error = FAILING[cause]
    with pytest.raises(error):
        subject.run(guidance=guidance, **arguments)
    assert leftovers(subject.pipeline) == []
    assert torch.equal(subject.plain(guidance=guidance), before)
    assert torch.equal(subject.run(guidance=guidance, interventions=[capture()]).latents, before)


def test_a_run_leaves_nothing_behind(subject: Subject) -> None:
    before = subject.plain()
    subject.run(record=True, body=lambda call, dit: None, interventions=[capture()])
    assert leftovers(subject.pipeline) == []
    assert torch.equal(subject.plain(), before)


def test_a_replay_that_fails_leaves_nothing_behind(subject: Subject) -> None:
    run = subject.run(record=True)
    with pytest.raises(Broken):
        subject.model.replay(run, 1, [Edit(dl.Sites("delta", steps=1, layers=2), break_down)])
    assert leftovers(subject.pipeline) == []


def test_a_users_own_wrapping_by_nnsight_still_traces_after_a_run(subject: Subject) -> None:
    arguments = dict(subject.run(record=True).calls[0].kwargs)
    transformer = subject.pipeline.transformer
    before = {path: dict(module.__dict__) for path, module in transformer.named_modules()}
    try:
        own = nnsight.NNsight(transformer)
        model = dl.VideoDiT(subject.pipeline, defaults=subject.model.defaults)
        inputs, seed = subject.inputs[0], subject.seeds[0]
        settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "decode": False}
        run = model.run(inputs, seed, interventions=[capture()], **settings)
        with torch.no_grad(), own.trace(0, fn=lambda _: transformer(**arguments)):
            seen = own.blocks[1].output.save()
        assert torch.equal(seen.flatten(), run["s00/cond/L01/resid/video"].flatten())
        assert torch.equal(run.latents, model.run(inputs, seed, body=lambda call, dit: None, **settings).latents)
    finally:
        # The wrapping was the user's to take off again; other tests share this pipeline.
        for path, module in transformer.named_modules():
            module.__dict__.clear()
            module.__dict__.update(before[path])


def test_a_prepare_latents_of_the_users_own_is_used_and_stays(organism: Subject) -> None:
    pipeline, stock = organism.pipeline, organism.pipeline.prepare_latents

    def doubled(*args: Any, **kwargs: Any) -> Any:
        state, *rest = stock(*args, **kwargs)
        return (2 * state, *rest)

    pipeline.prepare_latents = doubled
    try:
        expected = organism.plain()
        assert torch.equal(organism.run(interventions=[capture()]).latents, expected)
        assert pipeline.prepare_latents is doubled
    finally:
        del pipeline.prepare_latents
    assert not torch.equal(organism.plain(), expected)


def test_two_models_around_one_pipeline_do_not_disturb_each_other(organism: Subject) -> None:
    other = dl.VideoDiT(organism.pipeline, defaults=organism.model.defaults)
    first = organism.run(interventions=[capture("delta")])
    arguments = {
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,
        "decode": False,
        "interventions": [capture("delta")],
    }
    second = other.run(organism.inputs[0], organism.seeds[0], **arguments)
    third = organism.run(interventions=[capture("delta")])
    for run in (second, third):
        assert all(torch.equal(run[site], tensor) for site, tensor in first.captured().items())


def test_torch_hooks_of_the_users_own_fire_once_a_call_during_a_run(organism: Subject) -> None:
    calls = []
    with forward_hooks(organism.pipeline.transformer, lambda *_: calls.append(1)):
        organism.run(guidance=2.0, interventions=[capture()])
        organism.run(guidance=2.0)
    assert len(calls) == 2 * 2 * STEPS


# -- ledger ------------------------------------------------------------------------------------------------------------


class Counter:
    """Counts by torch's own hooks: denoiser calls, and rows that passed through denoisers and blocks."""

    def __init__(self) -> None:
        self.calls = self.rows = self.block_rows = 0

    @contextmanager
    def on(self, subject: Subject) -> Iterator[None]:
        with ExitStack() as stack:
            for transformer in subject.model.experts.values():
                # What every call of a denoiser does once, also where its forward is called and not the module.
                stack.enter_context(forward_hooks(transformer.patch_embedding, self._call))
                for block in transformer.blocks:
                    stack.enter_context(forward_hooks(block, self._block))
            yield

    def _call(self, _module: Any, args: tuple[Tensor, ...], _kwargs: Any, _output: Any) -> None:
        self.calls += 1
        self.rows += len(args[0])

    def _block(self, _module: Any, args: tuple[Tensor, ...], _kwargs: Any, _output: Any) -> None:
        self.block_rows += len(args[0])


@pytest.mark.parametrize("attached", [False, True], ids=["bare", "capturing"])
def test_the_ledger_counts_what_torch_hooks_count(subject: Subject, guidance: float, attached: bool) -> None:
    counter = Counter()
    interventions = [capture()] if attached else []
    settings = {"num_inference_steps": STEPS, "guidance_scale": guidance, "decode": False}
    with counter.on(subject):
        run = subject.model.run(list(subject.inputs), [1, 2], interventions=interventions, **settings)
    ledger = run.ledger
    assert (ledger.calls, ledger.denoiser_forwards, ledger.block_forwards) == (
        counter.calls,
        counter.rows,
        counter.block_rows,
    )
    branches = 2 if guidance > 1 else 1
    assert counter.rows == 2 * STEPS * branches
    assert counter.block_rows == counter.rows * subject.model.layers
    assert ledger.captured_bytes == sum(t.nbytes for t in run.captures.get("", {}).values())
    assert (ledger.captured_bytes > 0) == attached
    assert 0 < ledger.seconds < 60


def test_a_replays_ledger_counts_its_own_step_alone(subject: Subject, guidance: float) -> None:
    run = subject.run(guidance=guidance, record=True)
    counter = Counter()
    with counter.on(subject):
        ledger = subject.model.replay(run, 1, [capture("delta", steps=1)]).ledger
    assert (ledger.calls, ledger.denoiser_forwards, ledger.block_forwards) == (
        counter.calls,
        counter.rows,
        counter.block_rows,
    )
    assert counter.calls == len(run.geometry.branches)


def test_captured_bytes_are_those_of_the_reduced_tensors(organism: Subject) -> None:
    mean = dl.Capture(dl.Sites("resid"), reduce=lambda x: x.mean(dim=(1, 2, 3)), name="mean")
    run = organism.run(interventions=[mean])
    assert run.ledger.captured_bytes == STEPS * 4 * 128 * 4
    assert {tuple(t.shape) for t in run.captured("mean").values()} == {(1, 128)}


def test_ledgers_add_up() -> None:
    total = dl.Ledger(1, 2, 3, 4, 5.0)
    total.add(dl.Ledger(10, 20, 30, 40, 50.0))
    assert total == dl.Ledger(11, 22, 33, 44, 55.0)


def test_a_capture_is_a_copy_that_later_edits_do_not_reach(organism: Subject) -> None:
    known = organism.run(interventions=[capture("resid", layers=1)])

    def body(call: dl.Call, dit: Any) -> None:
        # In place, on the very tensor that the capture saw.
        dit.blocks[1].output.zero_()

    edited = organism.run(interventions=[capture("resid", layers=1)], body=body)
    assert torch.equal(edited["s00/cond/L01/resid/video"], known["s00/cond/L01/resid/video"])
