"""Sizes that are checked, tasks that give too little, and the tables of what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.analysis.behaviours import BehaviourConfig, Survey, WorkingMemory, survey
from dit_lens.analysis.behaviours.memory import _peak
from dit_lens.analysis.behaviours.probe_rows import split_weights
from dit_lens.errors import EvidenceError
from dit_lens.probing.fit.scores import GroupedScores
from dit_lens.probing.probe_grid import Probe, ProbeGrid
from dit_lens.tasks import Maze, Permanence
from tests.analysis.returned import check_result

CONFIG = BehaviourConfig()


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicates": 0}, {"replicates": 19}, {"folds": 1}, {"batch": 0}, {"seed": -1}, {"threshold": -0.1},
        {"threshold": 1.0}, {"threshold": float("nan")}, {"memory_instances": 1}, {"order_instances": 0},
        {"chain_instances": 1},
    ],
)  # fmt: skip
def test_sizes_and_thresholds_are_checked_before_anything_runs(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(EvidenceError, match=f"{name} is {value}"):
        BehaviourConfig(**wrong)
    with pytest.raises(EvidenceError, match=name):
        BehaviourConfig.quick(**wrong)


def test_a_task_that_lacks_instances_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    """Eight instances are too few for probes of memory, six for those of the order; chains need two."""
    few = BehaviourConfig(memory_instances=8, order_instances=6, chain_instances=2, probe_steps=[0], replicates=20)
    found = survey(dl.load_organism("puzzles"), [Permanence(), Maze(4, goals=2)], few)
    assert [(what, task) for what, task, _ in found.skipped] == [
        ("working memory", "permanence"), ("perception before action", "permanence"),
        ("working memory", "two-goal maze"), ("perception before action", "two-goal maze"),
    ]  # fmt: skip
    assert "do 12 of 8 instances hide" in found.skipped[0][2]
    assert set(found.paths) == {"permanence", "two-goal maze"}
    assert len(found.correction) == 4
    assert "no working memory on permanence: " in str(found)
    check_result(found, tmp_path)
    with pytest.raises(EvidenceError, match="nothing was found of working memory"):
        found.plot(behaviour="working memory")


class Single(Permanence):
    """Has one instance only."""

    def sample(self, count: int, *arguments: Any, **options: Any) -> Any:
        return super().sample(1, *arguments, **options)


def test_a_task_without_a_chain_is_noted() -> None:
    found = survey(dl.load_organism("puzzles"), Single(), BehaviourConfig(probe_steps=[0], replicates=20))
    assert [what for what, *_ in found.skipped] == ["chain of steps", "working memory"]
    assert "too few" in found.skipped[0][2]
    json.dumps(found.to_json())


def test_fewer_instances_than_asked_for_are_told() -> None:
    found = Survey(CONFIG, counts=(("maze", "chain of steps", 80, 80), ("permanence", "working memory", 144, 142)))
    assert str(found) == "permanence, working memory: asked for 144 instances, found 142"
    assert found.to_json()["instances"][1] == {
        "task": "permanence", "use": "working memory", "asked": 144, "found": 142
    }  # fmt: skip


# -- memory made up ----------------------------------------------------------------------------------------------------


def colours(right: float, groups: int = 12) -> GroupedScores:
    """Three classes, of one row an instance, of which the half that is reported has two alone."""
    kinds = np.where(split_weights(groups, 20, CONFIG.seed)[0][0] > 0, 2, np.arange(groups) % 2)
    count = np.eye(3)[kinds]
    return GroupedScores(np.concatenate([count * right, count], axis=1), False)


def memory_of(skills: dict[str, float]) -> WorkingMemory:
    grid = ProbeGrid(12, {"colour": "reasoning"}, classes={"colour": ("red", "green", "blue")})
    grid.sigmas[4], grid.experts[4] = 0.8, "low"
    for control, right in skills.items():
        grid.scores[Probe("s04/cond/L00/resid/video", "colour", control)] = colours(right)
    config = BehaviourConfig(replicates=20)
    return WorkingMemory("made up", config, {(2, "colour"): grid}, (_peak(grid, 2, "colour", config),), 12)


MADE_UP = {"none": 0.9, "shuffled": 0.5, "input": 0.6, "position": 0.7, "random": 0.4}


def test_accuracy_is_of_the_classes_that_the_half_holds() -> None:
    memory = memory_of(MADE_UP)
    (peak,) = memory.peaks
    assert peak.skill.value == pytest.approx(0.8)
    assert peak.accuracy == pytest.approx(0.9)
    # All instances hold all three.
    table = memory.table.query("of == 'all' and measure == 'accuracy'").set_index("control")["value"]
    assert table["none"] == pytest.approx(0.9)
    assert table["input"] == pytest.approx(0.6)
    assert table["majority"] == pytest.approx(1 / 3)


def test_the_best_place_is_told_with_every_control_and_the_expert() -> None:
    memory = memory_of(MADE_UP)
    half = memory.table.query("of == 'half'")
    skills = half.query("measure == 'skill'").set_index("control")["value"].round(6)
    assert skills.to_dict() == {
        "none": 0.8, "shuffled": 0, "input": 0.2, "position": 0.4, "random": -0.2, "majority": 0
    }  # fmt: skip
    assert half.query("measure == 'excess'")["value"].item() == pytest.approx(0.4)
    assert set(half["sigma"]) == {0.8}
    assert set(half["expert"]) == {"low"}
    assert "random" in str(memory)
