"""The command line as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dit_lens.checks import CHECKED_WITH, versions
from dit_lens.checks.checks import CHECKS, Failed
from dit_lens.cli import main
from dit_lens.tiny import TINY


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


def test_organism_evaluate_has_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["organism", "evaluate", "maze", "--count", "20", "--sizes", "4", "5", "--json"]) == 0
    sizes = printed(capsys)["sizes"]
    assert isinstance(sizes, list)
    assert [s["size"] for s in sizes] == [4, 5]
    assert {"size", "default", "strict", "low", "high", "n", "by_path_length"} <= set(sizes[0])
    assert [s["default"] for s in sizes] == [False, True]
    assert all(s["low"] <= s["strict"] <= s["high"] for s in sizes)


def test_localize_has_the_promised_keys_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dit_lens.analysis import LocalizeConfig

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
