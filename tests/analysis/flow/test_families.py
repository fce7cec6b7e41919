"""Every family: identities hold to rounding, and what differs comes in by the doors that the family has."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.analysis.flow.result import InformationFlow
from dit_lens.families.tiny.pipelines import TINY
from tests.analysis.flow.flows import flow_of

#: Prompts of two lengths, and of the same two the other way round.
SHORT, LONG = "move the blue circle", "draw the red path from left and then up"
#: Half of the last latent frame but one or two, so that pictures also differ outside.
TARGET = dl.Tokens(frames=1, columns=(2, 4))
#: Schedules that have no single step, or end with the input of their only one.
TWO_STEPS = ("mochi", "cosmos", "ltx-video", "ltx-2")

_TEXT, _IMAGE, _NONE = {"context of text"}, {"context of image"}, set[str]()
_POOLED, _MASKED = {"modulation", "mask of text", "head_modulation"}, {"context of text", "mask of text"}
#: By tiny pipeline, the doors of another prompt.
PROMPT: Mapping[str, set[str]] = {
    **dict.fromkeys(("wan2.1-t2v", "wan2.1-i2v", "wan2.2-a14b", "wan2.2-ti2v", "wan2.2-ti2v-image"), _TEXT),
    **dict.fromkeys(("skyreels-v2", "skyreels-v2-i2v", "cosmos"), _TEXT),
    **dict.fromkeys(("cogvideox-1.0", "cogvideox-1.5"), _NONE),
    **dict.fromkeys(("hunyuanvideo", "mochi"), _POOLED),
    "hunyuanvideo-1.5": {"mask of text"},
    **dict.fromkeys(("allegro", "ltx-video"), _MASKED),
    "ltx-2": {"context of text", "context of audio_text", "context of audio"},
}
#: And of another picture.
PICTURE: Mapping[str, set[str]] = {
    **dict.fromkeys(("wan2.1-i2v", "skyreels-v2-i2v"), _IMAGE),
    "wan2.2-ti2v-image": _NONE,
}
#: Pipelines whose text is a stream of its own, so that another prompt is embedded.
STREAM = ("cogvideox-1.0", "cogvideox-1.5", "hunyuanvideo", "hunyuanvideo-1.5", "mochi")


CASES = [(name, what) for name in TINY for what in ("prompt", "picture", "both") if what == "prompt" or name in PICTURE]


@cache
def model_of(name: str) -> dl.VideoDiT:
    return dl.VideoDiT(TINY[name].build())


def pair_of(name: str, what: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two inputs of which the prompt differs, the picture, or both."""
    one, other = {"prompt": SHORT}, {"prompt": SHORT if what == "picture" else LONG}
    if name not in PICTURE:
        return one, other
    picture = TINY[name].inputs()[0]["image"]
    marked = picture.copy()
    marked.paste((250, 20, 20), (0, 0, picture.width // 4, picture.height // 3))
    return {**one, "image": picture}, {**other, "image": picture if what == "prompt" else marked}


def flow_at(name: str, what: str = "prompt", *, steps: int = 0, **more: Any) -> InformationFlow:
    """As `plan_flow` makes it, of few steps with the pipeline's own guidance."""
    steps = steps or (2 if name in TWO_STEPS else 1)
    settings = {**TINY[name].settings, "num_inference_steps": steps, "target": TARGET, **more}
    return flow_of(model_of(name), dl.tasks.Pairs([pair_of(name, what)]), 1, **settings)


@cache
def first_step(name: str, what: str) -> InformationFlow:
    return flow_at(name, what)


def require_ends(flow: InformationFlow) -> None:
    """What holds of every model, to rounding."""
    assert flow.n == 1
    assert flow.layers == tuple(range(-1, len(flow.layers) - 1))
    assert flow.ends_exact
    assert flow.worst < 1e-4
    curves = flow.effects
    assert np.nan_to_num(curves["A"][-1]) == pytest.approx(0, abs=1e-4)
    assert curves["M"][-1] == pytest.approx(0, abs=1e-4)
    assert curves["B"][-1] == pytest.approx(curves["all"][-1], abs=1e-4)


def test_the_tables_are_of_every_family() -> None:
    assert set(PROMPT) == set(TINY)
    assert set(PICTURE) == {name for name, tiny in TINY.items() if "image" in tiny.inputs()[0]}


@pytest.mark.parametrize(("name", "what"), CASES)
def test_identities_hold_in_every_family(name: str, what: str) -> None:
    require_ends(first_step(name, what))


@pytest.mark.parametrize(("name", "what"), CASES)
def test_the_doors_are_those_of_the_family(name: str, what: str) -> None:
    flow = first_step(name, what)
    doors = (PROMPT[name] if what != "picture" else _NONE) | (PICTURE[name] if what != "prompt" else _NONE)
    assert set(flow.doors) == (doors | {"all doors"} if doors else set())
    whole, last = flow.effects["all"][0, 0], flow.effects["all"][-1, 0]
    if not doors:
        np.testing.assert_array_equal(flow.effects["all"], 1.0)
        return
    # The streams and the doors behind them are all that there is.
    assert flow.doors["all doors"][0] == pytest.approx(1 - whole, abs=1e-6)
    # After the last block only the head is still told anything.
    assert (last == pytest.approx(1, abs=1e-5)) != ("head_modulation" in doors)


@pytest.mark.parametrize("name", TINY)
def test_another_prompt_has_a_source_where_it_is_a_stream(name: str) -> None:
    flow = first_step(name, "prompt")
    assert np.isnan(flow.effects["A"]).all() == (name not in STREAM)
    if name in STREAM:  # all that is embedded of it is the source, and the target's tokens know nothing yet
        assert flow.effects["A"][0] == pytest.approx(flow.effects["all"][0], abs=1e-5)
    else:
        assert flow.effects["all"][0] == pytest.approx(0, abs=1e-4)
    assert flow.effects["B"][0] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "what", "more"),
    [
        ("wan2.1-t2v", "prompt", {}),
        ("wan2.2-ti2v-image", "picture", {}),
        ("mochi", "prompt", {}),
        # A rescaled guidance divides by what all tokens spread, so that none speaks for itself alone.
        ("ltx-2", "prompt", {"guidance_rescale": 0.0}),
    ],
)
def test_exchanged_in_every_branch_it_holds_as_well(name: str, what: str, more: Mapping[str, Any]) -> None:
    flow = flow_at(name, what, branches="all", **more)
    assert flow.branch == "all"
    require_ends(flow)


def test_a_branch_moves_by_what_guidance_makes_of_it() -> None:
    """In one step the guided estimate is the way itself, and the conditional one moves it by the scale."""
    scale = TINY["wan2.1-t2v"].settings["guidance_scale"]
    assert first_step("wan2.1-t2v", "prompt").gate.moved == pytest.approx(1 / scale, abs=1e-5)
    assert flow_at("wan2.1-t2v", branches="all").gate.moved == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "what", "step"),
    [
        ("wan2.1-i2v", "both", 1),
        ("wan2.2-a14b", "prompt", 2),
        ("wan2.2-ti2v-image", "picture", 1),
        ("cogvideox-1.5", "prompt", 1),
        ("hunyuanvideo-1.5", "prompt", 1),
        ("mochi", "prompt", 1),
        ("ltx-2", "prompt", 1),
    ],
)
def test_later_steps_start_from_one_state(name: str, what: str, step: int) -> None:
    """The condition's flow: were the states of the two sides not the same, all streams would not be the donor."""
    flow = flow_at(name, what, steps=3, step=step)
    assert flow.step == step
    require_ends(flow)


def test_prompts_of_several_lengths_at_once_are_as_one_by_one() -> None:
    name, prompts = "hunyuanvideo", [(SHORT, LONG), (LONG, "move the star"), ("play", SHORT)]
    settings = {**TINY[name].settings, "num_inference_steps": 1, "target": TARGET}
    task = dl.tasks.Pairs(prompts)
    at_once, apart = (
        flow_of(model_of(name), task, [task._pair(i) for i in range(3)], batch=batch, **settings) for batch in (32, 2)
    )
    assert at_once.n == 3
    assert at_once.worst < 1e-4
    for curve, values in at_once.effects.items():
        np.testing.assert_allclose(values, apart.effects[curve], rtol=0, atol=1e-4)
