"""Every example and script runs."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("plot_*.py")), ids=lambda p: p.stem)
def test_example_runs(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mpl.use("Agg")
    runpy.run_path(str(example), run_name="__main__")
    mpl.pyplot.close("all")
    assert capsys.readouterr().out.strip()


def test_probe_training_writes_probes_that_predict_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "probes" / "train_layer_probes.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--instances", "12", "--out", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    tensors, card = load_file(tmp_path / "probes.safetensors"), json.loads((tmp_path / "probes.json").read_text())
    assert tensors["s00/L03/coef"].shape == (len(card["labels"]), 128)
    assert {row["control"] for row in card["scores"]} == {"none", "shuffled"}
    assert {row["readout"] for row in card["scores"]} >= {"embed", "input", "position", "L07"}
    assert "wall_left" in capsys.readouterr().out
