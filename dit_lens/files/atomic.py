"""Writing files so that nothing half-written is ever seen, also after a power cut."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dit_lens.errors import StoreError


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Write ``data`` under a temporary name in the same folder, then rename it to ``path``.

    Raises
    ------
    StoreError
        It cannot be written; what was there before is left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        make_folder(path.parent)
        try:
            temporary.write_bytes(data)
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``folder`` when the block has ended, and goes away if it fails.

    What was there before lies beside it for the moment between two renames; a kill in that moment is mended by the next
    call.

    Raises
    ------
    StoreError
        It cannot be replaced; what was there before is left as it was.
    """
    folder = Path(folder)
    new, old = (folder.with_name(f".{folder.name}.{which}") for which in ("part", "old"))
    try:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            if left.exists():
                shutil.rmtree(left)
        make_folder(new)
        try:
            yield new
            for path in new.rglob("*"):
                sync(path)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be replaced: {error.strerror or error}") from error


def standing(folder: Path) -> Path:
    """Where what belongs in ``folder`` lies: beside it, if a kill came between the renames of `replacing_folder`."""
    old = folder.with_name(f".{folder.name}.old")
    return old if old.is_dir() and not folder.exists() else folder


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each to be found after a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would be found after a power cut."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    # Windows flushes only what was opened for writing.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
