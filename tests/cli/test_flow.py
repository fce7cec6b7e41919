"""``dit-lens flow`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dit_lens.cli import main

SMALL = ["flow", "--model", "planted/relay", "--kind", "colour", "--count", "2", "--quick"]


def test_flow_has_the_promised_keys_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure, film = tmp_path / "new" / "flow.png", tmp_path / "flow.gif"
    assert main([*SMALL, "--json", "--figure", str(figure), "--animate", str(film)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["gate"]) == {"solves", "solved", "floor", "value", "low", "high", "unrelated", "frozen", "open"}
    assert set(data["coverage"]) == {"A", "B"}
    assert set(data["curves"]) == {"A", "B", "M", "all", "shared"}
    for curve in data["curves"].values():
        assert [row["layer"] for row in curve] == [-1, 0, 1, 2, 3, 4, 5]
        assert all(set(row) == {"layer", "value", "low", "high"} for row in curve)
    keys = {"layer", "departure", "arrival", "reading", "direct", "indirect"}
    assert all(keys <= set(row) for row in data["per_block"])
    assert (data["kind"], data["step"], data["sigma"], data["expert"]) == ("colour", 0, 1.0, None)
    assert (data["n"], data["experts"], data["doors"], data["ends_exact"]) == (2, {}, {}, True)
    assert all(isinstance(count, int) for count in data["dropped"].values())
    assert "pair_kind" not in data
    assert (data["figure"], data["animate"]) == (str(figure), str(film))
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert film.read_bytes().startswith(b"GIF8")


def test_without_a_kind_it_is_the_first_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["flow", "--model", "planted/text-late", "--count", "2", "--quick", "--json"]
    assert main(asked) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["kind"] == "exit"
    assert data["coverage"]["A"] is None
    assert all(row["value"] is None for row in data["curves"]["A"])
    assert data["doors"]["context of text"]["value"] == pytest.approx(1, abs=1e-3)
    assert "figure" not in data


def test_a_shut_gate_is_a_finding_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["flow", "--model", "random:planted/relay", "--kind", "colour", "--count", "2", "--quick"]
    assert main([*asked, "--json", "--figure", str(tmp_path / "flow.png")]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["gate"]["open"] is False
    assert (data["n"], data["per_block"]) == (0, [])
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
    assert main([*asked, "--animate", str(tmp_path / "flow.gif")]) == 0
    said = capsys.readouterr().out
    assert "gate shut" in said
    assert "no film: no pair is left to be shown" in said
    assert not (tmp_path / "flow.gif").exists()


def test_a_figure_is_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--figure", str(tmp_path / "flow.jpg")]) == 2
    assert "need a .png" in capsys.readouterr().err


def test_a_run_goes_on_from_its_folder_and_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[dict[str, Any]] = []
    for _ in range(2):
        assert main([*SMALL, "--json", "--folder", str(tmp_path)]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert any(tmp_path.iterdir())


def test_flow_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    said = capsys.readouterr().out
    assert "permanence, colour, on" in said
    assert "gate open" in said
    assert "identities exact" in said


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--kind", "goal"], "unknown kind of pair 'goal'; one of exit, object, colour"),
        (["--task", "sokoban"], "no task is named 'sokoban'"),
        (["--step", "99"], "no step 99"),
        (["--model", "none"], "no organism 'none'"),
        (["--count", "0"], "pairs"),
        (["--animate", "flow.avi"], "an animation ends in .gif or .mp4"),
        (["--animate", "missing/flow.gif"], "there is no folder missing"),
    ],
)
def test_what_there_is_not_is_refused_in_one_sentence(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flow", "--model", "planted/relay", "--count", "2", "--quick", *asked]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("dit-lens: ")]) == 1
