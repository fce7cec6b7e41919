"""Self-correction and multi-path on chains of steps that were drawn, so that every count is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dit_lens as dl
from dit_lens.analysis.behaviours import Chain, Correction, decoded_chain, multi_path, self_correction
from dit_lens.analysis.behaviours.chain import distinct
from dit_lens.analysis.behaviours.correction import correction_of
from dit_lens.analysis.behaviours.paths import paths_of
from dit_lens.errors import EvidenceError
from dit_lens.runs.seeds import row_seeds
from dit_lens.tasks import Maze, Move, Pattern, Permanence, TicTacToe
from dit_lens.tasks.maze.alive import count_branches
from dit_lens.tasks.maze.boards import open_moves
from tests.analysis.returned import check_result


def chain_of(task: Any, instances: Sequence[Any], *steps: Any) -> Chain:
    count = len(steps)
    return Chain(task, list(instances), np.stack(steps), tuple(np.linspace(1, 0.1, count)), (None,) * count)


def pairs_of_permanence(count: int) -> tuple[Any, Any, Any]:
    """Instances, their true videos, and those of the other object, which are answers and wrong."""
    task = Permanence()
    originals, others = zip(*task.pairs(count, seed=0, kind="object"), strict=True)
    return list(originals), task.render(originals), task.render(others)


def mixed(right: Any, wrong: Any, blank: Any, states: str) -> Any:
    """Videos of one step: r, w and o (open) for each instance."""
    return np.stack([{"r": right, "w": wrong, "o": blank}[s][i] for i, s in enumerate(states)])


@pytest.fixture(scope="module")
def known() -> Chain:
    """Ten instances whose answers are, step by step, what the letters say."""
    instances, right, wrong = pairs_of_permanence(10)
    blank = np.repeat(right[:, :1], right.shape[1], axis=1)
    steps = ("wwwooorrrr", "rwworwrrww", "rrwrowrwrw")
    return chain_of(Permanence(), instances, *(mixed(right, wrong, blank, s) for s in steps))


def test_states_are_read_as_they_were_drawn(known: Chain) -> None:
    states = correction_of(known).states
    assert ["".join("owr"[s] for s in step) for step in states] == ["wwwooorrrr", "rwworwrrww", "rrwrowrwrw"]


def test_changes_are_counted_at_every_step_pair_and_over_the_chain(known: Chain) -> None:
    table = correction_of(known).table
    table = (table.set_index(["span", "step", "measure"])["value"] * 10).round().sort_index()
    assert table["step", 1].to_dict() == {
        "wrong to right": 1, "right to wrong": 2, "open to right": 1, "open to wrong": 1, "right to open": 0,
        "wrong to open": 0, "stays": 5, "net": -1,
    }  # fmt: skip
    assert table["step", 2].to_dict() == {
        "wrong to right": 2, "right to wrong": 1, "open to right": 1, "open to wrong": 0, "right to open": 1,
        "wrong to open": 0, "stays": 5, "net": 1,
    }  # fmt: skip
    assert table["ends", 2].to_dict() == {
        "wrong to right": 2, "right to wrong": 2, "open to right": 1, "open to wrong": 1, "right to open": 0,
        "wrong to open": 0, "stays": 4, "net": 0,
    }  # fmt: skip


def test_the_matrix_holds_every_instance_once(known: Chain) -> None:
    matrix = correction_of(known).matrix(0, 2)
    assert matrix.to_numpy().tolist() == [[1, 1, 1], [0, 1, 2], [0, 2, 2]]
    assert list(matrix.index) == ["open", "wrong", "right"]


def test_what_ever_happens_is_counted_once_an_instance(known: Chain) -> None:
    ever = correction_of(known).ever()
    shares = {name: round(interval.value, 6) for name, interval in ever.items()}
    assert shares == {
        "wrong to right": 0.3, "right to wrong": 0.3, "corrected": 0.2, "spoiled": 0.2, "net correction": 0.0
    }  # fmt: skip
    assert ["owr"[s] for s in correction_of(known).first] == list("wwwrrwrrrr")
    assert not correction_of(known).shown


def of_states(states: NDArray[Any]) -> Correction:
    """A correction whose states are given."""
    count = len(states)
    return Correction("made up", tuple(np.linspace(1, 0.1, count)), (None,) * count, "answer", states)


def spelt(*steps: str) -> NDArray[Any]:
    """States from letters, one string a step: o, w and r."""
    return np.array([["owr".index(letter) for letter in step] for step in steps])


def flicker(seed: int, now_and_then: float = 0.03) -> NDArray[Any]:
    """States of 80 instances over 10 steps: right, but wrong now and then, and at neither end."""
    states = np.full((10, 80), 2)
    states[1:-1][np.random.default_rng(seed).random((8, 80)) < now_and_then] = 1
    return states


def test_an_answer_that_flickers_is_not_corrected() -> None:
    found = of_states(flicker(0))
    assert found.ever()["wrong to right"].value > 0.1
    assert found.ever()["net correction"] == (0, 0, 0)
    assert not found.shown
    # Nor is it where there was nothing to be read at first.
    late = flicker(0)
    late[0] = 0
    assert not of_states(late).shown


def test_right_and_wrong_exchanged_turns_the_net_correction_round() -> None:
    states = np.random.default_rng(0).integers(0, 3, (6, 60))
    here, there = of_states(states), of_states(np.array([0, 2, 1])[states])
    assert here.ever()["corrected"] == there.ever()["spoiled"]
    assert here.ever()["net correction"].value == -there.ever()["net correction"].value != 0


def test_random_flicker_at_the_ends_too_is_hardly_ever_shown() -> None:
    shown = [of_states(np.where(np.random.default_rng(seed).random((10, 80)) < 0.1, 1, 2)).shown for seed in range(200)]
    assert np.mean(shown) <= 0.05  # 0.025 by construction


def test_an_answer_that_comes_out_wrong_and_is_put_right_is_corrected() -> None:
    assert of_states(spelt("o" * 30, "w" * 20 + "r" * 10, "r" * 30)).shown
    assert not of_states(spelt("o" * 30, "r" * 20 + "w" * 10, "w" * 30)).shown
    # Taking shape is none.
    assert not of_states(spelt("o" * 30, "o" * 20 + "r" * 10, "r" * 30)).shown


def test_wrong_first_and_right_then_is_correction_of() -> None:
    instances, right, wrong = pairs_of_permanence(20)
    corrected, spoiled = (
        chain_of(Permanence(), instances, wrong, right),
        chain_of(Permanence(), instances, right, wrong),
    )
    for judge in ("answer", "strict"):
        found, lost = correction_of(corrected, judge), correction_of(spoiled, judge)  # type: ignore[arg-type]
        assert found.ever()["wrong to right"].value == lost.ever()["right to wrong"].value == 1
        assert found.ever()["right to wrong"].value == lost.ever()["wrong to right"].value == 0
        assert (found.gains, lost.gains) == (True, False)
        # What is only strictly wrong at first may have been blurred.
        assert (found.shown, lost.shown) == (judge == "answer", False)


def test_a_strict_judge_knows_no_open_answers(known: Chain) -> None:
    states = correction_of(known, "strict").states
    assert ["".join("owr"[s] for s in step) for step in states] == ["wwwwwwrrrr", "rwwwrwrrww", "rrwrwwrwrw"]


def test_tables_carry_step_sigma_expert_and_n(known: Chain, tmp_path: Path) -> None:
    for number, result in enumerate((correction_of(known), paths_of(known))):
        table = result.table
        assert {"task", "step", "sigma", "expert"} <= set(table)
        assert (table["n"] == 10).all()
        assert (table["low"] <= table["value"] + 1e-9).all()
        assert (table["value"] <= table["high"] + 1e-9).all()
        check_result(result, tmp_path / str(number))
    assert correction_of(known).plot().get_ylabel() == "share of all instances"
    assert paths_of(known).plot().get_ylabel() == "alive"
    spans = correction_of(known).table.groupby("span")["step"].nunique()
    assert spans.to_dict() == {"chain": 0, "ends": 1, "state": 3, "step": 2}


# -- multi-path --------------------------------------------------------------------------------------------------------


def blended(*videos: Any) -> Any:
    return np.mean([v.astype(float) for v in videos], axis=0).round().astype(np.uint8)


def test_two_objects_that_come_out_at_once_are_two_candidates() -> None:
    instances, right, wrong = pairs_of_permanence(8)
    blank = np.repeat(right[:, :1], right.shape[1], axis=1)
    found = paths_of(chain_of(Permanence(), instances, blank, blended(right, wrong), right))
    assert found.values["alive"].tolist() == [[0] * 8, [2] * 8, [1] * 8]
    assert found.superposed.tolist() == [[False] * 8, [True] * 8, [False] * 8]
    assert found.ever()["at some step"].value == 1
    assert found.ever()["at the last step"].value == 0


def test_squares_that_are_marked_at_once_are_counted() -> None:
    task = TicTacToe()
    instances = [i for i in task.sample(40, seed=1) if len(i.candidates) >= 3][:6]
    right = task.render(instances)
    three = right.copy()
    for video, instance in zip(three, instances, strict=True):
        row, column = instance.answer
        mark = video[-1, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].copy()
        for i, j in instance.candidates[:3]:
            video[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = mark
        video[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = mark
    expected = [len({*i.candidates[:3], i.answer}) for i in instances]
    found = paths_of(chain_of(task, instances, three, right))
    assert found.values["alive"].tolist() == [expected, [1] * 6]


def test_symbols_that_lie_over_each_other_are_counted() -> None:
    task = Pattern()
    originals, others = zip(*task.pairs(30, seed=0, kind="gap"), strict=True)
    # Two symbols of the period in the one gap: the true one, and that of a neighbour in the sequence.
    instances = list(originals)
    videos = task.render(instances)
    blends = videos.copy()
    for video, instance in zip(blends, instances, strict=True):
        gap, n = int(instance.variables["gap"]), task.size
        neighbour = gap - 1 if gap else gap + 1
        (i, j), (k, m) = divmod(gap, n), divmod(neighbour, n)
        other = video[-1, 8 * k : 8 * k + 8, 8 * m : 8 * m + 8].astype(float)
        own = video[-1, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
        video[-1, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = ((own + other) / 2).round()
    found = paths_of(chain_of(task, instances, blends, videos))
    assert found.values["alive"].tolist() == [[2] * 30, [1] * 30]
    assert len(others) == 30


def test_two_goals_reached_at_once() -> None:
    task = Maze(4, goals=2)
    originals, others = zip(*task.pairs(8, seed=0, kind="prompt"), strict=True)
    right, other = task.render(originals), task.render(others)
    blank = np.repeat(right[:, :1], right.shape[1], axis=1)
    found = paths_of(chain_of(task, originals, blank, blended(right, other), right))
    assert found.values["alive"].tolist() == [[0] * 8, [2] * 8, [1] * 8]
    assert (found.values["branches"][1] >= 1).all()
    assert (found.values["branches"][2] == 0).all()
    assert (found.values["undecided"][1] > 0).all()
    assert (found.values["undecided"][[0, 2]] == 0).all()


def test_a_true_maze_has_one_path_alive_and_no_branch() -> None:
    task = Maze(4, lengths=(3, 6))
    mazes = task.sample(8, seed=1)
    truth = task.render(mazes)
    found = paths_of(chain_of(task, mazes, np.repeat(truth[:, :1], 9, axis=1), truth))
    assert found.values["alive"].tolist() == [[0] * 8, [1] * 8]
    assert found.values["branches"].tolist() == [[0] * 8] * 2


def test_branches_are_connected_sets_that_a_legal_move_joins_to_the_trail() -> None:
    moves = open_moves(np.zeros((1, 4, 4), dtype=bool), np.zeros((1, 4, 4), dtype=bool))
    trail, inked = np.zeros((2, 1, 4, 4), dtype=bool)
    trail[0, 0] = inked[0, 0] = True
    assert count_branches(moves, inked, trail).tolist() == [0]
    inked[0, 1:3, 0] = True  # one branch of two cells
    inked[0, 1, 3] = True  # another
    inked[0, 3, 2] = True  # a cell that touches nothing
    assert count_branches(moves, inked, trail).tolist() == [2]
    blocked = moves.copy()
    blocked[0, 1, 0, 3] = blocked[0, 3, 1, 3] = False  # a wall between the trail and the second
    assert count_branches(blocked, inked, trail).tolist() == [1]


# -- what is refused, and a real run -----------------------------------------------------------------------------------


def test_chains_that_are_none_are_refused(known: Chain) -> None:
    task, frames = known.task, known.frames
    with pytest.raises(EvidenceError, match="not decoded"):
        Chain(task, known.instances, None, known.sigmas, known.experts)  # type: ignore[arg-type]
    with pytest.raises(EvidenceError, match="not decoded"):
        Chain(task, known.instances, frames.astype(float), known.sigmas, known.experts)
    with pytest.raises(EvidenceError, match="9 instances"):
        Chain(task, known.instances[1:], frames, known.sigmas, known.experts)
    with pytest.raises(EvidenceError, match="too few"):
        Chain(task, known.instances[:1], frames[:, :1], known.sigmas, known.experts)
    with pytest.raises(EvidenceError, match="no judge 'vote'"):
        correction_of(known, "vote")  # type: ignore[arg-type]


def test_a_task_without_listed_candidates_is_refused_by_name() -> None:
    task = Move()
    instances = task.sample(2)
    truth = task.render(instances)
    with pytest.raises(EvidenceError, match=r"multi_path needs alive .* task 'move' does not declare it"):
        paths_of(chain_of(task, instances, truth, truth))


def test_a_decoded_chain_ends_in_the_runs_own_video() -> None:
    model, task = dl.load_organism("puzzles"), TicTacToe()
    instances = distinct(task, 3)
    chain = decoded_chain(model, task, instances, seed=5, batch=2)
    run = model.run(instances[:2], row_seeds(5, 2))
    assert run.frames is not None
    assert chain.frames.shape == (10, 3, 9, 32, 32, 3)
    assert chain.sigmas == run.sigmas[:10]
    assert np.abs(chain.frames[-1, :2].astype(int) - run.frames).max() <= 1
    with pytest.raises(EvidenceError, match="no instances"):
        decoded_chain(model, task, [])
    np.testing.assert_array_equal(self_correction(model, task, chain=chain).states, correction_of(chain).states)
    assert multi_path(model, task, chain=chain).task == "tictactoe"
    steer = dl.Ablate(dl.Sites("delta", layers=0))
    with pytest.raises(EvidenceError, match="made with other interventions"):
        multi_path(model, task, chain=chain, interventions=[steer])
    with pytest.raises(EvidenceError, match="the chain of steps is of"):
        self_correction(model, Permanence(), chain=chain)


def test_instances_are_distinct_by_problem_or_by_picture() -> None:
    task = Permanence()
    assert len({i.id for i in distinct(task, 200)}) == len(distinct(task, 200))
    pictures = [i.image.tobytes() for i in distinct(task, 100, by="picture")]
    assert len(set(pictures)) == len(pictures) == 100
