"""Kill a writer again and again: ``python -m tests.store.killed FOLDER`` prints what became of its store.

Children are forked here, in a process without threads, because to import the package takes seconds and to write a run
milliseconds. Half of them kill themselves at a chosen place (before, within or after a write, a flush to disk or a
rename), the others are killed from outside at a random time.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dit_lens.errors import StoreError
from dit_lens.store import manifest, shard
from dit_lens.store.store import Store
from tests.store.made import RESID, add

#: More runs than a writer finishes before it is killed, however slow the machine that kills.
ENDLESS = 1_000_000


class Bomb:
    """Kills this process at the n-th of the moments that it counts."""

    def __init__(self, fuse: int) -> None:
        self.left = fuse

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def ticking(*arguments: Any) -> Any:
            self.tick()
            result = function(*arguments)
            self.tick()
            return result

        return ticking

    def within(self, write: Callable[..., Any], whole: bool) -> Callable[..., Any]:
        """A write that may end halfway."""

        def ticking(file: Any, data: Any) -> None:
            parts = [data] if whole else data
            for part in parts:
                half = len(part) // 2
                for piece in (part[:half], part[half:]):
                    self.tick()
                    write(file, piece if whole else [piece])
            self.tick()

        return ticking

    def arm(self) -> None:
        os.fsync, os.replace = self.around(os.fsync), self.around(os.replace)
        shard._write_all = self.within(shard._write_all, False)
        manifest._write_all = self.within(manifest._write_all, True)


def work(folder: Path, runs: int, fuse: int | None, finished: Path) -> None:
    """What a researcher's loop does: skip what is there, add what is not, say now and then what is safe."""
    if fuse is not None:
        Bomb(fuse).arm()
    said = os.open(finished, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with Store(folder) as store:
        for number in range(runs):
            if f"run-{number}" not in store:
                add(store, number)
            if number % 3 == 2:
                store.flush()
                os.write(said, f"{number}\n".encode())


def killed(folder: Path, runs: int, fuse: int | None, wait: float | None, finished: Path) -> bool:
    """Whether a child was killed before it was done."""
    child = os.fork()
    if not child:
        work(folder, runs, fuse, finished)
        os._exit(0)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        raise SystemExit(f"the writer failed with {os.waitstatus_to_exitcode(status)}")
    return os.WIFSIGNALED(status)


def leftovers(folder: Path) -> list[str]:
    """What the kill left lying about."""
    named = {entry.file for entry in manifest.read(folder).entries}
    found = ["half a shard" for _ in folder.glob(".*.part")]
    found += ["a shard without its line" for path in folder.glob("*.safetensors") if path.name not in named]
    lines = folder / manifest.NAME
    cut = lines.exists() and not lines.read_bytes().endswith(b"\n") and lines.stat().st_size
    return found + ["a line cut off"] * bool(cut) or ["nothing"]


def lost(folder: Path, finished: Path) -> list[str]:
    """Runs that were said to be safe and are not."""
    store = Store(folder)
    store.verify()
    said = [int(line) for line in finished.read_text().split()] if finished.exists() else []
    return [f"run-{k}" for k in range(max(said, default=-1) + 1) if f"run-{k}" not in store]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "writer.lock"}


def at_random(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill at random places and times; resume each time; let it write a few more runs and end in peace."""
    rng, finished, store = random.Random(seed), folder / "finished", folder / "store"
    report: dict[str, Any] = {"kills": 0, "left behind": Counter(), "lost": [], "runs at each kill": []}
    while report["kills"] < kills:
        inside = report["kills"] % 2 == 0
        fuse, wait = (rng.randint(1, 90), None) if inside else (None, rng.uniform(0.0, 0.08))
        killed(store, ENDLESS, fuse, wait, finished)
        report["kills"] += 1
        report["left behind"].update(leftovers(store) if store.exists() else ["nothing"])
        report["lost"] += lost(store, finished)
        report["runs at each kill"].append(len(Store(store).keys))
    runs = len(Store(store).keys) + 5
    killed(store, runs, None, None, finished)
    killed(folder / "whole", runs, None, None, folder / "other")
    report["runs"] = len(Store(store).keys)
    report["equal to an uninterrupted store"] = contents(store) == contents(folder / "whole")
    return report


def everywhere(folder: Path, runs: int) -> dict[str, Any]:
    """Kill at every place once, each time in a new folder, and resume."""
    killed(folder / "whole", runs, None, None, folder / "other")
    report: dict[str, Any] = {"places": 0, "left behind": Counter(), "lost": [], "unequal": []}
    while True:
        fuse = report["places"] + 1
        store, finished = folder / f"store-{fuse}", folder / f"finished-{fuse}"
        if not killed(store, runs, fuse, None, finished):
            return report
        report["places"] += 1
        report["left behind"].update(leftovers(store))
        report["lost"] += lost(store, finished)
        killed(store, runs, None, None, finished)
        if contents(store) != contents(folder / "whole"):
            report["unequal"].append(fuse)


def tell(folder: Path, function: Callable[[Path], Any]) -> str:
    """What a function says, or the error that it raises, in a child of its own."""
    reading, writing = os.pipe()
    if not os.fork():
        try:
            said = str(function(folder))
        except StoreError as error:
            said = str(error)
        os.write(writing, said.encode())
        os.kill(os.getpid(), signal.SIGKILL)  # nothing of the parent's is cleaned up here
    os.wait()
    return os.read(reading, 10_000).decode()


def with_one_run(folder: Path) -> Store:
    store = Store(folder)
    add(store, 0)
    store.flush()
    return store


def outlived(folder: Path) -> int:
    """A child of the writer that lives on; the writer is killed. Returns the child."""
    store = with_one_run(folder)
    child = os.fork()
    if not child:
        signal.pause()
    assert "run-0" in store
    return child


def resumed(folder: Path) -> str:
    with Store(folder) as store:
        add(store, 1)
    return " ".join(store.keys)


def limited(folder: Path) -> None:
    """Files may not grow beyond 1000 bytes, as if the disk were full."""
    store = with_one_run(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    add(store, 1)
    store.flush()


def without_rights(folder: Path) -> str:
    """Somebody else's folder."""
    folder.chmod(0o555)
    if not os.getuid():
        os.setuid(65534)
    with Store(folder) as store:
        read = store[RESID][:].shape
        try:
            add(store, 1)
        except StoreError as error:
            return f"read {read}; {error}"
    return "it wrote"


def alone(folder: Path) -> dict[str, str]:
    """One child each: the lock of a killed process, a fork of a writer, a disk that is full, a folder read only."""
    said = {
        "locked": tell(folder / "lock", lambda place: (with_one_run(place), Path(place / "writer.lock").read_text())[1])
    }
    with Store(folder / "lock") as store:
        add(store, 1)
        store.flush()
        said["fork"] = tell(folder / "lock", lambda _: add(store, 2))
    said["after the lock of the dead"] = " ".join(Store(folder / "lock").keys)
    child = int(tell(folder / "outlived", outlived))
    said["outlived"] = tell(folder / "outlived", resumed)
    os.kill(child, signal.SIGKILL)
    said["limited"] = tell(folder / "limited", limited)
    said["after the limit"] = " ".join(sorted(contents(folder / "limited")))
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders let nobody else in
        Path(name).chmod(0o755)
        with_one_run(Path(name) / "store").close()
        said["without rights"] = tell(Path(name) / "store", without_rights)
    return said


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "random").mkdir(parents=True)
    (place / "everywhere").mkdir()
    (place / "alone").mkdir()
    result = {
        "random": at_random(place / "random", 30, 0),
        "everywhere": everywhere(place / "everywhere", 2),
        "alone": alone(place / "alone"),
    }
    print(json.dumps(result, indent=1))
