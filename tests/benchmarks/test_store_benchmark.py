"""The benchmark of the store at a tiny size: all of it that does not depend on a clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import store as benchmark


def test_both_sides_write_the_same_bytes_and_leave_nothing(tmp_path: Path) -> None:
    runs = benchmark.made(runs=2, sites=3, values=50)
    result = benchmark.compare(runs, rounds=3, folder=tmp_path)
    assert result.same
    assert result.size == 2 * 3 * 50 * 2
    assert len(result.store) == len(result.plain) == len(result.ratios) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_sides_differ_by_headers_and_manifest_only(tmp_path: Path) -> None:
    runs = benchmark.made(runs=2, sites=3, values=50)
    benchmark.plainly(tmp_path / "plain", runs)
    benchmark.through_store(tmp_path / "store", runs)
    for number, shard in enumerate(sorted((tmp_path / "store").glob("*.safetensors"))):
        assert shard.read_bytes().endswith((tmp_path / "plain" / f"{number}").read_bytes())


def test_the_ratio_is_the_paired_one() -> None:
    written = benchmark.Written(100, [8.0, 40.0, 9.0], [10.0, 50.0, 9.0], True)
    median, low, high = written.interval()
    assert (median, low, high) == (0.8, 0.8, 1.0)


def test_the_verdict_is_printed_and_the_status_tells_of_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for same, rate, status, verdict in ((True, 1.0, 0, "missed"), (False, 9.0, 1, "holds")):
        written = benchmark.Written(100, [rate] * 6, [10.0] * 6, same)
        monkeypatch.setattr(benchmark, "compare", lambda *_, written=written: written)
        assert benchmark.main(["--runs", "1", "--sites", "1", "--values", "1", "--folder", str(tmp_path)]) == status
        assert capsys.readouterr().out.rstrip().endswith(f"limit 0.8: {verdict}")


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--runs", "1", "--sites", "2", "--values", "10", "--rounds", "2"]
    assert benchmark.main([*sizes, "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "read back the same: True" in printed
    assert "paired ratio" in printed
