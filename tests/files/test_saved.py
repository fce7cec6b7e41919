"""A saved dataclass comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dit_lens.errors import StoreError
from dit_lens.files import saved, strict
from dit_lens.files.saved import MANIFEST, load, save
from dit_lens.sites.site import Site


class Place(NamedTuple):
    row: int
    name: str = ""


@dataclass(frozen=True)
class Inner:
    place: Place
    weight: float


@dataclass(frozen=True)
class Everything:
    number: float = math.nan
    counts: tuple[int, ...] = (1, -2, 10**30)
    pair: tuple[str, bool] = ("", True)
    nothing: tuple[()] = ()
    mixed: int | float | str | None = "nan"
    either: Literal["a", 1] = 1
    order: Sequence[float] = (math.inf, -0.0)
    sites: Mapping[Site, Tensor] = field(default_factory=lambda: {Site(0, "cond", 1, "delta"): torch.ones(2, 3)})
    nested: dict[int | None, list[Inner]] = field(default_factory=lambda: {None: [Inner(Place(1), -math.inf)], 3: []})
    frames: NDArray[np.uint8] = field(default_factory=lambda: np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    dtype: torch.dtype = torch.bfloat16
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    anything: Any = None


def round_trip(value: Any, folder: Path) -> Any:
    return load(type(value), save(value, folder, kind="thing", schema=1), kind="thing", schema=1)


def same(a: Any, b: Any) -> bool:
    """Equal with their types, bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, pd.DataFrame):
        return pd.testing.assert_frame_equal(a, b) is None
    if isinstance(a, float):
        return math.isnan(a) if math.isnan(b) else a.hex() == b.hex()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Everything | Inner):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_everything_comes_back(tmp_path: Path) -> None:
    value = Everything()
    assert same(round_trip(value, tmp_path / "a"), value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(2), inner),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(
    anything=PLAIN,
    mixed=st.integers() | st.floats() | st.text() | st.none(),
    number=st.floats(),
    counts=st.lists(st.integers()).map(tuple),
    order=st.lists(st.floats()),
)
def test_plain_values_come_back(tmp_path_factory: pytest.TempPathFactory, **changes: Any) -> None:
    value = Everything(**changes)
    assert same(round_trip(value, tmp_path_factory.mktemp("saved")), value)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(
        [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.bool, torch.int64, torch.uint16]
        + [torch.complex64, torch.complex128]
    ),
    shape=st.lists(st.integers(0, 3), max_size=4),
    seed=st.integers(0, 100),
)
def test_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, shape: list[int], seed: int
) -> None:
    bytes_ = torch.randint(0, 2, (*shape, dtype.itemsize), generator=torch.manual_seed(seed), dtype=torch.uint8)
    tensor = bytes_.view(dtype).reshape(shape)
    whole = Everything(anything=[tensor, tensor.mT if tensor.ndim > 1 else tensor, {"same": tensor}])
    back = round_trip(whole, tmp_path_factory.mktemp("saved")).anything
    assert same(back, whole.anything)
    assert back[0] is back[2]["same"] or dtype.is_complex


def test_views_of_one_storage_become_their_own(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    back = round_trip(
        Everything(anything=(base[0], base[:, 1], base.T, -base.to(torch.complex64).conj().imag)), tmp_path
    )
    assert same(back.anything, (base[0], base[:, 1].contiguous(), base.T.contiguous(), torch.zeros(3, 4)))
    assert len({tensor.untyped_storage().data_ptr() for tensor in back.anything}) == 4
    back.anything[0][0] = 7  # what is loaded can be written to


@pytest.mark.parametrize("dtype", ["int8", "uint64", "float16", "float64", "bool", "complex128", ">f4", "<U3"])
def test_arrays_come_back(tmp_path: Path, dtype: str) -> None:
    array = np.array([[0, 1, 2], [1, 0, 1]]).astype(dtype)[:, ::2]
    back = round_trip(Everything(anything=[array, array[:0], array[0, 0:1].reshape(())]), tmp_path).anything
    for one, expected in zip(back, [array, array[:0], array[0, 0:1].reshape(())], strict=True):
        assert one.dtype == np.dtype(dtype).newbyteorder("=")
        assert one.shape == expected.shape
        assert np.array_equal(one, expected)


def test_tables_come_back(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "step": [0, 1],
            "sigma": np.array([1.0, np.nan], dtype=np.float32),
            "branch": ["cond", None],
            "flag": [True, False],
            "layer": pd.array([None, 3], dtype="Int64"),
            "sure": pd.array([None, True], dtype="boolean"),
            "mixed": pd.Series([1, "x"], dtype=object),
            "hole": pd.Series([None, math.nan], dtype=object),
        }
    )
    for one in (table, table[::-1], table.iloc[:0], table.set_index("step"), pd.DataFrame(), table[["step"]].T):
        assert same(round_trip(Everything(table=one), tmp_path / "a").table, one)


def test_pictures_come_back(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8)
    for picture in (Image.fromarray(pixels.reshape(2, 4, 3)), Image.fromarray(pixels.reshape(2, 12))):
        back = round_trip(Everything(anything=picture), tmp_path / "a").anything
        assert back.mode == picture.mode
        assert np.array_equal(back, picture)


def test_numpy_scalars_become_numbers(tmp_path: Path) -> None:
    back = round_trip(Everything(anything=(np.float32(0.1), np.int8(3), np.bool_(True), np.float64(2))), tmp_path)
    assert same(back.anything, (float(np.float32(0.1)), 3, True, 2.0))


@dataclass
class Closure:
    finish: Callable[[], None]


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anything": lambda: 0}, r"field 'thing\.anything' is a function, which is not plain data"),
        ({"anything": [{"a": object()}]}, r"field 'thing\.anything\.0\.a' is a object, which is not plain data"),
        ({"anything": np.array([None])}, "an array of object; need numbers, bools or texts"),
        ({"anything": np.array(["2020"], dtype="datetime64[D]")}, "need numbers, bools or texts"),
        ({"anything": torch.ones(2).to_sparse()}, "sparse"),
        ({"anything": torch.ones(2, device="meta")}, "on meta; need a dense one"),
        ({"anything": pd.DataFrame({"a": pd.Categorical(["x"])})}, "a column of category"),
        ({"anything": pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([(1, 2)]))}, "several levels"),
        ({"anything": Image.new("P", (2, 2))}, "a picture of mode P"),
        ({"anything": LOOP}, "recursion"),
        ({"anything": Inner(Place(1), 1.0)}, "a Inner, which is not plain data"),
        ({"number": "1"}, r"field 'thing\.number' is '1'; need float"),
        ({"counts": [1]}, "need tuple"),
        ({"pair": ("a", True, 1)}, "has 3 items; need 2"),
        ({"either": True}, "need one of 'a', 1"),
        ({"mixed": [1]}, "need int or float or text or None"),
        ({"frames": np.zeros(2)}, "an array of float64; need uint8"),
        ({"nested": {"a": []}}, "thing.nested: key a"),
    ],
)
def test_what_is_no_plain_data_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        save(Everything(**changes), tmp_path / "a", kind="thing", schema=1)
    assert not (tmp_path / "a").exists()


def test_a_class_with_a_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is declared as collections\.abc\.Callable"):
        save(Closure(print), tmp_path / "a", kind="thing", schema=1)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest, and its checksum with it."""
    head = strict.parse_line((folder / MANIFEST).read_bytes().rstrip())
    change(head)
    (folder / MANIFEST).write_bytes(strict.line(head))


TENSORS = "tensors-00000.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(Everything(), tmp_path / "a", kind="thing", schema=1)


def refused(folder: Path, message: str, **changes: Any) -> None:
    with pytest.raises(StoreError, match=message):
        load(Everything, folder, **({"kind": "thing", "schema": 1} | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("number"), r"field 'thing\.number' is missing"),
        (lambda v: v.update(extra=1), r"field 'thing\.extra' is unknown"),
        (lambda v: v.update(number="1"), r"field 'thing\.number' is '1'; need float"),
        (lambda v: v.update(number={"float": "1"}), "need float"),
        (lambda v: v.update(number={"float": []}), "need float"),
        (lambda v: v.update(counts=[1.0]), r"field 'thing\.counts\.0' is 1\.0; need int"),
        (lambda v: v.update(counts=[True]), "need int"),
        (lambda v: v.update(counts={}), "need tuple"),
        (lambda v: v.update(pair=["a"]), "has 1 items; need 2"),
        (lambda v: v.update(either="b"), "need one of 'a', 1"),
        (lambda v: v.update(mixed=3), "a pair of one of int, float, text"),
        (lambda v: v.update(mixed=[[], 3]), "a pair of one of int, float, text"),
        (lambda v: v.update(mixed=["os.system", "ls"]), "a pair of one of int, float, text"),
        (lambda v: v.update(dtype="torch.load"), "need dtype"),
        (lambda v: v.update(anything={"builtins.eval": "1"}), "need plain data"),
        (
            lambda v: v.update(anything={"picture": {"mode": "RGBA", "pixels": v["frames"]}}),
            r"of uint8 \(1, 2",
        ),
        (lambda v: v.update(anything={"dict": [[{"list": []}, 1]]}), "unhashable"),
        (lambda v: v.update(anything={"dict": [[1, 1], [1, 2]]}), "has a key twice"),
        (lambda v: v.update(anything={"set": [1, 1]}), "has an item twice"),
        (lambda v: v.update(anything={"array": {"texts": ["a"], "dtype": "O", "shape": [1]}}), "texts"),
        (lambda v: v.update(anything={"array": {"texts": ["ab"], "dtype": "<U1", "shape": [1]}}), "longer texts"),
        (lambda v: v.update(anything={"array": {"texts": [], "dtype": "<U1", "shape": [10**12]}}), "no array of texts"),
        (lambda v: v["frames"].update(shape=[10**12]), r"is torch\.uint8 of shape \[1000000000000\]; its tensor is"),
        (lambda v: v["frames"].update(dtype="torch.int8"), "is torch.int8 of shape"),
        (lambda v: v["frames"].update(dtype=["x"]), r"is \['x'\] of shape"),
        (lambda v: v["frames"].update(tensor=10**12), r"is tensor 1000000000000; there are 2"),
        (lambda v: v["frames"].update(tensor=-1), "is tensor -1; there are 2"),
        (lambda v: v["frames"].update(file="/etc/passwd"), "need Tensor"),
        (lambda v: v.update(frames=v["sites"][0][1]), "an array of float32; need uint8"),
        (lambda v: v["table"].update(index={"name": None, "range": [0, 10**12, 1]}), None),
        (lambda v: v["table"]["columns"].append(1), "need Series"),
        (lambda v: v.update(table=3), "need DataFrame"),
    ],
)
def test_other_values_are_refused(folder: Path, change: Callable[[dict[str, Any]], Any], message: str | None) -> None:
    edit(folder, lambda head: change(head["value"]))
    if message is None:
        assert load(Everything, folder, kind="thing", schema=1).table.shape == (10**12, 0)  # costs nothing
    else:
        refused(folder, rf"saved\.json, line 1: .*{message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head.update(kind="other"), "it is of kind 'other'; need 'thing'"),
        (lambda head: head.update(schema=2), "it has schema 2, this version of dit_lens reads schema 1 of a thing"),
        (lambda head: head.update(schema=True), "need a int"),
        (lambda head: head.update(format="store"), "no manifest of format"),
        (lambda head: head.update(more=1), "no manifest of format"),
        (lambda head: head.pop("value"), "no manifest of format"),
        (lambda head: head["shards"][0].update(file="../x"), r"field 'shards\.0\.file' is unknown"),
        (lambda head: head["shards"][0].update(file="/etc/passwd"), r"field 'shards\.0\.file' is unknown"),
        (lambda head: head["shards"][0].update(bytes=10**12), "it has .* bytes; its manifest says 1000000000000"),
        (lambda head: head["shards"][0].update(sha256="0" * 64), "it was changed after it was written"),
        (lambda head: head["shards"].append(head["shards"][0]), "tensors-00001.safetensors: cannot be read: No such"),
        (lambda head: head.update(shards=[]), "is tensor 0; there are 0"),
    ],
)
def test_other_manifests_are_refused(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit(folder, change)
    refused(folder, message)


def test_another_kind_or_schema_is_refused(folder: Path) -> None:
    refused(folder, "of kind 'thing'; need 'run'", kind="run")
    refused(folder, "has schema 1, this version of dit_lens reads schema 2", schema=2)


def test_a_changed_byte_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(text.replace(b'"either":1', b'"either":2'))
    refused(folder, "does not have the checksum")


def edit_shard(folder: Path, change: Callable[[bytes], bytes], *, stamp: bool = True) -> None:
    data = change((folder / TENSORS).read_bytes())
    (folder / TENSORS).write_bytes(data)
    if stamp:
        shard = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit(folder, lambda head: head["shards"][0].update(shard))


def header(changes: Mapping[str, Any]) -> Callable[[bytes], bytes]:
    """Change what a safetensors file says of tensor 0."""

    def change(data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:end])
        entries["0"] |= changes
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + data[end:]

    return change


def renamed(data: bytes) -> bytes:
    tensors = safetensors.torch.load(data)
    return safetensors.torch.save({"7" if name == "0" else name: tensor for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "safetensors: "),
        (lambda data: data[:4], "safetensors: "),
        (lambda data: b"", "safetensors: "),
        (lambda data: b"\xff" * len(data), "safetensors: "),
        (lambda data: data + b"\0", "safetensors: "),
        (header({"shape": [10**12]}), "safetensors: "),
        (header({"data_offsets": [0, 10**12]}), "safetensors: "),
        (header({"dtype": "I32"}), "its tensor is torch.int32"),
        (header({"shape": [3, 2]}), r"its tensor is torch\.float32 of shape \[3, 2\]"),
        (renamed, "not numbered from 0"),
    ],
)
def test_other_tensors_are_refused(folder: Path, change: Callable[[bytes], bytes], message: str) -> None:
    edit_shard(folder, change)
    refused(folder, message)


def test_a_changed_or_truncated_shard_is_refused(folder: Path) -> None:
    edit_shard(folder, lambda data: data[:-1] + bytes([data[-1] ^ 1]), stamp=False)
    refused(folder, f"{TENSORS}: it was changed after it was written")
    edit_shard(folder, lambda data: data[:-1], stamp=False)
    refused(folder, r"bytes; its manifest says")


def test_duplicate_fields_are_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(text.replace(b'"value":{', b'"value":{"number":1.0,', 1))
    refused(folder, "the key 'number' stands twice")


@pytest.mark.skipif(os.name == "nt", reason="links")
@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_links_and_pipes_are_refused(folder: Path, name: str, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "real")
    (folder / name).symlink_to(tmp_path / "real")
    refused(folder, "cannot be read: Too many levels of symbolic links")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, "no plain file")


def test_where_nothing_was_saved(tmp_path: Path) -> None:
    refused(tmp_path / "none", "cannot be read: No such file")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "cannot be read: Not a directory")


def test_only_its_own_folders_are_replaced(folder: Path, tmp_path: Path) -> None:
    save(replace(Everything(), number=2.0), folder, kind="thing", schema=1)
    assert load(Everything, folder, kind="thing", schema=1).number == 2.0
    (tmp_path / "empty").mkdir()
    save(Everything(), tmp_path / "empty", kind="thing", schema=1)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="file is a file; give a folder"):
        save(Everything(), tmp_path / "file", kind="thing", schema=1)
    with pytest.raises(StoreError, match="it is of kind 'thing'; need 'run'; give another folder"):
        save(Everything(), folder, kind="run", schema=1)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(StoreError, match="is a link"):
        save(Everything(), tmp_path / "link", kind="thing", schema=1)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds 'notes.txt', which is no part of a saved thing"):
        save(Everything(), folder, kind="thing", schema=1)
    assert load(Everything, folder, kind="thing", schema=1).number == 2.0


@pytest.mark.parametrize("name", ["", "\0", "a\0b", None, 3])
def test_what_names_no_folder_is_refused(name: Any) -> None:
    for ask in (lambda: save(Everything(), name, **THING), lambda: load(Everything, name, **THING)):
        with pytest.raises(StoreError, match="is no name of a folder; give one"):
            ask()


def test_the_working_directory_can_be_read_and_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load(Everything, ".", **THING).counts == Everything().counts
    for name in (".", "..", "/", "a/.."):
        with pytest.raises(StoreError, match="cannot be replaced; give a folder of its own"):
            save(Everything(), name, **THING)


def test_a_file_larger_than_memory_is_refused() -> None:
    with pytest.raises(StoreError, match="tensors: it has 9 bytes, more than there is memory for"):
        saved._whole(Full(), Path("tensors"), 9)


class Full(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise MemoryError


THING: dict[str, Any] = {"kind": "thing", "schema": 1}


def test_many_tensors_are_parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "_SHARD", 40)
    value = Everything(anything=[torch.arange(n, dtype=torch.float32) for n in (4, 4, 30, 1)])
    back = round_trip(value, tmp_path / "a")
    assert same(back, value)
    assert len(list((tmp_path / "a").iterdir())) == 5
    assert same(round_trip(Everything(), tmp_path / "a"), Everything())
    assert len(list((tmp_path / "a").iterdir())) == 2


def dying(real: Callable[..., Any], moments: Iterator[int]) -> Callable[..., Any]:
    """A function at one of whose calls, counted over all of them, the process dies."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(moments) == 0:
            os._exit(9)
        return real(*args, **kwargs)

    return call


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("moment", range(26))
def test_a_kill_leaves_the_old_or_the_new(folder: Path, moment: int) -> None:
    round_trip(Everything(number=1.0), folder)
    if (child := os.fork()) == 0:
        moments = itertools.count(-moment)
        for name in ("fsync", "rename", "rmdir", "open", "unlink"):
            setattr(os, name, dying(getattr(os, name), moments))
        save(Everything(number=2.0), folder, kind="thing", schema=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 9)
    assert load(Everything, folder, kind="thing", schema=1).number in (1.0, 2.0)
    assert round_trip(Everything(number=3.0), folder).number == 3
