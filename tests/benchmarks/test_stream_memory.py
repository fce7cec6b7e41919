"""Ten times as many clips need no more memory to be probed."""

from __future__ import annotations

from dataclasses import replace

from dit_lens.probing.rows.readout import Readout
from tests.benchmarks.stream_memory import A_CLIP, LIMIT, StreamMemory, stream_memory


def test_memory_does_not_grow_with_the_number_of_clips() -> None:
    readout = replace(Readout.of(steps=[0, 1], layers=[0, 1, 2]), controls=("input", "position"))
    found = stream_memory(few=4, readout=readout)
    assert found.ratio < LIMIT
    assert found.a_clip < A_CLIP
    assert found.collected[1] == 10 * found.collected[0]


def test_the_table_says_both() -> None:
    text = str(StreamMemory((4, 40), (1_000_000, 1_010_000), (200_000, 236_000), (500_000, 5_000_000)))
    assert "tensors: ratio 1.010, limit 1.05; collected: 10.0" in text
    assert "1000 bytes a clip" in text
