"""Working memory and perception before action, where the answer is known: planted, random, shuffled and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.analysis.behaviours import (
    BehaviourConfig,
    Chain,
    PerceptionOrder,
    WorkingMemory,
    perception_before_action,
    working_memory,
)
from dit_lens.analysis.behaviours.memory import hidden_frames
from dit_lens.analysis.behaviours.probe_rows import dealt, split_weights
from dit_lens.errors import EvidenceError
from dit_lens.organisms import load_planted
from dit_lens.probing.probe_grid import short_name
from dit_lens.tasks import Maze, Permanence, TicTacToe
from dit_lens.tasks.base import Label
from tests.analysis.returned import check_result

ONE_STEP = BehaviourConfig(memory_instances=72, order_instances=36, chain_instances=4, probe_steps=[0], replicates=200)


# -- working memory ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> WorkingMemory:
    return working_memory(load_planted("frames", "middle").model, Permanence(), ONE_STEP)


def test_frames_are_hidden_where_no_pixel_frame_shows_the_object() -> None:
    task = Permanence()
    instances = task.sample(40, seed=1)
    hidden = hidden_frames(task.labels(instances, 5))
    out = np.array([bool(i.variables["out"]) for i in instances])
    # By hand: two of nine frames for each cell; latent frame 1 still shows the object in its first column.
    assert hidden[:, [0, 1]].sum() == 0
    assert hidden[:, 2].all()
    assert (hidden[:, 3] == ~out).all()
    assert (hidden[:, 4] == ~out).all()


def test_the_planted_model_remembers_from_its_planted_blocks_on(planted: WorkingMemory) -> None:
    """Only blocks 2 and 3 pass anything between latent frames: before them a hidden frame knows nothing."""
    table = planted.table.query("of == 'all' and control == 'none' and latent_frame == 2").fillna({"layer": -1})
    for target in ("position", "colour"):
        rows = table[table["target"] == target].set_index(["layer", "measure"])
        for layer in (-1, 0, 1):
            assert abs(rows.loc[(layer, "skill"), "value"]) < 0.3, (target, layer)
            assert rows.loc[(layer, "excess"), "low"] <= 0, (target, layer)
        assert rows.loc[(3, "excess"), "low"] > 0.1, target
        assert planted.shown(2, target)
    assert {short_name(peak.site) for peak in planted.peaks if peak.frame == 2} <= {"L02", "L03", "L04", "L05"}


def test_every_control_is_in_the_table(planted: WorkingMemory, tmp_path: Path) -> None:
    table = planted.table.query("of == 'all'")
    assert set(table["control"]) == {"none", "shuffled", "input", "position", "random", "majority"}
    assert set(table["measure"]) == {"skill", "accuracy", "excess"}
    assert (table.query("control == 'majority' and measure == 'skill'")["value"] == 0).all()
    assert set(table["latent_frame"]) == {2, 3, 4}
    assert {"sigma", "expert", "branch", "n"} <= set(table)
    assert table.query("measure == 'accuracy'")["value"].between(0, 1).all()
    two = table.query("control == 'none' and target == 'position'")
    skill, accuracy = (two[two["measure"] == name]["value"].to_numpy() for name in ("skill", "accuracy"))
    assert accuracy == pytest.approx((skill + 1) / 2)
    assert planted.frames[0] == 2
    assert len(planted.peaks) == 6
    # Reported on the half on which no place was chosen.
    half = planted.table.query("of == 'half' and measure == 'excess' and latent_frame == 2")
    assert half["n"].tolist() == [36, 36]
    assert "latent frame 2" in planted.plot(target="colour").get_title()
    check_result(planted, tmp_path)


def test_random_weights_have_no_memory() -> None:
    config = replace(ONE_STEP, probe_steps=[0, 1])
    found = working_memory(dl.load_organism("puzzles", random=True), Permanence(), config)
    assert not any(found.shown(*key) for key in found.grids), str(found)


def test_without_the_planted_blocks_there_is_no_memory() -> None:
    nothing = dl.Ablate(dl.Sites("delta", layers=[2, 3]))
    model = load_planted("frames", "middle").model
    found = working_memory(model, Permanence(), ONE_STEP, interventions=[nothing])
    assert not any(found.shown(*key) for key in found.grids), str(found)


class Mislabelled(Permanence):
    """Every instance carries the labels of another."""

    def labels(self, instances: Sequence[Any], latent_frames: int) -> dict[str, Label]:
        found = super().labels(instances, latent_frames)
        return {n: Label(n, label.role, np.roll(label.values, 1, axis=0)) for n, label in found.items()}


def test_labels_of_other_instances_show_no_memory() -> None:
    found = working_memory(load_planted("frames", "middle").model, Mislabelled(), ONE_STEP)
    assert not any(found.shown(*key) for key in found.grids), str(found)


def test_tasks_that_hide_nothing_and_too_few_instances_are_refused() -> None:
    model = dl.load_organism("puzzles")
    with pytest.raises(EvidenceError, match="task 'tictactoe' has no labels mover, hidden"):
        working_memory(model, TicTacToe(), ONE_STEP)
    with pytest.raises(EvidenceError, match="do 12 of 8 instances hide"):
        working_memory(model, Permanence(), replace(ONE_STEP, memory_instances=8))


def test_halves_share_no_instance_and_folds_hold_every_class() -> None:
    choose, report = split_weights(11, 20, seed=0)
    assert choose.sum() == 5
    assert report[0].sum() == 6
    assert ((choose > 0) & (report > 0)).sum() == 0
    classes = np.array([0] * 7 + [1] * 2 + [2] * 3)
    fold = np.array(dealt(classes, 3))
    assert all(set(classes[fold != f]) == {0, 1, 2} for f in range(3))


# -- perception before action ------------------------------------------------------------------------------------------


def chain_of_mazes(task: Maze, steps: Sequence[str]) -> Chain:
    """A chain that draws nothing at all ("."), the board ("b"), or the whole answer ("a") at each step."""
    mazes = task.sample(4, seed=1)
    truth = task.render(mazes)
    shown = {".": np.full_like(truth, 238), "b": np.repeat(truth[:, :1], truth.shape[1], axis=1), "a": truth}
    sigmas = tuple(np.linspace(1, 0.1, len(steps)))
    return Chain(task, mazes, np.stack([shown[s] for s in steps]), sigmas, (None,) * len(steps))


def order_of(model: Any, steps: str, **changes: Any) -> PerceptionOrder:
    task = Maze(4, goals=2)
    return perception_before_action(model, task, replace(ONE_STEP, **changes), chain=chain_of_mazes(task, steps))


def test_what_is_drawn_has_its_onset_where_it_was_drawn() -> None:
    order = order_of(dl.load_organism("puzzles"), ".bba")
    drawn = order.table.query("measure == 'onset of drawn'").set_index("label")
    assert drawn["value"].to_dict() == {"start": 1, "goal_red": 1, "goal_purple": 1, "on_path": 3}
    assert drawn["role"].to_dict() == dict.fromkeys(("start", "goal_red", "goal_purple"), "perception") | {
        "on_path": "action"
    }
    assert order.before("drawn") == 1
    assert order.shown("drawn")
    assert order.plot(evidence="x0hat").get_ylabel().startswith("share")
    # Of the trained model start and path are decodable at step 0 both, so that neither is before the other.
    assert not order.shown("decodable")
    assert order.onset("start", "decodable").step.value == 0
    probed = order.table.query("measure == 'onset of decodable'")
    assert set(probed["layer"].dropna()) == set(range(8))
    assert set(probed["component"]) == {"embed", "resid"}


def test_what_is_drawn_at_once_is_not_in_order() -> None:
    order = order_of(dl.load_organism("puzzles", random=True), "aaa")
    assert order.before("drawn") == 0
    assert not any(order.shown(measure) for measure in ("decodable", "half", "drawn"))
    assert order.onset("on_path", "decodable").step.value == np.inf


def test_tasks_without_start_goal_and_path_and_other_chains_are_refused() -> None:
    model = dl.load_organism("puzzles")
    with pytest.raises(EvidenceError, match=r"needs read_given .* task 'permanence' does not declare it"):
        perception_before_action(model, Permanence(), ONE_STEP)
    with pytest.raises(EvidenceError, match="11 instances are too few"):
        order_of(model, "ba", order_instances=11)
    with pytest.raises(EvidenceError, match="the chain of steps is of"):
        perception_before_action(model, Maze(4, goals=2), ONE_STEP, chain=chain_of_mazes(Maze(4), "ba"))
