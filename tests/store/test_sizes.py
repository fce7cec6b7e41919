"""What a store takes, before and after."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import dit_lens as dl
from dit_lens.errors import InputError, SiteError, StoreError
from dit_lens.store import sizes as module
from dit_lens.store.store import Store
from tests.store.made import GUIDED, RESID, TEXT, add, filled, tensors
from tests.subjects import STEPS, Subject

CAPTURES = {
    "whole": [dl.Capture(dl.Sites(("resid", "latents", "guided", "model_input"), steps=[0, 1]))],
    "two": [dl.Capture(dl.Sites("delta"), reduce="token_mean"), dl.Capture(dl.Sites("resid"), reduce="norm", to="cpu")],
    "half": [dl.Capture(dl.Sites("velocity", tokens=dl.Tokens(frames=0)), reduce=lambda x: x.half())],
    "mine": [dl.Capture(dl.Sites("attn", steps=0), reduce=lambda x, at: x[..., : 1 + at.site.step])],
    "project": [dl.Capture(dl.Sites("embed"), reduce=dl.reduce.project(torch.eye(128)[:, :3].double()))],
}  # fmt: skip


@pytest.mark.parametrize("name", CAPTURES)
def test_a_forecast_is_right_to_the_byte(organism: Subject, tmp_path: Path, name: str) -> None:
    captures = CAPTURES[name]
    geometry = organism.model.geometry(organism.inputs[0], num_inference_steps=STEPS, guidance_scale=1.0)
    runs = [organism.run(which, interventions=captures) for which in (0, 1)]
    with Store(tmp_path) as store:
        before = store.forecast(captures, 2, geometry=geometry)
        assert before.size == store.forecast(runs[0], 2).size
        for run in runs:
            store.add(run)
    assert before.size == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert before.size == Store(tmp_path).summary().size
    assert before.sites == len(runs[0].captured())


def test_rows_and_dtypes_count(organism: Subject, tmp_path: Path) -> None:
    captures = [dl.Capture(dl.Sites("resid"))]
    geometry = organism.model.geometry(organism.inputs[0], num_inference_steps=STEPS, guidance_scale=1.0)
    store = Store(tmp_path)
    one, two = (store.forecast(captures, 5, geometry=geometry, rows=rows).size for rows in (1, 2))
    narrow = store.forecast(captures, 5, geometry=geometry, rows=2, dtype={"resid": torch.bfloat16}).size
    data = 5 * 4 * STEPS * 4 * torch.Size(geometry.shapes["resid"]).numel()
    assert data < one < two < 2 * one
    assert abs(two - one - data) < 5 * 1000  # numbers in the header have more digits
    assert abs(two - narrow - data) < 5 * 1000


def test_what_does_not_fit_is_refused(organism: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=31 * 10**9))
    geometry = organism.model.geometry(organism.inputs[0])
    forecast = Store(tmp_path / "not" / "there").forecast(dl.Capture(dl.Sites("resid")), 10**6, geometry=geometry)
    with pytest.raises(
        StoreError, match=r"1,000,000 runs, .* this will write .* [GT]B to .*; 31.0 GB free; capture less"
    ):
        forecast.require()
    assert not (tmp_path / "not").exists()
    few = Store(tmp_path).forecast(dl.Capture(dl.Sites("resid")), 1, geometry=geometry)
    assert few.require() is few


@pytest.mark.parametrize(
    ("captures", "more", "error", "message"),
    [
        ([dl.Capture(dl.Sites("resid"))], {"geometry": None}, InputError, "geometry="),
        ([dl.Capture(dl.Sites("resid", layers=9))], {}, SiteError, "no layer 9"),
        ([dl.Capture(dl.Sites("resid")), dl.Capture(dl.Sites("resid"), name="b")], {}, InputError, "captured twice"),
        ([dl.Capture(dl.Sites("resid"))], {"runs": 0}, InputError, "runs=0"),
        ([dl.Capture(dl.Sites("resid"))], {"rows": 0}, InputError, "rows=0"),
    ],
)
def test_a_forecast_of_what_cannot_be(
    organism: Subject, tmp_path: Path, captures: Any, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    settings = {"runs": 1, "geometry": organism.model.geometry(organism.inputs[0]), **more}
    with pytest.raises(error, match=message):
        Store(tmp_path).forecast(captures, **settings)


def test_the_tables_of_a_store(tmp_path: Path) -> None:
    store = filled(tmp_path)
    table = store.frame().set_index("site")
    assert list(table.index) == [RESID, TEXT, GUIDED]
    assert table.loc[RESID, ["step", "branch", "layer", "component", "dtype", "shape", "rows", "bytes"]].tolist() == [
        3, "cond", 5, "resid", "F32", (2, 3, 3, 4), 6, 6 * 72 * 4,
    ]  # fmt: skip
    rows = store.frame("rows")
    assert rows[["instance", "seed"]].values.tolist() == [[row.instance, row.seed] for row in store.rows]
    with pytest.raises(InputError, match="'sites' or 'rows'"):
        store.frame("runs")
    empty = Store(tmp_path / "empty")
    assert list(empty.frame().columns) == list(store.frame().columns)
    assert len(empty.frame("rows")) == empty.summary().size == 0


def test_a_setting_does_not_take_the_place_of_a_column(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        add(store, 0, settings={"seed": 99, "instance": "other", "height": 48})
    rows = Store(tmp_path).frame("rows")
    assert list(rows.columns) == ["key", "run", "instance", "seed", "height"]
    assert rows[["instance", "seed"]].values.tolist() == [[row.instance, row.seed] for row in store.rows]


def test_a_forecast_from_what_would_be_added(organism: Subject, tmp_path: Path) -> None:
    site = dl.Sites("resid", steps=0, layers=0)
    run = organism.run(interventions=[dl.Capture(site, name="a"), dl.Capture(site, name="b", reduce="norm")])
    store = Store(tmp_path)
    with pytest.raises(InputError, match="name="):
        store.forecast(run, 1)
    whole, norms = (store.forecast(run, 1, name=name) for name in "ab")
    assert (whole.sites, norms.sites) == (1, 1)
    assert whole.size > norms.size
    with store:
        store.add(run, name="a")
        add(other := Store(tmp_path / "other"), 0)
    other.close()
    assert whole.size == store.summary().size
    assert store.forecast(tensors(1), 3).size == 3 * other.summary().size
    wrong: Any
    for wrong in ({}, {RESID: 3}, {RESID: torch.zeros(2), TEXT: torch.zeros(3)}):
        with pytest.raises(InputError):
            store.forecast(wrong, 1)


def test_a_summary_reads_like_du(tmp_path: Path) -> None:
    summary = filled(tmp_path).summary()
    lines = str(summary).splitlines()
    assert summary.size == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert "3 runs, 6 rows of 3 instances, 3 sites" in lines[0]
    assert lines[1:] == ["   1.7 kB  resid/video, 1 sites", "    180 B  resid/text, 1 sites",
                         "    648 B  guided/video, 1 sites"]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_960, "100 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"),
     (412 * 10**9, "412 GB"), (3 * 10**17, "300 PB")],
)  # fmt: skip
def test_bytes_are_readable(size: int, text: str) -> None:
    assert module.readable(size) == text
