"""The benchmark of flows compares the same numbers, and the flow computes fewer forwards."""

from __future__ import annotations

from tests.benchmarks.flow import Case, facts


def test_the_loop_and_the_flow_come_to_the_same_bits() -> None:
    found = facts(Case(2, "cpu"))
    assert found["same bits alone"]
    assert found["largest difference together"] < 1e-5
    assert found["forwards"] < found["forwards of the loop"] < found["forwards of a loop of whole videos"]
    assert found["cells"] == 27
