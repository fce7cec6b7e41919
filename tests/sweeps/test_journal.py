"""Nothing that a sweep has finished is lost."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.errors import EvidenceError, StoreError
from dit_lens.files import strict
from dit_lens.sweeps.local import Job, Outcome, run_here
from tests.subjects import Subject
from tests.sweeps.killed import kill, lines, plan

TASK = dl.tasks.Maze(size=4, lengths=(3, 8))
SITES = dl.Sites("delta", steps=0)


def small(model: dl.VideoDiT, **more: Any) -> dl.SweepPlan:
    options = {"metrics": "distance", "instances": TASK.sample(2), "batch": 1, "num_inference_steps": 2} | more
    return dl.plan_sweep(model, TASK, dl.Ablate(SITES), {"layers": "each"}, **options)


def test_killed_anywhere_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = dl.carry_out(plan(), progress=None)
    assert kill(tmp_path / "sweep", 12) >= 6
    done = lines(tmp_path / "sweep")
    assert done > 0
    computed = []

    def counting(made: dl.SweepPlan, jobs: Sequence[Job]) -> Iterator[Outcome]:
        for outcome in run_here(made, jobs):
            computed.append(outcome)
            yield outcome

    rest = dl.carry_out(plan(), folder=tmp_path / "sweep", executor=counting, progress=None)
    assert len(computed) == len(plan().cells) * len(plan().batches) - done
    np.testing.assert_array_equal(rest.values, whole.values)
    assert rest.table.equals(whole.table)
    assert rest.forwards == whole.forwards
    again = dl.carry_out(plan(), folder=tmp_path / "sweep", executor=_never, progress=None)
    np.testing.assert_array_equal(again.values, whole.values)


def _never(made: dl.SweepPlan, jobs: Sequence[Job]) -> Iterator[Outcome]:
    assert not jobs
    return iter(())


def test_a_line_cut_off_anywhere_is_made_again(organism: Subject, tmp_path: Path) -> None:
    made = small(organism.model)
    whole = dl.carry_out(made, folder=tmp_path, progress=None)
    path = tmp_path / "cells.jsonl"
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for cut in {last, last + 1, (last + len(data)) // 2, len(data) - 1}:
        path.write_bytes(data[:cut])
        again = dl.carry_out(made, folder=tmp_path, progress=None)
        np.testing.assert_array_equal(again.values, whole.values)
        assert path.read_bytes() == data


def test_another_plan_writer_file_or_line_is_refused(organism: Subject, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    dl.carry_out(small(organism.model), folder=folder, progress=None)
    for other in (
        {"seed": 1}, {"metrics": ["distance", "strict"]}, {"instances": TASK.sample(3)}, {"num_inference_steps": 3},
        {"interventions": [dl.Ablate(SITES)]},
    ):  # fmt: skip
        with pytest.raises(StoreError, match=r"holds a sweep of plan .* another model, task, grid"):
            dl.carry_out(small(organism.model, **other), folder=folder, progress=None)
    path = folder / "cells.jsonl"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"[0.0]", b"[0.1]", 1))
    with pytest.raises(StoreError, match=r"line 1: the line does not have the checksum"):
        dl.carry_out(small(organism.model), folder=folder, progress=None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds 'notes.txt' and no sweep"):
        dl.carry_out(small(organism.model), folder=tmp_path / "other", progress=None)
    with pytest.raises(StoreError, match="is no folder"):
        dl.carry_out(small(organism.model), folder=tmp_path / "other" / "notes.txt", progress=None)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "other")
    with pytest.raises(StoreError, match="is no folder"):
        dl.carry_out(small(organism.model), folder=link, progress=None)


def test_a_line_with_a_field_of_another_type_is_refused(organism: Subject, tmp_path: Path) -> None:
    dl.carry_out(small(organism.model), folder=tmp_path, progress=None)
    path = tmp_path / "cells.jsonl"
    first = strict.parse_line(path.read_bytes().splitlines()[0])
    for field, value in (
        ("cell", "0"), ("cell", 99), ("batch", 99), ("values", [1.0]), ("values", {}),
        ("values", {"distance": [0.1, 0.2]}), ("blocks", 1.5), ("more", 1),
    ):  # fmt: skip
        path.write_bytes(strict.line(first | {field: value}))
        with pytest.raises(StoreError, match=r"cells.jsonl, line 1"):
            dl.carry_out(small(organism.model), folder=tmp_path, progress=None)


def test_a_full_disk_keeps_what_was_finished(
    organism: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, written, fsync = small(organism.model), [0], os.fsync

    def full(handle: int) -> None:
        written[0] += 1
        if written[0] == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left.*the same call goes on"):
        dl.carry_out(made, folder=tmp_path, progress=None)
    kept = lines(tmp_path)
    assert 0 < kept < len(made.cells) * 2
    assert (tmp_path / "cells.jsonl").read_bytes().endswith(b"\n")
    rest = dl.carry_out(made, folder=tmp_path, progress=None)
    np.testing.assert_array_equal(rest.values, dl.carry_out(made, progress=None).values)


def test_ctrl_c_says_how_to_go_on(organism: Subject, tmp_path: Path) -> None:
    made = small(organism.model)

    def stopped(plan: dl.SweepPlan, jobs: Sequence[Job]) -> Iterator[Outcome]:
        yield next(run_here(plan, jobs))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stop:
        dl.carry_out(made, folder=tmp_path, executor=stopped, progress=None)
    assert stop.value.__notes__ == [
        f"1 of 12 cells were finished, kept in {tmp_path}: the same call goes on from there"
    ]
    with pytest.raises(KeyboardInterrupt) as stop:
        dl.carry_out(made, executor=stopped, progress=None)
    assert "give folder= to keep them" in stop.value.__notes__[0]
    assert lines(tmp_path) == 1
    dl.carry_out(made, folder=tmp_path, progress=None)


class Failing:
    """A metric that fails where x0hat has moved by a certain sign."""

    def __init__(self, fails: bool = True) -> None:
        self.fails = fails

    def __call__(self, moved: Any) -> Any:
        change = (moved.x0hat - moved.clean).flatten(1).sum(dim=1)
        if self.fails and float(change[0]) > 0:
            raise RuntimeError("no\nway")
        return change


def test_a_cell_that_fails_is_kept_with_its_error_and_the_others_go_on(organism: Subject, tmp_path: Path) -> None:
    made = small(organism.model, metrics=dl.Metric("sum", "x0hat", Failing()))
    found = dl.carry_out(made, folder=tmp_path, progress=None)
    assert found.errors
    assert len(found.errors) < 4
    for number, error in found.errors.items():
        assert error.startswith("RuntimeError: no")
        assert np.isnan(found.values[number]).all()  # also where it did not fail: the others are of all batches
    assert found.table["value"].isna().sum() == len(found.errors)
    assert f"{len(found.errors)} of 6 cells failed" in str(found)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["errors"]
    again = dl.carry_out(made, folder=tmp_path, progress=None)  # what failed is tried again
    assert again.errors == found.errors
    assert again.table.equals(found.table)


def test_cells_that_fail_side_by_side_take_no_others_with_them(organism: Subject) -> None:
    over = {"dose": [0.5, 1.0, 2.0]}
    noise = dl.Noise(dl.Sites("resid", steps=0, layers=1), "add")
    options = {"instances": TASK.sample(1), "num_inference_steps": 2}

    def picky(moved: Any) -> Any:
        if 0.1 < float((moved.x0hat - moved.clean).norm()) < limit:
            raise ValueError("too little")
        return moved.x0hat.flatten(1).sum(dim=1)

    limit = 0.0
    metric = dl.Metric("picky", "x0hat", picky)
    fine = dl.sweep(organism.model, TASK, noise, over, [metric, "distance"], batch=8, **options)
    assert not fine.errors
    size = fine.table.query("measure == 'distance' and cell == 'swept'")["value"].to_numpy()
    clean = organism.model.run(TASK.sample(1), list(fine.seeds), decode=False, record=True, num_inference_steps=2)
    limit = float(organism.model.replay(clean, 0).x0hat.norm()) * float(size[:2].mean())
    found = dl.sweep(organism.model, TASK, noise, over, [metric, "distance"], batch=8, **options)
    assert list(found.errors.values()) == ["ValueError: too little"]


def test_a_cell_and_a_job_are_data(organism: Subject) -> None:
    made = small(organism.model)
    job = Job(made.batches[0], made.cells)
    same = pickle.loads(pickle.dumps(job))
    assert same.batch.seeds == job.batch.seeds
    assert [str(cell) for cell in same.cells] == [str(cell) for cell in job.cells]
    elsewhere = list(run_here(made, [same]))
    assert elsewhere == list(run_here(made, [job]))


def test_an_executor_that_gives_outcomes_in_another_order_changes_nothing(organism: Subject) -> None:
    made = small(organism.model)

    def backwards(plan: dl.SweepPlan, jobs: Sequence[Job]) -> Iterator[Outcome]:
        yield from reversed(list(run_here(plan, jobs)))

    found, other = (dl.carry_out(made, executor=e, progress=None) for e in (run_here, backwards))
    np.testing.assert_array_equal(found.values, other.values)


def test_a_model_that_does_not_repeat_itself_is_found_out(organism: Subject) -> None:
    made = small(organism.model)

    def unsteady(plan: dl.SweepPlan, jobs: Sequence[Job]) -> Iterator[Outcome]:
        for outcome in run_here(plan, jobs):
            moved = plan.cells[outcome.cell].kind == "identity"
            values = {name: tuple(x + moved for x in found) for name, found in outcome.values.items()}
            yield Outcome(**(vars(outcome) | {"values": values}))

    with pytest.raises(EvidenceError, match="does not repeat itself"):
        dl.carry_out(made, executor=unsteady, progress=None)


def test_an_executor_that_leaves_out_a_cell_or_gives_other_numbers_is_found_out(organism: Subject) -> None:
    made = small(organism.model)

    def forgetful(plan: dl.SweepPlan, jobs: Sequence[Job]) -> Iterator[Outcome]:
        yield from list(run_here(plan, jobs))[:-1]

    def short(plan: dl.SweepPlan, jobs: Sequence[Job]) -> Iterator[Outcome]:
        for outcome in run_here(plan, jobs):
            yield Outcome(**(vars(outcome) | {"values": {"distance": ()}}))

    with pytest.raises(EvidenceError, match="gave 11 of 12 cells"):
        dl.carry_out(made, executor=forgetful, progress=None)
    with pytest.raises(EvidenceError, match="must have 1 numbers of each of distance"):
        dl.carry_out(made, executor=short, progress=None)


def test_cells_side_by_side_are_done_again_together(organism: Subject, tmp_path: Path) -> None:
    """Killed within a group, what is left of it is not computed in a smaller one, whose last bits may differ."""
    made = dl.plan_sweep(
        organism.model, TASK, dl.Noise(dl.Sites("resid", steps=0, layers=1), "add"),
        {"dose": [k / 4 for k in range(7)]}, "distance", instances=TASK.sample(3), batch=21, num_inference_steps=2,
    )  # fmt: skip
    whole = dl.carry_out(made, folder=tmp_path, progress=None)
    path = tmp_path / "cells.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    again = dl.carry_out(made, folder=tmp_path, progress=None)
    np.testing.assert_array_equal(again.values, whole.values)
    assert lines(tmp_path) == len(made.cells)
