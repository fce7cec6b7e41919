"""The puzzle permanence: problems by hand, each rule broken, pairs, labels also of what is hidden, bad input."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_lens.errors import TaskError
from dit_lens.tasks import Permanence
from dit_lens.tasks.base import SPLITS
from dit_lens.tasks.puzzles.glyphs import COLOURS, FLOOR, NAMES, NUMBER, SHAPES, UNREADABLE, WALL, paint
from dit_lens.tasks.puzzles.puzzle import PuzzleInstance
from dit_lens.tasks.puzzles.scenes import Scenes, rows

TASK = Permanence()
# A red circle in row 1 and a blue square in row 3; the circle goes, and comes out.
SCENE: Scenes = {
    "rows": np.array([[1, 3]]),
    "shapes": np.array([[0, 1]]),
    "colours": np.array([[0, 2]]),
    "mover": np.array([0]),
    "out": np.array([True]),
}
PROBLEM = PuzzleInstance(TASK, SCENE)
STAYS = PuzzleInstance(TASK, SCENE | {"out": np.array([False])})
CIRCLE, SQUARE = NUMBER["red circle"], NUMBER["blue square"]
# Where the circle is in each frame: s at the start, h hidden, e at the end.
OUT, IN = "sshhhheee", "sshhhhhhh"


def film(places: str) -> Any:
    """Glyph numbers (1, T, 4, 4) of the two objects, the circle at these places."""
    codes = np.full((1, len(places), 4, 4), FLOOR)
    codes[..., 1:3] = WALL
    codes[..., 3, 0] = SQUARE
    for t, place in enumerate(places):
        if place != "h":
            codes[0, t, 1, 0 if place == "s" else 3] = CIRCLE
    return codes


def check(codes: Any, problem: PuzzleInstance = PROBLEM, **expected: float) -> None:
    """The video's rules are those given, and 1 else; the total is less by what they are worth."""
    scores = TASK.score(paint(codes), problem)
    for rule in Permanence.weights:
        assert scores.rules[rule][0] == pytest.approx(expected.get(rule, 1)), rule
    lost = sum(Permanence.weights[rule] * (1 - value) for rule, value in expected.items())
    assert scores.total[0] == pytest.approx(1 - lost)
    assert scores.strict[0] == (not expected)


def reference(codes: Any, scene: dict[str, Any]) -> dict[str, float]:
    """The rules in plain Python, of one video (T, n, n)."""
    (frames, n, _), comes_out = codes.shape, int(scene["out"])
    mine, other = (
        f"{list(COLOURS)[scene['colours'][k]]} {SHAPES[scene['shapes'][k]]}"
        for k in (scene["mover"], 1 - scene["mover"])
    )
    row, other_row = (int(scene["rows"][k]) for k in (scene["mover"], 1 - scene["mover"]))
    objects = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
    names = [[[NAMES[c] if c >= 0 else "unreadable" for c in line] for line in frame] for frame in codes]

    def place(frame: list[list[str]]) -> str:
        start, end = frame[row][0], frame[row][-1]
        rest = all(frame[i][-1] == "floor" for i in range(n) if i != row)
        if rest and end == "floor" and start in (mine, "floor"):
            return "start" if start == mine else "hidden"
        return f"out as {end}" if rest and comes_out and end in objects and start == "floor" else "nowhere"

    def legal(before: str, after: str) -> bool:
        onward = (before, after) == ("start", "hidden") or (before == "hidden" and after.startswith("out"))
        return onward or (before == after != "nowhere")

    places = [place(frame) for frame in names]
    away = any(p == "hidden" or p.startswith("out") for p in places) and places[-1] != "start"
    legal_steps = sum(legal(*step) for step in pairwise(places)) - (places[0] != "start" and legal(*places[:2]))
    ends = [(i, names[-1][i][-1]) for i in range(n) if names[-1][i][-1] != "floor"]
    placed = names[-1][row][0] == "floor" and [(i, end in objects) for i, end in ends] == [(row, True)] * comes_out
    kept = []
    for frame in names[1:]:
        for i in range(n):
            for j in range(n - 1):
                if (i, j) != (row, 0):
                    first = "wall" if j else other if i == other_row else "floor"
                    kept.append(frame[i][j] == first)
    return {
        "place": float(placed),
        "identity": float(placed and [end for _, end in ends] == [mine] * comes_out),
        "passage": legal_steps / (frames - 1) if away else 0.0,
        "kept": sum(kept) / len(kept),
    }


# What is drawn.


def test_problems_written_by_hand() -> None:
    np.testing.assert_array_equal(TASK.codes(SCENE), film(OUT))
    assert PROBLEM.prompt == "the circle goes behind the wall and comes out"
    assert PROBLEM.answer == "red circle"
    assert PROBLEM.steps == 3
    assert PROBLEM.candidates == STAYS.candidates == ("red circle", "blue square", "nothing")
    check(film(OUT))
    np.testing.assert_array_equal(TASK.codes(STAYS.scene), film(IN))
    assert STAYS.prompt == "the circle goes behind the wall and stays"
    assert STAYS.answer == "nothing"
    assert STAYS.steps == 1
    check(film(IN), STAYS)
    other = PuzzleInstance(TASK, SCENE | {"mover": np.array([1])})
    assert other.prompt == "the square goes behind the wall and comes out"
    assert other.answer == "blue square"


@pytest.mark.parametrize(("size", "frames"), [(4, 5), (4, 9), (5, 9), (6, 9), (6, 13), (16, 17)])
def test_true_videos_are_strict_at_any_size(size: int, frames: int) -> None:
    task = Permanence(size, frames)
    instances = task.sample(24, seed=2, split="train")
    scores = task.score(task.render(instances), instances)
    assert scores.strict.all()
    np.testing.assert_allclose(scores.total, 1)
    for one in instances:
        assert one.answer in one.candidates
        assert len(set(one.candidates)) == 3
        assert one.steps == (size - 1 if one.variables["out"] else (size - 1) // 2)
        codes = task.codes(one.scene)[0]
        objects = [sorted(NAMES[c] for c in frame.ravel() if c not in (FLOOR, WALL)) for frame in codes]
        assert len(objects[0]) == 2
        assert len(objects[frames // 2]) == 1  # hidden half way, whether it will come out or not
        assert objects[-1] == (objects[0] if one.variables["out"] else objects[frames // 2])


def test_draws_hold_what_the_rules_of_the_puzzle_say() -> None:
    scenes = TASK.draw(np.random.default_rng(0), 500)
    for row in rows(scenes):
        for name in ("rows", "shapes", "colours"):
            assert len(set(row[name])) == 2
    for name, among in (("rows", 4), ("shapes", 3), ("colours", 5), ("mover", 2), ("out", 2)):
        assert set(scenes[name].ravel()) == set(range(among))


# Scores.


def test_an_object_that_stays_hidden_loses_place_and_with_it_identity() -> None:
    check(film(IN), place=0, identity=0)


def test_identity_alone_is_lost_where_something_else_comes_out() -> None:
    for name in ("red square", "green circle", "blue square", "purple triangle"):
        codes = film(OUT)
        codes[0, 6:, 1, 3] = NUMBER[name]
        check(codes, identity=0)


@pytest.mark.parametrize(
    ("places", "worth"),
    [
        ("sshshhhee", 7 / 8),  # back once
        ("sshhehhee", 7 / 8),  # out for a moment
        ("sshhhehse", 5 / 8),  # out, hidden, back and over the wall at once
        ("sssssseee", 7 / 8),  # over the wall at once
        ("hhhhhheee", 7 / 8),  # gone before the first frame
    ],
)
def test_passage_alone_is_lost_by_an_illegal_step(places: str, worth: float) -> None:
    check(film(places), passage=worth)


@pytest.mark.parametrize("frame", [1, 4, 6])
@pytest.mark.parametrize("glyph", ["red ring", "purple circle", "wall"])
def test_passage_alone_is_lost_by_a_thing_in_the_last_column_or_in_the_cell_that_was_left(
    frame: int, glyph: str
) -> None:
    codes = film(OUT)
    codes[0, frame, 2, 3] = NUMBER[glyph]  # the transitions before and after it
    check(codes, passage=6 / 8)
    codes = film(OUT)
    codes[0, frame, 1, 0] = NUMBER[glyph]
    check(codes, passage=6 / 8)


def test_passage_alone_is_lost_by_an_object_that_changes_before_it_goes_or_after_it_came() -> None:
    codes = film(OUT)
    codes[0, 1, 1, 0] = NUMBER["green circle"]  # 0 to 1 and 1 to 2
    check(codes, passage=6 / 8)
    codes = film(OUT)
    codes[0, 6, 1, 3] = NUMBER["green circle"]  # 6 to 7
    check(codes, passage=7 / 8)
    codes = film(OUT)
    codes[0, :2, 1, 0] = NUMBER["green circle"]  # another problem: 0 to 1 and 1 to 2
    check(codes, passage=6 / 8)


def test_kept_alone_is_lost_by_the_wall_and_by_the_other_object() -> None:
    cells = 8 * 11  # later frames, and cells that are neither in the last column nor the circle's
    codes = film(OUT)
    codes[0, 4, 1, 1] = CIRCLE  # seen through the wall
    check(codes, kept=1 - 1 / cells)
    codes[0, 5, 3, 0] = NUMBER["yellow square"]
    check(codes, kept=1 - 2 / cells)
    codes[0, 8, 0, 0] = CIRCLE
    check(codes, kept=1 - 3 / cells)


def test_where_it_comes_out_must_be_its_row_and_nowhere_else() -> None:
    moved = film(OUT)
    moved[0, 6:, 1, 3], moved[0, 6:, 2, 3] = FLOOR, CIRCLE
    check(moved, place=0, identity=0, passage=5 / 8)  # what follows 5 is nowhere
    double = film(OUT)
    double[0, 8, 0, 3] = CIRCLE
    check(double, place=0, identity=0, passage=7 / 8)
    left_behind = film(OUT)
    left_behind[0, 8, 1, 0] = CIRCLE
    check(left_behind, place=0, identity=0, passage=7 / 8)


def test_what_is_to_stay_must_not_come_out() -> None:
    check(film(OUT), STAYS, place=0, identity=0, passage=5 / 8)
    late = film("sshhhhhhe")
    check(late, STAYS, place=0, identity=0, passage=7 / 8)


def test_an_object_that_never_leaves_earns_kept_alone() -> None:
    for problem in (PROBLEM, STAYS):
        check(film("s" * 9), problem, place=0, identity=0, passage=0)
        check(film("sshhhhhhs"), problem, place=0, identity=0, passage=0)  # back where it was
        spoiled = film("s" * 9)
        spoiled[0, 8, 0, 3] = SQUARE  # no reason to pay for the frames before
        check(spoiled, problem, place=0, identity=0, passage=0)


def test_empty_walled_and_unreadable_videos_earn_little() -> None:
    for glyph, kept in ((FLOOR, 2 / 11), (WALL, 8 / 11), (UNREADABLE, 0)):
        codes = np.full((1, 9, 4, 4), glyph)
        for problem in (PROBLEM, STAYS):
            judged = TASK.judge(codes, problem.scene)
            assert judged["kept"] == pytest.approx(kept)
            assert judged["identity"] == judged["place"] == float(glyph == FLOOR and problem is STAYS)


@pytest.mark.parametrize("task", [TASK, Permanence(4, 5), Permanence(6, 13)])
def test_scores_are_those_of_a_scorer_in_plain_python(task: Permanence) -> None:
    rng = np.random.default_rng(task.size)
    scenes = task.draw(rng, 80)
    truth = task.codes(scenes)
    some = rng.random(truth.shape) < rng.choice([0, 0.003, 0.02], (80, 1, 1, 1))
    broken = np.where(some, rng.integers(-1, len(NAMES), truth.shape), truth)
    shuffled = truth[:, rng.permutation(task.frames)]
    flipped = truth[:, :, rng.permutation(task.size)]
    late = np.concatenate([truth[:, :1], truth[:, :-1]], axis=1)
    frozen = np.repeat(truth[:, :1], task.frames, axis=1)
    others = [task.codes(task.vary(scenes, kind, rng)[0]) for kind in Permanence.kinds]
    seen: dict[str, set[float]] = {rule: set() for rule in Permanence.weights}
    for codes in (truth, broken, shuffled, flipped, late, frozen, *others, truth[::-1], np.full_like(truth, -1)):
        judged = task.judge(codes, scenes)
        for b, row in enumerate(rows(scenes)):
            expected = reference(codes[b], row)
            assert {rule: x[b] for rule, x in judged.items()} == pytest.approx(expected)
            for rule, value in expected.items():
                seen[rule].add(round(value, 6))
    assert all({0, 1} <= values for values in seen.values())
    assert min(len(seen["passage"]), len(seen["kept"])) > 4


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 40, 256]))
def test_any_video_is_scored(seed: int, values: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, values, (2, 9, 32, 32, 3))
    scores = TASK.score((drawn * (255 // max(values - 1, 1))).astype(np.uint8), PROBLEM)
    assert not scores.strict.any()
    for rule in Permanence.weights:
        assert ((scores.rules[rule] >= 0) & (scores.rules[rule] <= 1)).all()


def test_floors() -> None:
    table: Any = TASK.floors(150).set_index(["video", "kind"])
    assert table.loc[("truth", ""), "strict"] == 1
    assert table.loc[("frozen", ""), "total"] == pytest.approx(0.1)
    assert table.loc[("noise", ""), "total"] == 0
    assert (table.loc[["frozen", "noise", "counterfactual"], "strict"] == 0).all()
    # In the right order by chance: 2 of the 9 frames show the start, and 7 or 4 what follows.
    assert table.loc[("shuffled", ""), "strict"] <= 0.05
    assert table.loc["counterfactual"].index.tolist() == list(Permanence.kinds)
    # Another colour costs *identity* and the two transitions from frames that show it before it goes.
    assert table.loc[("counterfactual", "colour"), "total"] == pytest.approx(1 - 0.3 - 0.2 * 2 / 8)
    assert table.loc[("counterfactual", "exit"), "total"] < 0.31  # all of *passage* and *kept* at best
    assert table.loc[("counterfactual", "object"), "total"] < 0.1  # a part of *kept*


# Pairs.


@pytest.mark.parametrize("task", [TASK, Permanence(6, 13)])
@pytest.mark.parametrize("kind", Permanence.kinds)
def test_pairs_differ_in_one_variable_and_in_their_answers(task: Permanence, kind: str) -> None:
    pairs = task.pairs(60, seed=4, kind=kind)
    assert len(pairs) == 60
    for pair in pairs:
        one, other = pair
        assert pair.variable == Permanence.kinds[kind]
        assert one.answer != other.answer
        assert not task.score(other.video[None], one).strict.any()
        assert not task.score(one.video[None], other).strict.any()
        assert task.score(other.video[None], other).strict.all()
        assert task.in_split(other.scene, "test").all()


def test_exit_and_object_pairs_change_the_prompt_only() -> None:
    for kind in ("exit", "object"):
        for one, other in TASK.pairs(60, seed=1, kind=kind):
            assert one.prompt != other.prompt
            assert other.answer in one.candidates
            np.testing.assert_array_equal(one.video[0], other.video[0])
    for one, other in TASK.pairs(60, seed=1):
        assert {one.prompt.split(" and ")[1], other.prompt.split(" and ")[1]} == {"comes out", "stays"}
        assert "nothing" in (one.answer, other.answer)
        assert one.prompt.split(" and ")[0] == other.prompt.split(" and ")[0]
    for one, other in TASK.pairs(60, seed=1, kind="object"):
        assert sum(a != b for a, b in zip(one.prompt.split(), other.prompt.split(), strict=True)) == 1
        assert "nothing" not in (one.answer, other.answer)


def test_colour_pairs_change_one_cell_to_a_colour_that_nobody_has() -> None:
    for one, other in TASK.pairs(60, seed=1, kind="colour"):
        assert one.prompt == other.prompt
        a, b = (TASK.codes(side.scene)[0, 0] for side in (one, other))
        assert (a != b).sum() == 1
        assert other.variables["colours"][one.variables["mover"]] not in one.variables["colours"]
        (colour, shape), (other_colour, other_shape) = (str(side.answer).split() for side in (one, other))
        assert colour != other_colour
        assert shape == other_shape


# Splits, labels, bad input.


def pictures(scenes: Scenes) -> set[bytes]:
    return {codes[0].tobytes() for codes in TASK.codes(scenes)}


def test_splits_share_no_picture() -> None:
    train, val, test = (
        pictures(TASK.sample_scenes(np.random.default_rng(7), 3000, split)) for split in ("train", "val", "test")
    )
    assert len(SPLITS) == 3
    assert len(train | val | test) == len(train) + len(val) + len(test)


def test_the_order_in_which_objects_are_listed_and_the_prompt_do_not_change_the_split() -> None:
    scenes = TASK.draw(np.random.default_rng(0), 300)
    turned = {name: x[:, ::-1] for name, x in scenes.items() if x.ndim == 2}
    for changed in (turned, {"mover": 1 - scenes["mover"]}, {"out": ~scenes["out"]}):
        for split in SPLITS:
            np.testing.assert_array_equal(TASK.in_split(scenes | changed, split), TASK.in_split(scenes, split))


def test_seeds_are_reproducible() -> None:
    assert [i.id for i in TASK.sample(5, seed=3)] == [i.id for i in TASK.sample(5, seed=3)]
    assert {i.id for i in TASK.sample(5, seed=3)}.isdisjoint(i.id for i in TASK.sample(5, seed=4))
    for kind in Permanence.kinds:
        one, two = (TASK.pair(seed=3, kind=kind) for _ in range(2))
        assert [i.id for i in one] == [i.id for i in two]


def grid(*cells: tuple[int, int]) -> Any:
    shown = np.zeros((4, 4), dtype=bool)
    for cell in cells:
        shown[cell] = True
    return shown


def test_labels_written_by_hand() -> None:
    labels = TASK.labels([PROBLEM], latent_frames=9)
    assert all(label.values.shape == (1, 9, 4, 4) and label.values.dtype == np.bool_ for label in labels.values())
    wall = grid(*((i, j) for i in range(4) for j in (1, 2)))
    # Two frames to a cell: columns 0 0 1 1 2 2 3 3 3.
    for frame, column in enumerate((0, 0, 1, 1, 2, 2, 3, 3, 3)):

        def at(name: str, frame: int = frame) -> Any:
            return labels[name].values[0, frame]

        hidden = column in (1, 2)
        here = grid((1, column))
        seen = grid() if hidden else here
        np.testing.assert_array_equal(at("wall"), wall)
        np.testing.assert_array_equal(at("mover"), here)
        np.testing.assert_array_equal(at("hidden"), here if hidden else grid())
        np.testing.assert_array_equal(at("hidden_red"), at("hidden"))
        np.testing.assert_array_equal(at("object"), seen | grid((3, 0)))
        np.testing.assert_array_equal(at("red"), seen)
        np.testing.assert_array_equal(at("circle"), seen)
        np.testing.assert_array_equal(at("blue"), grid((3, 0)))
        np.testing.assert_array_equal(at("square"), grid((3, 0)))
        np.testing.assert_array_equal(at("answer"), grid((1, 3)))
        np.testing.assert_array_equal(at("answer_red"), grid((1, 3)))
    for colour in set(COLOURS) - {"red"}:
        assert not labels[f"hidden_{colour}"].values.any()
        assert not labels[f"answer_{colour}"].values.any()
    by_colour = {f"{kind}_{colour}" for kind in ("hidden", "answer") for colour in COLOURS}
    reasoning = {name for name, label in labels.items() if label.role == "reasoning"}
    assert reasoning == {"mover", "hidden", "answer", *by_colour}
    assert {*labels} - reasoning == {"wall", "object", *COLOURS, *SHAPES}


def test_labels_of_an_object_that_stays_hidden() -> None:
    labels = TASK.labels([STAYS], latent_frames=5)  # the second covers pixel frames 1 and 2
    np.testing.assert_array_equal(labels["mover"].values[0, 1], grid((1, 0), (1, 1)))
    np.testing.assert_array_equal(labels["hidden"].values[0, 1], grid((1, 1)))
    for frame in (2, 3, 4):
        np.testing.assert_array_equal(labels["mover"].values[0, frame], grid((1, 1)))
        np.testing.assert_array_equal(labels["hidden_red"].values[0, frame], grid((1, 1)))
        assert not labels["red"].values[0, frame].any()
    assert not labels["answer"].values.any()
    assert not labels["answer_red"].values.any()


def test_hidden_labels_hold_what_the_picture_does_not_show() -> None:
    task = Permanence(6, 13)
    instances = task.sample(40)
    labels = task.labels(instances, latent_frames=13)
    hidden = labels["hidden"].values
    assert (hidden.sum(axis=(2, 3)) + (labels["object"].values & labels["mover"].values).sum(axis=(2, 3)) == 1).all()
    assert (hidden <= labels["wall"].values).all()
    for b, one in enumerate(instances):
        colour = list(COLOURS)[one.variables["colours"][one.variables["mover"]]]
        np.testing.assert_array_equal(hidden[b], labels[f"hidden_{colour}"].values[b])
        stays = hidden[b, -1].any()
        assert stays == (one.answer == "nothing")
        alone = task.labels([one], latent_frames=13)
        for name, label in alone.items():
            np.testing.assert_array_equal(label.values[0], labels[name].values[b])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 3}, "size must be 4 to 16"),
        ({"size": 17}, "size must be 4 to 16"),
        ({"frames": 8}, "frames must be 1 [+] 4 k"),
        ({"size": 5, "frames": 5}, "5 frames are too few for 5 cells; ask for at least 9"),
        ({"size": 9}, "9 frames are too few for 9 cells; ask for at least 13"),
        ({"size": 16}, "9 frames are too few for 16 cells; ask for at least 17"),
    ],
)
def test_sizes_and_lengths_that_do_not_exist(options: dict[str, int], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Permanence(**options)


@pytest.mark.parametrize("size", range(4, 17))
def test_the_shortest_length_that_the_message_names_is_enough(size: int) -> None:
    least = 1 + 4 * -(-size // 4)
    assert Permanence(size, least).frames == least
    if least > 5:
        with pytest.raises(TaskError, match=f"ask for at least {least}"):
            Permanence(size, least - 4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(TaskError, match="unknown kind of pair 'shape'; one of exit, object, colour"):
        TASK.pair(kind="shape")
    with pytest.raises(TaskError, match="at least 1"):
        TASK.sample(0)
    with pytest.raises(TaskError, match="cannot draw 0 pairs"):
        TASK.pairs(0)
    with pytest.raises(TaskError, match="unknown split"):
        TASK.sample(1, split="dev")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="expected uint8 videos of shape"):
        TASK.score(PROBLEM.video[None, :5], PROBLEM)
    with pytest.raises(TaskError, match="expected uint8 videos of shape"):
        TASK.score(PROBLEM.video[None].astype(np.float32), PROBLEM)
    with pytest.raises(TaskError, match="another task"):
        Permanence(5).labels([PROBLEM], latent_frames=5)
    with pytest.raises(TaskError, match="no instances"):
        TASK.labels([], latent_frames=5)
    with pytest.raises(TaskError, match="9 pixel frames cannot be 4 latent frames"):
        TASK.labels([PROBLEM], latent_frames=4)


def test_it_describes_itself_in_json() -> None:
    told = json.loads(json.dumps(TASK.describe()))
    assert told["rules"] == dict(Permanence.weights)
    assert sum(Permanence.weights.values()) == pytest.approx(1)
    assert told["kinds"] == dict(Permanence.kinds)
    assert told["candidates"] == 3
