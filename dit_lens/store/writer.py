"""The background thread that puts runs into files."""

from __future__ import annotations

import atexit
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import BoundedSemaphore

from dit_lens.errors import InputError, StoreError
from dit_lens.files.atomic import make_folder, sync
from dit_lens.files.lock import Lock
from dit_lens.store import manifest as manifests
from dit_lens.store import shard
from dit_lens.store.job import Job, tensor_versions
from dit_lens.store.layout import Layout
from dit_lens.store.manifest import Entry, Manifest

Digests = dict[str, Future[str]]


class Writer:
    """Appends runs to a folder, one after the other, in threads of its own.

    Parameters
    ----------
    folder : Path
    waiting : int
        Runs that may wait to be written; with as many waiting `put` waits too, which bounds the memory.

    Raises
    ------
    StoreError
        The folder cannot be written to, another process writes to it, or it is damaged.
    """

    def __init__(self, folder: Path, waiting: int) -> None:
        self.folder, self._owner = folder, os.getpid()
        self._lock = _lock(folder)
        try:
            self.manifest: Manifest = manifests.read(folder)
            _mend(folder, self.manifest)
        except BaseException:
            self._lock.release()
            raise
        # What the runs that wait will have made of the manifest.
        self._layout, self._rows = self.manifest.layout, set(self.manifest.rows)
        self._room = BoundedSemaphore(waiting + 1)
        # Hashing and copying take processors and syncing takes the disk: one run is written and hashed while the one
        # before it goes to the disk. The thread that places runs is one, and keeps them in order.
        self._hashing = ThreadPoolExecutor(2, "dit_lens digest")
        self._writing = ThreadPoolExecutor(1, "dit_lens write")
        self._placing = ThreadPoolExecutor(1, "dit_lens place")
        self._count = 0
        self._pending: dict[str, Future[None]] = {}
        self._failed: StoreError | None = None
        atexit.register(self._never_closed)

    def put(self, job: Job) -> None:
        """Queue a run; it is finished once `flush` has returned.

        Raises
        ------
        StoreError
            An earlier run could not be written.
        MadeForAnother, InputError
            It does not belong into this store, or is there already.
        """
        self._require_owner()
        self._raise_failed()
        if job.key in self.manifest.keys or job.key in self._pending:
            raise InputError(f"the store has a run {job.key!r} already; skip those that are `in` it, or give key=")
        if not job.named and (twice := self._rows.intersection(job.rows)):
            raise InputError(
                f"the store has {min(twice, key=str)} already, of another run: other interventions or settings; give "
                "key= to keep both here, or use another store"
            )
        (self._layout or job.layout).require(job.layout)
        self._room.acquire()
        self._layout = self._layout or job.layout
        self._rows.update(job.rows)
        self._pending = {key: done for key, done in self._pending.items() if not done.done()}
        temporary = self.folder / f".{manifests.shard_name(self._count)}.part"
        self._count += 1
        written = self._writing.submit(self._write, job, temporary, self._digests(job))
        self._pending[job.key] = self._placing.submit(self._finish, job, temporary, written)

    def _digests(self, job: Job) -> Digests:
        return {name: self._hashing.submit(lambda t: shard.digest(shard.raw(t)), t) for name, t in job.tensors.items()}

    def flush(self) -> None:
        """Wait until every queued run is on the disk.

        Raises
        ------
        StoreError
            One could not be written.
        """
        self._require_owner()
        for done in list(self._pending.values()):
            done.result()
        self._raise_failed()

    def close(self) -> None:
        """Write what is queued and let others write."""
        self._require_owner()
        atexit.unregister(self._never_closed)
        try:
            self.flush()
        finally:
            for pool in (self._writing, self._placing, self._hashing):
                pool.shutdown()
            self._lock.release()

    def _never_closed(self) -> None:
        """Python prints an error that is raised at its end: nobody would hear of a run that was not written."""
        if os.getpid() == self._owner:
            self.close()

    def _require_owner(self) -> None:
        if os.getpid() != self._owner:
            raise StoreError(
                f"{self.folder}: process {self._owner} opened this store for writing, and only it may write"
            )

    def _raise_failed(self) -> None:
        """Raise the first failure once; the runs queued behind it were dropped, and the store can be used again."""
        if self._failed is None:
            return
        for done in self._pending.values():
            done.result()
        failed, self._failed, self._pending = self._failed, None, {}
        self._layout, self._rows = self.manifest.layout, set(self.manifest.rows)
        raise failed

    def _write(self, job: Job, temporary: Path, digests: Digests) -> str:
        """Write a shard under another name; returns the checksum of its header."""
        return "" if self._failed is not None else shard.write(temporary, job.tensors, digests)

    def _finish(self, job: Job, temporary: Path, written: Future[str]) -> None:
        """Put a run in its place; failures are kept for the next call."""
        try:
            head = written.result()
            if self._failed is None:
                self._place(job, temporary, head)
            else:
                self._failed.add_note(f"nor was the run {job.key!r}, which waited behind it")
        except BaseException as error:
            self._fail(job, error)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._room.release()

    def _fail(self, job: Job, error: BaseException) -> None:
        if self._failed is not None:
            return self._failed.add_note(f"nor was the run {job.key!r}: {error}")
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        self._failed = StoreError(f"{self.folder}: the run {job.key!r} was not written: {why}")
        self._failed.__cause__ = error
        return None

    def _place(self, job: Job, temporary: Path, head: str) -> None:
        """Sync, rename, line of the manifest: what is killed in between leaves no run behind."""
        if tensor_versions(job.tensors) != job.versions:
            raise StoreError("its tensors were changed in place before they were written")
        name, size = manifests.shard_name(len(self.manifest.entries)), temporary.stat().st_size
        sync(temporary)
        manifests.prepare(self.folder, self.manifest.whole)
        try:
            os.replace(temporary, self.folder / name)
            sync(self.folder)
            self._append(Entry(job.key, job.run_id, name, size, head, job.rows, job.settings), job.layout)
        except BaseException:
            if (self.folder / manifests.NAME).stat().st_size <= self.manifest.whole:  # else its line may be there
                (self.folder / name).unlink(missing_ok=True)
            raise

    def _append(self, entry: Entry, layout: Layout) -> None:
        first = not self.manifest.entries
        lines = (manifests.layout_line(layout) if first else b"") + manifests.entry_line(entry)
        manifests.append(self.folder, lines, self.manifest.whole)
        self.manifest.layout = layout if first else self.manifest.layout
        self.manifest.whole += len(lines)
        self.manifest.add(entry)


def _lock(folder: Path) -> Lock:
    try:
        make_folder(folder)
        return Lock(folder)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{folder} cannot be written to: {error.strerror}") from error


def _mend(folder: Path, manifest: Manifest) -> None:
    """Remove what a killed writer left: a line cut off, a file half written, a shard whose line was not written."""
    try:
        for path in folder.glob(".*.safetensors.part"):
            path.unlink()
        shards = {p.name for p in folder.iterdir() if manifests.SHARD.fullmatch(p.name)}
        unnamed = shards - {entry.file for entry in manifest.entries}
        left = manifests.shard_name(len(manifest.entries))
        if unnamed and (unnamed != {left} or not (folder / manifests.NAME).exists()):
            # A kill leaves one at most, and a manifest. Else the manifest lost lines, and these may be all there is.
            raise StoreError(
                f"{folder}: the manifest does not name {', '.join(sorted(unnamed)[:4])}; nothing was removed"
            )
        if left in unnamed:
            (folder / left).unlink()
        manifest.whole = manifests.cut(folder, manifest.whole)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{folder} cannot be written to: {error.strerror}") from error
