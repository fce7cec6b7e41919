"""Starting from a record, ending early, and what the ledger counts of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dit_lens as dl
from tests.subjects import STEPS, Edit, Subject, capture, forward_hooks, leftovers, subject_of


@contextmanager
def counted(subject: Subject) -> Iterator[dict[str, int]]:
    """Counts of torch's own hooks: rows that went through the denoisers and through single blocks."""
    counts = {"calls": 0, "denoiser": 0, "blocks": 0}

    def embedding(_module: Any, args: Any, _kwargs: Any) -> None:
        # A call that is answered from a record is entered as well: what counts is whether anything was embedded.
        counts["calls"] += 1
        counts["denoiser"] += len(args[0])

    def norm(_module: Any, args: Any, _kwargs: Any) -> None:
        counts["blocks"] += len(args[0])

    with ExitStack() as stack:
        for transformer in subject.model.experts.values():
            stack.enter_context(forward_hooks(transformer.patch_embedding, embedding, before=True))
            for block in transformer.blocks:
                # A skipped block is entered and left at once: what counts is whether its first norm ran.
                stack.enter_context(forward_hooks(block.norm1, norm, before=True))
        yield counts


def record(subject: Subject, guidance: float = 1.0, **select: Any) -> dl.Run:
    keep = [dl.Capture(dl.Sites("resid", stream="all", **select))]
    return subject.run(guidance=guidance, record=True, interventions=keep)


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_resumed_run_is_the_whole_run_bit_for_bit_with_fewer_forwards(
    subject: Subject, guidance: float, step: int, layer: int
) -> None:
    whole = record(subject, guidance)
    with counted(subject) as counts:
        run = subject.run(guidance=guidance, resume=dl.Resume(whole, step, layer))
    assert torch.equal(run.latents, whole.latents)
    branches = len(whole.geometry.branches)
    assert run.ledger.denoiser_forwards == counts["denoiser"] == branches * (STEPS - step)
    per_step = branches * subject.model.layers
    assert run.ledger.block_forwards == counts["blocks"] == per_step * (STEPS - step) - branches * layer
    assert run.ledger.calls == counts["calls"]


@pytest.mark.parametrize("component", ["delta", "attn", "resid", "velocity"])
def test_an_edit_of_a_resumed_run_is_the_edit_of_the_whole_run(subject: Subject, component: str) -> None:
    edit = Edit(dl.Sites(component, steps=1, layers=2), lambda x, at: x / 2)
    whole = subject.run(interventions=[edit])
    resumed = subject.run(interventions=[edit], resume=dl.Resume(record(subject), 1, 2))
    assert torch.equal(resumed.latents, whole.latents)
    assert not torch.equal(resumed.latents, subject.run().latents)


def test_a_record_of_an_edited_run_carries_its_edits(subject: Subject) -> None:
    """The state, not only the calls, comes from the record: an edit of ``latents`` before the resumed step stays."""
    edit = Edit(dl.Sites("latents", steps=1), lambda x, at: x * 1.5)
    whole = subject.run(record=True, interventions=[edit])
    assert torch.equal(subject.run(resume=dl.Resume(whole, 2)).latents, whole.latents)
    assert torch.equal(subject.run(resume=dl.Resume(whole, 1)).latents, whole.latents)


def test_a_resumed_run_can_be_recorded_and_resumed_again(text_to_video: Subject) -> None:
    first = text_to_video.run(record=True)
    second = text_to_video.run(record=True, resume=dl.Resume(first, 1))
    third = text_to_video.run(resume=dl.Resume(second, 2))
    assert torch.equal(third.latents, first.latents)
    assert all(torch.equal(a, b) for a, b in zip(first.states, second.states, strict=True))


def test_pictures_are_not_encoded_again_and_rows_of_the_record_keep_their_own(
    organism: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, seeds = list(organism.inputs), [3, 4]
    options = {"num_inference_steps": STEPS, "decode": False}
    record = organism.model.run(inputs, seeds, record=True, **options)
    again = organism.model.run(inputs, seeds, **options)
    vae = type(organism.pipeline.vae)
    monkeypatch.setattr(vae, "encode", lambda *_, **__: pytest.fail("a picture was encoded again"))
    resumed = organism.model.run(inputs, seeds, resume=dl.Resume(record, 1), record=True, **options)
    assert torch.equal(resumed.latents, again.latents)
    assert resumed.prepared is not None
    assert record.prepared is not None
    assert torch.equal(resumed.prepared.generators, record.prepared.generators)
    own = record.select([1])
    one = organism.model.run(own.inputs, [4], resume=dl.Resume(own, 1), **options)
    assert torch.allclose(one.latents, again.latents[1:], atol=1e-5)


def test_noise_that_the_sampler_draws_goes_on_from_where_the_record_was() -> None:
    """A sampler that draws at every step draws the same after a state that is taken from the record."""
    subject = subject_of("text_to_video")
    pipeline = copy.deepcopy(subject.pipeline)
    pipeline.scheduler = EulerAncestralDiscreteScheduler(num_train_timesteps=1000)
    model = dl.VideoDiT(pipeline, defaults=subject.model.defaults)
    options = {"num_inference_steps": STEPS, "decode": False, "guidance_scale": 1.0}
    whole = model.run(subject.inputs[0], [5, 6], record=True, **options)
    resumed = model.run(subject.inputs[0], [5, 6], resume=dl.Resume(whole, 1), **options)
    assert torch.equal(whole.latents, resumed.latents)


@pytest.mark.parametrize("layer", [1, 3])
def test_a_replay_from_a_layer_is_the_whole_replay_bit_for_bit(subject: Subject, guidance: float, layer: int) -> None:
    run = record(subject, guidance)
    donor = subject.run(guidance=guidance, interventions=[capture("resid")])
    edits = [dl.Patch(donor, dl.Sites("resid", layers=layer)),
             Edit(dl.Sites("attn", layers=layer), lambda x, at: -x)]  # fmt: skip
    for step in range(STEPS):
        whole = subject.model.replay(run, step, edits)
        short = subject.model.replay(run, step, edits, from_layer=layer)
        assert all(torch.equal(whole.velocities[b], short.velocities[b]) for b in whole.velocities)
        assert torch.equal(whole.x0hat, short.x0hat)
        assert short.ledger.block_forwards < whole.ledger.block_forwards


# -- the end -----------------------------------------------------------------------------------------------------------

ENDS = [
    ({"component": "resid", "steps": 1, "layers": 2}, 1, 3),
    ({"component": "attn", "steps": 0, "layers": 0}, 0, 1),
    ({"component": "embed", "steps": 1}, 1, 0),
    ({"component": "model_input", "steps": 1}, 1, 0),
    ({"component": "velocity", "steps": 1}, 1, 4),
    ({"component": "guided", "steps": 1}, 1, 4),
    ({"component": "latents", "steps": 1}, 0, 4),
]


@pytest.mark.parametrize(("select", "step", "blocks"), ENDS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_a_run_can_end_at_its_last_site(
    organism: Subject, guidance: float, select: dict[str, Any], step: int, blocks: int
) -> None:
    keep = [dl.Capture(dl.Sites(**select))]
    whole = organism.run(guidance=guidance, interventions=keep)
    with counted(organism) as counts:
        short = organism.run(guidance=guidance, interventions=keep, stop_after="last site")
    assert short.frames is None
    assert whole.captured().keys() == short.captured().keys()
    assert all(torch.equal(t, short[s]) for s, t in whole.captured().items())
    branches = len(whole.geometry.branches)
    assert short.ledger.calls == branches * (step + 1)
    assert short.ledger.block_forwards == counts["blocks"]
    assert counts["blocks"] == branches * 4 * step + 4 * (branches - 1) + blocks
    assert leftovers(organism.pipeline) == []


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    steps=st.sets(st.integers(0, STEPS - 1), min_size=1),
    layers=st.sets(st.integers(0, 3), min_size=1),
    component=st.sampled_from(["resid", "delta", "ffn", "attn"]),
    branch=st.sampled_from(["cond", "uncond", "all"]),
)
def test_ending_at_the_last_site_captures_what_the_whole_run_does(
    steps: set[int], layers: set[int], component: str, branch: str
) -> None:
    subject = subject_of("text_to_video")
    keep = [dl.Capture(dl.Sites(component, steps=sorted(steps), layers=sorted(layers), branches=branch))]
    whole = subject.run(guidance=2.0, interventions=keep)
    with counted(subject) as counts:
        short = subject.run(guidance=2.0, interventions=keep, stop_after="last site")
    assert all(torch.equal(t, short[s]) for s, t in whole.captured().items())
    assert len(short.captured()) == len(whole.captured())
    before_last = 2 * 4 * max(steps) + (4 if branch != "cond" else 0)
    assert counts["blocks"] == before_last + max(layers) + 1


def test_a_pipeline_that_ended_early_runs_whole_again(subject: Subject) -> None:
    before = subject.plain()
    subject.run(interventions=[capture("resid", steps=0, layers=1)], stop_after="last site")
    assert torch.equal(subject.plain(), before)
    assert torch.equal(subject.run().latents, before)


# -- the ledger --------------------------------------------------------------------------------------------------------


def test_the_ledger_counts_what_hooks_count(subject: Subject, guidance: float) -> None:
    with counted(subject) as counts:
        run = subject.run(guidance=guidance, interventions=[capture("delta", "attn")])
    ledger = run.ledger
    assert (ledger.calls, ledger.denoiser_forwards, ledger.block_forwards) == tuple(counts.values())
    assert ledger.captured_bytes == sum(t.numel() * t.element_size() for t in run.captured().values())
    assert ledger.seconds > 0


def test_a_bypassed_block_is_not_counted_for_it_is_not_run(organism: Subject) -> None:
    with counted(organism) as counts:
        run = organism.run(interventions=[dl.Bypass(dl.Sites("delta", layers=[1, 2], steps=0))])
    assert run.ledger.block_forwards == counts["blocks"] == 4 * STEPS - 2
