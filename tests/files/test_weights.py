"""Weights and their record are one file: whole, or that which was there before, or refused."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dit_lens.errors import StoreError
from dit_lens.files.weights import read_weights, write_weights

OLD = {"w": torch.full((2, 3), 1.0)}
RECORD: dict[str, Any] = {"name": "a", "steps": [1, 2]}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "new" / "set.safetensors", OLD, RECORD)
    tensors, record = read_weights(path)
    assert torch.equal(tensors["w"], OLD["w"])
    assert record == RECORD
    assert [p.name for p in path.parent.iterdir()] == ["set.safetensors"]


#: Writes pairs without end in which the record tells the value that the weights have.
WRITER = """
import sys, torch
from pathlib import Path
from dit_lens.files.weights import write_weights
number = 0
while True:
    number += 1
    write_weights(Path(sys.argv[1]), {"w": torch.full((300, 300), float(number))}, {"number": number})
"""


def test_a_kill_leaves_a_pair_that_belongs_together(tmp_path: Path) -> None:
    path, seen, chance = tmp_path / "set.safetensors", [], random.Random(0)
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        before = path.stat().st_ino if path.exists() else None
        while (not path.exists() or path.stat().st_ino == before) and writer.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.02, 0.3))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        tensors, record = read_weights(path)
        assert (tensors["w"] == record["number"]).all()
        seen.append(record["number"])
    assert len(set(seen)) > 1


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_byte_can_be_changed_unnoticed(data: st.DataObject) -> None:
    path = Path(data.draw(st.just("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"))) / "dit-lens-byte.safetensors"
    whole = write_weights(path, OLD, RECORD).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    try:
        tensors, record = read_weights(path)
    except StoreError:
        return
    finally:
        path.unlink()
    # White space before the tensors may become other white space.
    assert torch.equal(tensors["w"], OLD["w"])
    assert record == RECORD


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_a_record_that_is_no_json_is_not_written(tmp_path: Path, value: Any) -> None:
    path = write_weights(tmp_path / "set.safetensors", OLD, RECORD)
    with pytest.raises(StoreError, match="cannot be written as JSON"):
        write_weights(path, OLD, RECORD | {"value": value})
    assert read_weights(path)[1] == RECORD


def test_files_without_a_record_and_no_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    with pytest.raises(StoreError, match=r"set\.safetensors cannot be read: .*No such file"):
        read_weights(path)
    save_file(OLD, path)
    with pytest.raises(StoreError, match="field 'record' is missing"):
        read_weights(path)
    for length in (0, 7, 8, 30):
        path.write_bytes(write_weights(tmp_path / "other.safetensors", OLD, RECORD).read_bytes()[:length])
        with pytest.raises(StoreError, match=f"ends after {length} bytes, within its header"):
            read_weights(path)
