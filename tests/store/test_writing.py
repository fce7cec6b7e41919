"""Adding runs: in the background, once, by one writer, of one model; what fails loses nothing that was finished."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import InputError, MadeForAnother, NotFinite, StoreError
from dit_lens.sites.site import Site
from dit_lens.store import manifest, shard
from dit_lens.store.store import Store
from tests.store.made import GUIDED, MODEL, RESID, add, filled, rows_of, tensors, whole
from tests.subjects import Subject


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {"writer.lock"}


def test_nothing_is_created_before_the_first_run(tmp_path: Path) -> None:
    with Store(tmp_path / "acts") as store:
        assert len(store) == 0
        assert store.keys == store.rows == store.sites() == []
        assert store.model_id is None
    assert list(tmp_path.iterdir()) == []


def test_a_later_session_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    with Store(tmp_path) as store:
        assert "run-1" in store
        add(store, 2)
    assert Store(tmp_path).keys == ["run-0", "run-1", "run-2"]
    assert torch.equal(Store(tmp_path)[RESID].tensor(), whole(RESID))
    assert files(tmp_path) == {manifest.NAME, *(f"00000{k}.safetensors" for k in range(3))}


def test_the_same_store_reads_what_it_has_flushed(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        add(store, 0)
        store.flush()
        assert torch.equal(store[RESID].tensor(), whole(RESID, 1))
        add(store, 1)
    assert torch.equal(store[RESID].tensor(), whole(RESID, 2))


def test_a_reader_beside_a_writer_sees_finished_runs(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        add(store, 0)
        store.flush()
        assert Store(tmp_path).keys == ["run-0"]
        with (tmp_path / manifest.NAME).open("ab") as file:
            file.write(b'{"kind":"run","sch')  # a line that is being written
        assert Store(tmp_path).keys == ["run-0"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        add(store, 0)
        with pytest.raises(StoreError, match=f"process {os.getpid()} on .* is writing"):
            add(Store(tmp_path), 1)
        add(store, 1)
    with Store(tmp_path) as store:
        add(store, 2)
    assert len(Store(tmp_path).keys) == 3


# What does not belong into a store


def test_a_second_run_of_the_same_row_needs_a_key(organism: Subject, tmp_path: Path) -> None:
    """It was steered, or made with other settings: by its row alone it would be taken for the first."""
    sites = dl.Sites("resid", steps=0, layers=2)
    plain = organism.run(interventions=[dl.Capture(sites)])
    steered = organism.run(interventions=[dl.Ablate(dl.Sites("attn", steps=0, layers=1)), dl.Capture(sites)])
    assert plain.rows == steered.rows
    with Store(tmp_path) as store:
        store.add(plain)
        with pytest.raises(InputError, match=r"has Row\(.*another run.*key="):  # while the first waits
            store.add(steered)
        store.flush()
        with pytest.raises(InputError, match="another run"):
            store.add(steered)
        store.add(steered, "steered")
    with Store(tmp_path) as store, pytest.raises(InputError, match="another run"):  # in a later session
        store.add(organism.run(interventions=[dl.Capture(sites), dl.Capture(sites, reduce="norm", name="b")]), name="")
    assert Store(tmp_path).keys == [plain.id, "steered"]
    assert Store(tmp_path).rows == [*plain.rows, *plain.rows]


@pytest.mark.parametrize("again", [False, True])
def test_a_run_with_another_scale_of_guidance_is_refused(organism: Subject, tmp_path: Path, again: bool) -> None:
    capture = dl.Capture(dl.Sites("resid", steps=0, layers=2, branches="cond"))
    one, other = (organism.run(k, guidance=scale, interventions=[capture]) for k, scale in ((0, 1.0), (1, 3.0)))
    store = Store(tmp_path)
    store.add(one)
    if again:
        store.close()
        store = Store(tmp_path)
    with store, pytest.raises(MadeForAnother, match=r"has guidance_scale=3\.0, the store has 1\.0"):
        store.add(other)
    assert Store(tmp_path).keys == [one.id]


def test_a_run_of_other_steps_is_refused(organism: Subject, tmp_path: Path) -> None:
    capture = dl.Capture(dl.Sites("embed", steps=0))  # the first noise level is the same
    one, other = (organism.run(k, num_inference_steps=steps, interventions=[capture]) for k, steps in ((0, 3), (1, 4)))
    with Store(tmp_path) as store:
        store.add(one)
        with pytest.raises(MadeForAnother, match="has num_inference_steps=4, the store has 3"):
            store.add(other)


def test_dictionaries_of_no_named_model_go_together(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        add(store, 0, model_id=None)
        add(store, 1, model_id="")
        with pytest.raises(MadeForAnother, match="activations of no named model, these are of model abc"):
            add(store, 2, model_id="abc")
    store = Store(tmp_path)
    assert (store.keys, store.model_id) == (["run-0", "run-1"], None)
    with pytest.raises(MadeForAnother, match="of no named model, these are of model abc"):
        store.require(SimpleNamespace(id="abc", setup={}))
    with Store(tmp_path / "named") as named:
        add(named, 0)
        with pytest.raises(MadeForAnother, match=f"of model {MODEL}, these are of no named model"):
            add(named, 1, model_id=None)


def test_a_run_of_another_model_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    with Store(tmp_path) as store:
        with pytest.raises(MadeForAnother, match=f"{MODEL}.*other"):
            add(store, 1, model_id="other")
        with pytest.raises(MadeForAnother):
            store.require(SimpleNamespace(id="other", setup={}))
        store.require(SimpleNamespace(id=MODEL, setup={"scheduler": "any"}))
        add(store, 1)
    assert len(Store(tmp_path).keys) == 2


def changed(**sites: Any) -> dict[Any, torch.Tensor]:
    values = {Site.parse(name): tensor for name, tensor in tensors(1).items()}
    return {site: sites.get(site.component if site.stream == "video" else "text", t) for site, t in values.items()}


@pytest.mark.parametrize(
    ("captures", "error", "message"),
    [
        (changed(resid=torch.zeros(2, 2, 3, 3, 8)), MadeForAnother, r"L05/resid/video.*\(2, 3, 3, 8\).*\(2, 3, 3, 4\)"),
        (changed(resid=torch.zeros(2, 2, 3, 3, 4, dtype=torch.float64)), InputError, "dtype F64, the store has F32"),
        (changed(resid=torch.full((2, 2, 3, 3, 4), torch.nan)), NotFinite, "L05/resid/video.*NaN"),
        (changed(text=torch.full((2, 5, 3), torch.inf, dtype=torch.bfloat16)), NotFinite, "L05/resid/text"),
        (changed(resid=torch.zeros(2, 4, dtype=torch.complex64)), InputError, "complex64"),
        (changed(resid=torch.zeros(3, 2, 3, 3, 4)), InputError, "the 2 rows"),
        (changed(resid=torch.tensor(1.0)), InputError, "the 2 rows"),
        (changed(resid=[1, 2]), InputError, "list"),
        ({RESID: tensors(1)[RESID]}, MadeForAnother, "lacks .*guided"),
        ({**changed(), "s00/cond/L05/resid/video": torch.zeros(2, 1)}, MadeForAnother, "also has s00/cond"),
        ({replace(site, sigma=0.5): tensor for site, tensor in changed().items()}, MadeForAnother, "sigma"),
        ({}, InputError, "nothing was captured"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_the_store_goes_on(
    tmp_path: Path, captures: Any, error: type[Exception], message: str
) -> None:
    with Store(tmp_path) as store:
        add(store, 0)
        with pytest.raises(error, match=message):
            store.add(captures, "bad", rows=rows_of(1), model_id=MODEL)
        add(store, 1)
    assert Store(tmp_path).keys == ["run-0", "run-1"]
    Store(tmp_path).verify()


@pytest.mark.parametrize("more", [{"rows": ()}, {"rows": ["a", "b"]}, {"key": ""}, {"key": None}, {"key": 3}])
def test_a_run_needs_a_key_and_rows(tmp_path: Path, more: dict[str, Any]) -> None:
    with Store(tmp_path) as store, pytest.raises(InputError):
        add(store, 0, **more)


def test_a_key_is_taken_once(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        add(store, 0)
        with pytest.raises(InputError, match="'run-0' already"):  # also while it waits
            add(store, 0)
        store.flush()
        with pytest.raises(InputError, match="'run-0' already"):
            add(store, 0)


def test_large_sums_are_no_infinity(tmp_path: Path) -> None:
    huge = torch.full((2, 2), torch.finfo(torch.float32).max)
    with Store(tmp_path) as store:
        store.add({RESID: huge}, "huge", rows=rows_of(0))
    assert torch.equal(Store(tmp_path)[RESID].tensor(), huge)


def test_a_change_in_place_while_it_waits_is_noticed(tmp_path: Path, held: threading.Event) -> None:
    captures = tensors(0)
    with Store(tmp_path) as store:
        store.add(captures, "run-0", rows=rows_of(0), model_id=MODEL)
        captures[RESID].zero_()
        held.set()
        with pytest.raises(StoreError, match="changed in place"):
            store.flush()
    assert Store(tmp_path).keys == []
    assert files(tmp_path) == set()


def test_settings_that_are_no_numbers_or_short_texts_are_left_out(tmp_path: Path) -> None:
    given = {"height": 48, "scale": 1.5, "names": ("a", "b"), "image": object(), "long": "x" * 600, "nan": np.nan, 3: 4}
    with Store(tmp_path) as store:
        add(store, 0, settings=given)
    row = Store(tmp_path).frame("rows").iloc[0].to_dict()
    assert row == {
        "key": "run-0", "run": "run-0", "instance": "maze-0", "seed": 0, "height": 48, "scale": 1.5,
        "names": ["a", "b"], "3": 4,
    }  # fmt: skip


def test_captures_of_several_names(organism: Subject, tmp_path: Path) -> None:
    first, last = (dl.Sites("resid", steps=0, layers=k) for k in (0, 3))
    one, two = dl.Capture(first, name="one"), dl.Capture(last, name="two")
    run = organism.run(interventions=[one, two])
    with Store(tmp_path / "all") as store:
        store.add(run)
    assert [site.layer for site in Store(tmp_path / "all").sites()] == [0, 3]
    with Store(tmp_path / "one") as store:
        store.add(run, name="one")
    assert [site.layer for site in Store(tmp_path / "one").sites()] == [0]
    twice = organism.run(interventions=[one, dl.Capture(first, name="two", reduce="norm")])
    with Store(tmp_path / "twice") as store, pytest.raises(InputError, match=r"name=, of \['one', 'two'\]"):
        store.add(twice)


# Failures of the disk


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits until this is set."""
    event, original = threading.Event(), shard.write

    def waiting(path: Path, captures: Any, digests: Any) -> str:
        event.wait()
        return original(path, captures, digests)

    monkeypatch.setattr(shard, "write", waiting)
    return event


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(file: Any, data: Any) -> None:
    file.write(data[: len(data) // 2])
    full()


@pytest.mark.parametrize(
    ("module", "name", "fails"),
    [(shard, "_write_all", full), (manifest, "_write_all", half), (os, "replace", full), (os, "fsync", full)],
    ids=["shard", "line", "rename", "sync"],
)
def test_a_full_disk_loses_nothing_that_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fails: Any
) -> None:
    before = files(filled(tmp_path, 2).folder)
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        add(store, 2)
        store.flush()
        patch.setattr(module, name, fails)
        add(store, 3)
        with pytest.raises(StoreError, match="'run-3' was not written: No space left"):
            store.flush()
    assert store.keys == ["run-0", "run-1", "run-2"]
    assert files(tmp_path) == before | {"000002.safetensors"}
    add(store, 3)  # once there is room again
    store.close()
    assert Store(tmp_path).keys == [f"run-{k}" for k in range(4)]
    assert torch.equal(Store(tmp_path)[RESID].tensor(), whole(RESID, 4))
    Store(tmp_path).verify()


def without_memory(file: Any, data: Any) -> None:
    file.write(data[: len(data) // 2])
    raise MemoryError


def interrupted(file: Any, data: Any) -> None:
    file.write(data)
    raise MemoryError


@pytest.mark.parametrize("stuck", [False, True], ids=["taken back", "stuck"])
@pytest.mark.parametrize("fails", [without_memory, interrupted, half])
@pytest.mark.parametrize("before", [0, 2])
def test_a_line_that_was_not_written_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Any, stuck: bool, before: int
) -> None:
    """At once, or where that fails too, before the next."""
    store = Store(tmp_path)
    for number in range(before):
        add(store, number)
    store.flush()
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_write_all", fails)
        if stuck:
            patch.setattr(Path, "open", opened_without_truncate(Path.open))
        add(store, before)
        with pytest.raises(StoreError, match=f"'run-{before}' was not written"):
            store.flush()
    Store(tmp_path).verify()  # also while it is stuck
    add(store, before + 1)
    store.close()
    wanted = [*range(before), before + 1]
    assert Store(tmp_path).keys == [f"run-{k}" for k in wanted]
    assert torch.equal(Store(tmp_path)[RESID].tensor(), torch.cat([tensors(k)[RESID] for k in wanted]))
    Store(tmp_path).verify()


def opened_without_truncate(original: Any) -> Any:
    class Stuck:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Stuck:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return full if name == "truncate" else getattr(self.file, name)

    return lambda path, *more, **named: (
        Stuck(original(path, *more, **named)) if path.name == manifest.NAME else original(path, *more, **named)
    )


@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_manifest_that_became_shorter_is_not_written_on(tmp_path: Path, left: int | None) -> None:
    store = filled(tmp_path, 2)
    add(store, 2)
    store.flush()
    if left is None:
        (tmp_path / manifest.NAME).unlink()
    else:
        os.truncate(tmp_path / manifest.NAME, left)
    add(store, 3)
    with pytest.raises(StoreError, match=r"somebody else changed it|No such file"):
        store.close()
    assert files(tmp_path) >= {f"00000{k}.safetensors" for k in range(3)}


def test_a_run_is_on_the_disk_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut there is no name without its data, and no line without its file."""
    done: list[str] = []
    fsync, replace, write = os.fsync, os.replace, manifest._write_all

    def synced(handle: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def renamed(old: Any, new: Any) -> None:
        done.append(f"name {Path(new).name}")
        replace(old, new)

    def written(file: Any, data: Any) -> None:
        done.append("line")
        write(file, data)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(manifest, "_write_all", written)
    (tmp_path / "top").mkdir()
    with Store(tmp_path / "top" / "new" / "acts") as store:
        add(store, 0)
        store.flush()
        first = list(done)
        add(store, 1)
    one, two = (
        [f"sync .{name}.part", f"name {name}", "sync acts", "line", "sync manifest.jsonl"]
        for name in ("000000.safetensors", "000001.safetensors")
    )
    assert first == ["sync top", "sync new", *one]
    assert done[len(first) :] == two


def test_a_store_that_is_never_closed_says_what_it_did_not_write(tmp_path: Path) -> None:
    script = """
import os, sys
from tests.store.made import add
from dit_lens.store.store import Store

good, bad = Store(sys.argv[1]), Store(sys.argv[2])
add(good, 0)
good.flush()
def full(*_):
    raise OSError(28, "No space left on device")
os.replace = full
add(bad, 0)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "good"), str(tmp_path / "bad")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert f"{tmp_path / 'bad'}: the run 'run-0' was not written: No space left on device" in done.stderr
    assert "good" not in done.stderr
    assert Store(tmp_path / "good").keys == ["run-0"]


def test_what_waits_behind_a_failure_is_dropped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: threading.Event
) -> None:
    monkeypatch.setattr(os, "replace", full)
    store = Store(tmp_path)
    add(store, 0)
    add(store, 1)
    held.set()
    with pytest.raises(StoreError, match="'run-0'") as caught:
        store.close()
    assert "'run-1'" in caught.value.__notes__[0]
    assert Store(tmp_path).keys == []


def test_an_error_is_raised_by_the_next_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            add(store, 0)
            while store._writer is not None and store._writer._failed is None:
                pass
        with pytest.raises(StoreError, match="'run-0' was not written"):
            add(store, 1)
        add(store, 1)
    assert Store(tmp_path).keys == ["run-1"]


def test_the_queue_is_bounded(tmp_path: Path, held: threading.Event) -> None:
    store = Store(tmp_path, waiting=1)
    add(store, 0)  # being written
    add(store, 1)  # waiting
    third = threading.Thread(target=add, args=(store, 2))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    held.set()
    third.join()
    store.close()
    assert len(Store(tmp_path).keys) == 3


def test_a_folder_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 2)
    original = os.open

    def refusing(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refusing)
    store = Store(tmp_path)
    assert np.array_equal(store[GUIDED][:], whole(GUIDED, 2).numpy())
    with pytest.raises(StoreError, match="cannot be written to: Read-only file system"):
        add(store, 2)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "acts").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written to"):
        add(Store(tmp_path / "acts"), 0)


@pytest.mark.parametrize("waiting", [0, -1, 1.5, True])
def test_the_queue_has_room_for_one(tmp_path: Path, waiting: Any) -> None:
    with pytest.raises(InputError, match="waiting"):
        Store(tmp_path, waiting=waiting)
