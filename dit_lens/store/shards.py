"""Reading tensors out of shards, every one checked before it is believed."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dit_lens.errors import StoreError
from dit_lens.files import strict
from dit_lens.store import shard
from dit_lens.store.layout import Layout
from dit_lens.store.manifest import Entry, inside

#: Shards that are kept open.
OPEN = 64
#: More than any header of a store; a manipulated length must not take the memory.
LONGEST = 100_000_000


@dataclass
class Opened:
    """A shard whose header is what the manifest says."""

    path: Path
    file: Any
    digests: dict[str, str]


class Shards:
    """The shards of a folder, opened when they are read.

    Parameters
    ----------
    folder : Path
    verify : bool
        Check the checksum of every tensor when it is first read. The header's is always checked.
    """

    def __init__(self, folder: Path, verify: bool) -> None:
        self.folder, self.verify = folder, verify
        # By the name of a shard and its checksum: a folder may have been emptied and filled anew.
        self._open: OrderedDict[tuple[str, str], Opened] = OrderedDict()
        self._verified: set[tuple[str, str, str]] = set()
        self._lock, self._owner = RLock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "verify": self.verify}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, entry: Entry, layout: Layout, name: str, index: tuple[Any, ...]) -> Tensor:
        """A part of one tensor: whole numbers and slices of step 1, rows first.

        Raises
        ------
        StoreError
        """
        if os.getpid() != self._owner:
            # A fork has the parent's open files, and perhaps a lock that a thread of the parent held and none frees.
            self.__init__(self.folder, self.verify)  # type: ignore[misc]
        with self._lock:
            opened, tensor = self._opened(entry, layout), (entry.file, entry.sha256, name)
            try:
                if self.verify and tensor not in self._verified:
                    self._check(opened, name)
                    self._verified.add(tensor)
                part: Tensor = opened.file.get_slice(name)[index]
            except (SafetensorError, OSError) as error:
                raise StoreError(f"{opened.path}, {name}: {error}") from error
            return part

    def check(self, entry: Entry, layout: Layout) -> None:
        """Check every byte of a shard.

        Raises
        ------
        StoreError
        """
        with self._lock:
            self._open.pop((entry.file, entry.sha256), None)
            opened = self._opened(entry, layout)
            for name in layout.by_name:
                self._check(opened, name)

    def _check(self, opened: Opened, name: str) -> None:
        if shard.digest(shard.raw(opened.file.get_tensor(name))) != opened.digests[name]:
            raise StoreError(f"{opened.path}: the data of {name} do not have their checksum; they are damaged")

    def _opened(self, entry: Entry, layout: Layout) -> Opened:
        key = entry.file, entry.sha256
        if key not in self._open:
            self._open[key] = open_shard(self.folder, entry, layout)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]


def open_shard(folder: Path, entry: Entry, layout: Layout) -> Opened:
    """Open a shard and hold its header against the manifest.

    Raises
    ------
    StoreError
        Names the file and what is wrong.
    """
    path = inside(folder, entry.file)
    try:
        if (size := path.stat().st_size) != entry.size:
            raise StoreError(f"{path} has {size} bytes; the manifest says {entry.size}")
        head = _header(path)
        if shard.digest(head) != entry.sha256:
            raise StoreError(f"{path}: the header does not have the checksum of the manifest; the file is damaged")
        digests = _compare(strict.load(head[8:]), entry, layout)
        return Opened(path, safe_open(path, framework="pt"), digests)
    except (strict.Malformed, SafetensorError) as error:
        raise StoreError(f"{path}: {error}") from error
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > LONGEST:
            raise strict.Malformed(f"a header of {length} bytes")
        return start + file.read(length)


def _compare(header: dict[str, Any], entry: Entry, layout: Layout) -> dict[str, str]:
    """The checksums in a header that has the sites, dtypes and shapes of the layout."""
    digests = strict.get(header, "__metadata__", dict)
    _same_sites(header.keys() - {"__metadata__"}, layout)
    for name, part in layout.by_name.items():
        found = strict.get(header, name, dict)
        wanted = [len(entry.rows), *part.shape]
        for field, value in (("dtype", part.dtype), ("shape", wanted)):
            if found.get(field) != value:
                raise strict.Malformed(f"{name} has {field} {found.get(field)!r:.80}; the manifest says {value!r}")
        strict.get(digests, name, str)
    return digests


def _same_sites(names: set[str], layout: Layout) -> None:
    if missing := layout.by_name.keys() - names:
        raise strict.Malformed(f"has no {min(missing)}")
    if extra := names - layout.by_name.keys():
        raise strict.Malformed(f"has, against the manifest, {min(extra)}")
