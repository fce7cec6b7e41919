"""The comparison of ways to look once at a tiny size: all of it that does not depend on a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import looking
from tests.benchmarks.models import SIZES, TINY, Bench
from tests.subjects import leftovers


def test_all_ways_see_the_same_values_of_the_same_video() -> None:
    bench = Bench(TINY)
    ways = looking.sides(bench)
    found = looking.facts({name: side() for name, side in ways.items()})
    assert all(found.values()), found
    assert leftovers(bench.model.pipeline) == leftovers(bench.stranger) == []


def test_the_command_compares_in_every_round_and_writes_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "shipped", TINY)
    out = tmp_path / "looking.json"
    assert looking.main(["--rounds", "2", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {len(seconds) for seconds in result["processor seconds"].values()} == {2}
    names = [(case["measured"], case["against"], case["limit"]) for case in result["comparisons"]]
    assert names == [tuple(case) for case in looking.COMPARISONS]
    assert "full    / nnsight " in capsys.readouterr().out
