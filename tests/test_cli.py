"""The command line as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dit_lens.cli import main


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
