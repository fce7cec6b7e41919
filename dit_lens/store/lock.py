"""One writer at a time."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from dit_lens.errors import StoreError

NAME = "writer.lock"


class Lock:
    """Held by the one process that writes to a folder.

    The kernel gives the lock back when its holder dies, however it dies, so that none is ever stale.

    Raises
    ------
    StoreError
        Somebody else is writing; the message names the process.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl  # not on Windows, where a store can be read

        path = folder / NAME
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 200, 0).decode(errors="replace").strip()
            os.close(self._file)
            if not isinstance(error, BlockingIOError):
                raise StoreError(f"{path} cannot be locked: {error.strerror}") from error
            raise StoreError(f"{folder}: {holder or 'another process'} is writing to this store") from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back, also what forked children hold of it."""
        import fcntl

        os.ftruncate(self._file, 0)
        fcntl.flock(self._file, fcntl.LOCK_UN)
        os.close(self._file)
