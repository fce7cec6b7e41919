"""A sweep that is killed again and again; ``python -m tests.sweeps.killed FOLDER`` says what is left of it."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import dit_lens as dl
from tests.subjects import subject_of


def plan() -> dl.SweepPlan:
    """64 cells on two batches of a tiny model."""
    model, task = subject_of("organism").model, dl.tasks.Maze(size=4, lengths=(3, 8))
    noise = dl.Noise(dl.Sites("resid", steps=0), "add")
    over = {"layers": "each", "dose": [k / 8 for k in range(8)]}
    return dl.plan_sweep(model, task, noise, over, "distance", instances=task.sample(4), batch=2, num_inference_steps=2)


def lines(folder: Path) -> int:
    path = folder / "cells.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_once(folder: Path, after: float) -> bool:
    """Start it in a process of its own, kill that at some moment after it has finished a cell; False where it ended."""
    before, child = lines(folder), os.fork()
    if child == 0:
        try:
            dl.carry_out(plan(), folder=folder, progress=None)
        finally:
            os._exit(0)
    while lines(folder) == before and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(after)
    try:
        os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    except (ProcessLookupError, ChildProcessError):
        return False


def kill(folder: Path, times: int, seed: int = 0) -> int:
    """Kill it so many times, or until it is through; how often it was killed."""
    moments = random.Random(seed)
    return sum(1 for _ in range(times) if killed_once(folder, moments.random() * 0.02))


if __name__ == "__main__":
    where = Path(sys.argv[1])
    whole = dl.carry_out(plan(), progress=None)
    count = kill(where, 50)
    found = lines(where)
    rest = dl.carry_out(plan(), folder=where, progress=None)
    same = (rest.values == whole.values).all() and rest.forwards == whole.forwards
    print(f"killed {count} times, {found} outcomes on disk, the end is {'equal' if same else 'NOT EQUAL'}")
    sys.exit(not same)
