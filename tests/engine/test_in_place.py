"""What a run records, captures or is given belongs to it: a sampler that works in place changes none of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

import dit_lens as dl
from dit_lens.engine.recorder import Copies
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.validation.family_checks import CHECKS
from dit_lens.validation.witness import Subject
from tests.subjects import Edit

FAMILIES = ["wan2.1-t2v", "wan2.1-i2v", "ltx-video", "ltx-2", "hunyuanvideo-1.5", "hunyuanvideo", "mochi"]


def _step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Euler's step, which leaves its result where the state was and nothing of the prediction."""
    (following, *rest) = FlowMatchEulerDiscreteScheduler.step(self, model_output, timestep, sample, *args, **kwargs)
    model_output.zero_()
    return (sample.copy_(following), *rest)


#: Of Euler's name, for it is Euler's schedule.
InPlace = type("FlowMatchEulerDiscreteScheduler", (FlowMatchEulerDiscreteScheduler,), {"step": _step})


class Pair:
    """A pipeline with Euler's sampler, and the same one with a sampler that works in place."""

    def __init__(self, name: str) -> None:
        tiny = TINY[name]
        self.models = dl.VideoDiT(tiny.build()), dl.VideoDiT(tiny.build())
        for model, kind in zip(self.models, (FlowMatchEulerDiscreteScheduler, InPlace), strict=True):
            config = dict(model.pipeline.scheduler.config) if "FlowMatch" in str(model.pipeline.scheduler) else {}
            model.pipeline.scheduler = kind.from_config(config)
        self.settings, self.inputs = {**tiny.settings, "decode": False}, list(tiny.inputs())

    def run(self, *interventions: Any, **more: Any) -> tuple[dl.Run, dl.Run]:
        given = {"interventions": interventions, **self.settings, **more}
        one, other = (model.run(self.inputs, [3, 4], **given) for model in self.models)
        return one, other


def same(a: Any, b: Any) -> bool:
    """Whether two values hold equal tensors in equal places."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict | tuple | list) and len(a) == len(b):
        keys = a if isinstance(a, dict) else range(len(a))
        return all(same(a[key], b[key]) for key in keys)
    return not isinstance(a, dict | tuple | list)


def everything(run: dl.Run) -> Any:
    calls = [(call.args, dict(call.kwargs), call.output) for call in run.calls]
    return run.latents, run.states, run.captures, calls


@pytest.mark.parametrize("name", FAMILIES)
def test_a_record_is_that_of_a_sampler_that_makes_new_tensors(name: str) -> None:
    see = dl.Capture(dl.Sites(("latents", "model_input", "velocity", "guided")))
    euler, in_place = Pair(name).run(see, record=True)
    assert same(everything(euler), everything(in_place))
    assert len({float(state.sum()) for state in in_place.states}) == len(in_place.states)


@pytest.mark.parametrize("name", FAMILIES)
def test_donors_and_records_are_left_as_they_are(name: str) -> None:
    pair = Pair(name)
    see = dl.Capture(dl.Sites(("latents", "model_input", "velocity")))
    _, donor = pair.run(see, record=True)
    before = _kept(everything(donor))
    shifted = pair.run(Edit(dl.Sites("latents", steps=0), lambda state, at: state * 0.9))[1]
    assert not torch.equal(shifted.latents, donor.latents)
    for sites in (dl.Sites("latents", steps=1), dl.Sites(("latents", "velocity", "model_input"))):
        moved = Edit(dl.Sites("latents", steps=0), lambda state, at: state * 0.9)
        patched = pair.run(moved, dl.Patch(donor, sites), record=True)
        assert same(everything(patched[0]), everything(patched[1]))
        assert same(everything(donor), before)
    for step in (1, 2):
        resumed = pair.models[1].run(pair.inputs, [3, 4], resume=dl.Resume(donor, step), **pair.settings)
        assert torch.equal(resumed.latents, donor.latents)
        assert same(everything(donor), before)
    for step in range(3):
        replay = pair.models[1].replay(donor, step)
        assert all(
            torch.equal(velocity, donor[dl.Site(step, branch, None, "velocity")])
            for branch, velocity in replay.velocities.items()
        )
        assert same(everything(donor), before)


def _kept(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _kept(item) for name, item in value.items()}
    return type(value)(_kept(item) for item in value) if isinstance(value, tuple | list) else value


def test_the_clean_estimate_at_the_state_is_of_the_state_before() -> None:
    def estimates(model: dl.VideoDiT, pair: Pair) -> list[Tensor]:
        found: list[Tensor] = []
        look = Edit(dl.Sites("latents", steps=[1, 2]), lambda _, at: found.append(at.x0hat), reads_only=True)
        model.run(pair.inputs, [3, 4], interventions=[look], **pair.settings)
        return found

    pair = Pair("wan2.1-t2v")
    assert same(estimates(pair.models[0], pair), estimates(pair.models[1], pair))
    step = dl.Noise(dl.Sites("latents", steps=1), "renoise", dose=0.5)
    assert torch.equal(*(run.latents for run in pair.run(step)))


def test_a_view_that_an_intervention_keeps_is_copied() -> None:
    def keep(state: Tensor, at: dl.At) -> None:
        at.keep("first", state[:, :, 0])

    look = Edit(dl.Sites("latents"), keep, reads_only=True)
    euler, in_place = Pair("wan2.1-t2v").run(look)
    assert same(euler.captured("first"), in_place.captured("first"))
    assert not same(*list(in_place.captured("first").values())[:2])


@pytest.mark.parametrize("name", ["wan2.1-t2v", "ltx-video"])
def test_a_sampler_that_works_in_place_passes_the_checks_that_go_through_records(name: str) -> None:
    pair = Pair(name)
    settings = {k: v for k, v in pair.settings.items() if k != "decode"}
    subject = Subject(pair.models[1], tuple(pair.inputs), settings)  # type: ignore[arg-type]
    for check in ("identity patch", "state swap", "depth lens", "rows", "resume"):
        CHECKS[check](subject)


def test_what_does_not_change_is_copied_once() -> None:
    copies, text = Copies(), torch.zeros(2, 3)
    first = copies((text, {"text": text, "other": [text, 1]}))
    assert first[0] is not text
    assert first[0] is first[1]["text"] is first[1]["other"][0] is copies(text)
    text.add_(1)
    assert torch.equal(copies(text), torch.ones(2, 3))
    assert not first[0].any()
    with torch.inference_mode():
        uncounted = torch.ones(2)
        assert copies(uncounted) is not uncounted


def test_a_record_keeps_one_copy_of_the_text_that_all_calls_are_given() -> None:
    run, _ = Pair("ltx-video").run(record=True)
    assert len({id(call.kwargs["encoder_hidden_states"]) for call in run.calls}) == 1
