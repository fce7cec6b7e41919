"""Probes fitted while the model runs: the same answers as from collected features, and no activation kept."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.errors import EvidenceError
from dit_lens.probing.data import ProbeData
from dit_lens.probing.features import collect
from dit_lens.probing.grid import probe_grid
from dit_lens.probing.result import ProbeGrid
from dit_lens.probing.stream import Streamed, stream_probes
from dit_lens.tasks import Permanence

TRAIN, TEST = 14, 8
#: The same batches either way: a row's last bits depend on the batch that it is in, and few clips magnify them.
BATCH = 7
LEVELS = {"cell": ["object", "hidden", "mover"], "clip": ["shape", "out", "steps"]}


@cache
def model() -> dl.VideoDiT:
    return dl.load_organism("puzzles")


def sides() -> tuple[list[object], list[object]]:
    """Every shape goes in some problem of either side."""
    sampled = []
    for count, split in ((TRAIN, "train"), (TEST, "test")):
        drawn = Permanence().sample(6 * count, seed=3, split=split)  # type: ignore[arg-type]
        found = list({p.id: p for p in drawn}.values())
        first = {p.variables["shapes"][p.variables["mover"]]: p for p in reversed(found)}
        rest = [p for p in found if p not in first.values()]
        sampled.append([*first.values(), *rest][:count])
    return sampled[0], sampled[1]


@cache
def streamed(level: str) -> Streamed:
    train, test = sides()
    return stream_probes(
        model(), Permanence(), train=train, test=test, steps=[1, 4], layers=[0, 5], labels=LEVELS[level], batch=BATCH,
        level=level, frames=[2, -1] if level == "cell" else None, seed=7,
    )  # type: ignore[arg-type]  # fmt: skip


@cache
def collected(level: str) -> tuple[dict[int, ProbeData], ProbeGrid]:
    train, test = sides()
    data = collect(
        model(), Permanence(), [*train, *test], steps=[1, 4], layers=[0, 5], labels=LEVELS[level], batch=BATCH,
        level=level, frames=[2, -1] if level == "cell" else None, seed=7,
    )  # type: ignore[arg-type]  # fmt: skip
    return data, probe_grid(data, folds=[0] * TRAIN + [1] * TEST)


@pytest.mark.parametrize("level", LEVELS)
def test_streaming_gives_the_scores_of_collected_features_on_the_same_split(level: str) -> None:
    _, grid = collected(level)
    seen = 0
    for (step, readout, label, control), scores in streamed(level).grid.scores.items():
        if control == "none":
            expected = grid.scores[step, readout, label, "none"].sums[TRAIN:]
            np.testing.assert_allclose(scores.sums, expected, rtol=1e-6, atol=1e-6)
            seen += 1
    # Two steps of input, position, embed and two layers, and the last three again with random weights.
    assert seen == 2 * 8 * len(LEVELS[level])


def test_every_control_is_there_by_default() -> None:
    grid = streamed("cell").grid
    assert grid.missing == ()
    table = grid.table(step=1)
    assert {"shuffled", "input", "position", "random", "majority"} <= set(table.columns)
    assert not table[["shuffled", "input", "position", "random"]].isna().any().any()
    assert set(table["source"]) == {"sample"}
    assert (table["n"] == TEST).all()
    without = stream_probes(
        model(), Permanence(), train=4, test=4, steps=0, layers=0, labels=["object"], controls=("position",)
    )
    assert set(without.grid.missing) == {"input", "random"}
    assert set(without.table()["missing"]) == {"input, random"}


def test_shuffled_labels_teach_nothing_that_is_not_in_the_position() -> None:
    table = streamed("cell").table(step=4)
    seen = table[(table["label"] == "object") & (table["readout"] == "L05")].iloc[0]
    place = table.loc[seen.name, "position"]
    assert seen["skill"] > place + 0.1
    assert abs(seen["shuffled"] - place) < 0.2


def test_a_problem_that_is_drawn_twice_counts_once() -> None:
    train, test = sides()
    few = stream_probes(
        model(), Permanence(), train=train[:6], test=[test[0], test[0], test[1]], steps=0, layers=0, controls=(),
        labels=["object"],
    ).grid  # fmt: skip
    assert few.groups == 2
    assert few.scores[0, "L00", "object", "none"].sums[:, 2:].sum(axis=1).tolist() == [32, 16]


def test_instances_on_both_sides_are_refused_by_name() -> None:
    one = Permanence().sample(3)
    with pytest.raises(EvidenceError, match=one[1].id):
        stream_probes(model(), Permanence(), train=one[:2], test=one[1:])


def test_a_class_that_no_training_instance_has_is_refused() -> None:
    problems = Permanence().sample(30)
    out = [p for p in problems if p.variables["out"]]
    stays = [p for p in problems if not p.variables["out"]]
    with pytest.raises(EvidenceError, match="'out' has one value only"):
        stream_probes(model(), Permanence(), train=out[:4], test=stays[:2], level="clip", labels=["out"])
