"""The benchmark of sweeps: that both sides do the same, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import sweeps as benchmark


@pytest.mark.parametrize("case", benchmark.GRIDS)
def test_by_hand_and_by_a_sweep_the_numbers_are_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells, one pair, unbatched: bit for bit."""
    monkeypatch.setitem(benchmark.GRIDS, case, ((2,), (0,) if case == "one step" else (0, 8)))
    found = benchmark.compare(case + benchmark.SIDE_BY_SIDE, rounds=1, pairs=1, device="cpu")
    assert found["largest difference"] == 0
    alone = benchmark.compare(case, rounds=1, pairs=1, device="cpu")
    assert alone["largest difference"] == pytest.approx(0, abs=1e-4)
    assert found["forwards"] > 0
    assert found["rows"] == 2


def test_the_command_says_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "GRIDS", {"one step": ((2,), (0,))})
    monkeypatch.setattr(benchmark, "growth", lambda device: {"time ratio": 10.0, "memory ratio": 1.0, "device": device})
    out = tmp_path / "sweeps.json"
    assert benchmark.main(["--rounds", "1", "--pairs", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("one step: ")
    assert "\none step, side by side: " in printed
    assert "times faster than by hand, wanted 10" in printed
    assert "ten times the cells took 10.0 times the seconds" in printed
    assert {"cases", "growth", "machine", "date"} <= set(json.loads(out.read_text()))
