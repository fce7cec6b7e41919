"""The benchmark of the door: all of it that does not depend on a clock."""

from __future__ import annotations

import pytest

from tests.benchmarks import door as benchmark


def test_every_command_runs_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(benchmark, "seconds", lambda arguments: float(len(ran.append(tuple(arguments)) or ran)))
    taken = benchmark.measure(rounds=3)
    assert {name: len(times) for name, times in taken.items()} == dict.fromkeys(benchmark.COMMANDS, 3)
    assert all(ran.count(tuple(arguments)) == 4 for arguments in benchmark.COMMANDS.values())


def test_a_slow_door_is_told_from_a_quick_one() -> None:
    torch = [2.0] * 8
    printed = benchmark.table({benchmark.AGAINST: torch, "import dit_lens": [0.1] * 8, "dit-lens --help": [1.9] * 8})
    quick, slow = printed.splitlines()[-2:]
    assert quick.endswith("0.050 [0.050, 0.050] of it, limit 0.1: holds")
    assert slow.endswith("0.950 [0.950, 0.950] of it, limit 0.15: exceeded")


def test_the_commands_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--rounds", "1"]) == 0
    assert "import dit_lens" in capsys.readouterr().out
