"""Cells in which every row has tokens of its own, cells of several interventions, and estimates of one branch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import InputError
from dit_lens.sweeps.axes import Together
from tests.subjects import Subject
from tests.sweeps.test_equivalence import X0HAT, by_hand, grid, kept, swept

TASK = dl.tasks.Maze(size=4, lengths=(3, 8))


def masks(rows: int, shape: tuple[int, ...]) -> Any:
    """Of each row other tokens, and another number of them."""
    drawn = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(0)).numpy()
    return drawn < np.linspace(0.2, 0.8, rows).reshape(-1, *[1] * len(shape))


def test_tokens_of_each_row_are_those_of_the_row_in_every_batch(organism: Subject) -> None:
    model, instances = organism.model, TASK.sample(5)
    mask = masks(5, model.geometry(instances[0]).grid)
    over = {"tokens": {"own": dl.Tokens(mask=mask)}, "layers": [0, 2]}
    ablate = dl.Ablate(dl.Sites("resid", steps=1))
    plan, values = swept(model, ablate, over, instances, batch=2)
    assert len(plan.batches) == 3
    for cell, (found,) in zip(grid(plan), values, strict=True):
        for batch in plan.batches:
            rows = range(batch.first, batch.first + len(batch))
            own = cell.intervention.sites.at(tokens=dl.Tokens(mask=mask[list(rows)]))
            alone = replace(plan, batches=(batch,))
            np.testing.assert_array_equal(found[list(rows)], by_hand(alone, cell, dl.Ablate(own)))


def test_rows_side_by_side_keep_their_tokens(organism: Subject) -> None:
    model, instances = organism.model, TASK.sample(2)
    mask = masks(2, model.geometry(instances[0]).grid)
    noise = dl.Noise(dl.Sites("resid", steps=1, layers=1, tokens=dl.Tokens(mask=mask)), "add")
    alone, together = (swept(model, noise, {"dose": [0.5, 1.0, 2.0]}, instances, batch=rows)[1] for rows in (2, 8))
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-3)


def test_a_pair_is_given_the_other_sides_tokens_of_its_own_mask(organism: Subject) -> None:
    """The two sides have other masks: each is given what its own mask selects of the other."""
    model, pairs = organism.model, TASK.pairs(2)
    mask = masks(4, model.geometry(pairs[0].original).grid)
    patch = dl.Patch("pair", dl.Sites("resid", steps=0, tokens=dl.Tokens(mask=mask)))
    plan, values = swept(model, patch, {"layers": [1]}, pairs)
    (batch,) = plan.batches
    donor = model.run(
        list(batch.instances), list(batch.seeds), interventions=[dl.Capture(dl.Sites("resid", steps=0))],
        decode=False, **plan.arguments,
    )  # fmt: skip
    (cell,) = grid(plan)
    np.testing.assert_array_equal(
        values[0, 0], by_hand(plan, cell, dl.Patch(donor, cell.intervention.sites, rows=[1, 0, 3, 2]))
    )


def test_rows_of_pairs_that_are_left_out_take_their_tokens_with_them(organism: Subject, monkeypatch: Any) -> None:
    model, pairs = organism.model, TASK.pairs(3)
    mask = masks(6, model.geometry(pairs[0].original).grid)
    differ = TASK.answer_mask(pairs[1])
    monkeypatch.setattr(
        type(TASK), "answer_mask", lambda task, pair: differ & (pair.original.id != pairs[0].original.id)
    )
    patch = dl.Patch("pair", dl.Sites("resid", steps=0, tokens=dl.Tokens(mask=mask)))
    plan = dl.plan_sweep(model, TASK, patch, {"layers": [1]}, instances=pairs, num_inference_steps=2)
    assert plan.dropped == 1
    (cell,) = grid(plan)
    assert cell.intervention.sites.tokens == dl.Tokens(mask=mask[2:])
    with pytest.raises(InputError, match="tokens of 6 rows, and this sweep has 4"):
        dl.plan_sweep(model, TASK, patch, {"layers": [1]}, instances=pairs[:2])


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_a_metric_can_read_the_estimate_of_one_branch(organism: Subject, branch: str) -> None:
    model, metric = organism.model, dl.Metric("own", "x0hat", kept, branch=branch)
    ablate = dl.Ablate(dl.Sites("delta", steps=1, branches="cond"))
    more = {"metrics": [metric, X0HAT], "guidance_scale": 3.0, "batch": 2}
    plan, values = swept(model, ablate, {"layers": [0, 3]}, list(organism.inputs), **more)
    (batch,) = plan.batches
    for cell, (own, guided) in zip(grid(plan), values, strict=True):
        np.testing.assert_array_equal(guided, by_hand(plan, cell, cell.intervention))
        sites = dl.Sites("velocity", steps=1), dl.Sites("latents", steps=1)
        run = model.run(
            list(batch.instances), list(batch.seeds), decode=False, stop_after=1,
            interventions=[cell.intervention, *map(dl.Capture, sites)], **plan.arguments,
        )  # fmt: skip
        estimate = run.clean(1, run["s01/-/-/latents"], run[f"s01/{branch}/-/velocity"])
        np.testing.assert_array_equal(own, kept(type("Moved", (), {"x0hat": estimate})))
        assert not np.allclose(own, guided)


def test_a_metric_of_a_branch_that_there_is_not_is_refused(organism: Subject) -> None:
    metric = dl.Metric("kept", "x0hat", kept, branch="stg")
    with pytest.raises(InputError, match="reads branch 'stg'; this run has cond"):
        swept(
            organism.model,
            dl.Ablate(dl.Sites("delta", steps=1)),
            {"layers": [0]},
            list(organism.inputs),
            metrics=metric,
        )
    with pytest.raises(InputError, match="omit branch="):
        dl.Metric("kept", "x0hat", kept, layer=1, branch="cond")


def test_a_cell_makes_several_interventions_in_order(organism: Subject) -> None:
    first, second = (
        dl.Ablate(dl.Sites("delta", steps=1, layers=0)),
        dl.Noise(dl.Sites("resid", steps=1, layers=2), "add"),
    )
    plan, _ = swept(organism.model, first, {"layers": [0]}, list(organism.inputs), batch=2)
    both = replace(plan.cells[-1], intervention=Together((first, second)))
    plan = replace(plan, cells=(*plan.cells[:-1], both))
    found = dl.carry_out(plan, progress=None).values[-1, 0]
    (batch,) = plan.batches
    keep = dl.Capture(dl.Sites(("latents", "guided"), steps=1))
    run = plan.model.run(
        list(batch.instances), list(batch.seeds), interventions=[first, second, keep], decode=False, stop_after=1,
        **plan.arguments,
    )  # fmt: skip
    estimate = run.clean(1, run["s01/-/-/latents"], run["s01/-/-/guided"])
    np.testing.assert_array_equal(found, kept(type("Moved", (), {"x0hat": estimate})))


def test_at_a_later_step_both_sides_go_on_from_the_originals_state(organism: Subject) -> None:
    pairs = TASK.pairs(2)
    patch = dl.Patch("pair", dl.Sites("delta", steps=2))
    plan, _ = swept(organism.model, patch, {"layers": [1]}, pairs)
    found = dl.carry_out(replace(plan, of_condition=True), progress=None)
    (batch,) = plan.batches
    rows, seeds = list(batch.instances), list(batch.seeds)
    states = plan.model.run(
        rows, seeds, interventions=[dl.Capture(dl.Sites("latents"))], decode=False, **plan.arguments
    )
    put = dl.Patch(states["s02/-/-/latents"][[0, 0, 2, 2]], dl.Sites("latents", steps=2))
    keep = dl.Capture(dl.Sites(("latents", "delta", "guided"), steps=2))
    clean = plan.model.run(rows, seeds, interventions=[put, keep], decode=False, **plan.arguments)
    own = dl.Patch(clean, dl.Sites("delta", steps=2, layers=1), rows=[1, 0, 3, 2])
    for number, edits in ((0, []), (len(plan.cells) - 1, [own])):
        run = plan.model.run(rows, seeds, interventions=[put, *edits, keep], decode=False, **plan.arguments)
        estimate = run.clean(2, run["s02/-/-/latents"], run["s02/-/-/guided"])
        np.testing.assert_allclose(
            found.values[number, 0], kept(type("Moved", (), {"x0hat": estimate})), rtol=1e-5, atol=1e-5
        )
