"""Success on tasks: numbers that can be recounted, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.errors import EvidenceError
from dit_lens.results.intervals import wilson
from dit_lens.runs.seeds import row_seeds
from tests.analysis.returned import check_result
from tests.subjects import Subject


def test_success_is_that_of_the_runs_done_by_hand(shipped: Subject, tmp_path: Path) -> None:
    task = dl.tasks.Maze(4)
    found = dl.evaluate(shipped.model, task, 6, seed=3, batch=4)
    mazes = task.sample(6, seed=3)
    frames = shipped.model.run(mazes, row_seeds(3, 6)).frames
    assert frames is not None
    right = task.score(frames, mazes).strict
    (only,) = found.tasks
    assert only.right.tolist() == right.tolist()
    assert only.instances == tuple(maze.id for maze in mazes)
    assert only.strict == wilson(int(right.sum()), 6)
    assert sum(map(len, only.by_length.values())) == 6
    assert only.restored is not None
    assert only.restored.shape == (6,)
    table = found.table.set_index(["measure", "rule", "steps"])
    assert table.loc[("strict", None, None), "value"] == right.mean()
    check_result(found, tmp_path)


def test_interventions_are_in_every_run(shipped: Subject) -> None:
    nothing = dl.Ablate(dl.Sites("delta"))
    found = dl.evaluate(shipped.model, dl.tasks.Maze(4), 3, interventions=[nothing])
    assert not found.tasks[0].right.any()


def test_both_prompts_run_from_one_noise(tmp_path: Path) -> None:
    model, task = dl.load_organism("puzzles"), dl.tasks.TicTacToe()
    found = dl.exchange_prompts(model, task, 4, kind="player", seed=2, batch=3)
    pairs = task.pairs(4, 2, "player")
    originals, others = [p.original for p in pairs], [p.counterfactual for p in pairs]
    frames = model.run(others, row_seeds(2, 4)).frames
    assert frames is not None
    assert found.swapped.tolist() == task.score(frames, originals).strict.tolist()
    assert found.followed.tolist() == task.score(frames, others).strict.tolist()
    assert "the other answer" in str(found)
    check_result(found, tmp_path)


def test_pairs_whose_pictures_differ_are_refused(organism: Subject) -> None:
    with pytest.raises(EvidenceError, match=r"the pictures differ\. Kinds of 'maze' that do: none"):
        dl.exchange_prompts(organism.model, dl.tasks.Maze(4, lengths=(3, 8)), 2)


def test_guidance_is_compared_over_one_noise(organism: Subject, tmp_path: Path) -> None:
    found = dl.compare_guidance(organism.model, dl.tasks.Maze(4, lengths=(3, 8)), 3, scales=(1, 3), batch=2)
    assert found.strict.shape == found.changed.shape == (2, 3)
    assert not found.changed[0].any()
    check_result(found, tmp_path)
    with pytest.raises(EvidenceError, match="no scales"):
        dl.compare_guidance(organism.model, dl.tasks.Maze(4), 3, scales=())


def test_a_list_of_instances_goes_with_one_task(organism: Subject) -> None:
    task = dl.tasks.Maze(4, lengths=(3, 8))
    mazes = task.sample(2)
    assert dl.evaluate(organism.model, [task], mazes).tasks[0].n == 2
    with pytest.raises(EvidenceError, match="goes with one task, got 2"):
        dl.evaluate(organism.model, [task, task], mazes)
    with pytest.raises(EvidenceError, match="a number of at least 1"):
        dl.evaluate(organism.model, task, 0)


def test_rates_of_a_task_without_floor_are_not_claimed() -> None:
    from dit_lens.analysis.success import Evaluation, TaskSuccess

    right = np.ones(40, dtype=bool)
    one = TaskSuccess("own", None, ("a",) * 40, right, right.astype(float), {}, None, float("nan"), None, 0.1)
    assert not one.claimed
    told = Evaluation((one,)).to_json()["tasks"][0]
    assert (told["strict"], told["floor"], told["claimed"]) == (1, None, False)
