"""Ten times as many clips need no more memory to be probed."""

from __future__ import annotations

from tests.benchmarks.stream_memory import LIMIT, StreamMemory, stream_memory


def test_memory_does_not_grow_with_the_number_of_clips() -> None:
    found = stream_memory(few=4, controls=("input", "position"), layers=[0, 1, 2])
    assert found.ratio < LIMIT
    assert found.collected[1] == 10 * found.collected[0]


def test_the_table_says_both() -> None:
    text = str(StreamMemory((4, 40), (1_000_000, 1_010_000), (500_000, 5_000_000)))
    assert "ratio 1.010 streamed, 10.0 collected" in text
