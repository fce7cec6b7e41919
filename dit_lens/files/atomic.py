"""Writing files so that nothing half-written is ever seen, also after a power cut."""

from __future__ import annotations

import os
import threading
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
