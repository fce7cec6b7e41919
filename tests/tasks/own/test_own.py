"""Data of a user's own are a task: what was given is declared, what was not is refused, what does not fit is told."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, TaskError
from dit_lens.organisms.build import OrganismConfig, random_pipeline
from dit_lens.tasks import Input, Label, Labelled, Maze, Pairs, declared, require
from dit_lens.tasks.base import SPLITS
from dit_lens.tasks.evidence import answer_masks, labels_of, on_grid, show_answer

PROMPTS = [("a red ball", "a blue ball"), ("a red cube", "a blue cube"), ("a red cone", "a blue cone")]


def picture(level: int = 0, size: tuple[int, int] = (32, 16)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def pictured(levels: Any, prompt: str = "go") -> list[Any]:
    return [tuple({"prompt": prompt, "image": picture(level)} for level in pair) for pair in levels]


def videos(*lead: int) -> Any:
    return np.arange(np.prod([*lead, 5, 16, 32, 3])).reshape(*lead, 5, 16, 32, 3).astype(np.uint8)


# -- pairs -------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(data=st.data())
def test_pairs_are_drawn_by_seed_none_twice_and_only_of_their_split(data: st.DataObject) -> None:
    split = data.draw(st.lists(st.sampled_from(SPLITS), min_size=1, max_size=12))
    task = Pairs([(f"{i}", f"not {i}") for i in range(len(split))], split=split)
    seed, name = data.draw(st.integers(0, 2**31)), data.draw(st.sampled_from(SPLITS))
    here = {str(i) for i, of in enumerate(split) if of == name}
    count = data.draw(st.integers(1, max(1, len(here))))
    if not here:
        with pytest.raises(TaskError, match=rf"asked for {count} of split '{name}'; there are \d+ of"):
            task.pairs(count, seed, split=name)
        return
    found, again = (task.pairs(count, seed, split=name) for _ in range(2))
    assert [(a.id, b.id) for a, b in found] == [(a.id, b.id) for a, b in again]
    assert len({pair.original.prompt for pair in found}) == count
    for one, other in found:
        assert one.prompt in here
        assert other.prompt == f"not {one.prompt}"
    assert {side.prompt for side in task.sample(2 * len(here), seed, name)} == here | {f"not {i}" for i in here}
    with pytest.raises(TaskError, match=f"asked for {len(here) + 1} of split"):
        task.pairs(len(here) + 1, seed, split=name)


def test_other_seeds_draw_other_orders() -> None:
    task = Pairs([(f"{i}", f"not {i}") for i in range(20)])
    orders = {tuple(pair.original.prompt for pair in task.pairs(20, seed)) for seed in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize(
    ("pairs", "variable"),
    [
        (PROMPTS, "prompt"),
        (pictured([(0, 1), (2, 3)]), "image"),
        ([({"prompt": "a", "image": picture(0)}, {"prompt": "b", "image": picture(1)})], "prompt, image"),
    ],
)
def test_a_pair_says_in_what_it_differs(pairs: Any, variable: str) -> None:
    task = Pairs(pairs)
    assert {pair.variable for pair in task.pairs(len(pairs))} == {variable}
    assert set(task.kinds["given"].split(", ")) == set(variable.split(", "))
    assert task.pair(kind="given").variable == variable
    with pytest.raises(TaskError, match="unknown kind of pair 'goal'; there is 'given'"):
        task.pair(kind="goal")


def test_everything_that_is_given_is_declared_and_nothing_else() -> None:
    assert declared(Pairs(PROMPTS)) == ("pairs", "settings")
    masks = np.ones((3, 2, 2), dtype=bool)
    labels = {"red": np.zeros((3, 2), bool), "where": np.zeros((3, 2, 5, 2, 2), bool)}
    full = Pairs(PROMPTS, truth=videos(3, 2), masks=masks, labels=labels, scorer=lambda f, i: [1] * len(f), cell=8)
    assert set(declared(full)) == {
        "frames", "size", "cell", "pairs", "labels", "scene_labels", "answer_mask", "render", "score", "settings"
    }  # fmt: skip
    assert (full.frames, full.size, full.cell, full.title) == (5, 2, 8, "pairs")
    for lacking in ("read_answer", "alive", "search_free"):
        with pytest.raises(EvidenceError, match=f"a test needs {lacking} .*task 'pairs' does not declare it"):
            require(full, lacking, who="a test")
    assert repr(full) == (
        "Pairs('pairs', 6 inputs, "
        "has frames, size, cell, pairs, labels, scene_labels, answer_mask, render, score, settings)"
    )


def test_truth_masks_and_labels_go_with_their_side_of_the_pair() -> None:
    truth, masks = videos(3, 2), np.zeros((3, 16, 32), dtype=bool)
    for number in range(3):
        masks[number, number, 0] = True
    labels = {"number": np.arange(6).reshape(3, 2)}
    task = Pairs(PROMPTS, truth=truth, masks=masks, labels=labels)
    for pair in task.pairs(3, seed=4):
        number = [one for one, _ in PROMPTS].index(pair.original.prompt)
        assert np.array_equal(require(task, "render", who="a test").render(pair), truth[number])
        assert np.array_equal(answer_masks(task, [pair], who="a test")[0], masks[number])
        found = labels_of(task, list(pair), 3)
        assert list(found) == ["number"]
        assert found["number"].values.tolist() == [2 * number, 2 * number + 1]
    grid = on_grid(task, answer_masks(task, task.pairs(3), who="a test"), (2, 4), (16, 32))
    assert grid.sum(axis=(1, 2)).tolist() == [1, 1, 1]


def test_a_mask_is_of_a_pair_and_not_of_any_two_inputs() -> None:
    task = Pairs(PROMPTS, masks=np.ones((3, 4, 4), dtype=bool))
    (one, _), (_, other) = task.pairs(2)
    with pytest.raises(TaskError, match="are not a pair of this task"):
        answer_masks(task, [dl.tasks.Pair(one, other)], who="a test")


def test_the_scorer_decides_where_the_task_judges_no_answers() -> None:
    seen = []

    def bright(frames: Any, inputs: Any) -> Any:
        seen.append([i.prompt for i in inputs])
        return (frames.mean(axis=(1, 2, 3, 4)) / 255).round()

    task = Pairs(PROMPTS, scorer=bright)
    frames = np.stack([np.full((5, 16, 32, 3), v, np.uint8) for v in (0, 255)])
    inputs = list(task.pair(0))
    scores = require(task, "score", who="a test").score(frames, inputs)
    assert scores.total.tolist() == [0, 1]
    assert scores.strict.tolist() == [False, True]
    assert list(scores.rules) == ["score"]
    assert show_answer(task, frames, inputs, who="a test").tolist() == [False, True]
    assert seen[0] == [i.prompt for i in inputs]
    assert require(task, "score", who="a test").score(frames, inputs[0]).total.tolist() == [0, 1]


@pytest.mark.parametrize("returned", [[1], [0.5, 1.5], [np.nan, 0], ["yes", "no"], None])
def test_a_scorer_that_returns_no_scores_is_refused(returned: Any) -> None:
    task = require(Pairs(PROMPTS, scorer=lambda frames, inputs: returned), "score", who="a test")
    frames = np.zeros((2, 5, 16, 32, 3), np.uint8)
    with pytest.raises(TaskError, match=r"pairs: .*scorer"):
        task.score(frames, list(task.pair(0)))
    for bad in (frames[:1], frames.astype(float), frames[0], None):
        with pytest.raises(TaskError, match=r"pairs: expected 2 uint8 videos \(B, T, height, width, 3\), got"):
            task.score(bad, list(task.pair(0)))


# -- bad pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([], "need a list of inputs"),
        (5, "need a list of pairs, got 5"),
        ("ab", r"pair 0 must be \(original, counterfactual\), got 'a'"),
        (["one", "two"], "pair 0 must be"),
        ([("a", "b", "c")], "pair 0 must be"),
        ([("a", "b"), ("a", "a")], "both sides of pair 1 are the same"),
        (pictured([(0, 1), (2, 2)]), "both sides of pair 1 are the same"),
        ([("a", {"prompt": "b", "image": picture()})], r"input 0 \('a'\) has no image and others have one"),
        (
            [({"prompt": "a", "image": picture()}, {"prompt": "b", "image": picture(size=(16, 16))})],
            "the images are of 16 x 16 and 32 x 16 pixels",
        ),
        ([("a", {"image": picture()})], "input 1 needs a prompt"),
        ([("a", 3)], "input 1 needs a prompt"),
        (
            [tuple({"prompt": "a", "image": picture().convert(mode)} for mode in ("RGB", "RGBA"))],
            "both sides of pair 0 are the same",
        ),
        ([("a", {"prompt": "b", "image": "b.png"})], "the image of input 1 must be a PIL image, got str"),
        ([("a", {"prompt": "b", "negative_prompt": "c"})], "input 1 has negative_prompt; an input has a prompt"),
    ],
)
def test_pairs_that_are_none_are_refused_with_what_is_wrong(pairs: Any, told: str) -> None:
    with pytest.raises(TaskError, match=f"pairs: {told}"):
        Pairs(pairs)


MASKS, CELLS = np.ones((3, 16, 32), dtype=bool), np.ones((3, 2, 2), dtype=bool)


@pytest.mark.parametrize(
    ("further", "told"),
    [
        ({"truth": videos(2, 2)}, r"truth must be uint8 videos of shape \(3, 2, T, 16, 32, 3\)"),
        ({"truth": videos(3)}, "truth must be uint8 videos"),
        ({"truth": videos(3, 2).astype(float)}, "truth must be uint8 videos .* got float64"),
        ({"truth": videos(3, 2)[:, :, :, 1:]}, "truth must be uint8 videos"),
        ({"truth": [[videos()[:3], videos()]] * 3}, "the true videos are of different shapes"),
        ({"masks": MASKS[:2]}, r"masks must be bool \(3, 16, 32\) of pixels, got bool \(2, 16, 32\)"),
        ({"masks": MASKS[:, 1:]}, "masks must be bool"),
        ({"masks": MASKS[0]}, "masks must be bool"),
        ({"masks": 1.0 * MASKS}, "masks must be bool .* got float64"),
        ({"masks": MASKS & (np.arange(3) != 1)[:, None, None]}, "masks mark nothing of pair 1"),
        ({"masks": MASKS, "cell": 8}, r"masks must be bool \(3, n, n\) of cells"),
        ({"masks": CELLS, "cell": 16}, "2 cells of 16 pixels leave a picture of 16 x 32"),
        ({"masks": CELLS, "cell": 0}, "cell must be a whole number of pixels"),
        ({"cell": 8}, "cell=8 is given, but no label or mask has values of cells"),
        (
            {"masks": CELLS, "cell": 8, "labels": {"here": np.zeros((3, 2, 5, 3, 3))}},
            "cells must be n x n, the same n everywhere; got here 3 x 3, masks 2 x 2",
        ),
        ({"labels": {"red": [1, 0, 1]}}, "label 'red' has values for 3; the inputs need 3 x 2"),
        ({"labels": {"red": np.zeros((2, 3))}}, "label 'red' has values for 2 x 3; the inputs need 3 x 2"),
        (
            {"labels": {"red": np.zeros((3, 2, 4, 4))}},
            "label 'red' has 2 axes after the inputs; it may",
        ),
        ({"labels": {"red": [[1, 0], [1], [0, 1]]}}, "values of label 'red' are of different shapes"),
        ({"labels": {"red": [[None, 1]] * 3}}, "values of label 'red' must be booleans"),
        ({"labels": [1, 2]}, "labels must be a mapping from name to values, got list"),
        ({"split": ["test", "train"]}, "split must have one of train, val, test for each of 3, got 2 names"),
        ({"split": ["test", "exam", "val"]}, "split must have one of train, val, test for each of 3, got exam"),
    ],
)
def test_what_does_not_fit_the_pairs_is_refused_with_what_would(further: Any, told: str) -> None:
    with pytest.raises(TaskError, match=f"pairs: {told}"):
        Pairs(pictured([(0, 1), (2, 3), (4, 5)]), **further)


def test_inputs_of_another_task_are_refused() -> None:
    task, other = (require(Pairs(PROMPTS[i : i + 2], truth=videos(2, 2)), "render", who="a test") for i in (0, 1))
    for foreign in (other.sample(4), Maze().sample(1)):
        with pytest.raises(TaskError, match=r"pairs: .* is an input of another task"):
            task.render(foreign)
    with pytest.raises(TaskError, match="pairs: no inputs given"):
        task.render([])


# -- inputs with labels ------------------------------------------------------------------------------------------------


def test_the_level_of_a_label_is_told_by_its_axes() -> None:
    labels = {
        "clip": [0.5, 1.5],
        "frame": np.zeros((2, 3), bool),
        "place": np.zeros((2, 3, 4, 4), int),
        "token": Label("x", "perception", np.zeros((2, 3, 8, 8)), level="token"),
        "word": Label("x", "perception", np.zeros((2, 16), int), level="token"),
    }
    own = require(Labelled(["a", "b"], labels, cell=8), "labels", "scene_labels", who="a test")
    found = own.labels(own.sample(2), 3) | own.scene_labels(own.sample(2), 3)
    assert {name: label.level for name, label in found.items()} == {
        "place": "cell", "token": "token", "word": "token", "clip": "clip", "frame": "frame"
    }  # fmt: skip
    assert {label.name for label in found.values()} == set(labels)
    assert (found["token"].role, found["clip"].role) == ("perception", "given")
    assert found["clip"].is_regression
    tokens = Labelled(["a", "b"], {"place": np.zeros((2, 3, 4, 6), int)})
    assert labels_of(tokens, tokens.sample(2), 3)["place"].level == "token"
    assert not dl.tasks.declares(tokens, "size")
    with pytest.raises(TaskError, match="label 'place' has 3 latent frames, the model makes 5"):
        labels_of(tokens, tokens.sample(2), 5)


@given(st.lists(st.sampled_from(["red", "green", "blue"]), min_size=1, max_size=8), st.integers(0, 99))
def test_words_become_classes_that_keep_their_names(words: list[str], seed: int) -> None:
    task = Labelled([f"{i}" for i in range(len(words))], {"colour": words})
    drawn = task.sample(len(words), seed)
    label = labels_of(task, drawn, 5)["colour"]
    assert [label.names[value] for value in label.values] == [words[int(i.prompt)] for i in drawn]


def test_without_splits_all_is_test_and_the_others_are_refused() -> None:
    task = Labelled(["a", "b"], {"y": [0, 1]})
    assert len(task.sample(2)) == 2
    with pytest.raises(TaskError, match="asked for 1 of split 'train'; there are 2 of test; split= says which"):
        task.sample(1, split="train")
    with pytest.raises(TaskError, match="unknown split 'exam'"):
        task.sample(1, split="exam")  # type: ignore[arg-type]
    for count in (0, 3):
        with pytest.raises(TaskError, match=f"asked for {count}"):
            task.sample(count)


def test_inputs_are_taken_as_a_run_takes_them_and_keep_an_id_of_their_own() -> None:
    mazes = Maze(4).sample(2)
    task = Labelled(mazes, {"steps": [maze.steps for maze in mazes]})
    assert {i.id for i in task.sample(2)} == {maze.id for maze in mazes}
    assert {np.asarray(i.image).tobytes() for i in task.sample(2)} == {np.asarray(m.image).tobytes() for m in mazes}
    same = Labelled(["a", "a", "b"], {"y": [0, 0, 1]})
    assert len({i.id for i in same.inputs}) == 2


@pytest.mark.parametrize("inputs", [[], "a", {"prompt": "a"}, 3, None])
def test_what_is_no_list_of_inputs_is_refused(inputs: Any) -> None:
    with pytest.raises(TaskError, match="labelled: need a list of inputs with at least one, got"):
        Labelled(inputs, {})


def test_inputs_may_come_from_any_iterable() -> None:
    for inputs in (np.array(["a", "b"]), iter(["a", "b"]), ("a", "b")):
        assert [i.prompt for i in Labelled(inputs, {"y": [0, 1]}).inputs] == ["a", "b"]


def test_an_input_is_light_and_can_be_pickled() -> None:
    task = Pairs(PROMPTS, truth=videos(3, 2), scorer=lambda frames, inputs: [1])
    one = task.sample(1)[0]
    again = pickle.loads(pickle.dumps(one))
    assert isinstance(again, Input)
    assert (again.id, again.prompt, again.row) == (one.id, one.prompt, one.row)
    assert len(pickle.dumps(one)) < 500
    assert np.array_equal(require(task, "render", who="a test").render([again]), task.truth[[one.row]])


def test_inputs_can_be_run() -> None:
    model = dl.load_organism("maze")
    given = [{"prompt": m.prompt, "image": m.image} for m in Maze().sample(2)]
    task = Labelled(given, {"y": [0, 1]})
    drawn = task.sample(2)
    run = model.run(drawn, [0, 1], decode=False, stop_after=0)
    assert [row.instance for row in run.rows] == [i.id for i in drawn]


# -- through probes ----------------------------------------------------------------------------------------------------


def own_clips(**further: Any) -> Labelled:
    clips = dl.tasks.Permanence().sample(24, seed=1)
    exits = ["out" if clip.variables["out"] else "stays" for clip in clips]
    return Labelled([{"prompt": c.prompt, "image": c.image} for c in clips], {"exit": exits}, **further)


@pytest.fixture(scope="module")
def small() -> dl.VideoDiT:
    defaults = {"num_frames": 9, "max_sequence_length": 16, "num_inference_steps": 2}
    return dl.VideoDiT(random_pipeline(OrganismConfig(layers=2)), defaults=defaults)


CLIP = dl.Readout(dl.Sites("resid", steps=0), level="clip", controls=("input",))


def test_inputs_with_labels_go_through_every_probe(small: dl.VideoDiT) -> None:
    task = own_clips(name="exits", split=["train"] * 16 + ["test"] * 8)
    grid = dl.probe_grid(dl.collect(small, task, 8, CLIP), folds=2)
    assert set(grid.table["label"]) == {"exit"}
    probes = dl.stream_probes(small, task, CLIP, train=16, test=8).probes
    assert probes.card["task"] == {"name": "exits", "options": task.settings}
    assert len(set(probes.card["train"]["ids"])) == 16


def test_probes_that_need_splits_refuse_data_that_have_none(small: dl.VideoDiT) -> None:
    with pytest.raises(TaskError, match="asked for 16 of split 'train'; there are 24 of test; split= says which"):
        dl.stream_probes(small, own_clips(), CLIP, train=16, test=8)
    with pytest.raises(InputError, match="a shipped task is named 'maze': give yours another name"):
        dl.stream_probes(small, own_clips(name="maze"), CLIP, train=16, test=8)


def test_cells_of_inputs_without_any_are_refused(small: dl.VideoDiT) -> None:
    with pytest.raises(EvidenceError, match=r"needs size .* task 'labelled' does not declare it"):
        dl.collect(small, own_clips(), 8, dl.Readout(dl.Sites("resid", steps=0)))
