"""What was changed after it was written is named and never read as if it were right."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_lens.errors import StoreError
from dit_lens.files import strict
from dit_lens.runs.inputs import Row
from dit_lens.sites.site import COMPONENTS, Site
from dit_lens.store.layout import DTYPES
from dit_lens.store.manifest import NAME
from dit_lens.store.shard import digest
from dit_lens.store.store import Store
from tests.store.made import RESID, add, filled, whole

FIRST = "000000.safetensors"


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    store = Store(folder)
    return {str(site): store[site].tensor() for site in store.sites()}


def resign(folder: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a line of the manifest and give it the checksum that it then needs, as who means it would."""
    lines = (folder / NAME).read_bytes().splitlines(keepends=True)
    data = strict.parse_line(lines[number])
    change(data)
    lines[number] = strict.line(data)
    (folder / NAME).write_bytes(b"".join(lines))


def site(number: int, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["sites"][number].update(changes)


SCHEMA: list[tuple[int, Callable[[dict[str, Any]], Any], str]] = [
    (0, lambda d: d.update(schema=2), "line 1: schema 2; this version of dit_lens reads 1"),
    (2, lambda d: d.update(schema="1"), "line 3: schema '1'"),
    (1, lambda d: d.update(kind="layout"), "line 2: kind 'layout'"),
    (0, lambda d: d.update(kind="run"), "line 1: kind 'run'"),
    (0, lambda d: d.update(sites=[]), "no sites"),
    (0, lambda d: d.update(sites=["a"]), "no description"),
    (0, lambda d: d["sites"].append(d["sites"][0]), "a site stands twice"),
    (0, lambda d: d.pop("model"), "field 'model' is missing"),
    (0, site(0, site="../etc/passwd"), "'../etc/passwd' is no site"),
    (0, site(0, site="s3/cond/L5/resid/video"), "canonical"),
    (0, site(0, dtype="F128"), "unknown dtype 'F128'"),
    (0, site(0, dtype="I64"), "takes 576 bytes, not 288"),
    (0, site(0, shape=[-1, 2]), "field 'shape'"),
    (0, site(0, shape=[True]), "field 'shape'"),
    (0, site(0, shape=[10**30], row_bytes=4 * 10**30), "that is too large"),
    (0, site(0, shape=[2**40, 0, 2**40], row_bytes=0), "that is too large"),
    (0, site(0, shape=[2**62], row_bytes=2**64), "field 'row_bytes'"),
    (0, lambda d: d.update(sampling=3), "field 'sampling'"),
    (1, lambda d: d.update(bytes=10**400), "field 'bytes' is 1000"),
    (0, site(0, sigma="high"), "field 'sigma'"),
    (1, lambda d: d.update(file="../../etc/passwd"), "names the file '../../etc/passwd'"),
    (1, lambda d: d.update(file="/etc/passwd"), "names the file '/etc/passwd'"),
    (2, lambda d: d.update(file=FIRST), "names the file '000000.safetensors'; it must be '000001.safetensors'"),
    (2, lambda d: d.update(key="run-0"), "the key 'run-0' stands in an earlier line"),
    (1, lambda d: d.update(bytes=-1), "field 'bytes' is -1"),
    (1, lambda d: d.update(bytes=True), "field 'bytes' is True"),
    (1, lambda d: d.update(rows=[]), "without rows"),
    (1, lambda d: d.update(rows=[{"instance": 3, "seed": 0}]), "field 'instance'"),
    (1, lambda d: d.update(rows=[3]), "is no row"),
    (1, lambda d: d.update(header_sha256="abc"), "is no SHA-256"),
    (1, lambda d: d.update(settings=[]), "field 'settings'"),
]


@pytest.mark.parametrize(("line", "change", "message"), SCHEMA, ids=[m for *_, m in SCHEMA])
def test_a_manifest_that_says_what_cannot_be(
    tmp_path: Path, line: int, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    filled(tmp_path)
    resign(tmp_path, line, change)
    with pytest.raises(StoreError) as caught:
        Store(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / NAME) in str(caught.value)


LIES: list[tuple[int, Callable[[dict[str, Any]], Any], str]] = [
    (0, site(0, dtype="I32"), "has dtype 'F32'; the manifest says 'I32'"),
    (0, site(0, shape=[3, 2, 3, 4]), "has shape [2, 2, 3, 3, 4]; the manifest says [2, 3, 2, 3, 4]"),
    (0, site(0, site="s04/cond/L05/resid/video"), "has no s04/cond/L05/resid/video"),
    (0, lambda d: d["sites"].pop(1), "has, against the manifest, s03/cond/L05/resid/text"),
    (1, lambda d: d["rows"].pop(), "has shape [2, "),
    (1, lambda d: d.update(bytes=5), "the manifest says 5"),
    (1, lambda d: d.update(header_sha256="0" * 64), "does not have the checksum of the manifest"),
]


@pytest.mark.parametrize(("line", "change", "message"), LIES, ids=[m for *_, m in LIES])
@pytest.mark.parametrize("verify", [True, False])
def test_a_manifest_that_does_not_fit_its_shards(
    tmp_path: Path, line: int, change: Callable[[dict[str, Any]], Any], message: str, verify: bool
) -> None:
    filled(tmp_path)
    resign(tmp_path, line, change)
    store = Store(tmp_path, verify=verify)
    with pytest.raises(StoreError) as caught:
        store[store.sites()[-1]][0]
    assert message in str(caught.value)
    assert str(tmp_path / FIRST) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"schema":1', b'"schema":1,"schema":1', "the key 'schema' stands twice"),
        (b'"seed":0', b'"seed":9', "does not have the checksum that it names"),
        (b'"seed":0', b'"seed":NaN', "the value NaN"),
        (b'"sigma":null', b'"sigma":1e999', "the value 1e999, which is infinite"),
        (b'"seed":0', b'"seed":1' + b"0" * 5000, "no valid JSON (Exceeds the limit"),
        (b'{"kind"', b'["kind"', "no valid JSON"),
        (b'"kind"', b'"\xff"', "no valid JSON"),
        (b"\n", b"\n\n", "no valid JSON"),
        (b"\n", b"\n7\n", "a int where an object is expected"),
        (b"\n", b"", "no valid JSON"),
    ],
)
def test_a_manifest_that_was_changed_by_hand(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    filled(tmp_path)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(StoreError) as caught:
        Store(tmp_path)
    assert message in str(caught.value)
    assert f"{path}, line " in str(caught.value)


def test_only_a_last_line_that_was_cut_off_is_forgiven(tmp_path: Path) -> None:
    filled(tmp_path)
    path, data = tmp_path / NAME, (tmp_path / NAME).read_bytes()
    last = data[:-1].rindex(b"\n") + 1
    for end in range(last, len(data) - 1, 7):
        path.write_bytes(data[:end])
        assert Store(tmp_path).keys == ["run-0", "run-1"]
    for tail in (b'{"a":1e999}', b'{"a":1' + b"0" * 5000, b'{"a":1' + b"0" * 5000 + b"}"):
        path.write_bytes(data[:last] + tail)
        assert Store(tmp_path).keys == ["run-0", "run-1"]
    path.write_bytes(data[:-1])  # all of it but the end of the line
    assert Store(tmp_path).keys == ["run-0", "run-1", "run-2"]
    with Store(tmp_path) as store:
        add(store, 3)
    assert Store(tmp_path).keys == ["run-0", "run-1", "run-2", "run-3"]
    path.write_bytes(data[: last - 5] + data[last:])
    with pytest.raises(StoreError, match="line 3"):
        Store(tmp_path)


def test_a_manifest_that_lost_lines_costs_no_shard(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / NAME
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(StoreError, match=r"does not name 000001.safetensors, 000002.safetensors.*nothing was removed"):
        add(Store(tmp_path), 3)
    path.unlink()
    with pytest.raises(StoreError, match="nothing was removed"):
        add(Store(tmp_path), 3)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_lost_manifest_costs_not_even_one_shard(tmp_path: Path) -> None:
    """A killed writer leaves a manifest, if only an empty one."""
    filled(tmp_path, 1)
    (tmp_path / NAME).unlink()
    before = (tmp_path / FIRST).read_bytes()
    with pytest.raises(StoreError, match=f"does not name {FIRST}; nothing was removed"):
        add(Store(tmp_path), 1)
    assert (tmp_path / FIRST).read_bytes() == before


def test_sizes_that_are_just_possible_are_told(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    resign(tmp_path, 0, site(0, shape=[2**61 - 1], row_bytes=2**63 - 4))
    resign(tmp_path, 1, lambda d: d.update(bytes=2**63 - 1))
    store = Store(tmp_path)
    assert store[RESID].nbytes == 2 * (2**63 - 4)
    assert store[RESID][:0].shape == (0, 2**61 - 1)
    assert "9223 PB" in str(store.summary())
    with pytest.raises(StoreError, match="the manifest says"):
        store[RESID][:]


def swap(folder: Path) -> None:
    one, two = folder / FIRST, folder / "000001.safetensors"
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)


def link_out(folder: Path) -> None:
    (folder / FIRST).rename(folder.parent / "elsewhere")
    (folder / FIRST).symlink_to(folder.parent / "elsewhere")


def make_folder(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / FIRST).mkdir()


def make_pipe(folder: Path) -> None:
    (folder / FIRST).unlink()
    os.mkfifo(folder / FIRST)


SHARDS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: (f / FIRST).unlink(), "No such file"),
    (lambda f: os.truncate(f / FIRST, 100), "has 100 bytes; the manifest says"),
    (lambda f: os.truncate(f / FIRST, 9999), "has 9999 bytes"),
    (swap, "does not have the checksum of the manifest"),
    (link_out, "leads out of the folder"),
    (make_folder, "is no regular file"),
    (make_pipe, "is no regular file"),
]


@pytest.mark.parametrize(("change", "message"), SHARDS, ids=[m for _, m in SHARDS])
@pytest.mark.parametrize("verify", [True, False])
def test_a_shard_that_is_not_what_it_was(
    tmp_path: Path, change: Callable[[Path], Any], message: str, verify: bool
) -> None:
    folder = tmp_path / "acts"
    filled(folder)
    change(folder)
    store = Store(folder, verify=verify)
    assert store[RESID].shape[0] == 6
    for reading in (lambda: store[RESID][:], store.verify):
        with pytest.raises(StoreError) as caught:
            reading()
        assert message in str(caught.value)
        assert str(folder / FIRST) in str(caught.value)


def test_a_manifest_that_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    filled(tmp_path / "acts")
    (tmp_path / "acts" / NAME).rename(tmp_path / "elsewhere")
    (tmp_path / "acts" / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="leads out of the folder"):
        Store(tmp_path / "acts")
    (tmp_path / "acts" / NAME).unlink()
    (tmp_path / "acts" / NAME).symlink_to(tmp_path / "gone")
    with pytest.raises(StoreError, match="No such file"):
        Store(tmp_path / "acts")


def test_a_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    filled(tmp_path / "acts")
    (tmp_path / "link").symlink_to(tmp_path / "acts")
    assert torch.equal(Store(tmp_path / "link")[RESID].tensor(), whole(RESID))


def forged(folder: Path, header: dict[str, Any], length: int | None = None) -> None:
    """A first shard with another header, and the manifest's word for it."""
    path = folder / FIRST
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    text = json.dumps(header).encode()
    head = (len(text) if length is None else length).to_bytes(8, "little") + text
    path.write_bytes(head + data[start:])
    sha256 = digest(head)
    resign(folder, 1, lambda d: d.update(header_sha256=sha256, bytes=path.stat().st_size))


def header_of(folder: Path) -> dict[str, Any]:
    data = (folder / FIRST).read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("__metadata__"),
        lambda h: h["__metadata__"].pop(RESID),
        lambda h: h[RESID].update(data_offsets=[0, 10**12]),
        lambda h: h[RESID].update(data_offsets=[8, 584]),
        lambda h: h[RESID].update(shape=[2, 2, 3, 3, 4, 1]),
        lambda h: h[RESID].update(dtype="I32"),
        lambda h: h.update(extra=h[RESID]),
        lambda h: h.pop(RESID),
        lambda h: h.update({RESID: 3}),
    ],
)
def test_a_shard_that_was_forged_with_its_checksum(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    filled(tmp_path)
    header = header_of(tmp_path)
    change(header)
    forged(tmp_path, header)
    with pytest.raises(StoreError, match=FIRST):
        Store(tmp_path)[RESID][:]


def test_a_header_that_claims_to_be_enormous_takes_no_memory(tmp_path: Path) -> None:
    filled(tmp_path)
    forged(tmp_path, header_of(tmp_path), length=2**62)
    with pytest.raises(StoreError, match="a header of"):
        Store(tmp_path)[RESID][:]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("pristine"), 2).folder


@settings(max_examples=150, derandomize=True)
@given(st.data())
@pytest.mark.parametrize("name", [FIRST, NAME])
def test_no_flipped_byte_is_read_as_if_nothing_were(pristine: Path, name: str, data: st.DataObject) -> None:
    path = pristine / name
    original = path.read_bytes()
    place, flip = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(original)
    changed[place] ^= flip
    try:
        path.write_bytes(changed)
        with pytest.raises(StoreError) as caught:
            read_all(pristine)
        assert str(path) in str(caught.value)
    except pytest.fail.Exception:
        # The end of the last line may go: it is then a line that was cut off, and no less is read than was there.
        assert name == NAME
        assert place == len(original) - 1
    finally:
        path.write_bytes(original)


def test_every_byte_of_a_small_shard_counts(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add({RESID: torch.arange(6).reshape(2, 3)}, "run-0", rows=[Row("a", 0), Row("a", 1)])
    path, original = tmp_path / FIRST, (tmp_path / FIRST).read_bytes()
    for place in range(len(original)):
        path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
        with pytest.raises(StoreError, match=FIRST):
            Store(tmp_path)[RESID][:]


def test_without_verification_the_data_are_believed_and_the_header_is_not(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    path = tmp_path / FIRST
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    last = "s03/-/-/guided/video"
    trusting = Store(tmp_path, verify=False)
    trusting[last][:]
    with pytest.raises(StoreError, match="guided/video do not have their checksum"):
        trusting.verify()
    with pytest.raises(StoreError, match="guided/video do not have their checksum"):
        Store(tmp_path)[last][0]
    Store(tmp_path)[RESID][:]  # another tensor of the same shard is what it was


DTYPE = st.sampled_from(sorted(DTYPES))
SITE = st.builds(
    lambda step, branch, layer, component, stream, head: Site(
        step, branch, layer, component, stream, head if component == "head" else None
    ),
    st.integers(0, 120), st.sampled_from([None, "cond", "uncond", "stg"]), st.none() | st.integers(0, 150),
    st.sampled_from(sorted(COMPONENTS)), st.sampled_from(["video", "text", "audio"]), st.integers(0, 40),
)  # fmt: skip
SHAPE = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@settings(max_examples=60, derandomize=True)
@given(
    st.dictionaries(SITE, st.tuples(DTYPE, SHAPE), min_size=1, max_size=4),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, parts: dict[Site, tuple[str, tuple[int, ...]]], rows: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    written = [{s: made(n, *kind) for s, kind in parts.items()} for n in rows]
    with Store(folder) as store:
        for k, (n, captures) in enumerate(zip(rows, written, strict=True)):
            store.add(captures, f"{k}", rows=[Row(f'ü{k}\n"{row}', 2**62 + row) for row in range(n)])
    store = Store(folder)
    store.verify()
    assert store.rows == [Row(f'ü{k}\n"{row}', 2**62 + row) for k, n in enumerate(rows) for row in range(n)]
    assert store.sites() == list(parts)
    for place in parts:
        expected = torch.cat([captures[place] for captures in written])
        found = store[place].tensor()
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert bits(found) == bits(expected)
        assert store[place][-1].shape == store[place].shape[1:]


def made(rows: int, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.arange(rows * int(np.prod(shape)), dtype=torch.float32).reshape(rows, *shape) % 7
    return values.to(DTYPES[dtype])


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
