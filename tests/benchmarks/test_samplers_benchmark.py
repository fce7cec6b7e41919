"""The table of samplers: that it is of what it says."""

from __future__ import annotations

import pytest

from tests.benchmarks import samplers as benchmark


def test_the_stock_callback_is_undone_by_unipc_and_the_edit_is_not() -> None:
    stock, ours, cost = benchmark.measure("UniPC", seeds=1)
    assert stock[0] > 0.9
    assert ours[0] < 0.3
    assert 0 < cost[0] < 0.05


def test_the_command_prints_a_row_for_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda name, seeds: ([0.5] * seeds, [0.25] * seeds, [0.0] * seeds))
    assert benchmark.main(["--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| UniPC | 0.500 [0.500, 0.500] | 0.250 [0.250, 0.250] | 0.000 [0.000, 0.000] |" in printed
    assert "n = 2" in printed
