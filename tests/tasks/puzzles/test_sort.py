"""The puzzle sort: a problem by hand, a bubble sort and a scorer in plain Python, each rule broken alone, pairs."""

from __future__ import annotations

import json
from collections import deque
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_lens.errors import TaskError
from dit_lens.tasks import Sort
from dit_lens.tasks.base import SPLITS
from dit_lens.tasks.puzzles.glyphs import COLOURS, FLOOR, NAMES, NUMBER, UNREADABLE, WALL, paint
from dit_lens.tasks.puzzles.puzzle import PuzzleInstance
from dit_lens.tasks.puzzles.scenes import Scenes, rows

Order = tuple[int, ...]

TASK = Sort()
COLOUR_OF = ("red", "green", "blue", "yellow")  # of heights 1 to 4
SCENE: Scenes = {
    "heights": np.array([[3, 1, 4, 2]]),
    "colours": np.array([[0, 1, 2, 3]]),
    "descending": np.array([False]),
}
PROBLEM = PuzzleInstance(TASK, SCENE)
START, SORTED = (3, 1, 4, 2), (1, 2, 3, 4)
ORDERS: list[Order] = [START, (1, 3, 4, 2), (1, 3, 2, 4), SORTED]


def film(orders: list[Order], frames: int = 9) -> Any:
    """Glyph numbers (1, T, 4, 4) of bars in these orders; the last one stays."""
    codes = np.full((1, frames, 4, 4), FLOOR)
    for t in range(frames):
        for column, height in enumerate(orders[min(t, len(orders) - 1)]):
            for row in range(4 - height, 4):
                codes[0, t, row, column] = NUMBER[f"{COLOUR_OF[height - 1]} bar"]
    return codes


def check(codes: Any, **expected: float) -> None:
    """The video's rules are those given, and 1 else; the total is less by what they are worth."""
    scores = TASK.score(paint(codes), PROBLEM)
    for rule in Sort.weights:
        assert scores.rules[rule][0] == pytest.approx(expected.get(rule, 1)), rule
    lost = sum(Sort.weights[rule] * (1 - value) for rule, value in expected.items())
    assert scores.total[0] == pytest.approx(1 - lost)
    assert scores.strict[0] == (not expected)


def bubble(heights: Order, descending: bool) -> tuple[list[Order], Order]:
    """The orders that the leftmost legal move leads through, and the left columns of the moves."""
    orders, moves = [tuple(heights)], list[int]()
    while True:
        now = list(orders[-1])
        wrong = [j for j in range(len(now) - 1) if (now[j] < now[j + 1] if descending else now[j] > now[j + 1])]
        if not wrong:
            return orders, tuple(moves)
        j = wrong[0]
        now[j], now[j + 1] = now[j + 1], now[j]
        orders.append(tuple(now))
        moves.append(j)


def fewest_exchanges(start: Order, end: Order) -> int:
    """Exchanges of any neighbours that lead from one order to another, by search."""
    distance, queue = {start: 0}, deque([start])
    while end not in distance:
        now = queue.popleft()
        for j in range(len(now) - 1):
            then = (*now[:j], now[j + 1], now[j], *now[j + 2 :])
            if then not in distance:
                distance[then] = distance[now] + 1
                queue.append(then)
    return distance[end]


def reference(codes: Any, scene: dict[str, Any]) -> dict[str, float]:
    """The rules in plain Python, of one video (T, n, n)."""
    frames, n, _ = codes.shape
    colour_names = [f"{list(COLOURS)[c]} bar" for c in scene["colours"]]

    def bar(t: int, column: int) -> tuple[int, str]:
        shown = [NAMES[code] if code >= 0 else "unreadable" for code in codes[t, ::-1, column]]
        height = 0
        while height < n and shown[height] == shown[0] and shown[0].endswith("bar"):
            height += 1
        return height, shown[0]

    def in_order(one: int, other: int) -> bool:
        return one > other if scene["descending"] else one < other

    bars = [[bar(t, column) for column in range(n)] for t in range(frames)]
    heights = [tuple(height for height, _ in frame) for frame in bars]
    start = tuple(int(height) for height in scene["heights"])
    initial, left = (sum(not in_order(a, b) for a, b in combinations(x, 2)) for x in (start, heights[-1]))
    legal = moved = 0
    for before, after in pairwise(heights):
        if 0 in before + after:
            continue
        exchanges = [(*before[:j], before[j + 1], before[j], *before[j + 2 :]) for j in range(n - 1)]
        allowed = [x for j, x in enumerate(exchanges) if in_order(before[j + 1], before[j])]
        legal += before == after or after in allowed
        moved += after in allowed
    once = [frame.count((size + 1, colour_names[size])) == 1 for frame in bars for size in range(n)]
    alone = [
        bars[t][j][0] > 0 and all(code == FLOOR for code in codes[t, : n - bars[t][j][0], j])
        for t in range(1, frames)
        for j in range(n)
    ]
    return {
        "sorted": max(0.0, 1 - left / initial) if 0 not in heights[-1] else 0.0,
        "moves": legal / (frames - 1) if moved and heights[0] == start else 0.0,
        "bars": sum(once) / len(once) if moved else 0.0,
        "background": sum(alone) / len(alone),
    }


# What is drawn.


def test_a_problem_written_by_hand() -> None:
    np.testing.assert_array_equal(TASK.codes(SCENE), film(ORDERS))
    assert PROBLEM.prompt == "sort the bars up"
    assert PROBLEM.answer == (0, 2, 1)
    assert PROBLEM.steps == 3
    assert PROBLEM.candidates == ((0, 2, 1), (1, 0, 2))
    check(film(ORDERS))
    down = PuzzleInstance(TASK, SCENE | {"descending": np.array([True])})
    np.testing.assert_array_equal(TASK.codes(down.scene), film([START, (3, 4, 1, 2), (4, 3, 1, 2), (4, 3, 2, 1)]))
    assert down.prompt == "sort the bars down"
    assert down.answer == (1, 0, 2)
    assert down.candidates == PROBLEM.candidates


def test_bars_that_stand_in_one_order_have_one_answer() -> None:
    scene = SCENE | {"heights": np.array([[4, 3, 2, 1]])}
    assert PuzzleInstance(TASK, scene).candidates == ((0, 1, 0, 2, 1, 0),)
    long = Sort(5)  # 9 moves up do not fit into 9 frames, 1 move down does
    scene = {"heights": np.array([[5, 4, 3, 1, 2]]), "colours": np.array([[0, 1, 2, 3, 4]])}
    assert PuzzleInstance(long, scene | {"descending": np.array([True])}).candidates == ((3,),)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_the_true_video_is_a_bubble_sort_and_no_shorter_way_exists(size: int) -> None:
    task = Sort(size, 13)
    heights = [order for order in permutations(range(1, size + 1)) if order != tuple(sorted(order))]
    count = len(heights)
    for descending in (False, True):
        starts = [order[::-1] if descending else order for order in heights]
        scenes = {
            "heights": np.array(starts),
            "colours": np.tile(np.arange(size), (count, 1)),
            "descending": np.full(count, descending),
        }
        seen = (task.codes(scenes) != FLOOR).sum(axis=2)
        for start, film_heights, scene in zip(starts, seen, rows(scenes), strict=True):
            orders, moves = bubble(start, descending)
            orders += orders[-1:] * (13 - len(orders))
            assert [tuple(frame) for frame in film_heights.tolist()] == orders
            assert task.answer(scene) == moves
            ends = tuple(sorted(start, reverse=descending))
            assert task.necessary_steps(scene) == len(moves) == fewest_exchanges(start, ends)


@pytest.mark.parametrize(
    ("task", "depths"),
    [
        (Sort(), (1, 6)),
        (Sort(3), (1, 3)),
        (Sort(5), (1, 8)),
        (Sort(5, 13), (1, 10)),
        (Sort(8, 17), (1, 16)),
        (Sort(moves=(2, 3)), (2, 3)),
        (Sort(5, 13, moves=(9, 10)), (9, 10)),
    ],
)
def test_true_videos_are_strict_and_take_as_many_moves_as_asked(task: Sort, depths: tuple[int, int]) -> None:
    instances = task.sample(120, seed=2, split="train")
    scores = task.score(task.render(instances), instances)
    assert scores.strict.all()
    np.testing.assert_allclose(scores.total, 1)
    steps = [one.steps for one in instances]
    assert depths[0] <= min(steps) <= max(steps) <= depths[1]
    if task.size < 5 or task.moves:  # of 5 bars only 1 order in 120 takes 10 moves
        assert {*steps} == {*range(depths[0], depths[1] + 1)}
    for one in instances:
        assert one.answer in one.candidates
        assert len(set(one.candidates)) == len(one.candidates)
        assert isinstance(one.answer, tuple)
        assert len(one.answer) == one.steps
        assert sorted(one.variables["heights"]) == list(range(1, task.size + 1))


def test_five_bars_have_five_colours_and_further_ones_colours_of_their_own() -> None:
    for row in rows(Sort(8).draw(np.random.default_rng(0), 200)):
        assert len({*row["colours"][:5]}) == 5
        assert len({*row["colours"][5:]}) == 3


# Scores.


def test_sorted_alone_is_lost_where_the_bars_stop_too_early() -> None:
    check(film(ORDERS[:2]), sorted=1 / 3)
    check(film(ORDERS[:3]), sorted=2 / 3)


@pytest.mark.parametrize(
    "orders",
    [
        [START, (1, 3, 2, 4), SORTED],  # two moves at once
        [START, (2, 1, 4, 3), (1, 2, 4, 3), SORTED],  # the exchange of two that are not neighbours
        [START, (1, 3, 4, 2), START, *ORDERS[1:]],  # a move is undone
        [START, (3, 4, 1, 2), *ORDERS],  # a move down, undone by a move up
    ],
)
def test_moves_alone_is_lost_by_one_illegal_transition(orders: list[Order]) -> None:
    check(film(orders), moves=7 / 8)


def test_other_ways_and_pauses_are_as_right_as_the_true_video() -> None:
    check(film([START, (3, 1, 2, 4), (1, 3, 2, 4), SORTED]))
    check(film([START, START, ORDERS[1], ORDERS[1], ORDERS[1], ORDERS[2], SORTED]))


def test_moves_alone_is_lost_where_the_video_begins_with_another_problem() -> None:
    check(film([(3, 4, 1, 2), (3, 1, 4, 2), *ORDERS[1:]]), moves=0)
    check(film(ORDERS[1:]), moves=0)


@pytest.mark.parametrize("frame", [0, 5, 8])
def test_bars_alone_is_lost_by_another_colour(frame: int) -> None:
    codes = film(ORDERS)
    blue = codes[0, frame] == NUMBER["blue bar"]
    codes[0, frame][blue] = NUMBER["purple bar"]
    check(codes, bars=35 / 36)
    codes[0, frame][codes[0, frame] == NUMBER["red bar"]] = NUMBER["blue bar"]
    check(codes, bars=34 / 36)


@pytest.mark.parametrize("rubbish", ["wall", "red ring", "purple circle", "purple bar"])
def test_background_alone_is_lost_by_anything_above_a_bar(rubbish: str) -> None:
    codes = film(ORDERS)
    codes[0, 4, 0, 1] = NUMBER[rubbish]  # above the green bar of 2
    check(codes, background=31 / 32)
    codes[0, 4, 1, 1] = NUMBER[rubbish]  # the same column
    check(codes, background=31 / 32)
    codes[0, 4, 0, 2] = NUMBER[rubbish]  # another
    check(codes, background=30 / 32)


def test_a_cell_that_cannot_be_read_is_background_above_a_bar_and_no_bar_on_the_ground() -> None:
    video = paint(film(ORDERS))
    video[0, 8, :8, :8] = 120  # above the bar of 1
    scores = TASK.score(video, PROBLEM)
    assert {rule: float(x[0]) for rule, x in scores.rules.items()} == {
        "sorted": 1,
        "moves": 1,
        "bars": 1,
        "background": 31 / 32,
    }
    video[0, 8, 24:, :8] = 120  # the bar of 1
    scores = TASK.score(video, PROBLEM)
    assert {rule: float(x[0]) for rule, x in scores.rules.items()} == {
        "sorted": 0,
        "moves": 7 / 8,
        "bars": 35 / 36,
        "background": 31 / 32,
    }


def test_bars_of_one_height_are_in_no_order() -> None:
    double = film(ORDERS)
    double[0, 8, 0, 3] = FLOOR  # the yellow bar of 4 is now 3 high as the blue one is
    check(double, sorted=2 / 3, moves=7 / 8, bars=35 / 36)
    level = film([*ORDERS, *[SORTED] * 4, (4, 4, 4, 4)])
    check(level, sorted=0, moves=7 / 8, bars=32 / 36)


def test_a_jump_to_the_end_earns_what_the_end_is_worth() -> None:
    check(film([START, SORTED]), moves=0, bars=0)


def test_frozen_empty_and_walled_videos_earn_little() -> None:
    check(film([START]), sorted=0, moves=0, bars=0)
    for glyph in (FLOOR, WALL, UNREADABLE):
        codes = np.full((1, 9, 4, 4), glyph)
        assert {rule: float(x[0]) for rule, x in TASK.judge(codes, SCENE).items()} == dict.fromkeys(Sort.weights, 0.0)
    with_first = film([START])
    with_first[:, 1:] = FLOOR
    check(with_first, sorted=0, moves=0, bars=0, background=0)


@pytest.mark.parametrize("task", [TASK, Sort(3), Sort(5, 13), Sort(7, 13)])
def test_scores_are_those_of_a_scorer_in_plain_python(task: Sort) -> None:
    rng = np.random.default_rng(task.size)
    scenes = task.draw(rng, 60)
    truth = task.codes(scenes)
    some = np.where(rng.random(truth.shape) < rng.choice([0, 0.003, 0.02], (60, 1, 1, 1)), 1, 0)
    broken = np.where(some, rng.integers(-1, len(NAMES), truth.shape), truth)
    stopped = truth.copy()
    stopped[:, 4:] = truth[:, 3:4]
    shuffled = truth[:, rng.permutation(task.frames)]
    swapped = truth[..., rng.permutation(task.size)]
    seen: dict[str, set[float]] = {rule: set() for rule in Sort.weights}
    for codes in (truth, broken, stopped, shuffled, swapped, truth[::-1], np.full_like(truth, FLOOR)):
        judged = task.judge(codes, scenes)
        for b, row in enumerate(rows(scenes)):
            expected = reference(codes[b], row)
            assert {rule: x[b] for rule, x in judged.items()} == pytest.approx(expected)
            for rule, value in expected.items():
                seen[rule].add(round(value, 6))
    # Every rule was met in full, in part and not at all.
    assert all({0, 1} < values for values in seen.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 40, 256]))
def test_any_video_is_scored(seed: int, values: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, values, (2, 9, 32, 32, 3))
    scores = TASK.score((drawn * (255 // max(values - 1, 1))).astype(np.uint8), PROBLEM)
    assert not scores.strict.any()
    for rule in Sort.weights:
        assert ((scores.rules[rule] >= 0) & (scores.rules[rule] <= 1)).all()


def test_floors() -> None:
    table: Any = TASK.floors(150).set_index(["video", "kind"])
    assert table.loc[("truth", ""), "strict"] == 1
    assert table.loc[("frozen", ""), "total"] == pytest.approx(0.1)
    assert table.loc[("noise", ""), "total"] == 0
    assert (table.loc[["frozen", "noise", "counterfactual"], "strict"] == 0).all()
    # A video of one move is right in one of nine shuffles: where the first frame happens to stay the first.
    assert table.loc[("shuffled", ""), "strict"] <= 0.06
    assert table.loc["counterfactual"].index.tolist() == list(Sort.kinds)
    assert table.loc[("counterfactual", "direction"), "total"] == pytest.approx(0.1)
    assert table.loc[("counterfactual", "bars"), "total"] == pytest.approx(0.7)


# Pairs.


@pytest.mark.parametrize("task", [TASK, Sort(3), Sort(5, 13), Sort(5), Sort(moves=(2, 4)), Sort(8, 17)])
@pytest.mark.parametrize("kind", Sort.kinds)
def test_pairs_differ_in_one_variable_and_in_their_answers(task: Sort, kind: str) -> None:
    pairs = task.pairs(60, seed=4, kind=kind)
    assert len(pairs) == 60
    low, high = task.depths
    for pair in pairs:
        one, other = pair
        assert pair.variable == Sort.kinds[kind]
        assert one.answer != other.answer
        assert low <= min(one.steps, other.steps) <= max(one.steps, other.steps) <= high
        assert not task.score(other.video[None], one).strict.any()
        assert not task.score(one.video[None], other).strict.any()
        assert task.score(other.video[None], other).strict.all()
        assert task.in_split(other.scene, "test").all()


def test_direction_pairs_change_the_prompt_only() -> None:
    for one, other in TASK.pairs(60, seed=1):
        assert {one.prompt, other.prompt} == {"sort the bars up", "sort the bars down"}
        np.testing.assert_array_equal(one.video[0], other.video[0])
        assert one.answer[0] != other.answer[0]
        assert one.candidates == other.candidates
        assert {*one.candidates} == {one.answer, other.answer}
        assert one.steps + other.steps == 6


def test_bars_pairs_exchange_two_bars_of_the_picture() -> None:
    exchanged = set()
    for one, other in TASK.pairs(200, seed=1, kind="bars", split="train"):
        a, b = one.variables["heights"], other.variables["heights"]
        places = np.flatnonzero(a != b)
        assert len(places) == 2
        assert a[places].tolist() == b[places[::-1]].tolist()
        assert one.prompt == other.prompt
        first = (one.video[0] != other.video[0]).any(axis=(0, 2))
        assert {int(x) // 8 for x in np.flatnonzero(first)} == {*places}
        np.testing.assert_array_equal(one.video[-1], other.video[-1])  # in order they are the same
        exchanged.add(tuple(places.tolist()))
    assert exchanged == {*combinations(range(4), 2)}


def test_pairs_that_no_number_of_moves_allows_are_refused() -> None:
    with pytest.raises(TaskError, match="what takes k moves up takes 6 - k down, and both must be 1 to 2"):
        Sort(moves=(1, 2)).pair()
    with pytest.raises(TaskError, match="both must be 4 to 6"):
        Sort(moves=(4, 6)).pair()
    with pytest.raises(TaskError, match="21 - k down, and both must be 1 to 8"):
        Sort(7).pair()
    with pytest.raises(TaskError, match="changes the number of moves, which must be 3"):
        Sort(moves=(3, 3)).pair(kind="bars")
    assert Sort(moves=(3, 3)).pair().original.steps == 3
    assert Sort(moves=(1, 2)).pair(kind="bars").variable == "heights"


# Splits, labels, bad input.


def test_splits_share_no_picture_and_hold_both_prompts_of_one_together() -> None:
    def layouts(split: Any) -> set[bytes]:
        scenes = TASK.sample_scenes(np.random.default_rng(7), 3000, split)
        return {b"".join(row[name].tobytes() for name in Sort.layout) for row in rows(scenes)}

    train, val, test = (layouts(split) for split in SPLITS)
    assert len(train | val | test) == len(train) + len(val) + len(test)
    assert "descending" not in Sort.layout


def test_seeds_are_reproducible() -> None:
    assert [i.id for i in TASK.sample(5, seed=3)] == [i.id for i in TASK.sample(5, seed=3)]
    assert {i.id for i in TASK.sample(5, seed=3)}.isdisjoint(i.id for i in TASK.sample(5, seed=4))
    for kind in Sort.kinds:
        one, two = (TASK.pair(seed=3, kind=kind) for _ in range(2))
        assert [i.id for i in one] == [i.id for i in two]


def test_labels_written_by_hand() -> None:
    labels = TASK.labels([PROBLEM], latent_frames=9)
    assert all(label.values.shape == (1, 9, 4, 4) for label in labels.values())

    def columns(name: str, frame: int) -> list[float]:
        values = labels[name].values[0, frame]
        np.testing.assert_array_equal(values, np.repeat(values[:1], 4, axis=0))  # every cell of a column is alike
        return [float(x) for x in values[0]]

    for frame, order in enumerate(ORDERS):
        assert columns("height", frame) == list(order)
        assert columns("rank", frame) == [x - 1 for x in order]
    assert columns("inverted", 0) == [1, 0, 1, 0]  # 3 1 4 2
    assert columns("inverted", 1) == [0, 0, 1, 0]  # 1 3 4 2
    assert columns("inverted", 2) == [0, 1, 0, 0]  # 1 3 2 4
    assert columns("inverted", 3) == [0, 0, 0, 0]
    grid = [[bool(x) for x in row] for row in labels["blue"].values[0, 0]]
    assert grid == [[False] * 4, [True, False, False, False], [True, False, False, False], [True, False, False, False]]
    # Columns hold 3, 1, 4, 2 at first (blue, red, yellow, green) and 1, 2, 3, 4 in the end (red, green, blue, yellow).
    answer = np.array([[0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], dtype=bool)
    for frame in range(9):
        np.testing.assert_array_equal(labels["answer"].values[0, frame], answer)
    reasoning = {name for name, label in labels.items() if label.role == "reasoning"}
    assert reasoning == {"inverted", "rank", "answer"}
    assert {*labels} - reasoning == {*COLOURS, "height"}
    assert {name for name, label in labels.items() if label.is_regression} == {"height", "rank"}


def test_labels_of_bars_that_are_to_fall() -> None:
    down = PuzzleInstance(TASK, SCENE | {"descending": np.array([True])})
    labels = TASK.labels([down], latent_frames=9)
    assert labels["rank"].values[0, 0, 0].tolist() == [1, 3, 0, 2]
    assert labels["rank"].values[0, 8, 0].tolist() == [0, 1, 2, 3]
    assert labels["inverted"].values[0, 0, 0].tolist() == [False, True, False, False]


def test_a_latent_frame_holds_the_mean_of_numbers_and_any_of_what_is_true() -> None:
    labels = TASK.labels([PROBLEM], latent_frames=5)  # the second covers pixel frames 1 and 2
    assert labels["height"].values[0, 1, 0].tolist() == [1, 3, 3, 3]
    assert labels["inverted"].values[0, 1, 0].tolist() == [False, True, True, False]


def test_labels_of_many_are_those_of_each() -> None:
    task = Sort(5, 9)
    instances = task.sample(20)
    together = task.labels(instances, latent_frames=3)
    for b, one in enumerate(instances):
        for name, label in task.labels([one], latent_frames=3).items():
            np.testing.assert_array_equal(label.values[0], together[name].values[b])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 2}, "size must be 3 to 8"),
        ({"size": 9}, "size must be 3 to 8"),
        ({"frames": 8}, "frames must be 1 [+] 4 k"),
        ({"moves": (0, 2)}, "need 1 <= fewest <= most <= 6"),
        ({"moves": (3, 2)}, "need 1 <= fewest <= most <= 6"),
        ({"moves": (2, 7)}, "need 1 <= fewest <= most <= 6"),
        ({"frames": 5, "moves": (2, 5)}, "need 1 <= fewest <= most <= 4"),
        ({"size": 3, "moves": (2, 4)}, "need 1 <= fewest <= most <= 3"),
    ],
)
def test_problems_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Sort(**options)


def test_bad_input_is_refused() -> None:
    with pytest.raises(TaskError, match="unknown kind of pair 'colour'; one of direction, bars"):
        TASK.pair(kind="colour")
    with pytest.raises(TaskError, match="at least 1"):
        TASK.sample(0)
    with pytest.raises(TaskError, match="expected uint8 videos of shape"):
        TASK.score(PROBLEM.video[None, :5], PROBLEM)
    with pytest.raises(TaskError, match="another task"):
        Sort(moves=(1, 6)).labels([PROBLEM], latent_frames=5)


def test_it_describes_itself_in_json() -> None:
    told = json.loads(json.dumps(TASK.describe()))
    assert told["rules"] == dict(Sort.weights)
    assert sum(Sort.weights.values()) == pytest.approx(1)
    assert told["kinds"] == dict(Sort.kinds)
    assert told["candidates"] == 2
