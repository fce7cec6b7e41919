"""From probe to cause, on features whose effect is known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, MadeForAnother
from dit_lens.probing.causal import MEASURES, CausalCheck, causal_check
from dit_lens.probing.stream import stream_probes
from dit_lens.probing.trained import ProbeSet


@cache
def model() -> dl.VideoDiT:
    return dl.load_organism("maze")


@cache
def probes() -> ProbeSet:
    task = dl.organisms.organism_tasks("maze")[0]
    return stream_probes(model(), task, train=6, test=2, steps=[8], layers=[2], labels=["on_path"], controls=()).probes


@cache
def checked() -> CausalCheck:
    task = dl.organisms.organism_tasks("maze")[0]
    return causal_check(model(), task, probes(), "on_path", 2, doses=(-4.0, 4.0), instances=3, draws=2, batch=2)


def test_every_steered_run_stands_beside_its_own_unsteered_one() -> None:
    rows = checked().rows
    assert len(rows) == 3 * (2 + 2 * (1 + 2))
    assert rows.groupby("instance")["seed"].nunique().eq(1).all()
    assert set(zip(rows["instance"], rows["seed"], strict=True)) == {
        (maze.id, i) for i, maze in enumerate(dl.organisms.organism_tasks("maze")[0].sample(3))
    }
    still = rows[rows["dose"] == 0]
    assert (still["lens_cosine"] > 1 - 1e-6).all()
    plain = model().run(dl.organisms.organism_tasks("maze")[0].sample(3), [0, 1, 2])
    scores = dl.organisms.organism_tasks("maze")[0].score(
        plain.frames, dl.organisms.organism_tasks("maze")[0].sample(3)
    )
    found = still[still["direction"] == "probe"].set_index("seed")["score"].sort_index()
    np.testing.assert_allclose(found, scores.total, atol=1e-6)


def test_a_steered_row_is_the_run_with_that_steer() -> None:
    task = dl.organisms.organism_tasks("maze")[0]
    maze = task.sample(3)[2]
    steer = probes().steer("on_path", 8, 2, 4.0)
    run = model().run(maze, 2, interventions=[steer])
    rows = checked().rows
    row = rows[(rows["dose"] == 4) & (rows["direction"] == "probe") & (rows["instance"] == maze.id)].iloc[0]
    assert row["score"] == pytest.approx(float(task.score(run.frames, maze).total[0]), abs=1e-6)


def test_random_directions_have_the_same_norm_and_are_drawn_again() -> None:
    """A dose of four times every token's norm is felt along all of them, and along no two in the same way."""
    rows = checked().rows
    felt = rows[rows["dose"] != 0]
    assert (felt["lens_cosine"] < 0.999).all()
    random = felt[(felt["direction"] == "random") & (felt["dose"] == 4)]
    assert random.groupby("instance")["lens_cosine"].nunique().eq(2).all()


def test_the_table_gives_paired_changes_with_intervals_and_the_picture_shows_them() -> None:
    table = checked().frame(replicates=50)
    assert set(table["measure"]) == set(MEASURES)
    assert {"step", "sigma", "expert", "layer", "label", "direction", "dose", "value", "low", "high", "n"} <= set(table)
    assert (table["n"] == 3).all()
    assert (table.loc[table["dose"] == 0, "value"] == 0).all()
    one = table[(table["measure"] == "lens_cosine") & (table["dose"] == 4)].set_index("direction")["value"]
    assert one["probe - random"] == pytest.approx(one["probe"] - one["random"])
    axis = checked().plot(measure="lens_cosine")
    assert len(axis.lines) == 3
    assert "on_path" in axis.get_title()
    with pytest.raises(EvidenceError, match="unknown measure 'fun'"):
        checked().plot(measure="fun")


def test_bad_input_is_refused_before_anything_runs() -> None:
    task = dl.organisms.organism_tasks("maze")[0]
    with pytest.raises(EvidenceError, match="needs doses"):
        causal_check(model(), task, probes(), "on_path", 2, doses=())
    with pytest.raises(EvidenceError, match="draws=0"):
        causal_check(model(), task, probes(), "on_path", 2, draws=0)
    with pytest.raises(MadeForAnother, match="no probes of step 8, L05"):
        causal_check(model(), task, probes(), "on_path", 5)
    with pytest.raises(MadeForAnother, match="are of model"):
        causal_check(dl.load_organism("puzzles"), task, probes(), "on_path", 2)


def test_steering_adds_the_dose_times_the_norm() -> None:
    task = dl.organisms.organism_tasks("maze")[0]
    keep = [dl.Capture(dl.Sites("resid", steps=8, layers=2), name=name) for name in ("before", "after")]
    steer = probes().steer("on_path", 8, 2, 0.5)
    run = model().run(task.sample(1), 0, interventions=[keep[0], steer, keep[1]], stop_after=8)
    before, after = (next(iter(run.captured(name).values())) for name in ("before", "after"))
    moved = torch.linalg.vector_norm(after - before, dim=-1) / torch.linalg.vector_norm(before, dim=-1)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5), atol=1e-4, rtol=1e-4)
