"""The picture and the film of a flow: what is drawn, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

import dit_lens as dl
from dit_lens.analysis.flow.figure import CHANGES, LOOKS, draw_changes, edges, strip_of
from dit_lens.errors import EvidenceError
from dit_lens.files.video import read_video
from dit_lens.organisms.planted_truth import load_planted

mpl.use("Agg")


def measured(kind: str) -> dl.InformationFlow:
    planted = load_planted("relay")
    assert planted.task is not None
    return dl.information_flow(planted.model, planted.task, 2, kind=kind, parts=("groups",))


@pytest.fixture(scope="module")
def colour() -> dl.InformationFlow:
    """Its pictures differ; the difference goes by way of tokens that are neither source nor target."""
    return measured("colour")


@pytest.fixture(scope="module")
def prompt() -> dl.InformationFlow:
    """Its prompts differ, which enter by cross-attention: no token of the video is a source."""
    return measured("exit")


@pytest.fixture(scope="module")
def nothing() -> dl.InformationFlow:
    """Random weights: a shut gate, and no pair that moves."""
    planted = load_planted("random")
    return dl.information_flow(planted.model, dl.tasks.Permanence(), 2, kind="colour", parts=())


def legend_of(axis: Axes) -> list[str]:
    legend = axis.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def words_of(axis: Axes) -> str:
    """All text of the figure that is no label of an axis, on one line."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    found = figure.findobj(mpl.text.Text)
    return " ".join(" ".join(text.get_text().split()) for text in found)


def axes_of(axis: Axes) -> list[Axes]:
    figure = axis.get_figure(root=True)
    assert figure is not None
    return figure.get_axes()


def test_into_given_axes_only_the_curves_are_drawn(colour: dl.InformationFlow) -> None:
    figure, axis = plt.subplots()
    assert colour.plot(axis) is axis
    assert figure.get_axes() == [axis]
    assert legend_of(axis) == [LOOKS[name].name for name in ("A", "B", "M")]
    for line, name in zip(axis.lines, ("A", "B", "M"), strict=False):
        assert np.array_equal(line.get_xdata(), colour.layers)
        assert np.allclose(np.asarray(line.get_ydata()), colour.effects[name].mean(axis=1))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["embed", "0", "1", "2", "3", "4", "5"]


def test_a_whole_figure_has_the_frames_of_both_sides_above_the_curves(colour: dl.InformationFlow) -> None:
    axis = colour.plot()
    assert colour.shown is not None
    frames = [one for one in axes_of(axis) if one.images]
    assert len(frames) == 2 * len(colour.shown.source)
    assert len(axes_of(axis)) == len(frames) + 2
    first, last = frames[0].images[0].get_array(), frames[-1].images[0].get_array()
    assert np.array_equal(np.asarray(first), colour.shown.frames[0, 0])
    assert np.array_equal(np.asarray(last), colour.shown.frames[1, -1])


def test_tokens_are_marked_in_the_colours_of_their_curves(colour: dl.InformationFlow) -> None:
    axis, shown = colour.plot(), colour.shown
    assert shown is not None
    frames = [one for one in axes_of(axis) if one.images]
    for sets, line in ((shown.source, axis.lines[0]), (shown.target, axis.lines[1])):
        marked = np.array([tinted_in(frames[f], line.get_color(), mask) for f, mask in enumerate(sets)])
        assert np.array_equal(marked, sets)
        assert sets.any()


def tinted_in(axis: Axes, colour: Any, mask: Any) -> Any:
    """Tokens of a frame that have a colour, like a mask (H, W)."""
    found = np.zeros_like(mask)
    for image in axis.images[1:]:
        tint = np.asarray(image.get_array())
        found |= (tint[..., 3] > 0) & np.isclose(tint[..., :3], mpl.colors.to_rgb(colour)).all(axis=-1)
    return found


def test_bars_are_what_each_block_changes(colour: dl.InformationFlow) -> None:
    _, axis = plt.subplots()
    draw_changes(colour, axis)
    assert legend_of(axis) == [CHANGES[name][1] for name in ("departure", "arrival")]
    for bars, name in zip(axis.containers, ("departure", "arrival"), strict=True):
        heights = [bar.get_height() for bar in bars]  # type: ignore[attr-defined]
        assert np.allclose(heights, colour.changes[name].mean(axis=1))


def test_bars_of_a_deep_model_are_as_wide_as_their_windows(colour: dl.InformationFlow) -> None:
    layers = (-1, 4, 9, 19, 29, 34, 39)
    deep = dataclasses.replace(colour, layers=layers)
    axis = deep.plot()
    below = axes_of(axis)[-1]
    assert below.get_ylabel() == "change\nin the window"
    centres = [bar.get_x() + bar.get_width() for bar in below.containers[0]]  # type: ignore[attr-defined]
    assert np.allclose(centres, [2, 7, 14.5, 24.5, 32, 37])
    ticks = [label.get_text() for label in below.get_xticklabels()]
    assert ticks[:3] == ["embed", "3", "6"]
    assert len(ticks) < 16


def test_all_tokens_are_drawn_where_something_enters_by_a_door(prompt: dl.InformationFlow) -> None:
    axis = prompt.plot()
    assert legend_of(axis) == [LOOKS[name].name for name in ("B", "M", "all")]
    said = words_of(axis)
    assert "the prompt, read by cross-attention 1.00" in said
    assert "No token of the video differs" in said
    assert "is read through a door" in said


def test_a_shut_gate_without_pairs_is_a_sentence(nothing: dl.InformationFlow) -> None:
    axis = nothing.plot()
    assert not axis.lines
    said = words_of(axis)
    assert "Gate shut, because" in said
    assert "No pair is left" in said
    assert "Pairs left out: " in said
    assert said.count("Gate shut") == 1
    _, given = plt.subplots()
    assert nothing.plot(given) is given
    assert "No pair is left" in given.texts[0].get_text()


def test_an_open_gate_a_broken_identity_and_missing_truth_are_said(colour: dl.InformationFlow) -> None:
    assert "Gates open." in words_of(colour.plot())
    assert "do not believe" not in words_of(colour.plot())
    wrong = dataclasses.replace(colour, worst=1.0, truth=False)
    assert "do not believe these numbers" in words_of(wrong.plot())
    assert "what moves, not what is right" in words_of(wrong.plot())


def test_curves_of_one_pair_have_no_interval_and_no_nan_in_words(colour: dl.InformationFlow) -> None:
    gate = dataclasses.replace(colour.gate, moved=colour.gate.moved[:1])
    one = dataclasses.replace(colour, gate=gate, effects={name: x[:, :1] for name, x in colour.effects.items()})
    axis = one.plot()
    assert "nan" not in words_of(axis)
    assert len(axis.lines[0].get_xdata()) == len(one.layers)


def test_a_long_video_is_shown_from_its_first_to_its_last_frame(colour: dl.InformationFlow) -> None:
    assert colour.shown is not None
    source = np.zeros((21, 2, 2), dtype=bool)
    strip = strip_of(dataclasses.replace(colour.shown, source=source))
    assert len(strip) == 9
    assert (strip[0], strip[-1]) == (0, 20)


def test_borders_of_tokens_are_those_between_a_token_and_another() -> None:
    mask = np.array([[True, True], [False, False]])
    assert sorted(edges(mask)) == [
        ((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 1), (1, 1)), ((1, 0), (2, 0)), ((1, 1), (2, 1)), ((2, 0), (2, 1)),
    ]  # fmt: skip


def test_a_gif_has_a_scene_for_each_layer(colour: dl.InformationFlow, tmp_path: Path) -> None:
    path = colour.animate(tmp_path / "flow.gif", fps=2)
    assert 10_000 < path.stat().st_size < 2_000_000
    with Image.open(path) as film:
        assert getattr(film, "n_frames", 1) == len(colour.layers)
        assert film.info["duration"] == 500
        assert film.info["loop"] == 0
        first = np.asarray(film.convert("RGB"))
        film.seek(3)
        assert not np.array_equal(first, np.asarray(film.convert("RGB")))


def test_an_mp4_has_the_same_scenes(colour: dl.InformationFlow, tmp_path: Path) -> None:
    frames = read_video(colour.animate(tmp_path / "flow.MP4"))
    assert len(frames) == len(colour.layers)
    assert not np.array_equal(frames[0], frames[3])


def test_an_animation_that_cannot_be_is_refused(
    colour: dl.InformationFlow, nothing: dl.InformationFlow, tmp_path: Path
) -> None:
    gif = tmp_path / "flow.gif"
    with pytest.raises(EvidenceError, match=r"flow.webp: an animation ends in \.gif or \.mp4"):
        colour.animate(tmp_path / "flow.webp")
    with pytest.raises(EvidenceError, match="there is no folder"):
        colour.animate(tmp_path / "missing" / "flow.gif")
    for fps in (0, -1, float("nan"), 1e6):
        with pytest.raises(EvidenceError, match="scenes a second between"):
            colour.animate(gif, fps=fps)
    with pytest.raises(EvidenceError, match="shows no pair; no pair is left"):
        nothing.animate(gif)
    with pytest.raises(EvidenceError, match="shows no pair; measure it with 'groups'"):
        dataclasses.replace(colour, shown=None).animate(gif)
    assert not list(tmp_path.iterdir())


def test_shares_that_are_no_numbers_or_below_zero_tint_nothing(colour: dl.InformationFlow, tmp_path: Path) -> None:
    assert colour.shown is not None
    bare = dataclasses.replace(colour.shown, shares=np.full_like(colour.shown.shares, -0.5))
    none = dataclasses.replace(colour.shown, shares=np.full_like(colour.shown.shares, np.nan))
    paths = []
    for i, shown in enumerate((bare, none)):
        paths.append(dataclasses.replace(colour, shown=shown).animate(tmp_path / f"{i}.gif"))
    assert paths[0].read_bytes() == paths[1].read_bytes()
