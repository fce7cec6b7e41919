"""``dit-lens behaviours`` as a user meets it."""

from __future__ import annotations

import json

import pytest

from dit_lens.analysis.behaviours import BehaviourConfig
from dit_lens.cli import main
from dit_lens.cli.behaviours import _tasks
from dit_lens.cli.common import load
from dit_lens.model import VideoDiT


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = BehaviourConfig(
        memory_instances=36, order_instances=12, chain_instances=3, probe_steps=[0, 9], replicates=20, batch=18
    )
    monkeypatch.setattr(BehaviourConfig, "quick", lambda: small)


def test_all_four_behaviours_are_printed_as_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["behaviours", "--quick", "--json", "--seed", "3", "--tasks", "permanence", "two-goal maze:4", "move"]
    assert main(asked) == 0
    data = json.loads(capsys.readouterr().out)
    rows = data["table"]

    def tasks_of(behaviour: str) -> set[str]:
        return {row["task"] for row in rows if row["behaviour"] == behaviour}

    assert tasks_of("working memory") == {"permanence"}
    assert tasks_of("perception before action") == {"two-goal maze"}
    assert tasks_of("self-correction") == {"permanence", "two-goal maze", "move"}
    assert tasks_of("multi-path") == {"permanence", "two-goal maze"}
    assert all({"task", "step", "sigma", "expert", "measure", "value", "low", "high", "n"} <= set(row) for row in rows)
    memory = [row for row in rows if row["behaviour"] == "working memory"]
    assert {row["control"] for row in memory} == {"none", "shuffled", "input", "position", "random", "majority"}
    drawn = [row for row in rows if row["measure"] == "drawn"]
    assert {row["step"] for row in drawn} == set(range(10))
    assert {(row["behaviour"], row["task"]) for row in data["verdicts"]} == {
        ("working memory", "permanence"), ("perception before action", "two-goal maze"),
        *(("self-correction", task) for task in ("permanence", "two-goal maze", "move")),
    }  # fmt: skip
    assert {"task": "permanence", "use": "working memory", "asked": 36, "found": 36} in data["instances"]
    # What a task does not declare is said.
    reasons = {(row["behaviour"], row["task"]): row["reason"] for row in data["skipped"]}
    assert "needs alive" in reasons["multi-path", "move"]
    assert data["config"]["seed"] == 3


def test_the_same_is_printed_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["behaviours", "--quick", "--model", "random:puzzles", "--tasks", "tictactoe"]) == 0
    out = capsys.readouterr().out
    assert "self-correction on tictactoe, judged by answer" in out
    assert "multi-path" in out
    assert "no working memory on tictactoe" in out


def test_by_default_the_tasks_are_those_of_the_organism(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    def names(model: str) -> list[str]:
        return [f"{task.name}:{task.size}" for task in _tasks(argparse.Namespace(model=model, tasks=None))]

    assert names("puzzles") == ["maze:4", "sort:4", "permanence:4", "pattern:4", "tictactoe:3"]
    assert names("random:maze") == ["maze:5"]
    assert names("planted/frames-middle") == ["permanence:4"]
    assert main(["behaviours", "--model", "atlantis"]) == 2
    assert "no organism 'atlantis'" in capsys.readouterr().err


def test_planted_organisms_are_loaded_by_name_although_they_have_a_slash() -> None:
    assert isinstance(load("planted/frames-middle"), VideoDiT)
