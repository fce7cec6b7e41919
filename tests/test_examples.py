"""Every example and script runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from dit_lens.probing.probe_set import load_probes

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
    out = tmp_path / "probes"
    asked = ["--labels", "wall_left", "on_path", "--steps", "0", "--train", "12", "--test", "8", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(script), *asked])
    runpy.run_path(str(script), run_name="__main__")
    probes, table = load_probes(out), load_probes(out).table
    assert probes.labels == ["wall_left", "on_path"]
    assert probes.direction("on_path", "s00/cond/L03/resid").shape == (128,)
    # The walls of a neighbouring cell are not in the embedding of a cell, and are after a few layers of attention.
    own = table.query("label == 'wall_left' and measure == 'skill' and control == 'none'").set_index("component")
    assert own[own["layer"] == 5].loc["resid", "value"] > 0.8 > own.loc["embed", "value"]
    assert {"shuffled", "input", "position", "random", "majority"} <= set(table["control"])
    assert "no control is missing" in capsys.readouterr().out
