"""What a sweep takes, refuses, and returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dit_lens as dl
from dit_lens.errors import DitLensError, EvidenceError, InputError, SiteError
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.sweeps.metrics import distance
from tests.analysis.returned import check_result
from tests.subjects import Subject, subject_of

TASK = dl.tasks.Maze(size=4, lengths=(3, 8))
SITES = dl.Sites("delta", steps=0)


def swept(model: dl.VideoDiT, intervention: Any, over: Any, metrics: Any = "distance", **more: Any) -> dl.Sweep:
    options = {"instances": 2, "num_inference_steps": 2} | more
    return dl.sweep(model, options.pop("task", TASK), intervention, over, metrics, **options)


def test_known_answers(organism: Subject) -> None:
    """A whole residual stream hands over everything; nothing moves where nothing is done; the donor is the way."""
    found = swept(
        organism.model, dl.Patch("pair", dl.Sites("resid", steps=0)), {"layers": "each"}, "share", guidance_scale=1
    ).table
    values = found.set_index("cell")["value"]
    assert values["baseline"] == values["identity"] == 0
    assert values["donor"] == pytest.approx(1)
    np.testing.assert_allclose(values["swept"], 1, atol=1e-5)
    assert list(found[found["cell"] == "swept"]["layer"]) == [0, 1, 2, 3]
    assert list(found[found["cell"] == "swept"]["site"]) == [f"s00/cond/L0{k}/resid/video" for k in range(4)]


def test_a_dose_of_nothing_moves_nothing_and_more_moves_more(organism: Subject) -> None:
    noise = dl.Noise(dl.Sites("resid", steps=0, layers=1), "add")
    table = swept(organism.model, noise, {"dose": [0.0, 0.1, 1.0]}, batch=2).table
    none, little, much = table[table["cell"] == "swept"]["value"]
    assert none == 0 < little < much
    assert list(table[table["cell"] == "swept"]["dose"]) == [0.0, 0.1, 1.0]


def test_the_other_side_of_a_pair_shows_the_donors_answer(shipped: Subject) -> None:
    everything = dl.Patch("pair", dl.Sites(("model_input", "delta")))
    table = swept(
        shipped.model, everything, {"layers": ["all"]}, ["donor_answer", "strict"], task=dl.tasks.Maze(),
        num_inference_steps=10, seed=3,
    ).table  # fmt: skip
    value = table.set_index(["cell", "measure"])["value"]
    assert value["swept", "donor_answer"] == value["donor", "donor_answer"]
    assert value["baseline", "donor_answer"] < value["donor", "donor_answer"]


def test_projection_reads_the_way_between_the_truths(organism: Subject) -> None:
    pairs = TASK.pairs(2)
    truths = [organism.model.encode(TASK.render(list(pair))) for pair in pairs]
    plan = dl.plan_sweep(
        organism.model, TASK, dl.Patch("pair", SITES), {"layers": [1]}, ["projection", "share"], instances=pairs,
        num_inference_steps=2,
    )  # fmt: skip
    found = dl.carry_out(plan, progress=None)
    (batch,) = plan.batches
    run = organism.model.run(list(batch.instances), list(batch.seeds), record=True, num_inference_steps=2)
    clean = organism.model.replay(run, 0).x0hat
    for p, pair in enumerate(pairs):
        cells = torch.from_numpy(TASK.answer_mask(pair))
        own, other = clean[2 * p, :, 1:, cells].double(), clean[2 * p + 1, :, 1:, cells].double()
        way = (truths[p][1] - truths[p][0])[:, 1:, cells].double()
        expected = float(((other - own) * way).sum() / way.square().sum())
        donor = [point.cell for point in found.points].index("donor")
        assert found.values[donor, 0, 2 * p] == pytest.approx(expected, rel=1e-4)


def test_a_result_is_a_result(organism: Subject, tmp_path: Path) -> None:
    one = swept(organism.model, dl.Ablate(SITES), {"layers": "each"}, ["distance", "strict"])
    check_result(one, tmp_path / "one")
    two = swept(organism.model, dl.Ablate(SITES), {"layers": [0, 1], "steps": [0, 1]})
    check_result(two, tmp_path / "two")
    with pytest.raises(EvidenceError, match="unknown measure 'share'"):
        two.plot(measure="share")
    three = swept(organism.model, dl.Noise(dl.Sites("resid"), "add"), {"layers": [0], "steps": [0], "dose": [1.0]})
    with pytest.raises(EvidenceError, match="3 axes"):
        three.plot()
    assert three._repr_html_().startswith("<table")
    data = one.to_json()
    assert {"cells", "plan", "errors"} <= set(data)
    assert set(data["plan"]) == {"forwards", "naive_forwards", "seconds", "bytes"}
    assert {"site", "value", "low", "high", "n"} <= set(data["cells"][0])


@pytest.mark.parametrize("over", [{"layers": [0, (1, 2), 3]}, {"layers": dl.windows(2), "steps": [0, (0, 1)]}])
def test_words_on_an_axis_stand_in_their_own_order(organism: Subject, over: dict[str, Any]) -> None:
    found = swept(organism.model, dl.Ablate(SITES), over, batch=2)
    axis = found.plot()
    axis.figure.canvas.draw()  # type: ignore[union-attr]
    labels = [text.get_text() for text in axis.get_xticklabels()]
    assert labels == (["0", "1-2", "3"] if len(over) == 1 else ["0", "0-1"])


def test_a_plan_says_what_it_costs_before_it_runs(organism: Subject) -> None:
    plan = dl.plan_sweep(organism.model, TASK, dl.Ablate(SITES), {"layers": "each"}, "distance", instances=2)
    cost = plan.forecast()
    assert cost.forwards < cost.naive_forwards
    assert cost.seconds is not None
    assert cost.seconds > 0
    assert f"forwards {cost.forwards:,.0f}; every cell from noise {cost.naive_forwards:,}" in str(plan)


def test_doses_of_directions_by_their_names(organism: Subject) -> None:
    width = organism.model.geometry(organism.inputs[0]).shapes["resid"][-1]
    up, down = torch.ones(width), -torch.ones(width)
    steer = dl.Steer(dl.Sites("resid", steps=0, layers=1), up)
    table = swept(organism.model, steer, {"direction": {"up": up, "down": down}, "scale": [0.0, 1.0]}, batch=2).table
    own = table[table["cell"] == "swept"]
    assert list(own["direction"]) == ["up", "up", "down", "down"]
    assert list(own["value"] == 0) == [True, False, True, False]


PAIRS_NEEDED = "needs pairs"
BAD: dict[str, tuple[Any, Any, dict[str, Any], type[DitLensError], str]] = {
    "no axis": (dl.Ablate(SITES), {}, {}, InputError, "name what to sweep"),
    "no mapping": (dl.Ablate(SITES), "layers", {}, InputError, "name what to sweep"),
    "no values": (dl.Ablate(SITES), {"layers": []}, {}, InputError, "over layers: no values"),
    "a number": (dl.Ablate(SITES), {"layers": 3}, {}, InputError, "need a list of values"),
    "another word": (dl.Ablate(SITES), {"layers": "all"}, {}, InputError, "need a list of values"),
    "twice": (dl.Ablate(SITES), {"layers": [1, 1]}, {}, InputError, "two values are called the same"),
    "no such axis": (dl.Ablate(SITES), {"dose": [1]}, {}, InputError, "Ablate has nothing called 'dose'"),
    "each of doses": (dl.Noise(SITES, "add"), {"dose": "each"}, {}, InputError, "only steps, layers, heads"),
    "a dose below zero": (dl.Noise(SITES, "add"), {"dose": [-1.0]}, {}, InputError, "dose=-1.0"),
    "no layer": (dl.Ablate(SITES), {"layers": [9]}, {}, SiteError, "no layer 9"),
    "a window outside": (dl.Ablate(SITES), {"layers": [(3, 4)]}, {}, SiteError, "no layer 4"),
    "too large a window": (dl.Ablate(SITES), {"layers": dl.windows(9)}, {}, SiteError, "windows of 9 layers"),
    "no step": (dl.Ablate(SITES), {"steps": [2]}, {}, SiteError, "no step 2"),
    "a tensor without a name": (
        dl.Steer(SITES, torch.ones(3)), {"direction": [torch.ones(3)]}, {}, InputError, "has no name",
    ),
    "no dataclass": (lambda x, at: x, {"layers": [1]}, {}, InputError, "cannot be swept"),
    "no metric": (dl.Ablate(SITES), {"layers": [1]}, {"metrics": []}, InputError, "give at least one"),
    "another metric": (dl.Ablate(SITES), {"layers": [1]}, {"metrics": "beauty"}, InputError, "unknown metric 'beauty'"),
    "one metric twice": (dl.Ablate(SITES), {"layers": [1]}, {"metrics": ["strict", "strict"]}, InputError, "its own"),
    "share without pairs": (
        dl.Ablate(SITES), {"layers": [1]}, {"metrics": "share", "instances": TASK.sample(2)}, EvidenceError,
        PAIRS_NEEDED,
    ),
    "a patch without pairs": (
        dl.Patch("pair", SITES), {"layers": [1]}, {"instances": TASK.sample(2)}, EvidenceError, PAIRS_NEEDED,
    ),
    "no instances": (dl.Ablate(SITES), {"layers": [1]}, {"instances": 0}, EvidenceError, "got none"),
    "both": (
        dl.Ablate(SITES), {"layers": [1]}, {"instances": [*TASK.sample(1), *TASK.pairs(1)]}, EvidenceError,
        "not of both",
    ),
    "merged sides": (
        dl.Merge(SITES, group=2), {"layers": [1]}, {"instances": TASK.pairs(1)}, InputError, "Merge merges seeds",
    ),
    "other rows": (dl.Merge(SITES, group=2), {"group": [2, 4]}, {}, InputError, "says which rows there are"),
    "entries of rows": (
        dl.Ablate(SITES), {"layers": [1]}, {"negative_prompt": ["a", "b"]}, InputError, "has an entry for each row",
    ),
    "no batch": (dl.Ablate(SITES), {"layers": [1]}, {"batch": 0}, InputError, "batch=0"),
    "what it sets itself": (dl.Ablate(SITES), {"layers": [1]}, {"record": True}, InputError, "set by a sweep itself"),
    "a lens of two steps": (
        dl.Ablate(dl.Sites("delta")), {"layers": [1]},
        {"metrics": dl.Metric("lens", "x0hat", lambda m: m.x0hat.flatten(1).sum(1), layer=1)}, InputError,
        "is of one step",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_swept_is_refused_before_anything_runs(
    organism: Subject, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    intervention, over, more, error, said = BAD[name]
    monkeypatch.setattr(dl.VideoDiT, "run", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(error, match=said) as refusal:
        swept(organism.model, intervention, over, **more)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda frames, _: np.zeros(len(frames) + 1), "must return 2 finite numbers"),
        (lambda frames, _: np.full(len(frames), np.nan), "NaN or infinity"),
        (lambda frames, _: None, "must return 2 finite numbers"),
        (lambda frames, _: ["a", "b"], "must return 2 finite numbers"),
        (lambda frames, _: 1.0, "must return 2 finite numbers"),
    ],
)
def test_a_metric_that_returns_nonsense_is_refused_on_the_untouched_run(
    organism: Subject, returned: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        swept(organism.model, dl.Ablate(SITES), {"layers": [1]}, returned)


def test_a_metric_that_fails_on_the_untouched_run_says_so_itself(organism: Subject) -> None:
    def broken(frames: Any, instances: Any) -> Any:
        raise ZeroDivisionError("of my own")

    with pytest.raises(ZeroDivisionError, match="of my own"):
        swept(organism.model, dl.Ablate(SITES), {"layers": [1]}, broken)


def test_a_patch_of_a_pair_is_for_sweeps(organism: Subject) -> None:
    with pytest.raises(dl.DitLensError, match="is for a sweep over pairs"):
        organism.run(interventions=[dl.Patch("pair", SITES)])


def test_pairs_that_do_not_differ_have_no_way(organism: Subject) -> None:
    maze, patch = TASK.sample(1)[0], dl.Patch("pair", SITES)
    with pytest.raises(EvidenceError, match="none of 1 pairs has answers that differ anywhere"):
        swept(organism.model, patch, {"layers": [1]}, "share", instances=[(maze, maze)])
    found = swept(organism.model, patch, {"layers": [1]}, "share", instances=[(maze, maze), *TASK.pairs(2)])
    assert found.dropped == 1
    assert set(found.table["n"]) == {2}
    assert "1 pairs left out" in str(found)
    still = swept(organism.model, patch, {"layers": [1]}, "distance", instances=[(maze, maze)])
    assert still.dropped == 0
    given = [(maze, maze), *TASK.pairs(1)]
    seeded = swept(organism.model, patch, {"layers": [1]}, "share", instances=given, seed=[1, 2])
    assert seeded.seeds == (2, 2)  # the noise of a pair does not depend on which others are left out


def test_a_way_that_is_not_there_is_refused() -> None:
    """Two pictures that the model cannot tell apart."""
    subject = subject_of("organism")
    still = dl.Bypass(dl.Sites("delta"))
    zero = dl.Ablate(dl.Sites("velocity"))
    with pytest.raises(EvidenceError, match="row 0 is one whose clean estimates do not differ"):
        swept(subject.model, dl.Patch("pair", SITES), {"layers": [1]}, "share", interventions=[still, zero])


@given(
    st.lists(st.sampled_from([0, 1, 2, 3, (0, 1), (2, 3), (0, 2)]), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(0, 2), min_size=1, max_size=3, unique=True),
    st.integers(1, 9),
    st.booleans(),
)
def test_a_grid_is_every_combination_once_however_it_is_batched(
    layers: Any, doses: list[float], batch: int, paired: bool
) -> None:
    model = subject_of("organism").model
    noise = dl.Noise(dl.Sites("resid", steps=0), "add")
    units, width = (TASK.pairs(5), 2) if paired else (TASK.sample(3), 1)
    plan = dl.plan_sweep(
        model, TASK, noise, {"layers": layers, "dose": doses}, "distance", instances=units, batch=batch
    )
    grid = [cell for cell in plan.cells if cell.kind == "swept"]
    assert len({tuple(cell.labels.items()) for cell in grid}) == len(grid) == len(layers) * len(doses)
    assert sum(map(len, plan.batches)) == len(units) * width
    assert len({seed for b in plan.batches for seed in b.seeds}) == len(units)
    for b in plan.batches:
        assert len(b) <= max(batch, width)
        groups = plan.groups(plan.cells, len(b))
        assert sorted(c.number for g in groups for c in g) == [c.number for c in plan.cells if c.intervention]
        assert all(len(g) * len(b) <= max(batch, len(b)) for g in groups)
        assert all(plan.start(c) == plan.start(g[0]) for g in groups for c in g)


def test_a_row_named_by_its_number_is_refused_where_there_are_several_batches(organism: Subject) -> None:
    given = TASK.sample(3)
    resample = dl.Ablate(SITES, mode="resample")
    assert not swept(organism.model, resample, {"layers": [1]}, instances=given, batch=3).errors
    donor = organism.model.run(given[:2], [1, 2], interventions=[dl.Capture(SITES)], num_inference_steps=2)
    for row_wise in (resample, dl.Patch(donor, SITES), dl.Patch(torch.zeros(2, 32), dl.Sites("resid", steps=0))):
        with pytest.raises(InputError, match="goes by the numbers of rows, and each of"):
            swept(organism.model, row_wise, {"layers": [1]}, instances=given, batch=2)
    with pytest.raises(InputError, match="goes by the numbers of rows"):
        swept(organism.model, dl.Ablate(SITES), {"layers": [1]}, instances=given, batch=2, interventions=[resample])
    with pytest.raises(InputError, match="omit rows="):
        swept(organism.model, dl.Patch("pair", SITES, rows=(1, 0)), {"layers": [1]})


@dataclass(frozen=True)
class Odd:
    """Returns one row for all of them."""

    sites: dl.Sites
    dose: float = 1.0

    def __call__(self, activation: torch.Tensor, at: dl.At) -> torch.Tensor:
        return activation[:1] * self.dose


@pytest.mark.parametrize("batch", [2, 8], ids=["alone", "side by side"])
def test_a_replacement_of_another_shape_fails_alone_and_side_by_side(organism: Subject, batch: int) -> None:
    odd = Odd(dl.Sites("delta", steps=0, layers=1))
    found = swept(organism.model, odd, {"dose": [0.5, 0.9]}, instances=TASK.sample(2), batch=batch)
    assert len(found.errors) == 2
    assert all("DonorError: Odd returned" in error for error in found.errors.values())
    assert found.table[found.table["cell"] == "swept"]["value"].isna().all()


def test_a_block_that_is_left_out_is_left_out_alone() -> None:
    """A stream that is carried beside the others is left out with the block, also where many rows would fit."""
    tiny = TINY["ltx-2"]
    model, given = dl.VideoDiT(tiny.build()), list(tiny.inputs())
    bypass = dl.Bypass(dl.Sites("delta", steps=1))
    few, many = (
        swept(
            model, bypass, {"layers": [0, 2]}, instances=given, seed=[1, 2], batch=batch, **dict(tiny.settings)
        ).values
        for batch in (2, 32)
    )
    np.testing.assert_array_equal(few, many)


@dataclass(frozen=True)
class Aimed:
    """An instance of one's own, with something that only a metric reads."""

    prompt: str
    image: Any
    id: str
    target: float


def test_an_id_is_of_all_that_values_depend_on_and_of_nothing_that_was_drawn(organism: Subject) -> None:
    model, patch = organism.model, dl.Patch("pair", SITES)

    class Other(dl.tasks.Maze):
        def answer_mask(self, pair: Any) -> Any:
            return np.ones_like(super().answer_mask(pair))

    def plan(task: Any = TASK, of: dl.VideoDiT = model, **more: Any) -> dl.SweepPlan:
        options = {"instances": TASK.pairs(2)} | more
        return dl.plan_sweep(of, task, patch, {"layers": [1]}, "share", **options)

    first = plan().id
    made = plan(num_inference_steps=2)
    before = made.id
    dl.carry_out(made, progress=None)
    assert made.id == before == plan(num_inference_steps=2).id
    slower = dl.VideoDiT(model.pipeline, defaults={**model.defaults, "num_inference_steps": 4})
    assert len({first, before, plan(Other(size=4, lengths=(3, 8))).id, plan(of=slower).id}) == 4

    def aimed(target: float) -> str:
        maze = TASK.sample(1)[0]
        given = [Aimed(maze.prompt, maze.image, maze.id, target)]
        return dl.plan_sweep(model, TASK, dl.Ablate(SITES), {"layers": [1]}, "distance", instances=given).id

    assert aimed(1.0) != aimed(7.0)


@pytest.mark.parametrize("task", [dl.tasks.Sort(), dl.tasks.Permanence(), dl.tasks.TicTacToe()], ids=lambda t: t.name)
def test_an_id_stays_when_tasks_and_instances_have_been_used(organism: Subject, task: Any) -> None:
    pairs = task.pairs(2)
    made = dl.plan_sweep(
        organism.model, task, dl.Patch("pair", SITES), {"layers": [1]}, ["share", "strict"], instances=pairs,
        num_inference_steps=2,
    )  # fmt: skip
    before = made.id
    dl.carry_out(made, progress=None)
    assert made.id == before


def test_a_metric_that_changes_what_it_is_given_is_refused(organism: Subject) -> None:
    greedy = dl.Metric("greedy", "x0hat", lambda moved: moved.x0hat.sub_(moved.clean).flatten(1).sum(1))
    with pytest.raises(InputError, match="metric 'greedy' changed what it was given in place"):
        swept(organism.model, dl.Ablate(SITES), {"layers": [1]}, [greedy, "distance"])

    def painting(frames: Any, instances: Any) -> Any:
        frames[:] = 0
        return np.zeros(len(frames))

    both = swept(organism.model, dl.Ablate(SITES), {"layers": [1]}, [painting, "score"])
    alone = swept(organism.model, dl.Ablate(SITES), {"layers": [1]}, ["score"])
    np.testing.assert_array_equal(both.values[:, 1], alone.values[:, 0])


def test_a_lens_that_reads_before_a_cell_reads_what_was_there(organism: Subject) -> None:
    lens = dl.Metric("lens", "x0hat", distance, layer=1)
    found = swept(organism.model, dl.Ablate(SITES), {"layers": [3, 0]}, [lens, "distance"], batch=2)
    assert not found.errors
    late, early = found.table[(found.table["cell"] == "swept") & (found.table["measure"] == "lens")]["value"]
    assert late == 0 < early


def test_columns_of_a_table_keep_their_meaning(organism: Subject) -> None:
    noise = dl.Noise(dl.Sites("latents", steps=1), "add")
    table = swept(organism.model, noise, {"seed": [3, 4]}).table
    assert list(table[table["cell"] == "swept"]["own_seed"]) == [3, 4]


def test_pairs_of_one_original_are_two_units(organism: Subject) -> None:
    (a, b), (_, c) = TASK.pairs(2)
    table = swept(organism.model, dl.Patch("pair", SITES), {"layers": [1]}, instances=[(a, b), (a, c)]).table
    assert set(table["n"]) == {2}


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_seeds_may_be_an_array_and_a_receiver_a_number_of_numpy(organism: Subject, kind: Any) -> None:
    found = swept(organism.model, dl.Ablate(SITES), {"layers": [1]}, instances=TASK.sample(2), seed=kind([5, 6]))
    assert found.seeds == (5, 6)
    merge = dl.Merge(dl.Sites("resid", steps=0), group=2, receiver=np.int64(1))  # type: ignore[arg-type]
    merged = swept(organism.model, merge, {"layers": [1]}, instances=TASK.sample(1))
    assert list(merged.counted) == [False, True]
