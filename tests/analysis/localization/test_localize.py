"""The main job, on models where there is something to find and where there is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import dit_lens as dl
from dit_lens.analysis.localization.localize import localize
from dit_lens.analysis.localization.result import Localization, LocalizeConfig
from dit_lens.errors import EvidenceError
from tests.subjects import Subject

QUICK = LocalizeConfig.quick(probe_steps=[0])


@pytest.fixture(scope="module")
def trained() -> Localization:
    return localize(dl.load_organism("maze"), dl.tasks.Maze(), QUICK)


def test_the_trained_model_perceives_before_it_reasons(trained: Localization) -> None:
    bands = trained.bands
    assert {"perception", "reasoning"} <= set(bands)
    assert bands["perception"].end.value <= bands["reasoning"].end.value


def test_every_control_is_beside_its_probe(trained: Localization) -> None:
    table = trained.probes.wide()
    assert set(table["missing"]) == {""}
    assert table[["shuffled", "input", "position", "random"]].notna().all().all()


def test_random_weights_have_no_bands() -> None:
    result = localize(dl.load_organism("maze", random=True), dl.tasks.Maze(), QUICK)
    assert str(result.verdict) == "none", result.verdict


def test_permuted_labels_and_pairs_have_no_bands() -> None:
    result = localize(dl.load_organism("maze"), dl.tasks.Maze(), QUICK, permute=True)
    assert str(result.verdict) == "none", result.verdict


def test_every_number_is_in_the_table_with_its_interval(trained: Localization) -> None:
    frame = trained.frame()
    assert set(frame["evidence"]) == {"probe", "patching", "lens"}
    assert frame[["value", "low", "high", "n"]].notna().all().all()
    assert (frame["low"] <= frame["high"]).all()


def test_report_is_one_file_that_fetches_nothing(trained: Localization, tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    page = trained.report(folder / "localization.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") >= 1
    assert str(trained.verdict) in page
    table = pd.read_csv(folder / "localization.csv")
    np.testing.assert_allclose(table["value"], trained.frame()["value"])
    assert not list(folder.glob("*.part"))


def test_printed_table_names_every_layer_and_band(trained: Localization) -> None:
    table = trained.layer_table()
    assert list(table.index) == [f"L{k:02d}" for k in range(8)]
    assert "perception" in " ".join(table["band"])
    assert f"verdict: {trained.verdict}" in trained.summary()


def test_a_task_without_the_labels_is_refused(organism: Subject) -> None:
    class Mute(dl.tasks.Maze):
        def labels(self, *arguments: object, **options: object) -> dict[str, object]:  # type: ignore[override]
            kept = super().labels(*arguments, **options)  # type: ignore[arg-type]
            return {"dead_end": kept["dead_end"]}

    with pytest.raises(EvidenceError, match="perception labels"):
        localize(organism.model, Mute(4, lengths=(3, 8)), QUICK, probe_instances=6)
