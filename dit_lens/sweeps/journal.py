"""What a sweep has finished, line by line on disk, so that a second start finishes only what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from dit_lens.errors import EvidenceError, StoreError
from dit_lens.files import strict
from dit_lens.files.atomic import make_folder, sync, write_atomic
from dit_lens.files.lock import NAME as LOCK
from dit_lens.files.lock import Lock
from dit_lens.files.strict import Malformed
from dit_lens.sweeps.local import Outcome, require_outcome
from dit_lens.sweeps.plan import SweepPlan

_HEAD, _LINES = "sweep.json", "cells.jsonl"
_FORMAT = "dit_lens sweep 1"


class Journal:
    """A folder with the outcomes of one plan; one process writes at a time.

    Parameters
    ----------
    folder : path
        New, empty, or of the same plan.
    plan : SweepPlan

    Raises
    ------
    StoreError
        A folder of another plan or of anything else, a line that was changed, or another writer.
    """

    def __init__(self, folder: str | Path, plan: SweepPlan) -> None:
        self.folder, self._plan = Path(folder), plan
        self._path = self.folder / _LINES
        try:
            if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
                raise StoreError(f"{self.folder} is no folder; give one for the sweep")
            make_folder(self.folder)
            names = {path.name for path in self.folder.iterdir()} - {LOCK}
            if names and _HEAD not in names:
                raise StoreError(f"{self.folder} holds {min(names)!r} and no sweep; give another folder")
            self._lock = Lock(self.folder)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.folder} cannot be used: {error.strerror or error}") from error
        try:
            self._require(plan.id)
            self.found = {(o.batch, o.cell): o for o in self._read() if not o.error}
        except BaseException:
            self.close()
            raise

    def _require(self, plan: str) -> None:
        path = self.folder / _HEAD
        if not path.exists():
            write_atomic(path, strict.line({"format": _FORMAT, "plan": plan}))
            return
        try:
            head = strict.parse_line(path.read_bytes().removesuffix(b"\n"))
        except Malformed as error:
            raise StoreError(f"{path}: {error}") from error
        if head != {"format": _FORMAT, "plan": plan}:
            raise StoreError(
                f"{self.folder} holds a sweep of plan {head.get('plan')!r:.40}, this is {plan!r}: another model, "
                "task, grid, metric, seed, batch or version; give another folder"
            )

    def _read(self) -> Iterator[Outcome]:
        """All that was finished; a last line that a kill cut off is taken away."""
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self._path, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                outcome: Outcome = strict.typed(strict.parse_line(line), Outcome, "outcome")
                require_outcome(self._plan, outcome)
                yield outcome
            except (Malformed, EvidenceError) as error:
                raise StoreError(f"{self._path}, line {number}: {error}") from error

    def add(self, outcome: Outcome) -> None:
        """Write one outcome, to be found after a kill or a power cut.

        Raises
        ------
        StoreError
            It cannot be written; those before it are kept.
        """
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("ab") as file:
                file.write(strict.line(asdict(outcome)))
                file.flush()
                os.fsync(file.fileno())
            if not size:
                sync(self.folder)
        except OSError as error:
            if self._path.exists():
                os.truncate(self._path, size)
            raise StoreError(
                f"{self._path} cannot be written: {error.strerror or error}; what was finished before is kept, and "
                "the same call goes on from there"
            ) from error

    def close(self) -> None:
        self._lock.release()
