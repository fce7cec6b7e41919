"""One writer at a time."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from weakref import WeakSet

from dit_lens.errors import StoreError

NAME = "writer.lock"


class Lock:
    """Held by the one process that writes to a folder.

    The kernel gives the lock back when its holder dies, however it dies. Forked children let go of it at once: they
    may outlive the holder, and nobody could write before they end.

    Raises
    ------
    StoreError
        Somebody else is writing; the message names the process.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl  # not on Windows, where a store can be read

        path = folder / NAME
        self._file: int | None = None
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            if not isinstance(error, BlockingIOError):
                raise StoreError(f"{path} cannot be locked: {error.strerror}") from error
            raise StoreError(f"{folder}: {holder or 'another process'} is writing to this folder") from error
        self._file = file
        _HELD.add(self)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back."""
        import fcntl

        if self._file is not None:
            os.ftruncate(self._file, 0)
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self.drop()

    def drop(self) -> None:
        """Close what this process has of the lock, and leave it to the process that took it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


_HELD: WeakSet[Lock] = WeakSet()


def _drop_all() -> None:
    for lock in list(_HELD):
        lock.drop()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_drop_all)
