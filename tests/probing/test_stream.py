"""Probes fitted while the model runs: the same answers as from collected features, and no activation kept."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, MadeForAnother
from dit_lens.probing.cross_validate import probe_grid
from dit_lens.probing.fit.moments import Moments
from dit_lens.probing.fit.questions import ask, targets
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.data import ProbeData, group_numbers
from dit_lens.probing.stream import Streamed, stream_probes
from dit_lens.tasks import Label, Permanence

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
        else:  # each side takes labels from its own instances, a grid from all: only what is counted is the same
            assert scores.sums.shape == grid.scores[step, readout, label, control].sums[TRAIN:].shape
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


def test_classes_that_one_side_lacks_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing may run")

    monkeypatch.setattr(dl.VideoDiT, "run", forbidden)
    problems = list({p.id: p for p in Permanence().sample(60)}.values())
    by_shape = {k: [p for p in problems if p.variables["shapes"][p.variables["mover"]] == k] for k in range(3)}
    out, stays = ([p for p in problems if bool(p.variables["out"]) is wanted] for wanted in (True, False))
    stream = partial(stream_probes, model(), Permanence(), level="clip")
    two = [*by_shape[0][:3], *by_shape[1][:3]]
    with pytest.raises(MadeForAnother, match=r"'shape' were trained on the classes .*there is also 2"):
        stream(train=two, test=[*by_shape[2][:2], by_shape[1][-1]], labels=["shape"])
    with pytest.raises(EvidenceError, match="'out' has one value only"):
        stream(train=out[:4], test=stays[:2], labels=["out"])
    with pytest.raises(EvidenceError, match="'out' has one value only in the test instances"):
        stream(train=[*out[:4], *stays[:4]], test=stays[4:7], labels=["out"])
    with pytest.raises(EvidenceError, match="on one task instance"):
        stream(train=two, test=by_shape[2][:1], labels=["out"])
    with pytest.raises(EvidenceError, match="batch must be at least 1"):
        stream(train=two, test=by_shape[2][:2], batch=0)


def test_shuffled_probes_are_those_of_the_collected_training_side() -> None:
    """Labels of another instance, and the same ridge: what streaming fits to them is what sums of the rows give."""
    data, _ = collected("cell")
    part = data[4]
    train = {name: Label(name, x.role, x.values[:TRAIN]) for name, x in part.labels.items()}
    questions = ask(train, group_numbers(part.instances[:TRAIN]), seed=7)
    x = torch.from_numpy(part.features["L05"][:TRAIN]).flatten(0, 1)[None]
    moments = Moments.zeros(1, x.shape[-1], questions[-1].columns.stop).add(x, targets(questions).flatten(0, 1))
    expected = moments.solve(1e-3)
    streamed_set = streamed("cell").probes
    for asked, question in zip(streamed_set.asked, questions, strict=True):
        assert (asked.name, asked.control) == (question.name, question.control)
        if asked.kind == "binary":
            mine = streamed_set.coef[4, "L05"][asked.start]
            torch.testing.assert_close(mine, expected.coef[0, question.columns.start], rtol=1e-4, atol=1e-6)
