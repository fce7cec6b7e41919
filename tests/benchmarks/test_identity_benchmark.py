"""The benchmark of identity: all of it that does not depend on a clock."""

from __future__ import annotations

import pytest

from tests.benchmarks import identity as benchmark


def test_the_command_works(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_attention_heads": 1, "attention_head_dim": 24, "ffn_dim": 16, "text_dim": 8, "num_layers": 1}
    monkeypatch.setattr(benchmark, "LARGE", small)
    monkeypatch.setattr(benchmark, "LATENT", (1, 16, 1, 2, 2))
    assert benchmark.main(["--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("id  ") >= 4
    assert "1.7 million values in 231 tensors" in printed
    assert "one call" in printed
