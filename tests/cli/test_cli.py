"""The command line as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dit_lens
from dit_lens.analysis.success import Evaluation
from dit_lens.cli import main
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.organisms.load import organism_tasks
from dit_lens.runs.identity import versions
from dit_lens.tasks import TASKS
from dit_lens.validation.family_checks import CHECKS, Failed
from dit_lens.validation.report import CHECKED_WITH


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """Standard output, which must be one JSON object and nothing else."""
    data = json.loads(capsys.readouterr().out)
    assert isinstance(data, dict)
    return data


def test_steps_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "steps.png"
    assert main(["steps", "--quick", "--json", "--out", str(picture)]) == 0
    data = printed(capsys)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(data["sigmas"]) == 10  # type: ignore[arg-type]


def test_lens_writes_a_picture_of_every_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "lens.png"
    assert main(["lens", "--quick", "--json", "--out", str(picture)]) == 0
    data = printed(capsys)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (data["layers"], data["steps"]) == ([0, 1, 2, 3, 4, 5, 6, 7], [0, 3, 6, 9])


def test_organism_evaluate_has_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["organism", "evaluate", "maze", "--count", "20", "--sizes", "4", "5", "--json"]) == 0
    sizes = printed(capsys)["sizes"]
    assert isinstance(sizes, list)
    assert [s["size"] for s in sizes] == [4, 5]
    assert {"size", "default", "strict", "low", "high", "n", "by_path_length"} <= set(sizes[0])
    assert [s["default"] for s in sizes] == [False, True]
    assert all(s["low"] <= s["strict"] <= s["high"] for s in sizes)


def test_organism_evaluate_takes_any_tasks_prompts_and_guidance(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["organism", "evaluate", "maze", "--count", "2", "--tasks", "two-goal maze:4", "tictactoe", "maze:4"]
    assert main([*asked, "--prompts", "--guidance", "--json"]) == 0
    data = printed(capsys)
    assert {"organism", "tasks", "table", "prompts", "guidance"} <= set(data)
    assert "sizes" not in data
    tasks, prompts, guidance = (data[key] for key in ("tasks", "prompts", "guidance"))
    names = ["two-goal maze", "tictactoe", "maze"]
    assert [(t["task"], t["size"]) for t in tasks] == list(zip(names, (4, 3, 4), strict=True))  # type: ignore[attr-defined]
    assert {"strict", "low", "high", "n", "floor"} <= set(tasks[0])  # type: ignore[index]
    # A one-goal maze has no pair that differs in the prompt alone.
    exchanged = [(p["table"][0]["task"], p["table"][0]["kind_of_pair"]) for p in prompts]  # type: ignore[attr-defined]
    assert exchanged == [("two-goal maze", "prompt"), ("tictactoe", "player")]
    assert [g["table"][0]["task"] for g in guidance] == names  # type: ignore[attr-defined]
    assert all({row["guidance_scale"] for row in g["table"]} == {1, 2, 4} for g in guidance)  # type: ignore[attr-defined]


def test_organism_evaluate_says_in_words_what_it_says_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["organism", "evaluate", "random:maze", "--count", "2", "--sizes", "4"]) == 0
    assert "maze 4 x 4: strict 0.00" in capsys.readouterr().out


def test_by_default_an_organism_is_evaluated_on_its_own_tasks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(
        "dit_lens.analysis.success.evaluate", lambda model, tasks, count, seed: seen.extend(tasks) or Evaluation(())
    )
    assert main(["organism", "evaluate", "random:maze"]) == 0
    assert seen == organism_tasks("maze")


def test_tasks_that_are_not_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for task, said in (("sokoban", "no task is named 'sokoban'; there are maze, move"), ("maze:99", "size must be 2")):
        assert main(["organism", "evaluate", "maze", "--tasks", task]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert said in captured.err
    with pytest.raises(SystemExit):
        main(["organism", "evaluate", "maze", "--tasks", "move", "--sizes", "4"])
    assert "not allowed with" in capsys.readouterr().err


def test_tasks_are_listed_with_their_floors_and_a_contact_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet" / "tasks.png"
    assert main(["tasks", "--floors", "--count", "10", "--json", "--out", str(sheet)]) == 0
    data = printed(capsys)
    tasks = data["tasks"]
    assert isinstance(tasks, list)
    assert [t["name"] for t in tasks] == [*TASKS, "two-goal maze"]
    assert data["sheet"] == str(sheet)
    assert sheet.read_bytes().startswith(b"\x89PNG")
    for task in tasks:
        assert (task["oracle"], task["oracle_strict"], task["n"]) == (1, 1, 10)
        assert list(task["floors"]) == list(task["strict_floors"]) == ["frozen", "noise", "shuffled", "counterfactual"]
        assert all(0 <= floor < 1 for floor in task["floors"].values())
        assert task["strict_floors"]["counterfactual"] == 0
        assert {"summary", "size", "prompt", "rules", "kinds", "steps", "labels"} <= set(task)


def test_the_counterfactual_floor_is_that_of_the_worst_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tasks", "--floors", "--count", "10", "--seed", "4", "--json", "--out", str(tmp_path / "tasks.png")])
    told = {t["name"]: t["floors"] for t in printed(capsys)["tasks"]}  # type: ignore[attr-defined]
    floors = TASKS["permanence"]().floors(10, seed=4).set_index("video")["total"]
    assert told["permanence"]["frozen"] == pytest.approx(floors["frozen"])
    assert told["permanence"]["counterfactual"] == pytest.approx(max(floors["counterfactual"]))
    assert min(floors["counterfactual"]) < max(floors["counterfactual"])


def test_tasks_are_listed_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--out", str(tmp_path / "tasks.png")]) == 0
    out = capsys.readouterr().out
    assert "permanence, 4 x 4 cells: An object goes behind a wall" in out
    assert "  rules   place 0.40, identity 0.30, passage 0.20, kept 0.10\n" in out
    assert "  pairs   exit (changes out), object (changes mover), colour (changes colours)\n" in out
    assert "counterfactual" not in out
    assert main(["tasks", "--floors", "--count", "0", "--out", str(tmp_path / "none.png")]) == 2
    assert "at least 1" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


def test_localize_has_the_promised_keys_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dit_lens.analysis.localization.result import LocalizeConfig

    small = LocalizeConfig(
        probe_instances=12, pairs=3, lens_instances=4, flip_pairs=1, probe_steps=[0, 1], replicates=50
    )
    monkeypatch.setattr(LocalizeConfig, "quick", lambda: small)
    assert main(["localize", "--quick", "--json", "--out", str(tmp_path)]) == 0
    data = printed(capsys)
    assert {"verdict", "bands", "evidence"} <= set(data)
    assert {"localization.html", "localization.csv", "localization-evidence.png"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_sweep_has_the_promised_keys_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "--task", "maze:4", "--quick", "--count", "2", "--json", "--folder", str(tmp_path / "sweep")]
    assert main(command) == 0
    data = printed(capsys)
    cells: list[dict[str, object]] = data["cells"]  # type: ignore[assignment]
    assert {"site", "measure", "value", "low", "high", "n"} <= set(cells[0])
    sites = [c["site"] for c in cells if (c["cell"], c["measure"]) == ("swept", "share")]
    assert sites == [f"s00/cond/L{k:02d}/delta/video" for k in range(8)]
    assert set(data["plan"]) == {"forwards", "naive_forwards", "seconds", "bytes"}  # type: ignore[call-overload]
    assert data["plan"]["forwards"] < data["plan"]["naive_forwards"]  # type: ignore[call-overload, index]
    before = (tmp_path / "sweep" / "cells.jsonl").read_bytes()
    assert main(command) == 0
    assert printed(capsys)["cells"] == cells
    assert (tmp_path / "sweep" / "cells.jsonl").read_bytes() == before


def test_ctrl_c_is_one_line_and_status_130(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("dit_lens.sweeps.local._Lab.outcomes", interrupted)
    folder = tmp_path / "sweep"
    assert main(["sweep", "--task", "maze:4", "--quick", "--count", "2", "--folder", str(folder)]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"dit-lens: stopped; 0 of 11 cells were finished, kept in {folder}: the same call goes on from there"


def test_errors_are_one_line_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["steps", "--model", "atlantis"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no organism 'atlantis'" in captured.err
    assert "maze" in captured.err


def test_families_are_listed_with_the_versions_that_were_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--json"]) == 0
    data = printed(capsys)
    assert [f["name"] for f in data["families"]] == list(TINY)  # type: ignore[attr-defined]
    assert {"diffusers", "nnsight"} <= set(data["checked_with"])  # type: ignore[call-overload]
    assert main(["families"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in TINY)
    assert f"diffusers {CHECKED_WITH['diffusers']}, nnsight {CHECKED_WITH['nnsight']}" in listed


def test_the_installed_versions_are_those_that_the_families_were_checked_with() -> None:
    """When this fails after an update: run the checks, then say so in ``CHECKED_WITH``."""
    assert {name: versions()[name] for name in CHECKED_WITH} == CHECKED_WITH


def test_families_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--check", "--only", "wan2.1-t2v", "--json"]) == 0
    data = printed(capsys)
    (family,) = data["families"]  # type: ignore[misc]
    assert (family["name"], family["passed"], data["passed"]) == ("wan2.1-t2v", True, True)
    assert {name: check["passed"] for name, check in family["checks"].items()} == dict.fromkeys(CHECKS, True)
    assert main(["families", "--check", "--only", "sora"]) == 2
    assert "no family is named sora" in capsys.readouterr().err


def test_a_folder_is_checked_and_a_check_that_fails_is_status_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    TINY["mochi"].build().save_pretrained(tmp_path)
    assert main(["check", "--model", str(tmp_path), "--json"]) == 0
    assert printed(capsys)["passed"] is True

    def fail(subject: object) -> str:
        raise Failed("s00/cond/L00/delta/video differs by 99.0")

    monkeypatch.setitem(CHECKS, "sum rule", fail)  # type: ignore[arg-type]
    assert main(["check", "--model", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL  sum rule        s00/cond/L00/delta/video differs by 99.0" in out


def test_the_command_alone_says_where_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    named = {line.split()[1] for line in text.splitlines() if line.startswith("  dit-lens ")}
    assert "localize" in named
    for command in named:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dit-lens {dit_lens.__version__}\n"


def run_alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in an interpreter of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def test_help_imports_no_torch() -> None:
    code = "import sys, dit_lens.cli as cli; cli._parser().format_help(); print('torch' in sys.modules)"
    assert run_alone("-c", code).stdout == "False\n"


def test_no_notice_of_another_library_is_printed() -> None:
    assert run_alone("-m", "dit_lens", "families").stderr == ""
    loaded = run_alone("-c", "import dit_lens as dl; print(dl.load_organism())")
    assert loaded.stderr == ""
    assert loaded.stdout.startswith("VideoDiT(WanImageToVideoPipeline")
