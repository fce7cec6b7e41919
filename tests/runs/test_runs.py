"""`VideoDiT.runs`: the one loop over runs, and its seeds."""

from __future__ import annotations

import re
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dit_lens as dl
from dit_lens.errors import InputError, PipelineBusy
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.runs.seeds import derive, row_seeds
from tests.subjects import Subject, subject_of

SHORT = {"num_inference_steps": 2, "guidance_scale": 1.0, "decode": False, "progress": None}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of("text_to_video")


WORDS = ("circle", "square", "blue")


def inputs(count: int) -> list[str]:
    return [WORDS[i % 3] for i in range(count)]


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_every_row_comes_once_and_in_order_whatever_the_batch(subject: Subject, batch: int) -> None:
    runs = list(subject.model.runs(inputs(5), 3, batch=batch, **SHORT))
    assert [len(run.rows) for run in runs] == [min(batch, 5 - i) for i in range(0, 5, batch)]
    assert [given for run in runs for given in run.inputs] == inputs(5)
    assert [row.seed for run in runs for row in run.rows] == row_seeds(3, 5)


def test_a_row_is_what_it_is_alone(subject: Subject) -> None:
    (run,) = subject.model.runs(inputs(3), [4, 5, 6], **SHORT)
    for i, seed in enumerate((4, 5, 6)):
        alone = subject.model.run(inputs(3)[i], seed, **{k: v for k, v in SHORT.items() if k != "progress"})
        torch.testing.assert_close(run.latents[i : i + 1], alone.latents, rtol=1e-4, atol=1e-4)


def test_one_input_and_several_seeds_are_rows_of_it(subject: Subject) -> None:
    runs = list(subject.model.runs("circle", [1, 2, 3], batch=2, **SHORT))
    assert [run.inputs for run in runs] == [("circle", "circle"), ("circle",)]
    assert [row.seed for run in runs for row in run.rows] == [1, 2, 3]


def test_interventions_are_applied_to_every_batch(subject: Subject) -> None:
    capture = dl.Capture(dl.Sites("velocity", steps=0))
    runs = list(subject.model.runs(inputs(3), batch=2, interventions=[capture], **SHORT))
    assert [len(run["s00/cond/-/velocity"]) for run in runs] == [2, 1]


def test_interventions_may_be_made_for_the_rows_of_each_run(subject: Subject) -> None:
    made: list[tuple[list[str], list[int]]] = []

    def captures(given: list[str], seeds: list[int]) -> list[dl.Capture]:
        made.append((given, seeds))
        # The pipeline is free: what is made for a run may need another one.
        subject.model.run(given, seeds, **{name: value for name, value in SHORT.items() if name != "progress"})
        return [dl.Capture(dl.Sites("velocity", steps=len(made) - 1))]

    runs = list(subject.model.runs(inputs(3), [7, 8, 9], batch=2, interventions=captures, **SHORT))
    assert made == [(inputs(3)[:2], [7, 8]), (inputs(3)[2:], [9])]
    assert [str(site) for run in runs for site in run.captured()] == [
        "s00/cond/-/velocity/video", "s01/cond/-/velocity/video"
    ]  # fmt: skip


def test_interventions_of_a_generator_are_applied_to_every_batch(subject: Subject) -> None:
    zero = (dl.Ablate(dl.Sites("velocity")) for _ in range(1))
    for run in subject.model.runs(inputs(2), batch=1, interventions=zero, record=True, **SHORT):
        assert torch.equal(run.latents, run.states[0])


def test_interventions_can_be_made_for_every_batch(subject: Subject) -> None:
    seen: list[tuple[list[str], list[int]]] = []

    def make(given: list[str], seeds: list[int]) -> list[dl.Capture]:
        seen.append((given, seeds))
        return [dl.Capture(dl.Sites("velocity", steps=0))]

    runs = list(subject.model.runs(inputs(3), 5, batch=2, interventions=make, **SHORT))
    assert seen == [(list(run.inputs), [row.seed for row in run.rows]) for run in runs]
    assert all(run.captures for run in runs)


def test_an_intervention_that_stands_alone_is_refused(subject: Subject) -> None:
    with pytest.raises(InputError, match="need a list of interventions"):
        subject.model.runs("circle", interventions=dl.Capture(dl.Sites("velocity")))


def test_the_pipeline_is_free_between_two_runs(subject: Subject) -> None:
    loop = subject.model.runs(inputs(2), batch=1, **SHORT)
    first = next(loop)
    between: list[dl.Run] = []
    options = {k: v for k, v in SHORT.items() if k != "progress"}
    thread = threading.Thread(target=lambda: between.append(subject.model.run("circle", first.rows[0].seed, **options)))
    thread.start()
    thread.join()
    assert torch.equal(between[0].latents, first.latents)
    assert next(loop).inputs == ("square",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs": []}, "no inputs"),
        ({"inputs": ["circle", "blue"], "seed": [1]}, "1 seeds for 2 inputs"),
        ({"inputs": "circle", "seed": -1}, "negative"),
        ({"inputs": "circle", "seed": 1.5}, "whole number"),
        ({"inputs": "circle", "batch": 0}, "batch=0: need a whole number of at least 1"),
        ({"inputs": "circle", "batch": True}, "batch=True"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_first_run(
    subject: Subject, given: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        subject.model.runs(**given)


@given(seed=st.integers(0, 2**70), count=st.integers(1, 40), first=st.integers(0, 40))
def test_rows_keep_their_seeds_whatever_comes_after_them(seed: int, count: int, first: int) -> None:
    assert row_seeds(seed, count, first) == row_seeds(seed, first + count)[first:]


@given(seed=st.integers(0, 2**40))
def test_neighbouring_seeds_and_purposes_share_no_draw(seed: int) -> None:
    drawn = [{*row_seeds(s, 100), derive(s, "pairs"), derive(s, "lens")} for s in (seed, seed + 1, seed + 2)]
    assert all(len(one) == 102 and not one & other for one, other in pairwise(drawn))
    assert max(drawn[0]) < 2**53


def test_noise_of_neighbouring_seeds_is_not_the_same_rows_shifted(subject: Subject) -> None:
    capture = dl.Capture(dl.Sites("latents", steps=0))
    noise = [
        run["s00/-/-/latents"].flatten(1).numpy()
        for seed in (7, 8)
        for run in subject.model.runs(["circle"] * 4, seed, interventions=[capture], **SHORT)
    ]
    assert np.abs(np.corrcoef(np.concatenate(noise)) - np.eye(8)).max() < 0.5


def noise(count: int) -> torch.Tensor:
    geometry = subject_of("text_to_video").model.geometry(**GEOMETRY)
    return torch.randn(count, *geometry.shapes["latents"], generator=torch.Generator().manual_seed(7))


GEOMETRY = {name: SHORT[name] for name in ("num_inference_steps", "guidance_scale")}


def test_each_run_is_given_the_entries_of_its_rows(subject: Subject) -> None:
    first, negatives = noise(3), ["", "circle", "square"]
    guided = {**SHORT, "guidance_scale": 2.0}
    runs = list(subject.model.runs(inputs(3), batch=2, latents=first, negative_prompt=negatives, **guided))
    assert [run.settings["negative_prompt"] for run in runs] == [["", "circle"], ["square"]]
    assert torch.equal(torch.cat([run.settings["latents"] for run in runs]), first)
    (whole,) = subject.model.runs(inputs(3), latents=first, negative_prompt=negatives, **guided)
    torch.testing.assert_close(torch.cat([run.latents for run in runs]), whole.latents, rtol=1e-4, atol=1e-4)
    assert torch.equal(whole.select([2]).settings["latents"], first[2:])


@pytest.mark.parametrize("arguments", [{"latents": 2}, {"negative_prompt": ["", "circle"]}])
def test_entries_for_other_rows_are_refused_before_the_first_run(subject: Subject, arguments: dict[str, Any]) -> None:
    given = {name: noise(value) if isinstance(value, int) else value for name, value in arguments.items()}
    with pytest.raises(InputError, match="has entries for 2 rows, and these inputs make 4: give one for each"):
        subject.model.runs(inputs(4), batch=2, **given, **SHORT)
    with pytest.raises(InputError, match="has entries for 2 rows, and these inputs make 1"):
        subject.run(**given)


@pytest.mark.parametrize("change", ["frames", "aspect", "list", "dtype"])
def test_a_first_state_of_another_shape_is_refused(subject: Subject, change: str) -> None:
    right = noise(1)
    wrong: Any = {
        "frames": torch.cat([right, right], dim=2),
        "aspect": right.reshape(*right.shape[:3], right.shape[3] // 2, right.shape[4] * 2),
        "list": [right],
        "dtype": right.to(torch.complex64),
    }[change]
    with pytest.raises(InputError, match=rf"needs a tensor of floats of shape {re.escape(str(tuple(right.shape)))}"):
        subject.run(latents=wrong)


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_first_state_in_the_layout_of_its_pipeline_is_taken_in_every_family(name: str) -> None:
    tiny = TINY[name]
    model, given = dl.VideoDiT(tiny.build()), tiny.inputs()[0]
    latent = model.geometry(given, **tiny.settings).shapes["latents"]
    state = torch.randn(1, *latent)
    first = state if model.architecture.packs_given else model.architecture.pack(state, latent)
    run = model.run(given, latents=first, stop_after=0, **tiny.settings)
    assert run.settings["latents"] is not None
    assert run.latents.shape == state.shape


def test_a_run_that_was_refused_is_made_when_it_is_asked_for_again(subject: Subject) -> None:
    runs = subject.model.runs(inputs(2), batch=1, **SHORT)

    def ask(call: Any, dit: Any) -> None:
        with pytest.raises(PipelineBusy):
            next(runs)

    subject.run(body=ask)
    assert [run.inputs for run in runs] == [("circle",), ("square",)]
