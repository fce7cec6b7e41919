"""An intervention in its three ways: in a run, beside a body, inside a trace of one's own."""

from __future__ import annotations

from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import InputError, SiteError
from tests.subjects import Edit, Subject, capture


@dl.intervention(dl.Sites("attn", layers=2))
def halve(activation: Tensor, at: dl.At) -> Tensor:
    return activation / 2


def test_a_decorated_function_is_an_intervention(subject: Subject, guidance: float) -> None:
    edit = Edit(dl.Sites("attn", layers=2), lambda x, at: x / 2)
    decorated = subject.run(guidance=guidance, interventions=[halve])
    assert torch.equal(decorated.latents, subject.run(guidance=guidance, interventions=[edit]).latents)
    assert not torch.equal(decorated.latents, subject.run(guidance=guidance).latents)


@pytest.mark.parametrize("component", ["model_input", "embed", "attn", "delta", "resid", "velocity"])
def test_applied_in_a_body_it_does_what_it_does_in_the_list(subject: Subject, guidance: float, component: str) -> None:
    edit = Edit(dl.Sites(component, layers=1), lambda x, at: x * 0.5)
    keep = capture("resid", "delta")

    def body(call: dl.Call, dit: Any) -> None:
        dl.apply(edit, call, dit)

    by_body = subject.run(guidance=guidance, body=body)
    by_list = subject.run(guidance=guidance, interventions=[edit])
    assert torch.equal(by_body.latents, by_list.latents)
    seen = subject.run(guidance=guidance, body=lambda call, dit: dl.apply(keep, call, dit))
    known = subject.run(guidance=guidance, interventions=[keep])
    assert seen.captured().keys() == known.captured().keys()
    assert all(torch.equal(t, seen[s]) for s, t in known.captured().items())
    assert seen.ledger.captured_bytes == known.ledger.captured_bytes


def test_applied_in_a_trace_of_ones_own_it_does_what_a_replay_does(text_to_video: Subject) -> None:
    run = text_to_video.run(record=True)
    call, transformer = run.calls[1], text_to_video.pipeline.transformer
    donor = text_to_video.run(1, interventions=[capture("delta")])
    patch = dl.Patch(donor, dl.Sites("delta", layers=1))
    kept: dict[dl.Site, Tensor] = {}
    before = {path: dict(module.__dict__) for path, module in transformer.named_modules()}
    dit: Any = nnsight.NNsight(transformer)
    try:
        with torch.no_grad(), dit.trace(0, fn=lambda _: transformer(*call.args, **call.kwargs)):
            dl.apply(patch, call, dit)
            dl.apply(capture("resid", layers=3), call, dit, into=kept)
            velocity = dit.output[0].save()
    finally:
        for path, module in transformer.named_modules():
            module.__dict__.clear()
            module.__dict__.update(before[path])
    again = text_to_video.model.replay(run, 1, [patch, capture("resid", layers=3)])
    assert torch.equal(velocity, again.velocities["cond"])
    assert list(kept) == [dl.Site(1, "cond", 3, "resid")]
    assert torch.equal(kept[dl.Site(1, "cond", 3, "resid")], again.captures[""][dl.Site(1, "cond", 3, "resid")])
    assert next(iter(kept)).sigma == run.sigmas[1]


def test_a_capture_with_nowhere_to_go_is_refused(text_to_video: Subject) -> None:
    call = text_to_video.run(record=True).calls[0]
    tree: Any = text_to_video.model._trees[None]
    forward = text_to_video.pipeline.transformer.forward

    def worker() -> None:
        dl.apply(capture("resid"), call, tree.envoy)

    with pytest.raises(InputError, match=r"no active run; give apply\(\.\.\., into=\{\}\)"), tree.attached(None):
        tree.trace(lambda: tree.modules[""].forward(*call.args, **call.kwargs), [worker])
    assert text_to_video.pipeline.transformer.forward == forward


def test_sites_that_the_model_lacks_are_refused_in_a_body(subject: Subject) -> None:
    with pytest.raises(SiteError, match=r"no layer 99"):
        subject.run(body=lambda call, dit: dl.apply(capture("resid", layers=99), call, dit))


@pytest.mark.parametrize("component", ["latents", "guided"])
def test_what_lies_around_the_calls_cannot_be_applied_inside_one(text_to_video: Subject, component: str) -> None:
    edit = capture(component)
    with pytest.raises(SiteError, match=f"apply: {component} lies around the denoiser's calls"):
        text_to_video.run(body=lambda call, dit: dl.apply(edit, call, dit))
