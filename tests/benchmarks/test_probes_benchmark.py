"""The benchmark of the probe grid at a tiny size: everything that does not depend on a clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import probes
from tests.benchmarks.probes import PAIRS, Problem, difference, measured, sides

TINY = Problem(steps=2, layers=2, runs=12, cells=20, width=8, folds=3)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_both_sides_of_a_pair_are_equally_good_on_unseen_rows(pair: probes.Pair) -> None:
    ways = sides(TINY)
    one, other = ways[pair.measured](), ways[pair.against]()
    assert len(one.scores) == TINY.steps * TINY.layers * TINY.labels
    # In float32 one of the 240 rows could fall on the other side of a threshold; none does here.
    assert difference(one, other) < 1e-6
    assert max(float(s.skill(np.ones((1, TINY.runs)))[0]) for s in one.scores.values()) > 0.1


def test_sides_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = probes.by_loop

    def wrong(problem: Problem, fit: probes.Fit) -> object:
        return right(Problem(**{**vars_of(problem), "seed": 9}), fit)

    monkeypatch.setattr(probes, "by_loop", wrong)
    with pytest.raises(AssertionError, match="held-out skills differ"):
        measured(TINY, rounds=1)


def vars_of(problem: Problem) -> dict[str, int]:
    return {name: getattr(problem, name) for name in Problem.__dataclass_fields__}


def test_the_command_prints_a_table_and_writes_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "measured", lambda problem, rounds, seed: measured(TINY, rounds, seed))
    out = tmp_path / "made" / "probes.json"
    assert probes.main(["--quick", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["problem"] == vars_of(TINY)
    assert [case["case"] for case in result["cases"]] == [pair.name for pair in PAIRS]
    assert {name: len(values) for name, values in result["seconds"].items()} == dict.fromkeys(sides(TINY), 1)
    printed = capsys.readouterr().out
    assert all(pair.name in printed for pair in PAIRS)
    assert "3 folds" in printed
