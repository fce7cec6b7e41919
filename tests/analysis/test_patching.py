"""Patching sweeps: cases with known answers, and equality with the interventions done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.analysis.patching import patching_sweep
from dit_lens.errors import EvidenceError
from tests.subjects import Subject


@pytest.fixture
def small() -> dl.tasks.Maze:
    return dl.tasks.Maze(size=4, lengths=(3, 8))


def test_all_of_the_residual_hands_over_everything_at_any_layer_but_nothing_before_it(
    organism: Subject, small: dl.tasks.Maze
) -> None:
    """The trap as a unit test: the share of a full residual swap is one everywhere."""
    sweep = patching_sweep(organism.model, small, small.pairs(3, seed=0), component="resid", flip_pairs=0)
    np.testing.assert_allclose(sweep.share, 1, atol=1e-5)


def test_a_random_model_solves_no_pair_and_all_are_used(organism: Subject, small: dl.tasks.Maze) -> None:
    sweep = patching_sweep(organism.model, small, small.pairs(3, seed=0), flip_pairs=2)
    assert (sweep.right, sweep.selected, sweep.share.shape) == (0, False, (4, 3))
    assert sweep.flips.shape == (4, 0)
    assert set(sweep.frame()["measure"]) == {"share", "share of an unrelated pair"}


def test_share_equals_the_patch_done_by_hand(organism: Subject, small: dl.tasks.Maze) -> None:
    pair = next(p for p in small.pairs(5, seed=0) if small.answer_mask(p).any())
    sweep = patching_sweep(organism.model, small, [pair], layers=[2], seed=3, flip_pairs=0)
    site, way = dl.Sites("delta", steps=0), []
    runs = [organism.model.run(x, seed=3, record=True, interventions=[dl.Capture(site)]) for x in pair]
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
