"""The probe grid and its controls, on features whose content is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from dit_lens.errors import EvidenceError
from dit_lens.probing.cross_validate import probe_grid
from dit_lens.probing.fit.discriminant import discriminant
from dit_lens.probing.fit.estimators import RidgeProbe
from dit_lens.probing.fit.moments import Moments
from dit_lens.probing.fit.questions import donors
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.probing.rows.data import ProbeData, fold_of_runs, require_disjoint
from dit_lens.sites.site import Site
from dit_lens.tasks import Label
from tests.probing.fit.test_moments import feature, wild

RUNS, CELLS = 60, 9
ONE = np.ones((1, RUNS))


def labelled(**values: NDArray[Any]) -> dict[str, Label]:
    return {name: Label(name, "perception", x) for name, x in values.items()}


def name(step: int, component: str, layer: int | None = None) -> str:
    return str(Site(step, "cond", layer, component))


EMBED, BLOCK = name(0, "embed"), name(0, "resid", 0)


def planted(seed: int = 0, mean: float = 0.0, step: int = 0) -> ProbeData:
    """Two labels are in the features, one is what a cell's position says, one is nowhere."""
    rng = np.random.default_rng(seed)
    known, absent = rng.random((2, RUNS, CELLS)) < 0.3
    colour = rng.choice(4, size=(RUNS, CELLS), p=[0.55, 0.2, 0.15, 0.1])
    place = np.broadcast_to(np.arange(CELLS) < 3, (RUNS, CELLS))
    noise = rng.normal(size=(RUNS, CELLS, 4))
    position: NDArray[Any] = np.broadcast_to(np.eye(CELLS), (RUNS, CELLS, CELLS))
    inside = np.concatenate([known[..., None], np.eye(4)[colour]], axis=-1) + 0.1 * rng.normal(size=(RUNS, CELLS, 5))
    features = {
        name(step, "embed"): np.concatenate([noise, noise, position, noise[..., :1]], axis=-1) + mean,
        name(step, "resid", 0): np.concatenate([noise, inside, position], axis=-1) + mean,
    }
    labels = labelled(known=known, place=place, absent=absent, colour=colour, far=noise[..., 0] + known)
    return ProbeData(features, labels, sigma=0.5, input=noise, position=position)


def few(data: ProbeData, runs: int) -> ProbeData:
    labels = {name: replace(label, values=label.values[:runs]) for name, label in data.labels.items()}
    return ProbeData({site: x[:runs] for site, x in data.features.items()}, labels)


@pytest.fixture(scope="module")
def grid() -> ProbeGrid:
    return probe_grid({0: planted()})


# -- what is found


def test_only_what_is_there_and_not_in_a_control_counts(grid: ProbeGrid) -> None:
    excess = {name: float(grid.excess([BLOCK], name, ONE)[0, 0]) for name in grid.labels}
    for name in ("known", "place", "colour", "far"):
        assert grid.skill(BLOCK, name, ONE)[0] > 0.95
    assert excess["known"] > 0.8
    assert excess["colour"] > 0.8
    assert excess["place"] <= 1e-9
    assert abs(excess["absent"]) < 0.25
    assert grid.skill(EMBED, "colour", ONE)[0] < 0.2


def test_shuffled_labels_are_another_instances_and_keep_what_position_says(grid: ProbeGrid) -> None:
    assert abs(grid.skill(BLOCK, "known", ONE, "shuffled")[0]) < 0.25
    assert grid.skill(BLOCK, "place", ONE, "shuffled")[0] > 0.95


@pytest.mark.parametrize("product", [torch.float64, torch.float32])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_skills_are_those_of_a_loop_of_single_probes(product: torch.dtype, mean: float) -> None:
    """The batched grid against `RidgeProbe`, which is scikit-learn's Ridge, fitted one label and one fold at a time."""
    data = planted(mean=mean)
    grid = probe_grid({0: data}, alpha=0.01, product=product)
    fold = fold_of_runs(data.instances, 3)
    X = data.features[BLOCK]
    for name in ("known", "absent", "far"):
        y = data.labels[name].values
        predicted = np.zeros(y.shape)
        for f in range(3):
            train = fold != f
            probe = RidgeProbe(0.01).fit(X[train].reshape(-1, X.shape[-1]), y[train].ravel().astype(float))
            predicted[~train] = probe.predict(X[~train].reshape(-1, X.shape[-1])).reshape(-1, CELLS)
        skill = grid.skill(BLOCK, name, ONE)[0]
        if name == "far":
            expected = 1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        else:
            expected = np.mean([(predicted == y)[y == c].mean() for c in (True, False)]) * 2 - 1
        assert skill == pytest.approx(expected, abs=1e-9 if product == torch.float64 else 1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_scores_of_the_cpu(grid: ProbeGrid) -> None:
    there = probe_grid({0: planted()}, device="cuda")
    for key, scores in grid.scores.items():
        np.testing.assert_allclose(there.scores[key].sums, scores.sums, rtol=1e-6, atol=1e-6)


def test_several_classes_are_told_apart_as_by_discriminant_analysis_with_equal_priors() -> None:
    """Ridge columns and their fitted values give the boundaries of discriminant analysis of the features themselves."""
    rng = np.random.default_rng(0)
    y = rng.choice(4, size=600, p=[0.6, 0.2, 0.1, 0.1])
    X = rng.normal(size=(600, 6)) + 0.8 * np.array([0.0, 1.0, 2.0, 3.0])[y, None] * [1, 1, 0, 0, 0, 0] + 5
    columns = torch.from_numpy(np.eye(4)[y])
    moments = Moments.zeros(1, 6, 4).add(torch.from_numpy(X)[None], columns)
    scores = discriminant(moments, moments.solve(1e-9), slice(0, 4))(torch.from_numpy(X)[None])[0]
    lda = LinearDiscriminantAnalysis(priors=np.full(4, 0.25)).fit(X, y)
    assert (scores.argmax(-1).numpy() == lda.predict(X)).mean() > 0.995
    # Compared as they are, the columns never give the classes that lie between two others.
    raw = moments.solve(1e-9)(torch.from_numpy(X)[None])[0].argmax(-1).numpy()
    assert (raw == 2).mean() < 0.02 < (lda.predict(X) == 2).mean()


def test_two_classes_as_columns_equal_the_midpoint() -> None:
    rng = np.random.default_rng(1)
    y = rng.random(300) < 0.2
    X = torch.from_numpy(rng.normal(size=(300, 5)) + y[:, None])[None]
    columns = torch.from_numpy(np.stack([~y, y, y], axis=1).astype(float))
    moments = Moments.zeros(1, 5, 3).add(X, columns)
    linear = moments.solve(0.01)
    by_class = discriminant(moments, linear, slice(0, 2))(X)[0].argmax(-1)
    by_middle = linear(X)[0, :, 2] > moments.midpoints(linear)[0, 2]
    assert torch.equal(by_class.bool(), by_middle)


def test_classes_that_position_tells_apart_fully_are_found() -> None:
    """Within-class covariance is zero there, which must not hide the classes."""
    data = planted()
    which = np.broadcast_to(np.arange(CELLS) // 3, (RUNS, CELLS))
    grid = probe_grid({0: replace(data, labels=labelled(row=which))})
    for control in ("none", "position"):
        assert grid.skill(BLOCK, "row", ONE, control)[0] == 1


# -- splits


def test_no_instance_is_scored_by_a_probe_that_saw_it() -> None:
    """Each instance carries a value that only its own rows could reveal, and each has two runs."""
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(12), 2)
    secret = rng.normal(size=12)[ids][:, None]
    data = ProbeData({BLOCK: np.eye(12)[ids][:, None]}, labelled(secret=secret), groups=[f"m{i}" for i in ids])
    assert probe_grid({0: data}, alpha=1e-6).skill(BLOCK, "secret", np.ones((1, 12)))[0] < 0.3
    leaking = replace(data, groups=None)
    assert probe_grid({0: leaking}, alpha=1e-6).skill(BLOCK, "secret", np.ones((1, 24)))[0] > 0.3


def test_a_split_that_shares_instances_is_refused_and_names_them() -> None:
    data = replace(planted(), groups=[f"maze-{i // 2}" for i in range(RUNS)])
    split = np.arange(RUNS) % 3
    split[4], split[5] = 0, 0
    with pytest.raises(EvidenceError, match=r"20 task instances are in training and in test: 'maze-0'.*and 15 more"):
        probe_grid({0: data}, folds=split.tolist())
    fine = probe_grid({0: data}, folds=[(i // 2) % 3 for i in range(RUNS)])
    assert fine.groups == RUNS // 2
    require_disjoint(["a", "b"], ["c"])
    with pytest.raises(EvidenceError, match=r"1 task instances .*'b'"):
        require_disjoint(["a", "b"], ["c", "b"])


def test_runs_of_one_instance_fall_into_one_fold_and_count_as_one() -> None:
    ids = np.random.default_rng(0).integers(0, 20, RUNS).tolist()
    fold = fold_of_runs(ids, 4)
    assert all(len(set(fold[np.array(ids) == i])) == 1 for i in set(ids))
    grid = probe_grid({0: replace(planted(), groups=ids)}, folds=4)
    assert grid.groups == len(set(ids))
    assert grid.table["n"].unique().tolist() == [grid.groups]


def test_shuffled_labels_come_from_another_instance() -> None:
    groups = np.array([0, 0, 1, 2, 2, 2, 3])
    donor = donors(groups, seed=3)
    assert (groups[donor] != groups).all()
    for g in range(4):
        assert len(set(groups[donor[groups == g]])) == 1


# -- tables


def test_table_has_a_row_for_every_site_label_control_and_measure() -> None:
    table = probe_grid({0: planted(), 4: planted(1, step=4)}).table
    skills = table[table["measure"] == "skill"]
    # Two sites a step and five labels; the probe itself, three controls and the majority.
    assert len(skills) == 2 * 2 * 5 * 5
    assert set(skills["control"]) == {"none", "shuffled", "input", "position", "majority"}
    own = table[table["control"] == "none"].groupby("label")["measure"].unique()
    assert list(own["known"]) == ["skill", "selectivity", "excess", "accuracy", "majority_accuracy"]
    assert list(own["far"]) == ["skill", "selectivity", "excess"]
    coordinates = [name for name in table.columns if name not in ("value", "low", "high", "n")]
    assert not table[coordinates].duplicated().any()
    assert list(table.columns[:6]) == ["step", "sigma", "branch", "layer", "component", "stream"]
    assert list(table.columns[-5:]) == ["measure", "value", "low", "high", "n"]
    assert table.loc[table["component"] == "embed", "layer"].isna().all()
    assert table.loc[table["component"] == "resid", "layer"].eq(0).all()
    assert (skills["low"] <= skills["high"]).all()
    assert (table["n"] == RUNS).all()
    assert set(table["sigma"]) == {0.5}
    json.dumps(probe_grid({0: few(planted(), 12)}).to_json(), allow_nan=False)


def test_controls_stand_side_by_side() -> None:
    data = planted()
    random = {site: data.features[EMBED] for site in (EMBED, BLOCK)}
    grid = probe_grid({0: replace(data, random=random, expert="high_noise")})
    row = grid.wide(0).set_index(["label", "site"]).loc["known", BLOCK]
    for control in ("input", "position", "random"):
        assert row[control] == grid.skill(BLOCK, "known", ONE, control)[0]
    assert row["random"] == grid.skill(EMBED, "known", ONE)[0]
    assert row["selectivity"] == pytest.approx(row["skill"] - max(0, row["shuffled"]))
    assert row["selectivity_low"] <= row["selectivity"] <= row["selectivity_high"]
    assert row["majority"] == 0
    best = max(0, row["input"], row["position"], row["random"], row["shuffled"])
    assert row["excess"] == pytest.approx(row["skill"] - best)
    assert row["excess_low"] <= row["excess"] <= row["excess_high"]
    weights = np.ones((1, len(data.instances)))
    for above in ("input", "random"):
        counted = grid.excess([BLOCK], "known", weights, above=[above])[0, 0]
        assert counted == pytest.approx(row["skill"] - max(0, row[above])), above
    assert (row["missing"], grid.missing, row["expert"]) == ("", (), "high_noise")
    assert grid.sites == grid.at(0) == [EMBED, BLOCK]
    assert "no control is missing" in str(grid)
    tidy = grid.table.query("label == 'known' and component == 'resid'").set_index(["control", "measure"])["value"]
    for control in ("shuffled", "input", "position", "random", "majority"):
        assert tidy[control, "skill"] == row[control]
    for measure in ("skill", "selectivity", "excess", "accuracy", "majority_accuracy"):
        assert tidy["none", measure] == row[measure]


def test_missing_controls_are_said(grid: ProbeGrid) -> None:
    table = grid.wide()
    assert set(table["missing"]) == {"random"}
    assert table["random"].isna().all()
    assert "random" not in set(grid.table["control"])
    assert "controls missing: random" in str(grid)
    data = planted()
    bare = probe_grid({0: ProbeData({BLOCK: data.features[BLOCK]}, data.labels)}, shuffled=False)
    assert bare.missing == ("shuffled", "input", "position", "random")
    assert set(bare.wide()["missing"]) == {"shuffled, input, position, random"}
    assert set(bare.table["control"]) == {"none", "majority"}
    assert "selectivity" not in set(bare.table["measure"])


def test_a_saved_grid_is_the_same_grid(grid: ProbeGrid, tmp_path: Path) -> None:
    again = ProbeGrid.load(grid.save(tmp_path / "grid"))
    pd.testing.assert_frame_equal(again.table, grid.table)
    pd.testing.assert_frame_equal(again.wide(), grid.wide())
    assert repr(again) == "ProbeGrid(known, place, absent, colour, far; 2 sites, steps 0; n=60)"


def test_selectivity_is_no_larger_than_the_skill() -> None:
    """A probe with as many weights as rows reads shuffled numbers worse than their mean does: that is no merit."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 1, 20))
    data = ProbeData({BLOCK: x}, labelled(far=x[..., 0] + rng.normal(size=(24, 1)) / 10))
    row = probe_grid({0: data}, alpha=1e-6).wide(0).iloc[0]
    assert row["shuffled"] < -0.5
    assert row["selectivity"] == row["skill"]


def test_class_balance_is_reported(grid: ProbeGrid) -> None:
    table = grid.wide().set_index(["label", "site"])
    colour, values = table.loc["colour", BLOCK], planted().labels["colour"].values
    assert colour["majority_accuracy"] == pytest.approx((values == 0).mean())
    assert colour["rows"] == ", ".join(f"{c} {(values == c).sum()}" for c in range(4))
    assert colour["accuracy"] > 0.95
    assert table.loc["known", BLOCK]["rows"].startswith("False ")
    assert np.isnan(table.loc["far", BLOCK]["accuracy"])


def test_unlabelled_rows_are_left_out() -> None:
    data = planted()
    colour = data.labels["colour"].values
    gaps = np.where(np.arange(CELLS) % 2 == 0, colour, -1)
    grid = probe_grid({0: replace(data, labels=labelled(colour=colour, some=gaps))})
    alone = {site: x[:, ::2] for site, x in data.features.items()}
    expected = probe_grid({0: ProbeData(alone, labelled(some=gaps[:, ::2]))})
    for site in (BLOCK, EMBED):
        for control in ("none", "shuffled"):
            one, other = (g.scores[site, "some", control].sums for g in (grid, expected))
            np.testing.assert_array_equal(one, other)


@given(st.lists(feature, min_size=1, max_size=6), st.booleans(), st.integers(0, 99))
@settings(max_examples=50)
def test_wild_scales_give_the_answers_of_a_loop_of_single_probes(features: list[Any], gaps: bool, seed: int) -> None:
    """Features that are constant, tiny, huge or mere rounding in a fold or in the labelled rows, as in `RidgeProbe`."""
    runs, cells = 30, 4
    fold, rng = fold_of_runs(range(runs), 3), np.random.default_rng(seed)
    X = wild(features, np.repeat(fold, cells), seed).reshape(runs, cells, -1)
    number, some = rng.normal(size=(runs, cells)), rng.integers(0, 2, (runs, cells))
    if gaps:
        some[:, 1::2] = -1
        X[:, 1::2, 0] += 10.0 ** features[0][1]  # what is constant in the labelled rows need not be so in all
    grid = probe_grid({0: ProbeData({BLOCK: X}, labelled(number=number, some=some))}, shuffled=False)
    found = {name: grid.scores[BLOCK, name, "none"].sums for name in ("number", "some")}
    for f in range(3):
        train, test = fold != f, fold == f
        value = RidgeProbe().fit(X[train].reshape(-1, X.shape[-1]), number[train].ravel())
        error = number[test] - value.predict(X[test].reshape(-1, X.shape[-1])).reshape(-1, cells)
        np.testing.assert_allclose(found["number"][test, 0], (error**2).sum(axis=1), rtol=1e-5)
        seen, asked = train[:, None] & (some >= 0), test[:, None] & (some >= 0)
        probe = RidgeProbe().fit(X[seen], some[seen])
        over = probe.linear_scores(X[asked]) - probe.threshold_[0]
        if np.abs(over).min() > 1e-6:  # at a tie, as where all features are constant, rounding decides
            hits = ((over > 0) == some[asked]).sum()
            assert found["some"][test, :2].sum() == hits


def test_narrow_features_count_at_their_value() -> None:
    """What is left of float32 features without their mean is not rounded to float32 again."""
    data = planted(mean=3.0)
    narrow = {site: x.astype(np.float32) for site, x in data.features.items()}
    wide = {site: x.astype(np.float64) for site, x in narrow.items()}
    one, other = (probe_grid({0: ProbeData(x, data.labels)}, alpha=1e-9) for x in (narrow, wide))
    for key, scores in one.scores.items():
        np.testing.assert_allclose(scores.sums, other.scores[key].sums, rtol=1e-9)


def test_picture_has_every_layer_and_every_control(grid: ProbeGrid) -> None:
    mpl.use("Agg")
    axis = grid.plot(label="colour")
    drawn = [text.get_text() for text in axis.get_xticklabels()]
    assert drawn == ["embed", "L00", "shuffled", "input", "position", "random", "majority"]
    assert "missing: random" in axis.get_title()
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0 (0.50)"]
    mpl.pyplot.close("all")


def test_steps_with_labels_of_their_own_are_kept_apart() -> None:
    one, same, other = planted(), planted(step=1), planted(1, step=2)
    both = probe_grid({0: one, 1: same, 2: other})
    for step, data in ((1, same), (2, other)):
        alone = probe_grid({step: data})
        for key, scores in alone.scores.items():
            np.testing.assert_allclose(both.scores[key].sums, scores.sums, rtol=1e-12, atol=1e-12)


# -- what is refused


def test_bad_data_is_refused() -> None:
    data = planted()
    with pytest.raises(EvidenceError, match="at least 6"):
        probe_grid({0: few(data, 4)})
    with pytest.raises(EvidenceError, match="at least 2, got 1"):
        probe_grid({0: data}, folds=1)
    with pytest.raises(EvidenceError, match="no labels"):
        probe_grid({0: ProbeData(data.features, {})})
    with pytest.raises(EvidenceError, match="no features"):
        probe_grid({})
    for flat in (np.zeros((RUNS, CELLS), dtype=bool), np.full((RUNS, CELLS), 3), np.full((RUNS, CELLS), 1.5)):
        with pytest.raises(EvidenceError, match="'flat' has one value"):
            probe_grid({0: replace(data, labels=labelled(flat=flat))})
    with pytest.raises(EvidenceError, match="'none' has no labelled row"):
        probe_grid({0: replace(data, labels=labelled(none=np.full((RUNS, CELLS), -1)))})


def test_nan_is_refused_and_found() -> None:
    data, block = planted(step=3), name(3, "resid", 0)
    broken = data.features[block].copy()
    broken[0, 0, 0], broken[1, 2, 3] = np.nan, np.inf
    with pytest.raises(EvidenceError, match="2 NaN or infinite features at step 3, s03/cond/L00"):
        probe_grid({3: replace(data, features={**data.features, block: broken})})
    far = data.labels["far"].values.copy()
    far[5, 5] = np.nan
    with pytest.raises(EvidenceError, match="'far' of step 3 is NaN or infinite in 1 of 540 rows"):
        probe_grid({3: replace(data, labels=labelled(far=far))})


def test_mixed_shapes_types_and_lengths_are_refused() -> None:
    data = planted()
    x = data.features[BLOCK]
    for other, match in (
        (x[:-1], r"L01/resid/video have shape \(59, 9, 18\)"),
        (x[:, :-1], r"L01/resid/video have shape \(60, 8, 18\)"),
        (x.astype(np.float32), r"mix float64 \(s00/cond/-/embed/video\) and float32 \(s00/cond/L01/resid/video\)"),
        (x.astype(np.int64), "L01/resid/video are int64"),
    ):
        with pytest.raises(EvidenceError, match=match):
            probe_grid({0: replace(data, features={**data.features, name(0, "resid", 1): other})})
    with pytest.raises(EvidenceError, match=r"'known' of step 0 has shape \(60, 8\)"):
        probe_grid({0: replace(data, labels=labelled(known=data.labels["known"].values[:, 1:]))})
    with pytest.raises(EvidenceError, match="object"):
        probe_grid({0: replace(data, labels=labelled(odd=np.full((RUNS, CELLS), "x", dtype=object)))})
    with pytest.raises(EvidenceError, match="other instances"):
        probe_grid({0: data, 1: few(planted(step=1), 30)})
    with pytest.raises(EvidenceError, match="of invert, cell; the first of sample"):
        probe_grid({0: data, 1: replace(planted(step=1), source="invert")})
    with pytest.raises(EvidenceError, match="fold for each of 60 runs"):
        probe_grid({0: data}, folds=[0, 1])


def test_plain_mistakes_are_named(grid: ProbeGrid) -> None:
    data = planted()
    with pytest.raises(EvidenceError, match="'nobody'; there are known, place, absent, colour, far"):
        grid.plot(label="nobody")
    for asked in (grid.wide, grid.at):
        with pytest.raises(EvidenceError, match="step 7; there are 0"):
            asked(7)
    for wrong, match in (("L00", "'L00' is no site"), ("s00/cond/L00/resid", "write 's00/cond/L00/resid/video'")):
        with pytest.raises(EvidenceError, match=match):
            probe_grid({0: replace(data, features={wrong: data.features[BLOCK]})})
    with pytest.raises(EvidenceError, match="named 's00/cond/-/embed/video'; write 's03/cond/-/embed/video'"):
        probe_grid({3: data})
    for wrong in (("s00/cond/L07/resid/video", "known"), (BLOCK, "nobody"), (BLOCK, "known", ONE, "random")):
        with pytest.raises(EvidenceError, match=r"no probe of .* there are sites s00/cond/-/embed/video, "):
            grid.skill(*wrong[:2], ONE, *wrong[3:])
    with pytest.raises(EvidenceError, match=r"L00/resid/video are a Tensor.*numpy"):
        probe_grid({0: replace(data, features={BLOCK: torch.zeros(RUNS, CELLS, 2)})})  # type: ignore[dict-item]
    with pytest.raises(EvidenceError, match="'known' of step 0 is a ndarray; expected dit_lens's Label"):
        probe_grid({0: replace(data, labels={"known": data.labels["known"].values})})  # type: ignore[dict-item]
    with pytest.raises(EvidenceError, match="60 runs and groups for 12"):
        probe_grid({0: replace(data, groups=range(12))})
    with pytest.raises(EvidenceError, match="alpha must be a number from 0 on"):
        probe_grid({0: data}, alpha=-1.0)
    three = probe_grid({0: data}, folds=np.int64(3))  # type: ignore[arg-type]
    np.testing.assert_array_equal(three.scores[BLOCK, "known", "none"].sums,
                                  grid.scores[BLOCK, "known", "none"].sums)  # fmt: skip


def test_one_instance_has_no_other_whose_labels_it_could_be_given() -> None:
    with pytest.raises(EvidenceError, match="one task instance only"):
        donors(np.zeros(3, dtype=np.int64), 0)


def test_a_class_that_a_fold_never_trains_on_is_named() -> None:
    data = planted()
    fold = fold_of_runs(data.instances, 3)
    rare = np.where((fold == 1)[:, None] & (np.arange(CELLS) == 0), 7, data.labels["colour"].values)
    with pytest.raises(EvidenceError, match=r"'rare': class 7 is in no training instance of fold 1"):
        probe_grid({0: replace(data, labels=labelled(rare=rare))})
