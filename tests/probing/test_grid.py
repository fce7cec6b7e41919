"""The probe grid and its controls, on features whose content is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dit_lens as dl
from dit_lens.errors import EvidenceError
from dit_lens.probing import ProbeData, collect, probe_grid
from dit_lens.probing.grid import held_out
from dit_lens.tasks import Label
from tests.subjects import Subject

GROUPS, CELLS = 60, 9
ONE = np.ones((1, GROUPS))


def planted(seed: int = 0) -> ProbeData:
    """One label is in the features, one is what a cell's position says, one is nowhere."""
    rng = np.random.default_rng(seed)
    known, absent = rng.random((2, GROUPS, CELLS)) < 0.5
    place = np.broadcast_to(np.arange(CELLS) < 3, (GROUPS, CELLS))
    noise = rng.normal(size=(GROUPS, CELLS, 4))
    position: NDArray[Any] = np.broadcast_to(np.eye(CELLS), (GROUPS, CELLS, CELLS))
    features = {
        "L00": np.concatenate([noise, known[..., None] + 0.1 * rng.normal(size=(GROUPS, CELLS, 1)), position], axis=-1),
        "input": noise,
        "position": position,
    }
    labels = {"known": known, "place": place, "absent": absent}
    return ProbeData(features, {name: Label(name, "perception", values) for name, values in labels.items()})


def test_only_what_is_there_and_not_in_a_control_counts() -> None:
    grid = probe_grid({0: planted()})
    excess = {name: float(grid.excess(0, ["L00"], name, ONE)[0, 0]) for name in ("known", "place", "absent")}
    assert grid.skill(0, "L00", "known", "none", ONE)[0] > 0.95
    assert grid.skill(0, "L00", "place", "none", ONE)[0] > 0.95
    assert excess["known"] > 0.8
    assert excess["place"] <= 1e-9
    assert abs(excess["absent"]) < 0.25


def test_shuffled_labels_are_another_instances_and_keep_what_position_says() -> None:
    grid = probe_grid({0: planted()})
    assert abs(grid.skill(0, "L00", "known", "shuffled", ONE)[0]) < 0.25
    assert grid.skill(0, "L00", "place", "shuffled", ONE)[0] > 0.95


def test_no_instance_is_scored_by_a_probe_that_saw_it() -> None:
    """Each group carries a value that only its own rows could reveal."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 5)
    secret = rng.normal(size=12)[groups][:, None]
    X = np.eye(12)[groups]
    predicted = held_out(X, secret, groups, folds=3, alpha=1e-6)
    assert np.corrcoef(predicted.ravel(), secret.ravel())[0, 1] < 0.5


def test_table_is_tidy_and_has_every_control() -> None:
    frame = probe_grid({0: planted(), 4: planted(1)}).frame(replicates=50)
    assert len(frame) == 2 * 3 * 3 * 2
    assert set(frame["control"]) == {"none", "shuffled"}
    assert {"input", "position"} <= set(frame["readout"])
    assert (frame["low"] <= frame["high"]).all()
    assert (frame["n"] == GROUPS).all()


def test_bad_data_is_refused() -> None:
    data = planted()
    few = ProbeData(
        {k: v[:4] for k, v in data.features.items()},
        {k: Label(k, v.role, v.values[:4]) for k, v in data.labels.items()},
    )
    with pytest.raises(EvidenceError, match="at least 6"):
        probe_grid({0: few})
    constant = ProbeData(data.features, {"flat": Label("flat", "perception", np.zeros((GROUPS, CELLS), dtype=bool))})
    with pytest.raises(EvidenceError, match="'flat' has one value"):
        probe_grid({0: constant})
    broken = data.features["L00"].copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(EvidenceError, match="step 0, L00"):
        probe_grid({0: ProbeData({"L00": broken}, data.labels)})
    with pytest.raises(EvidenceError, match="no labels"):
        probe_grid({0: ProbeData(data.features, {})})


def test_collected_features_are_the_models_residuals(organism: Subject) -> None:
    task = dl.tasks.Maze(size=3, lengths=(2, 4))
    mazes = task.sample(3, seed=0)
    data = collect(organism.model, task, mazes, steps=[0, 1], frame=-1, seed=7, batch=2)
    run = organism.model.run(
        mazes, seed=[7, 8, 9], interventions=[dl.Capture(dl.Sites(("resid", "model_input"), steps=1))]
    )
    resid = run["s01/cond/L02/resid/video"][:, -1, :3, :3].flatten(1, 2).numpy()
    given = run["s01/cond/-/model_input/video"][:, :, -1, :3, :3].flatten(2).transpose(1, 2).numpy()
    np.testing.assert_allclose(data[1].features["L02"], resid, atol=1e-4)
    np.testing.assert_allclose(data[1].features["input"], given, atol=1e-4)
    assert list(data) == [0, 1]
    assert set(data[0].features) == {"embed", "input", "position", *(f"L{k:02d}" for k in range(4))}
    assert data[0].labels["on_path"].values.shape == (3, 9)
