"""From probe to cause, on features whose effect is known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, MadeForAnother, SiteError
from dit_lens.probing import causal
from dit_lens.probing.causal import MEASURES, CausalCheck, Steering, causal_check
from dit_lens.probing.probe_set import ProbeSet
from dit_lens.probing.rows.data import Place
from dit_lens.probing.rows.readout import Readout
from dit_lens.probing.stream import stream_probes
from dit_lens.runs.seeds import row_seeds

TASK = dl.organisms.organism_tasks("maze")[0]


@cache
def model() -> dl.VideoDiT:
    return dl.load_organism("maze")


@cache
def probes() -> ProbeSet:
    readout = replace(Readout.of(steps=[8], layers=[2]), controls=())
    return stream_probes(model(), TASK, readout, train=6, test=2, labels=["on_path"]).probes


SITE, LAST = "s08/cond/L02/resid/video", "s08/cond/L07/resid/video"
SEEDS = row_seeds(0, 3)


def check(steering: Steering | None = None, **options: Any) -> CausalCheck:
    return causal_check(model(), TASK, probes(), steering or Steering("on_path", SITE), **options)


@cache
def checked() -> CausalCheck:
    return check(Steering("on_path", SITE, doses=(-4.0, 4.0), draws=2), instances=3, batch=2)


def rows_of(check: CausalCheck) -> pd.DataFrame:
    """One row for each instance, dose and direction, the measures side by side."""
    where = ["direction", "draw", "dose", "instance", "seed"]
    return check.samples.pivot_table("value", where, "measure", sort=False).reset_index()


def test_every_steered_run_stands_beside_its_own_unsteered_one() -> None:
    samples, rows = checked().samples, rows_of(checked())
    assert len(samples) == len(rows) * len(MEASURES)
    assert len(rows) == 3 * (2 + 2 * (1 + 2))
    assert set(zip(rows["instance"], rows["seed"], strict=True)) == {
        (maze.id, seed) for maze, seed in zip(TASK.sample(3), SEEDS, strict=True)
    }
    still = rows[rows["dose"] == 0]
    assert (still["lens_cosine"] > 1 - 1e-6).all()
    plain = model().run(TASK.sample(3), SEEDS)
    scores = TASK.score(plain.frames, TASK.sample(3))
    found = still[still["direction"] == "probe"].set_index("seed")["score"][SEEDS]
    np.testing.assert_allclose(found, scores.total, atol=1e-6)


def test_a_steered_row_is_the_run_with_that_steer() -> None:
    maze = TASK.sample(3)[2]
    steer = probes().steer("on_path", SITE, 4.0)
    run = model().run(maze, SEEDS[2], interventions=[steer])
    rows = rows_of(checked())
    row = rows[(rows["dose"] == 4) & (rows["direction"] == "probe") & (rows["instance"] == maze.id)].iloc[0]
    assert row["score"] == pytest.approx(float(TASK.score(run.frames, maze).total[0]), abs=1e-6)


def test_random_directions_have_the_same_norm_and_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dose of four times every token's norm is felt along all of them, and along no two in the same way."""
    rows = rows_of(checked())
    felt = rows[rows["dose"] != 0]
    assert (felt["lens_cosine"] < 0.999).all()
    random = felt[(felt["direction"] == "random") & (felt["dose"] == 4)]
    assert random.groupby("instance")["lens_cosine"].nunique().eq(2).all()
    given: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(causal, "sweep", lambda *about, **_: given.append(about[3]["direction"]) or 1 / 0)
    for seed in (0, 1):
        with pytest.raises(ZeroDivisionError):
            check(instances=1, seed=seed)
    for ways in given:
        assert [float(x.norm()) for x in ways.values()] == pytest.approx([1] * 9, abs=1e-6)
    assert torch.equal(given[0]["probe 0"], given[1]["probe 0"])
    assert not torch.allclose(given[0]["random 0"], given[1]["random 0"])


def head_direction() -> torch.Tensor:
    """The direction of the last residual stream along which the model's output projection moves most: (D,)."""
    weight = model().pipeline.transformer.proj_out.weight.detach()
    return torch.linalg.svd(weight - weight.mean(1, keepdim=True)).Vh[0]


@pytest.mark.parametrize("reads", [True, False])
def test_a_direction_that_the_head_reads_moves_more_than_random_ones_and_one_that_it_cannot_read_less(
    reads: bool,
) -> None:
    """Probes with a planted direction: the strongest of the head, or one in the null space of its projection."""
    weight = model().pipeline.transformer.proj_out.weight.detach()
    scale = model().pipeline.transformer.scale_shift_table[0, 1].detach() + 1
    null = torch.linalg.svd(torch.cat([weight * scale, torch.ones(1, weight.shape[1])])).Vh[-1]
    direction = head_direction() if reads else null
    coef = torch.stack([direction, direction])
    place = Place(8, LAST)
    planted = ProbeSet(probes().card, {place: coef}, {place: torch.zeros(2)})
    steering = Steering("on_path", LAST, doses=(1.0,), draws=3)
    found = causal_check(model(), TASK, planted, steering, instances=6)
    table = found.table
    rows = table[(table["measure"] == "lens_cosine") & (table["dose"] == 1)].set_index("direction")
    own, random, paired = (rows.loc[way] for way in ("probe", "random", "probe - random"))
    assert random["high"] < 0
    if reads:
        assert paired["high"] < 2 * random["value"]
    else:
        assert paired["low"] > 0
        assert abs(own["value"]) < 0.5 * abs(random["value"])  # what is left is that the norm has grown
    assert (set(table["layer"]), found.source, set(table["source"])) == ({7}, "sample", {"sample"})


def made(probe: float, random: list[float], doses: tuple[float, ...] = (1.0,), instances: int = 20) -> CausalCheck:
    """A check whose changes are known: those of the probe, and those of each random direction, along it at dose 1."""
    rows, noise = [], np.random.default_rng(0).normal(0, 0.01, instances)
    for instance in range(instances):
        ways = [(0.0, way, 0, 0.0) for way in ("probe", "random")]
        for dose in doses:
            ways += [(dose, "probe", 0, dose * probe), *((dose, "random", k, dose * x) for k, x in enumerate(random))]
        for dose, way, draw, change in ways:
            value = 0.5 + change + (noise[instance] if dose else 0)
            rows += [(way, draw, dose, f"i{instance}", instance, measure, value) for measure in MEASURES]
    columns = ["direction", "draw", "dose", "instance", "seed", "measure", "value"]
    steering = Steering("on_path", SITE, doses=doses, draws=len(random))
    return CausalCheck(steering, 7, "sample", 1.0, None, pd.DataFrame(rows, columns=columns))


def row_of(check: CausalCheck, direction: str, dose: float, measure: str = "score") -> Any:
    table = check.table
    return table[(table["measure"] == measure) & (table["direction"] == direction) & (table["dose"] == dose)].iloc[0]


def test_the_spread_of_random_directions_is_in_the_interval() -> None:
    """Three directions that differ much say little of random ones, however many instances they were tried on."""
    wide = row_of(made(0.0, [-0.5, -0.1, 0.3]), "probe - random", 1.0)
    assert wide["value"] == pytest.approx(0.1)
    assert wide["low"] < 0 < wide["high"]
    narrow = row_of(made(0.0, [-0.1, -0.1, -0.1]), "probe - random", 1.0)
    assert narrow["low"] > 0.05


def test_a_direction_and_its_opposite_are_as_random_as_one_another() -> None:
    check = made(-0.3, [-0.2, -0.1], doses=(-1.0, 1.0))
    for dose in (-1.0, 1.0):
        assert row_of(check, "random", dose)["value"] == pytest.approx(0.0, abs=0.01)
    assert row_of(check, "probe", 1.0)["value"] == pytest.approx(-0.3, abs=0.01)


@pytest.mark.parametrize(("probe", "beyond"), [(0.9, 0), (-0.35, 1), (0.0, 4)])
def test_p_is_the_rank_of_the_probe_among_all_directions(probe: float, beyond: int) -> None:
    row = row_of(made(probe, [-0.4, 0.1, 0.2, -0.3]), "probe - random", 1.0, "p of score")
    assert row["value"] == pytest.approx((1 + beyond) / 5)


def test_runs_of_one_instance_count_as_one() -> None:
    mazes = TASK.sample(2)
    steering = Steering("on_path", SITE, doses=(4.0,), draws=2)
    found = check(steering, instances=[mazes[0], mazes[1], mazes[0]])
    table, rows = found.table, found.samples[found.samples["measure"] == "lens_cosine"]
    assert (table["n"] == 2).all()
    steered = rows[(rows["dose"] == 4) & (rows["direction"] == "probe")]
    still = rows[(rows["dose"] == 0) & (rows["direction"] == "probe")]
    change = steered["value"].to_numpy() - still["value"].to_numpy()
    expected = ((change[0] + change[2]) / 2 + change[1]) / 2
    row = table[(table["measure"] == "lens_cosine") & (table["dose"] == 4) & (table["direction"] == "probe")]
    assert row["value"].item() == pytest.approx(expected)


def test_the_table_gives_paired_changes_with_intervals_and_the_picture_shows_them(tmp_path: Path) -> None:
    table = checked().table
    assert set(table["measure"]) == {*MEASURES, *(f"p of {measure}" for measure in MEASURES)}
    assert list(table.columns) == [
        "step", "sigma", "branch", "layer", "component", "stream", "label", "source", "direction", "dose", "measure",
        "value", "low", "high", "n",
    ]  # fmt: skip
    assert (table["n"] == 3).all()
    assert (table.loc[table["dose"] == 0, "value"] == 0).all()
    one = table[(table["measure"] == "lens_cosine") & (table["dose"] == 4)].set_index("direction")["value"]
    assert one["probe - random"] == pytest.approx(one["probe"] - one["random"])
    axis = checked().plot(measure="lens_cosine")
    assert len(axis.lines) == 3
    assert "on_path" in axis.get_title()
    with pytest.raises(EvidenceError, match="unknown measure 'fun'"):
        checked().plot(measure="fun")
    again = CausalCheck.load(checked().save(tmp_path / "check"))
    pd.testing.assert_frame_equal(again.table, table)
    assert again.steering == checked().steering


def test_interventions_change_the_unsteered_run_and_every_steered_one() -> None:
    steering, maze = Steering("on_path", SITE, doses=(4.0,), draws=2), TASK.sample(1)
    without = dl.Ablate(dl.Sites("attn", layers=1))
    found = rows_of(check(steering, instances=maze, interventions=[without])).set_index(["direction", "dose", "draw"])
    still = model().run(maze, row_seeds(0, 1), interventions=[without])
    steer = probes().steer("on_path", SITE, 4.0)
    steered = model().run(maze, row_seeds(0, 1), interventions=[without, steer])
    for run, dose in ((still, 0.0), (steered, 4.0)):
        score = float(TASK.score(run.frames, maze).total[0])
        assert found.loc[("probe", dose, 0), "score"] == pytest.approx(score, abs=1e-6)


def test_bad_input_is_refused_before_anything_runs() -> None:
    for doses in ((), (0.0, 1.0), (1.0, 1.0)):
        with pytest.raises(EvidenceError, match="each once and none of them 0"):
            Steering("on_path", SITE, doses=doses)
    with pytest.raises(EvidenceError, match="draws=1"):
        Steering("on_path", SITE, draws=1)
    with pytest.raises(SiteError, match="'L02' is no site"):
        Steering("on_path", "L02")
    with pytest.raises(MadeForAnother, match="no probes of step 8, s08/cond/L05/resid/video"):
        check(Steering("on_path", "s08/cond/L05/resid"))
    with pytest.raises(EvidenceError, match="steer there"):
        check(Steering("on_path", "s08/uncond/L02/resid"))
    with pytest.raises(MadeForAnother, match="are of model"):
        causal_check(dl.load_organism("puzzles"), TASK, probes(), Steering("on_path", SITE))
    with pytest.raises(EvidenceError, match="lens_layer 1 is before layer 2, which is steered"):
        check(Steering("on_path", SITE, lens_layer=1))
    with pytest.raises(MadeForAnother, match="step 8 at sigma"):
        check(instances=1, num_inference_steps=9)


def test_steering_adds_the_dose_times_the_norm() -> None:
    keep = [dl.Capture(dl.Sites("resid", steps=8, layers=2), name=name) for name in ("before", "after")]
    steer = probes().steer("on_path", SITE, 0.5)
    run = model().run(TASK.sample(1), 0, interventions=[keep[0], steer, keep[1]], stop_after=8)
    before, after = (next(iter(run.captured(name).values())) for name in ("before", "after"))
    moved = torch.linalg.vector_norm(after - before, dim=-1) / torch.linalg.vector_norm(before, dim=-1)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5), atol=1e-4, rtol=1e-4)
