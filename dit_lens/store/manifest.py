"""The manifest: what is in a store, one JSON object a line, written when its shard is safely in place."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_lens.errors import SiteError, StoreError
from dit_lens.files import strict
from dit_lens.files.atomic import sync
from dit_lens.files.strict import Malformed, count, get, optional, shape
from dit_lens.runs.inputs import Row
from dit_lens.sites.site import Site
from dit_lens.store.layout import DTYPES, Layout, Part

NAME = "manifest.jsonl"
SCHEMA = 1
SHARD = re.compile(r"\d{6,}\.safetensors")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One run of a store.

    Attributes
    ----------
    key : str
        Under which it was added; the run's id unless told otherwise.
    run_id : str
    file : str
        Name of its shard.
    size : int
        Bytes of the shard.
    sha256 : str
        Of the shard's header, which holds those of the tensors.
    rows : tuple of Row
    settings : dict
        Numbers and short texts among the arguments of the pipeline.
    """

    key: str
    run_id: str
    file: str
    size: int
    sha256: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Manifest:
    """What a manifest says.

    Attributes
    ----------
    layout : Layout or None
        None while the store has no run.
    entries : list of Entry
    keys : set of str
        Of the entries.
    rows : set of Row
        Of the entries.
    whole : int
        Bytes up to the end of the last whole line; what stands behind was cut off by a kill.
    """

    layout: Layout | None = None
    entries: list[Entry] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    rows: set[Row] = field(default_factory=set)
    whole: int = 0

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.keys.add(entry.key)
        self.rows.update(entry.rows)


def shard_name(number: int) -> str:
    return f"{number:06d}.safetensors"


def inside(folder: Path, name: str) -> Path:
    """A regular file of the folder that is not somewhere else in truth.

    Raises
    ------
    StoreError
    """
    path = folder / name
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    if path.resolve().parent != folder.resolve():
        raise StoreError(f"{path} leads out of the folder, to {path.resolve()}")
    if not stat.S_ISREG(kind):
        raise StoreError(f"{path} is no regular file")
    return path


def read(folder: Path) -> Manifest:
    """What the manifest of a folder says; nothing where there is none.

    Raises
    ------
    StoreError
        Names the file, the line and what is wrong. Only a last line that was cut off is forgiven.
    """
    if not os.path.lexists(folder / NAME):
        return Manifest()
    path = inside(folder, NAME)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    manifest = Manifest()
    for number, (text, end) in enumerate(_lines(data), start=1):
        try:
            _take(manifest, strict.parse_line(text), number)
        except (Malformed, SiteError) as error:
            raise StoreError(f"{path}, line {number}: {error}") from error
        manifest.whole = end
    return manifest if manifest.entries else Manifest()


def _lines(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Every whole line, and the number of bytes up to its end."""
    start = 0
    while (end := data.find(b"\n", start) + 1) > 0:
        yield data[start:end], end
        start = end
    if _is_whole(data[start:]):  # an editor took the last newline
        yield data[start:], len(data)


def _is_whole(tail: bytes) -> bool:
    try:
        return bool(strict.parse_line(tail))
    except Malformed:
        return False


def _take(manifest: Manifest, data: dict[str, Any], number: int) -> None:
    if (schema := data.get("schema")) != SCHEMA:
        raise Malformed(f"schema {schema!r}; this version of dit_lens reads {SCHEMA}")
    kind = "layout" if number == 1 else "run"
    if data.get("kind") != kind:
        raise Malformed(f"kind {data.get('kind')!r}; need {kind!r}")
    if manifest.layout is None:
        manifest.layout = _layout(data)
    else:
        manifest.add(_entry(data, manifest))


def _layout(data: Mapping[str, Any]) -> Layout:
    parts = tuple(_part(item) for item in get(data, "sites", list))
    sampling, setup = optional(data, "sampling", dict), optional(data, "setup", dict)
    for name in setup or {}:
        get(setup or {}, name, str)
    layout = Layout(optional(data, "model", str) or None, parts, sampling, setup)
    if not parts or len(layout.by_name) != len(parts):
        raise Malformed("no sites" if not parts else "a site stands twice")
    return layout


def _part(data: Any) -> Part:
    if not isinstance(data, dict):
        raise Malformed(f"{data!r:.60} is no description of a site")
    place = Site.parse(get(data, "site", str))
    if str(place) != data["site"]:
        raise Malformed(f"{data['site']!r} is not the canonical string of a site, which is {str(place)!r}")
    noise = {name: optional(data, name, float) for name in ("sigma", "alpha")}
    site = Site(
        step=place.step,
        branch=place.branch,
        layer=place.layer,
        component=place.component,
        stream=place.stream,
        head=place.head,
        **noise,
        expert=optional(data, "expert", str),
    )
    part = Part(site, get(data, "dtype", str), shape(data, "shape"))
    if part.dtype not in DTYPES:
        raise Malformed(f"{site}: unknown dtype {part.dtype!r}; one of {', '.join(DTYPES)}")
    if part.row_bytes != count(data, "row_bytes"):
        raise Malformed(f"{site}: {part.dtype} {part.shape} takes {part.row_bytes} bytes, not {data['row_bytes']}")
    return part


def _entry(data: Mapping[str, Any], manifest: Manifest) -> Entry:
    rows = tuple(_row(row) for row in get(data, "rows", list))
    entry = Entry(
        key=get(data, "key", str),
        run_id=get(data, "run", str),
        file=get(data, "file", str),
        size=count(data, "bytes"),
        sha256=get(data, "header_sha256", str),
        rows=rows,
        settings=get(data, "settings", dict),
    )
    if entry.file != (expected := shard_name(len(manifest.entries))):
        raise Malformed(f"names the file {entry.file!r}; it must be {expected!r}")
    if entry.key in manifest.keys:
        raise Malformed(f"the key {entry.key!r} stands in an earlier line")
    if not _DIGEST.fullmatch(entry.sha256):
        raise Malformed(f"{entry.sha256!r:.80} is no SHA-256")
    if not rows:
        raise Malformed("a run without rows")
    return entry


def _row(data: Any) -> Row:
    if not isinstance(data, dict):
        raise Malformed(f"{data!r:.60} is no row")
    return Row(get(data, "instance", str), get(data, "seed", int))


def layout_line(layout: Layout) -> bytes:
    sites = [
        {
            "site": str(p.site),
            "dtype": p.dtype,
            "shape": list(p.shape),
            "row_bytes": p.row_bytes,
            "sigma": _float(p.site.sigma),
            "alpha": _float(p.site.alpha),
            "expert": p.site.expert,
        }
        for p in layout.parts
    ]
    sampling = None if layout.sampling is None else dict(layout.sampling)
    setup = None if layout.setup is None else dict(layout.setup)
    return strict.line(
        {
            "kind": "layout",
            "schema": SCHEMA,
            "model": layout.model_id,
            "sampling": sampling,
            "setup": setup,
            "sites": sites,
        }
    )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def entry_line(entry: Entry) -> bytes:
    rows = [{"instance": row.instance, "seed": row.seed} for row in entry.rows]
    return strict.line(
        {
            "kind": "run",
            "schema": SCHEMA,
            "key": entry.key,
            "run": entry.run_id,
            "file": entry.file,
            "bytes": entry.size,
            "header_sha256": entry.sha256,
            "rows": rows,
            "settings": dict(entry.settings),
        }
    )


def prepare(folder: Path, at: int) -> None:
    """See that there is a manifest and that it ends at byte ``at``, before a shard gets its name.

    Raises
    ------
    StoreError
        Somebody else shortened it.
    """
    path = folder / NAME
    if not at and not path.exists():
        path.touch()
    if (size := path.stat().st_size) < at:
        raise StoreError(f"{path} has {size} bytes and had {at}: somebody else changed it")
    if size > at:  # an append that failed could not be taken back
        os.truncate(path, at)
        sync(path)


def append(folder: Path, data: bytes, at: int) -> None:
    """Write lines at byte ``at`` of the manifest, where it ends, and wait until they are on the disk.

    Where it fails the manifest is left as it was; where even that fails, `prepare` does it before the next.
    """
    with (folder / NAME).open("r+b", buffering=0) as file:
        file.seek(at)
        try:
            _write_all(file, data)
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(at)
            raise


def cut(folder: Path, whole: int) -> int:
    """Take off what stands behind the last whole line, and see that the line is ended; returns where that is."""
    if not (folder / NAME).exists():
        return 0
    with (folder / NAME).open("r+b", buffering=0) as file:
        file.truncate(whole)
        file.seek(max(whole - 1, 0))
        if whole and file.read(1) != b"\n":
            whole += file.write(b"\n")
        os.fsync(file.fileno())
    return whole


def _write_all(file: Any, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
