"""The main job, on models where there is something to find and where there is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dit_lens as dl
from dit_lens.analysis.localization.lens_curves import lens_curves
from dit_lens.analysis.localization.localize import localize
from dit_lens.analysis.localization.result import Localization, LocalizeConfig
from dit_lens.analysis.localization.tables import layer_table
from dit_lens.errors import EvidenceError
from tests.analysis.returned import check_result
from tests.subjects import Subject

QUICK = LocalizeConfig.quick(probe_steps=[0])
ONE = LocalizeConfig(probe_instances=12, pairs=3, lens_instances=4, flip_pairs=1, probe_steps=[0], replicates=50)


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
    result = localize(dl.load_organism("maze"), dl.tasks.Maze(), replace(QUICK, permute=True))
    assert str(result.verdict) == "none", result.verdict


def test_every_number_is_in_the_table_with_its_interval(trained: Localization) -> None:
    table = trained.table
    assert set(table["evidence"]) == {"probe", "patching", "lens"}
    assert table[["value", "n"]].notna().all().all()
    # Accuracies are there to be read beside the skill, which has the interval.
    bounded = table[~table["measure"].isin(["accuracy", "majority_accuracy"])]
    assert (bounded["low"] <= bounded["high"]).all()


def test_a_localization_is_a_result(trained: Localization, tmp_path: Path) -> None:
    check_result(trained, tmp_path)
    for evidence in ("probes", "patching", "lens"):
        assert trained.plot(evidence=evidence).get_xlabel() == "layer"
    with pytest.raises(EvidenceError, match="there are probes, patching, lens"):
        trained.plot(evidence="energy")
    assert {"verdict", "bands", "evidence"} <= set(trained.to_json())


def test_report_is_one_file_that_fetches_nothing(trained: Localization, tmp_path: Path) -> None:
    page = trained.report(tmp_path / "localization.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") >= 1
    assert str(trained.verdict) in page
    table = pd.read_csv(tmp_path / "localization.csv")
    np.testing.assert_allclose(table["value"], trained.table["value"])
    assert not list(tmp_path.glob("*.part"))


def test_printed_table_names_every_layer_and_band(trained: Localization) -> None:
    table = layer_table(trained.curves, trained.verdict, trained.patching, trained.lens)
    assert list(table.index) == [f"L{k:02d}" for k in range(8)]
    assert "perception" in " ".join(table["band"])
    assert f"verdict: {trained.verdict}" in str(trained)


def test_interventions_are_in_what_the_lens_reads(organism: Subject) -> None:
    """Without any update every layer answers alike."""
    nothing = dl.Ablate(dl.Sites("delta"))
    found = lens_curves(organism.model, dl.tasks.Maze(4, lengths=(3, 8)), 3, interventions=[nothing], batch=2)
    assert (np.ptp(found.agreement, axis=0) == 0).all()
    assert (np.ptp(found.legality, axis=0) == 0).all()


def test_a_task_without_the_labels_is_refused(organism: Subject) -> None:
    class Mute(dl.tasks.Maze):
        def labels(self, *arguments: object, **options: object) -> dict[str, object]:  # type: ignore[override]
            kept = super().labels(*arguments, **options)  # type: ignore[arg-type]
            return {"dead_end": kept["dead_end"]}

    with pytest.raises(EvidenceError, match="perception labels"):
        localize(organism.model, Mute(4, lengths=(3, 8)), ONE)
