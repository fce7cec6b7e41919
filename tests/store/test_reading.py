"""Views, filters and the dataset give what was written, and read no more than they are asked for."""

from __future__ import annotations

import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import dit_lens as dl
from dit_lens.errors import SiteError, StoreError
from dit_lens.runs.inputs import Row
from dit_lens.store.shards import Shards
from dit_lens.store.store import Store
from dit_lens.store.view import View
from tests.store.made import GUIDED, MODEL, RESID, TEXT, add, filled, tensors, whole
from tests.subjects import Subject

PARTS: list[Any] = [
    slice(None), slice(1, 5), slice(4, 1, -1), slice(0, 6, 4), slice(9, 12), 0, -1, [5, 0, 0, 3], np.array([2, 1]),
    torch.tensor([4, 1]), np.arange(6) % 2 == 0, [], (slice(1, 4), 0), (slice(1, 4), slice(1, 2), slice(None), -1),
    ([5, 2], slice(None), slice(0, 3, 2)), (3, 1, 2, 0, 3), (2, ..., 3),
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "acts")


@pytest.mark.parametrize("part", PARTS, ids=repr)
@pytest.mark.parametrize("verify", [True, False])
def test_a_part_of_a_view_is_that_part_of_the_array(tmp_path: Path, part: Any, verify: bool) -> None:
    filled(tmp_path)
    view, array = Store(tmp_path, verify=verify)[RESID], whole(RESID).numpy()
    expected = array[part.numpy() if isinstance(part, torch.Tensor) else part]
    assert view[part].shape == expected.shape
    assert np.array_equal(view[part], expected)


@pytest.mark.parametrize("part", [6, -7, [0, 6], [True, False], "a", 1.5, (0, 1.5), (0,) * 6, [[0, 1]], (0, [1, 2])])
def test_an_index_that_is_none_is_refused(store: Store, part: Any) -> None:
    with pytest.raises(IndexError):
        store[RESID][part]


def test_a_view_is_an_array_for_numpy(store: Store) -> None:
    view = store[RESID]
    assert view.shape == whole(RESID).shape
    assert (len(view), view.ndim, view.dtype) == (6, 5, np.dtype(np.float32))
    assert view.nbytes == np.asarray(view).nbytes
    assert np.array_equal(np.asarray(view), whole(RESID).numpy())
    assert np.asarray(view, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.array(view, copy=False)


def test_bfloat16_is_read_as_it_is_by_torch_and_widened_for_numpy(store: Store) -> None:
    view = store[TEXT]
    assert torch.equal(view.tensor(), whole(TEXT))
    assert view.dtype == view[:].dtype == np.float32
    assert np.array_equal(view[:], whole(TEXT).float().numpy())


def test_rows_and_groups_are_in_the_order_of_the_manifest(store: Store) -> None:
    assert store.rows == [Row(f"maze-{run}", seed) for run in range(3) for seed in range(2)]
    assert list(store.groups) == [row.instance for row in store.rows]
    assert store[RESID].rows == store.rows
    assert len(store) == len(store.rows)
    assert store.keys == ["run-0", "run-1", "run-2"]
    assert "run-1" in store
    assert Row("maze-2", 1) in store
    assert "run-7" not in store
    assert Row("maze-2", 2) not in store
    assert store.model_id == MODEL


def test_sites_are_chosen_by_their_parts(store: Store) -> None:
    names = [str(site) for site in store.sites()]
    assert sorted(names) == sorted([RESID, TEXT, GUIDED])
    assert [str(s) for s in store.sites("guided")] == [GUIDED]
    assert {str(s) for s in store.sites(layer=range(4, 6), step=3)} == {RESID, TEXT}
    assert [str(s) for s in store.sites(layer=lambda k: k is not None, stream=["video"])] == [RESID]
    assert store.sites(layer=6) == []


def test_a_site_that_is_not_there_is_named_with_those_that_are(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="s03/cond/L05/resid/video"):
        store["s00/cond/L05/resid/video"]
    with pytest.raises(StoreError, match="no activations yet"):
        Store(tmp_path / "nowhere")[RESID]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_serves_rows_through_a_loader(store: Store, workers: int) -> None:
    batches = list(DataLoader(store.dataset(RESID), batch_size=4, num_workers=workers))
    assert torch.equal(torch.cat([b["activation"] for b in batches]), whole(RESID))
    assert [name for b in batches for name in b["instance"]] == list(store.groups)
    assert torch.cat([b["seed"] for b in batches]).tolist() == [row.seed for row in store.rows]


def test_a_worker_that_was_forked_while_a_thread_read_reads(store: Store) -> None:
    data, held, done = store.dataset(RESID), threading.Event(), threading.Event()
    data[0]

    def read() -> None:
        with store._shards._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=read)
    thread.start()
    held.wait()
    try:
        batches = list(DataLoader(data, batch_size=6, num_workers=1, timeout=30, multiprocessing_context="fork"))
    finally:
        done.set()
        thread.join()
    assert torch.equal(batches[0]["activation"], whole(RESID))


def test_a_folder_that_was_emptied_and_filled_anew_is_read_anew(tmp_path: Path) -> None:
    folder = tmp_path / "acts"
    store = filled(folder, 1)
    assert torch.equal(store[RESID].tensor(), whole(RESID, 1))
    shutil.rmtree(folder)
    add(store, 1)
    store.close()
    assert store.keys == ["run-1"]
    assert torch.equal(store[RESID].tensor(), tensors(1)[RESID])
    data = bytearray((folder / "000000.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "000000.safetensors").write_bytes(data)
    again = Store(folder)
    with pytest.raises(StoreError, match="checksum"):
        again[GUIDED][:]
    shutil.rmtree(folder)
    add(again, 2)
    again.close()
    assert torch.equal(again[GUIDED].tensor(), tensors(2)[GUIDED])


def test_a_view_without_rows(store: Store) -> None:
    """A reader meets one in the moment in which a first run is entered."""
    view = View(store.sites()[0], (), store[RESID]._layout, store._shards)
    assert (len(view), view.shape, view.rows, view.nbytes) == (0, (0, 2, 3, 3, 4), [], 0)
    assert view[:, 0].shape == (0, 3, 3, 4)


def test_a_dataset_of_several_sites_names_them(store: Store) -> None:
    item = store.dataset([RESID, TEXT])[4]
    assert list(item["activation"]) == [RESID, TEXT]
    assert torch.equal(item["activation"][TEXT], whole(TEXT)[4])
    assert set(store.dataset()[0]["activation"]) == {RESID, TEXT, GUIDED}
    with pytest.raises(SiteError):
        store.dataset([])


def test_a_store_and_its_views_can_be_sent_to_another_process(store: Store) -> None:
    for sent in (pickle.loads(pickle.dumps(store))[RESID], pickle.loads(pickle.dumps(store[RESID]))):
        assert np.array_equal(sent[:], whole(RESID).numpy())


def test_only_the_shards_of_the_rows_are_opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = Shards._opened
    monkeypatch.setattr(
        Shards, "_opened", lambda self, entry, layout: opened.append(entry.file) or original(self, entry, layout)
    )
    view = store[RESID]
    assert view.shape[0] == 6
    assert opened == []
    view[2:4]
    assert opened == ["000001.safetensors"]


def test_a_run_comes_back_bit_for_bit(organism: Subject, tmp_path: Path) -> None:
    captures = [dl.Capture(dl.Sites(("resid", "guided", "latents"), steps=[0, 2]))]
    runs = [organism.run(which, interventions=captures) for which in (0, 1)]
    with Store(tmp_path) as store:
        for run in runs:
            store.add(run)
    store = Store(tmp_path)
    assert store.keys == [run.id for run in runs]
    assert store.rows == [row for run in runs for row in run.rows]
    for site in runs[0].captured():
        assert torch.equal(store[site].tensor(), torch.cat([run[site] for run in runs]))
    read = {str(s): s for s in store.sites()}
    assert all(
        (read[str(s)].sigma, read[str(s)].alpha, read[str(s)].expert) == (s.sigma, s.alpha, s.expert)
        for s in runs[0].captured()
    )
