"""Every cell of a sweep is the run that one would make by hand for it, bit for bit where it is computed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.runs.seeds import row_seeds
from dit_lens.sweeps.local import Job, run_here
from tests.subjects import STEPS, Subject

KEPT: dict[str, Any] = {}


def kept(moved: Any) -> torch.Tensor:
    """A metric that is the clean estimate itself, as far as one number for each row can tell it."""
    weights = torch.linspace(-1, 1, moved.x0hat[0].numel(), dtype=torch.float64)
    found: torch.Tensor = moved.x0hat.double().flatten(1) @ weights
    return found


def sums(frames: Any, instances: Any) -> np.ndarray[Any, Any]:
    """The same of the frames."""
    flat = frames.reshape(len(frames), -1).astype(np.float64)
    return flat @ np.linspace(-1, 1, flat.shape[1])


X0HAT = dl.Metric("kept", "x0hat", kept)
FRAMES = dl.Metric("sums", "frames", sums)
SITES = dl.Sites("delta", steps=1)
DIRECTION = torch.linspace(-1, 1, 64)


def swept(model: dl.VideoDiT, intervention: Any, over: Mapping[str, Any], units: Any, **more: Any) -> Any:
    """The plan and the values of its swept cells: (cells, metrics, rows)."""
    task = dl.tasks.Maze(size=4, lengths=(3, 8))
    more = {"metrics": X0HAT, "num_inference_steps": STEPS, "batch": 4} | more
    plan = dl.plan_sweep(model, task, intervention, over, instances=units, **more)
    found = dl.carry_out(plan, progress=None)
    assert not found.errors
    assert found.identity == 0
    grid = [point.cell == "swept" for point in found.points]
    return plan, found.values[grid]


def by_hand(plan: dl.SweepPlan, cell: Any, intervention: Any, frames: bool = False) -> np.ndarray[Any, Any]:
    """One whole run for a cell, from noise: its number for each row."""
    (batch,) = plan.batches
    keep = dl.Capture(dl.Sites(("latents", "guided"), steps=cell.step), name="hand")
    run = plan.model.run(
        list(batch.instances), list(batch.seeds), interventions=[intervention, keep], decode=frames, **plan.arguments
    )
    if frames:
        return sums(run.decoded, None)
    state, guided = (run.captures["hand"][s] for s in sorted(run.captures["hand"], key=lambda s: s.component)[::-1])
    estimate = run.clean(cell.step, state, guided)
    moved = type("Moved", (), {"x0hat": estimate})
    return np.asarray(kept(moved))


def grid(plan: dl.SweepPlan) -> list[Any]:
    return [cell for cell in plan.cells if cell.kind == "swept"]


INTERVENTIONS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "ablate": (dl.Ablate(SITES), {"layers": "each"}),
    "bypass": (dl.Bypass(SITES), {"layers": dl.windows(2)}),
    "steer": (dl.Steer(SITES, torch.linspace(-1, 1, 32), unit="norm"), {"layers": [1, 3], "scale": [-1.0, 2.0]}),
    "noise in tokens": (dl.Noise(dl.Sites("resid", steps=1), "add"), {"layers": [0, 2], "dose": [0.5, 1.0]}),
    "noise in the state": (dl.Noise(dl.Sites("latents", steps=1), "add"), {"steps": [0, 2], "dose": [0.5, 1.0]}),
    "every step": (dl.Ablate(dl.Sites("delta")), {"layers": [0, 3]}),
    "steps and layers": (dl.Ablate(SITES), {"steps": "each", "layers": [2, 3]}),
    "velocity": (dl.Noise(dl.Sites("velocity", steps=1), "velocity"), {"dose": [0.5]}),
    "embed": (dl.Ablate(dl.Sites("embed", steps=1)), {"tokens": {"first": dl.Tokens(frames=0)}}),
    "heads": (dl.Ablate(dl.Sites("head", steps=1, layers=2)), {"heads": "each"}),
}


@pytest.mark.parametrize("frames", [False, True], ids=["one step", "video"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_cell_alone_is_the_run_by_hand_bit_for_bit(organism: Subject, name: str, frames: bool) -> None:
    intervention, over = INTERVENTIONS[name]
    if name == "steer":
        width = organism.model.geometry(organism.inputs[0]).shapes["resid"][-1]
        intervention = dl.Steer(SITES, torch.linspace(-1, 1, width), unit="norm")
    metric = FRAMES if frames else X0HAT
    plan, values = swept(organism.model, intervention, over, list(organism.inputs), metrics=metric, batch=2)
    for cell, (found,) in zip(grid(plan), values, strict=True):
        np.testing.assert_array_equal(found, by_hand(plan, cell, cell.intervention, frames))


@pytest.mark.parametrize("guidance", [1.0, 2.0], ids=["unguided", "guided"])
def test_cells_side_by_side_are_the_same_to_rounding(organism: Subject, guidance: float) -> None:
    """Doses, tokens and random draws of one place, more of them than fit at once."""
    over = {"dose": [0.5, 1.0, 2.0], "tokens": {"all": dl.Tokens(), "first": dl.Tokens(frames=0)}, "layers": [1, 2]}
    noise = dl.Noise(dl.Sites("resid", steps=1, branches="cond"), "add")
    alone, together = (
        swept(organism.model, noise, over, list(organism.inputs), batch=rows, guidance_scale=guidance)[1]
        for rows in (2, 8)
    )
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("frames", [False, True], ids=["one step", "video"])
@pytest.mark.parametrize("steps", [0, 1, "all"])
def test_pairs_are_patched_in_both_directions_from_clean_donors(
    organism: Subject, steps: int | str, frames: bool
) -> None:
    """Windows of layers too: the donor of the second layer is no row that was patched at the first."""
    pairs = dl.tasks.Maze(size=4, lengths=(3, 8)).pairs(2)
    patch = dl.Patch("pair", dl.Sites("delta", steps=steps))
    metric = FRAMES if frames else X0HAT
    plan, values = swept(organism.model, patch, {"layers": [0, (1, 2), 3]}, pairs, metrics=metric)
    (batch,) = plan.batches
    donor = organism.model.run(
        list(batch.instances), list(batch.seeds), interventions=[dl.Capture(dl.Sites("delta"))], decode=False,
        **plan.arguments,
    )  # fmt: skip
    for cell, (found,) in zip(grid(plan), values, strict=True):
        own = dl.Patch(donor, cell.intervention.sites, rows=[1, 0, 3, 2])
        np.testing.assert_array_equal(found, by_hand(plan, cell, own, frames))


@pytest.mark.parametrize("mode", ["add", "interpolate"])
def test_a_patch_keeps_its_mode_weight_and_tokens(organism: Subject, mode: str) -> None:
    pairs = dl.tasks.Maze(size=4, lengths=(3, 8)).pairs(2)
    patch = dl.Patch("pair", dl.Sites("resid", steps=0, layers=1, tokens=dl.Tokens(frames=1)), mode=mode, weight=0.5)
    over = {
        "weight": [0.25, 0.5],
        "tokens": [dl.Tokens(frames=0), dl.Tokens(frames=slice(1, None)), dl.Tokens(rows=(0, 2))],
    }
    plan, values = swept(organism.model, patch, over, pairs)
    (batch,) = plan.batches
    keep = dl.Capture(dl.Sites("resid", steps=0, layers=1))
    donor = organism.model.run(
        list(batch.instances), list(batch.seeds), interventions=[keep], decode=False, **plan.arguments
    )
    for cell, (found,) in zip(grid(plan), values, strict=True):
        i = cell.intervention
        own = dl.Patch(donor, i.sites, rows=[1, 0, 3, 2], mode=mode, weight=i.weight)
        np.testing.assert_array_equal(found, by_hand(plan, cell, own))


def test_merged_seeds_count_where_they_are_merged_into(organism: Subject) -> None:
    merge = dl.Merge(dl.Sites("resid", steps=0), group=2, receiver=1)
    task = dl.tasks.Maze(size=4, lengths=(3, 8))
    instances = task.sample(2)
    plan, values = swept(organism.model, merge, {"layers": [1, 3]}, instances)
    (batch,) = plan.batches
    assert [x.id for x in batch.instances] == [instances[0].id] * 2 + [instances[1].id] * 2
    assert batch.seeds == tuple(row_seeds(0, 4))
    assert batch.counted == (False, True, False, True)
    for cell, (found,) in zip(grid(plan), values, strict=True):
        np.testing.assert_array_equal(found, by_hand(plan, cell, cell.intervention))
    table = dl.carry_out(plan, progress=None).table
    assert set(table["n"]) == {2}


@pytest.mark.parametrize(
    "base",
    [
        dl.Ablate(dl.Sites("delta", steps=0, layers=0)),
        dl.Ablate(dl.Sites("delta", steps=2, layers=0)),
        dl.Ablate(dl.Sites("delta", layers=2)),
        dl.Noise(dl.Sites("latents", steps=1), "add"),
        dl.Ablate(dl.Sites("embed", steps=1), mode="resample"),
    ],
    ids=["before", "after", "on both sides", "the state", "other rows"],
)
@pytest.mark.parametrize("frames", [False, True], ids=["one step", "video"])
def test_interventions_of_every_run_stay_in_every_cell(organism: Subject, base: Any, frames: bool) -> None:
    steer = dl.Noise(dl.Sites("resid", steps=1), "add")
    over = {"layers": [0, 3], "dose": [0.5, 1.0]}
    options = {"metrics": FRAMES if frames else X0HAT, "interventions": [base]}
    units = list(organism.inputs)
    plan, values = swept(organism.model, steer, over, units, batch=2, **options)
    (batch,) = plan.batches
    keep = dl.Capture(dl.Sites(("latents", "guided"), steps=1), name="hand")
    for cell, (found,) in zip(grid(plan), values, strict=True):
        run = plan.model.run(
            units, list(batch.seeds), interventions=[base, cell.intervention, keep], decode=frames, **plan.arguments
        )
        states = {site.component: x for site, x in run.captures["hand"].items()}
        estimate = type("Moved", (), {"x0hat": run.clean(1, states["latents"], states["guided"])})
        expected = sums(run.decoded, None) if frames else np.asarray(kept(estimate))
        np.testing.assert_array_equal(found, expected)
    _, together = swept(organism.model, steer, over, units, batch=8, **options)
    np.testing.assert_allclose(together, values, rtol=1e-4, atol=1e-2 if not frames else 2e3)


def test_a_metric_at_a_layer_is_the_depth_lens(organism: Subject) -> None:
    lens = dl.Metric("lens", "x0hat", kept, layer=2)
    plan, values = swept(
        organism.model, dl.Ablate(SITES), {"layers": [0, 1, 2]}, list(organism.inputs), metrics=[lens, FRAMES], batch=2
    )
    (batch,) = plan.batches
    for cell, (found, _) in zip(grid(plan), values, strict=True):
        read = dl.depth_lens(
            plan.model, list(organism.inputs), seed=list(batch.seeds), interventions=[cell.intervention],
            sites=dl.Sites(steps=1, layers=2), num_inference_steps=STEPS,
        )  # fmt: skip
        moved = type("Moved", (), {"x0hat": read.x0hat[0, 0]})
        np.testing.assert_array_equal(found, np.asarray(kept(moved)))


@pytest.mark.parametrize("family", TINY)
def test_every_family(family: str) -> None:
    """One step, alone: the cell is the run by hand, and the identity is exact."""
    tiny = TINY[family]
    model, inputs = dl.VideoDiT(tiny.build()), list(tiny.inputs())
    settings = dict(tiny.settings)
    task = dl.tasks.Labelled(inputs, {"y": [0, 1]}) if len(inputs) == 2 else None
    ablate = dl.Ablate(dl.Sites("delta", steps=1))
    plan = dl.plan_sweep(
        model, task or dl.tasks.Maze(), ablate, {"layers": [0, model.layers - 1]}, X0HAT, instances=inputs, batch=2,
        **settings,
    )  # fmt: skip
    found = dl.carry_out(plan, progress=None)
    assert not found.errors
    assert found.identity == 0
    assert found.forwards == plan.forecast(timed=False).forwards
    swept = [values for values, point in zip(found.values, found.points, strict=True) if point.cell == "swept"]
    for cell, (values,) in zip(grid(plan), swept, strict=True):
        np.testing.assert_array_equal(values, by_hand(plan, cell, cell.intervention))


@pytest.mark.parametrize("metrics", [X0HAT, FRAMES, [X0HAT, FRAMES]], ids=["x0hat", "frames", "both"])
@pytest.mark.parametrize("name", ["ablate", "steps and layers", "noise in the state", "every step"])
def test_the_forecast_is_what_is_computed(organism: Subject, name: str, metrics: Any) -> None:
    intervention, over = INTERVENTIONS[name]
    plan, _ = swept(organism.model, intervention, over, list(organism.inputs), metrics=metrics)
    found = dl.carry_out(plan, progress=None)
    assert found.forwards == found.planned.forwards == plan.forecast(timed=False).forwards
    if name != "every step":  # nothing can be shared there, and the identity comes on top
        assert found.planned.forwards < found.planned.naive_forwards


def test_what_is_kept_is_what_was_said(organism: Subject) -> None:
    pairs = dl.tasks.Maze(size=4, lengths=(3, 8)).pairs(2)
    patch = dl.Patch("pair", dl.Sites("delta", steps=0))
    plan, _ = swept(organism.model, patch, {"layers": "each", "tokens": [dl.Tokens(frames=0)]}, pairs)
    captured = []
    run = plan.model.run

    def counted(*args: Any, **options: Any) -> dl.Run:
        made = run(*args, **options)
        calls = sum(call.kwargs["hidden_states"].nbytes + call.output[0].nbytes for call in made.calls)
        captured.append(made.ledger.captured_bytes + calls + sum(state.nbytes for state in made.states))
        return made

    plan.model.run = counted  # type: ignore[method-assign]
    try:
        list(run_here(plan, [Job(plan.batches[0], plan.cells)]))
    finally:
        del plan.model.run
    assert plan.forecast(timed=False).bytes == captured[0]
