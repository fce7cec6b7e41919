"""kill -9 at any point: no finished run is lost, and the resumed store is the one that was never interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.store.killed", str(tmp_path_factory.mktemp("killed"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_thirty_random_kills_lose_nothing(report: dict[str, Any]) -> None:
    random = report["random"]
    assert random["kills"] == 30
    assert random["lost"] == []
    assert random["runs"] == random["runs at each kill"][-1] + 5
    assert random["equal to an uninterrupted store"]
    assert random["runs at each kill"] == sorted(random["runs at each kill"])
    assert len(set(random["runs at each kill"])) > 5  # the kills fell into different runs


def test_a_kill_at_every_place_loses_nothing(report: dict[str, Any]) -> None:
    everywhere = report["everywhere"]
    assert everywhere["places"] > 40
    assert everywhere["lost"] == everywhere["unequal"] == []


def test_the_kills_met_every_kind_of_leftover(report: dict[str, Any]) -> None:
    kinds = {"nothing", "half a shard", "a shard without its line", "a line cut off"}
    assert set(report["everywhere"]["left behind"]) == kinds


def test_the_lock_of_a_dead_process_is_taken_over(report: dict[str, Any]) -> None:
    assert report["alone"]["locked"].startswith("process ")
    assert report["alone"]["after the lock of the dead"] == "run-0 run-1"


def test_a_child_that_outlives_the_writer_holds_no_lock(report: dict[str, Any]) -> None:
    assert report["alone"]["outlived"] == "run-0 run-1"


def test_a_forked_child_may_not_write(report: dict[str, Any]) -> None:
    assert "only it may write" in report["alone"]["fork"]


def test_the_kernel_refuses_to_write_more(report: dict[str, Any]) -> None:
    assert "'run-1' was not written: File too large" in report["alone"]["limited"]
    assert report["alone"]["after the limit"] == "000000.safetensors manifest.jsonl"


def test_a_folder_that_may_only_be_read_is_read(report: dict[str, Any]) -> None:
    assert report["alone"]["without rights"].startswith("read (2, 2, 3, 3, 4);")
    assert report["alone"]["without rights"].endswith("cannot be written to: Permission denied")
