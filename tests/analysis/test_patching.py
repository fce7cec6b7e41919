"""Patching sweeps: cases with known answers, and equality with the interventions done by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.analysis.patching import patching_sweep
from dit_lens.errors import EvidenceError, SiteError
from dit_lens.runs.seeds import row_seeds
from tests.analysis.returned import check_result
from tests.subjects import Subject


@pytest.fixture
def small() -> dl.tasks.Maze:
    return dl.tasks.Maze(size=4, lengths=(3, 8))


def test_all_of_the_residual_hands_over_everything_at_any_layer_but_nothing_before_it(
    organism: Subject, small: dl.tasks.Maze
) -> None:
    """The trap as a unit test: the share of a full residual swap is one everywhere."""
    sweep = patching_sweep(
        organism.model, small, small.pairs(3, seed=0), sites=dl.Sites("resid", steps=0), flip_pairs=0
    )
    np.testing.assert_allclose(sweep.share, 1, atol=1e-5)


def test_a_random_model_solves_no_pair_and_all_are_used(
    organism: Subject, small: dl.tasks.Maze, tmp_path: Path
) -> None:
    sweep = patching_sweep(organism.model, small, small.pairs(3, seed=0), flip_pairs=2)
    assert (sweep.right, sweep.selected, sweep.share.shape) == (0, False, (4, 3))
    assert sweep.flips.shape == (4, 0)
    assert set(sweep.table["measure"]) == {"share", "unrelated_share"}
    check_result(sweep, tmp_path)


def test_the_null_reads_every_movement_along_the_next_pair(organism: Subject, small: dl.tasks.Maze) -> None:
    sweep = patching_sweep(organism.model, small, 3, flip_pairs=0)
    null = sweep.permuted()
    np.testing.assert_array_equal(null.share, sweep.unrelated)
    np.testing.assert_array_equal(null.unrelated, sweep.along[2])
    np.testing.assert_array_equal(null.permuted().permuted().share, sweep.share)


def test_a_pair_alone_has_no_unrelated_pair(organism: Subject, small: dl.tasks.Maze) -> None:
    sweep = patching_sweep(organism.model, small, 1, flip_pairs=0)
    assert np.isfinite(sweep.share).all()
    assert np.isnan(sweep.unrelated).all()


def test_batches_change_nothing(organism: Subject, small: dl.tasks.Maze) -> None:
    pairs = small.pairs(3, seed=0)
    whole, parts = (patching_sweep(organism.model, small, pairs, batch=b, flip_pairs=0) for b in (3, 2))
    np.testing.assert_allclose(whole.share, parts.share, atol=1e-5)


def test_an_answer_flips_only_where_everything_is_handed_over(shipped: Subject, tmp_path: Path) -> None:
    task = dl.tasks.Maze()
    sweep = patching_sweep(
        shipped.model, task, 6, sites=dl.Sites("resid", steps=0, layers=[0, 7]), flip_pairs=2, batch=1
    )
    assert sweep.selected
    assert sweep.flips.shape == (2, min(2, sweep.right))
    assert sweep.flips.all()
    rate = sweep.table[sweep.table["measure"] == "flip_rate"]
    assert list(rate["value"]) == [1, 1]
    assert rate["step"].isna().all()
    check_result(sweep, tmp_path)


def test_interventions_are_in_every_run(organism: Subject, small: dl.tasks.Maze) -> None:
    """With the patched layer bypassed in all runs, its update is zero on both sides and moves nothing."""
    bypass = dl.Bypass(dl.Sites("delta", layers=2))
    sweep = patching_sweep(
        organism.model, small, 2, sites=dl.Sites("delta", steps=0, layers=[1, 2]), interventions=[bypass], flip_pairs=0
    )
    np.testing.assert_allclose(sweep.share[1], 0, atol=1e-5)
    assert np.abs(sweep.share[0]).max() > 1e-3


@pytest.mark.parametrize(
    "sites", [dl.Sites("delta"), dl.Sites(("delta", "attn"), steps=0), dl.Sites("delta", steps=0, stream="all")]
)
def test_sites_of_more_than_one_step_component_or_stream_are_refused(
    organism: Subject, small: dl.tasks.Maze, sites: dl.Sites
) -> None:
    with pytest.raises(SiteError, match="one component of one stream at one step"):
        patching_sweep(organism.model, small, 1, sites=sites)


def test_share_equals_the_patch_done_by_hand(organism: Subject, small: dl.tasks.Maze) -> None:
    pair = next(p for p in small.pairs(5, seed=0) if small.answer_mask(p).any())
    sweep = patching_sweep(organism.model, small, [pair], sites=dl.Sites("delta", steps=0, layers=[2]), flip_pairs=0)
    site, way = dl.Sites("delta", steps=0), []
    runs = [organism.model.run(x, row_seeds(0, 1), record=True, interventions=[dl.Capture(site)]) for x in pair]
    own = [organism.model.replay(run, 0).x0hat for run in runs]
    cells = torch.from_numpy(small.answer_mask(pair))
    for a, b in ((0, 1), (1, 0)):
        moved = organism.model.replay(runs[a], 0, [dl.Patch(runs[b], site.at(layers=2))]).x0hat
        change, direction = ((x - own[a])[:, :, 1:, cells] for x in (moved, own[b]))
        way.append(float((change * direction).sum() / direction.square().sum()))
    assert sweep.share[0, 0] == pytest.approx(np.mean(way), abs=1e-4)


def test_answer_cells_are_on_one_answer_only_and_hold_no_goal(small: dl.tasks.Maze) -> None:
    for pair in small.pairs(10, seed=1):
        cells = small.answer_mask(pair)
        labels = small.labels(list(pair), 2)
        on_path = labels["on_path"].values[:, 0]
        assert not (cells & labels["goal"].values[:, 0].any(axis=0)).any()
        assert not (cells & on_path[0] & on_path[1]).any()
        assert not (cells & ~on_path.any(axis=0)).any()


def test_pairs_without_a_cell_to_measure_on_are_refused(organism: Subject, small: dl.tasks.Maze) -> None:
    maze = small.sample(1)[0]
    with pytest.raises(EvidenceError, match="nothing to measure"):
        patching_sweep(organism.model, small, [(maze, maze)])


def test_patching_every_layer_of_the_shipped_model_flips_its_answer(shipped: Subject) -> None:
    """With every update and the embedding from the donor, the run is the donor's."""
    task = dl.tasks.Maze()
    original, other = task.pair(seed=0)
    everything = dl.Sites(("model_input", "delta"))
    donor = shipped.model.run(other, seed=0, interventions=[dl.Capture(everything)])
    patched = shipped.model.run(original, seed=0, interventions=[dl.Patch(donor, everything)])
    np.testing.assert_array_equal(patched.frames, donor.frames)
