"""Probes fitted while the model runs: the same answers as from collected features, and no activation kept."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, MadeForAnother
from dit_lens.probing.cross_validate import probe_grid
from dit_lens.probing.fit.moments import Moments
from dit_lens.probing.fit.questions import ask, targets
from dit_lens.probing.probe_grid import Probe, ProbeGrid
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.data import Place, ProbeData, group_numbers
from dit_lens.probing.rows.readout import Readout
from dit_lens.probing.stream import Streamed, stream_probes
from dit_lens.runs.seeds import derive, row_seeds
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
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


def readout(level: str) -> Readout:
    tokens = Tokens(frames=[2, -1]) if level == "cell" else Tokens()
    return Readout.of(level, steps=[1, 4], layers=[0, 5], tokens=tokens)  # type: ignore[arg-type]


@cache
def streamed(level: str) -> Streamed:
    train, test = sides()
    return stream_probes(
        model(), Permanence(), readout(level), train=train, test=test, labels=LEVELS[level], batch=BATCH, seed=7
    )


@cache
def collected(level: str) -> tuple[dict[int, ProbeData], ProbeGrid]:
    train, test = sides()
    seeds = row_seeds(derive(7, "train"), TRAIN) + row_seeds(derive(7, "test"), TEST)
    data = collect(
        model(), Permanence(), [*train, *test], readout(level), labels=LEVELS[level], seed=seeds, batch=BATCH
    )
    return data, probe_grid(data, folds=[0] * TRAIN + [1] * TEST)


@pytest.mark.parametrize("level", LEVELS)
def test_streaming_gives_the_scores_of_collected_features_on_the_same_split(level: str) -> None:
    _, grid = collected(level)
    seen = 0
    for probe, scores in streamed(level).grid.scores.items():
        if probe.control != "shuffled":
            expected = grid.scores[probe].sums[TRAIN:]
            np.testing.assert_allclose(scores.sums, expected, rtol=1e-6, atol=1e-6)
            seen += 1
        else:  # each side takes labels from its own instances, a grid from all: only what is counted is the same
            assert scores.sums.shape == grid.scores[probe].sums[TRAIN:].shape
    # Two steps of the embedding and two layers, each beside input, position and random weights.
    assert seen == 2 * 3 * 4 * len(LEVELS[level])


def test_every_control_is_there_by_default() -> None:
    grid = streamed("cell").grid
    assert grid.missing == ()
    table = grid.wide(step=1)
    assert {"shuffled", "input", "position", "random", "majority"} <= set(table.columns)
    assert not table[["shuffled", "input", "position", "random"]].isna().any().any()
    assert set(table["source"]) == {"sample"}
    assert (table["n"] == TEST).all()
    without = stream_probes(
        model(), Permanence(), Readout(Sites(steps=0, layers=0), controls=("position",)), train=4, test=4,
        labels=["object"],
    )  # fmt: skip
    assert set(without.grid.missing) == {"input", "random"}
    assert set(without.grid.wide()["missing"]) == {"input, random"}


def test_shuffled_labels_teach_nothing_that_is_not_in_the_position() -> None:
    table = streamed("cell").grid.wide(step=4)
    seen = table[(table["label"] == "object") & (table["site"] == "s04/cond/L05/resid/video")].iloc[0]
    place = table.loc[seen.name, "position"]
    assert seen["skill"] > place + 0.1
    assert abs(seen["shuffled"] - place) < 0.2


def test_a_problem_that_is_drawn_twice_counts_once() -> None:
    train, test = sides()
    few = stream_probes(
        model(), Permanence(), Readout.of(steps=0, layers=0), train=train[:6], test=[test[0], test[0], test[1]],
        labels=["object"],
    ).grid  # fmt: skip
    assert few.groups == 2
    assert few.scores[Probe("s00/cond/L00/resid/video", "object")].sums[:, 2:].sum(axis=1).tolist() == [32, 16]


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
    stream = partial(stream_probes, model(), Permanence(), Readout(level="clip"))
    two = [*by_shape[0][:3], *by_shape[1][:3]]
    with pytest.raises(MadeForAnother, match=r"'shape' were trained on the classes .*there is also 2"):
        stream(train=two, test=[*by_shape[2][:2], by_shape[1][-1]], labels=["shape"])
    with pytest.raises(EvidenceError, match="'out' has one value only"):
        stream(train=out[:4], test=stays[:2], labels=["out"])
    with pytest.raises(EvidenceError, match="'out' has one value only in the test instances"):
        stream(train=[*out[:4], *stays[:4]], test=stays[4:7], labels=["out"])
    with pytest.raises(EvidenceError, match="on one task instance"):
        stream(train=two, test=by_shape[2][:1], labels=["out"])
    with pytest.raises(InputError, match="batch=0: need a whole number"):
        stream(train=[*out[:4], *stays[:4]], test=[*out[4:6], *stays[4:6]], labels=["out"], batch=0)


def test_shuffled_probes_are_those_of_the_collected_training_side() -> None:
    """Labels of another instance, and the same ridge: what streaming fits to them is what sums of the rows give."""
    data, _ = collected("cell")
    part = data[4]
    train = {name: Label(name, x.role, x.values[:TRAIN]) for name, x in part.labels.items()}
    questions = ask(train, group_numbers(part.instances[:TRAIN]), seed=7)
    x = torch.from_numpy(part.features["s04/cond/L05/resid/video"][:TRAIN]).flatten(0, 1)[None]
    moments = Moments.zeros(1, x.shape[-1], questions[-1].columns.stop).add(x, targets(questions).flatten(0, 1))
    expected = moments.solve(1e-3)
    streamed_set = streamed("cell").probes
    for asked, question in zip(streamed_set.asked, questions, strict=True):
        assert (asked.name, asked.control) == (question.name, question.control)
        if asked.kind == "binary":
            mine = streamed_set.coef[Place(4, "s04/cond/L05/resid/video")][asked.start]
            torch.testing.assert_close(mine, expected.coef[0, question.columns.start], rtol=1e-4, atol=1e-6)


def test_what_is_streamed_is_saved_with_its_probes(tmp_path: Path) -> None:
    done = streamed("clip")
    again = Streamed.load(done.save(tmp_path / "streamed"))
    pd.testing.assert_frame_equal(again.table, done.table)
    assert again.probes.card == done.probes.card
    for place, coef in done.probes.coef.items():
        assert torch.equal(again.probes.coef[place], coef)


def test_the_card_says_which_settings_and_interventions_the_probes_are_of() -> None:
    changed = stream_probes(
        model(), Permanence(), Readout(Sites("attn", steps=0, layers=0), controls=()), train=4, test=4, seed=3,
        labels=["object"], interventions=[dl.Ablate(Sites("ffn", layers=2))], guidance_scale=1.0,
    ).probes  # fmt: skip
    assert changed.sites == ["s00/cond/L00/attn/video"]
    assert changed.card["settings"] == {"guidance_scale": "1.0"}
    assert changed.card["interventions"] == ["Ablate at ffn, steps all, layer 2"]
    assert [changed.card[side]["seed"] for side in ("train", "test")] == [derive(3, "train"), derive(3, "test")]
    assert set(changed.table["component"]) == {"attn"}
