"""What cannot be right is refused in a sentence, before any video is made where it can be known by then."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.analysis.flow import plan
from dit_lens.analysis.flow.result import InformationFlow
from dit_lens.errors import EvidenceError, InputError, SiteError, TaskError, UnsupportedModel
from dit_lens.families.tiny.pipelines import TINY
from tests.analysis.flow.flows import flow_of, planted
from tests.subjects import Subject, subject_of

TARGET, FIRST = dl.Tokens(frames=[3, 4]), dl.Tokens(frames=0)
SHORT, LONG = "move the blue circle", "draw the red path from left and then up"


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be generated."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a run was made")

    monkeypatch.setattr(dl.VideoDiT, "run", refuse)


def inputs() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Two pictures and one prompt."""
    return subject_of("organism").inputs


def flow(pair: Any = None, *, task: Any = None, pairs: Any = 1, **more: Any) -> InformationFlow:
    """Of the tiny model, with source and target named unless said otherwise."""
    subject = subject_of("organism")
    settings = {**subject.options, "num_inference_steps": 1, "source": FIRST, "target": TARGET, **more}
    return flow_of(subject.model, task or dl.tasks.Pairs([pair or inputs()]), pairs, **settings)


@cache
def tiny(name: str) -> dl.VideoDiT:
    return dl.VideoDiT(TINY[name].build())


def flow_of_words(name: str, words: Any) -> InformationFlow:
    settings = {**TINY[name].settings, "num_inference_steps": 2, "target": dl.Tokens(frames=1, columns=(2, 4))}
    return flow_of(tiny(name), dl.tasks.Pairs([(SHORT, LONG)]), 1, source=words, **settings)


def test_what_is_refused_below_is_measured_when_it_is_right() -> None:
    assert flow().n == 1


# -- before any run ------------------------------------------------------------------------------------------------

SETTINGS: Mapping[str, tuple[Mapping[str, Any], type[Exception], str]] = {
    "no such step": ({"step": 7}, SiteError, r"no step 7; this run has steps 0\.\.0"),
    "no such kind": ({"kind": "goal"}, TaskError, "unknown kind of pair 'goal'; there is 'given'"),
    "no such branch": ({"branches": "both"}, InputError, r"branches='both'\): 'all', or one of cond, uncond"),
    "no such part": ({"parts": ("heads",)}, InputError, "of blocks, groups; 'heads' is none of them"),
    "no rows at once": ({"batch": 0}, InputError, "batch=0: need a whole number of at least 1"),
    "half a row": ({"batch": 2.5}, InputError, r"batch=2\.5: need a whole number"),
    "no such setting": ({"stepp": 3}, InputError, "takes no stepp"),
    "no such source": ({"source": dl.Tokens(frames=9)}, SiteError, "no latent frame 9"),
    "no such target": ({"target": dl.Tokens(frames=9)}, SiteError, "no latent frame 9"),
    "a target that is none": ({"target": "frames"}, EvidenceError, "target='frames': need a Tokens"),
    "a target of each row": (
        {"target": dl.Tokens(mask=np.ones((2, 5, 4, 4), dtype=bool))},
        EvidenceError,
        "need a Tokens that is the same for all pairs",
    ),
    "a source that meets the target": (
        {"source": dl.Tokens(frames=(2, 3))},
        EvidenceError,
        "source meets the target in 1 of 1 pairs",
    ),
    "no word": ({"source": []}, EvidenceError, r"source=\[\]: need Tokens, a word, or a list of words"),
    "an empty word": ({"source": " "}, EvidenceError, "need Tokens, a word, or a list of words"),
    "a word of no prompt": ({"source": "zebra"}, EvidenceError, "no prompt of the pair .* has the word 'zebra'"),
    "a part of a word": ({"source": "pat"}, EvidenceError, "no prompt of the pair .* has the word 'pat'"),
    "no pairs": ({"pairs": 0}, EvidenceError, "needs pairs of task 'pairs': a number of at least 1"),
    "no listed pairs": ({"pairs": []}, EvidenceError, "needs pairs of task 'pairs': a number of at least 1"),
    "pairs that are none": ({"pairs": "two"}, EvidenceError, "got pairs='two': give a number of them, or a list"),
    "more pairs than there are": ({"pairs": 5}, TaskError, "asked for 5 of split 'test'; there are 1"),
    "a task that is none": ({"task": "maze"}, EvidenceError, "needs a task"),
}


@pytest.mark.parametrize("what", SETTINGS)
@pytest.mark.usefixtures("no_run")
def test_settings_that_there_are_not_are_refused_before_any_run(what: str) -> None:
    more, error, sentence = SETTINGS[what]
    with pytest.raises(error, match=sentence):
        flow(**more)


@pytest.mark.usefixtures("no_run")
def test_pictures_of_different_sizes_are_refused() -> None:
    one, other = inputs()
    larger = {**other, "image": other["image"].resize((64, 64))}
    with pytest.raises(TaskError, match="32 x 32 and 64 x 64"):
        flow((one, larger))
    small, large = (dl.tasks.Pairs([(side, {**side, "prompt": SHORT})]).pair() for side in (one, larger))
    for pairs in ([(small.original, large.counterfactual)], [small, large]):
        with pytest.raises(EvidenceError, match="needs pictures of one size; these pairs have 32 x 32, 64 x 64"):
            flow(pairs=pairs)


def truth(other: int = 255, frames: int = 9) -> np.ndarray[Any, Any]:
    """True videos of one pair: black, and with a square that comes after the first frame."""
    videos = np.zeros((1, 2, frames, 32, 32, 3), dtype=np.uint8)
    videos[:, 1, 1:, 8:24] = other
    return videos


def told(videos: np.ndarray[Any, Any]) -> Any:
    return dl.tasks.Pairs([inputs()], truth=videos)


@pytest.mark.usefixtures("no_run")
def test_true_videos_of_another_size_are_refused() -> None:
    with pytest.raises(EvidenceError, match=r"have 5 frames of 32 x 32 pixels, latents .*; the model makes \(8, 5"):
        flow(task=told(truth(frames=5)))


@pytest.mark.usefixtures("no_run")
def test_true_videos_that_are_equal_on_both_sides_are_refused() -> None:
    with pytest.raises(EvidenceError, match="at the target the true videos are the same on both sides"):
        flow(task=told(truth(other=0)))
    with pytest.raises(EvidenceError, match="there is no place at which the answers differ"):
        flow(task=told(truth(other=0)), target=None)


@pytest.mark.usefixtures("no_run")
def test_a_source_that_meets_a_target_that_is_found_in_true_videos_is_refused() -> None:
    with pytest.raises(EvidenceError, match="meets the target"):
        flow(task=told(truth()), target=None, source=dl.Tokens(frames=(1, 2, 3, 4)))


@pytest.mark.parametrize("name", ["hunyuanvideo", "hunyuanvideo-1.5", "ltx-2"])
@pytest.mark.usefixtures("no_run")
def test_words_are_refused_where_the_text_is_no_plain_prompt(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"words of the prompt cannot be told apart in .*; name tokens instead"):
        flow_of_words(name, "circle")


# -- after a look --------------------------------------------------------------------------------------------------


def test_pairs_that_do_not_differ_to_the_model_are_refused() -> None:
    """The tokenizer drops the space."""
    one, _ = inputs()
    same = (one, {**one, "prompt": one["prompt"] + " "})
    with pytest.raises(EvidenceError, match="the model draws the same on both sides: nothing can be measured"):
        flow(same, source=None)


def test_pairs_that_differ_in_their_answers_alone_do_not_differ_to_the_model() -> None:
    one, _ = inputs()
    task = dl.tasks.Pairs([(one, {**one, "prompt": one["prompt"] + " "})], truth=truth())
    with pytest.raises(EvidenceError, match="the pairs do not differ to the model"):
        flow(task=task, source=None)


def test_pairs_that_differ_everywhere_are_refused_and_named_sources_are_not() -> None:
    with pytest.raises(EvidenceError, match="differ in more than 90% of the tokens outside the target"):
        flow(source=None)
    assert flow(source=FIRST).n == 1


def test_pairs_of_which_nothing_enters_are_refused(monkeypatch: pytest.MonkeyPatch, text_to_video: Subject) -> None:
    """As if no door had been seen to differ: what moves then comes from nowhere that is known."""
    seen_at = plan.seen_at

    def unseen(*given: Any) -> Any:
        return {step: plan.replace(seen, doors=()) for step, seen in seen_at(*given).items()}

    settings = {**text_to_video.options, "num_inference_steps": 1, "target": dl.Tokens(frames=1)}
    task = dl.tasks.Pairs([(SHORT, LONG)])
    assert flow_of(text_to_video.model, task, 1, **settings).n == 1
    monkeypatch.setattr(plan, "seen_at", unseen)
    with pytest.raises(EvidenceError, match="the pairs do not differ to the model"):
        flow_of(text_to_video.model, task, 1, **settings)


def test_a_word_behind_the_end_of_the_other_prompt_is_refused() -> None:
    """Its position is padding there, which attention does not read."""
    assert flow_of_words("mochi", "circle").n == 1
    with pytest.raises(SiteError, match="select padding alone in row 0"):
        flow_of_words("mochi", "up")


def test_a_shut_gate_is_a_finding() -> None:
    own = planted("random")
    found = flow_of(own.model, own.task, 2, kind="colour", parts=("blocks", "groups"))
    assert not found.gate.open
    assert (found.n, found.layers, dict(found.doors), found.shown) == (0, (), {}, None)
    assert all(values.size == 0 for values in found.effects.values())
    assert "gate shut: the model does not solve these pairs" in str(found)
    assert found.to_json()["gate"]["open"] is False
