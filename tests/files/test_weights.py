"""Weights are read with their own record only: a save that was killed halfway over an older pair is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from dit_lens.errors import StoreError
from dit_lens.files.weights import read_weights, write_weights

OLD, NEW = ({"w": torch.full((2, 3), value)} for value in (1.0, 2.0))
RECORD: dict[str, Any] = {"name": "a", "steps": [1, 2]}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "new" / "set.safetensors", OLD, RECORD)
    tensors, record = read_weights(path)
    assert torch.equal(tensors["w"], OLD["w"])
    assert record == RECORD
    assert sorted(p.name for p in path.parent.iterdir()) == ["set.json", "set.safetensors"]


def test_new_weights_beside_an_old_record_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_weights(tmp_path / "set.safetensors", OLD, RECORD)
    rename = os.replace

    def killed(temporary: Any, target: Any) -> None:
        if Path(target).suffix == ".json":
            raise KeyboardInterrupt
        rename(temporary, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_weights(path, NEW, RECORD)
    with pytest.raises(StoreError, match=r"set.json is the record of other weights than set\.safetensors"):
        read_weights(path)
    assert torch.equal(read_weights(write_weights(path, NEW, RECORD))[0]["w"], NEW["w"])


@pytest.mark.parametrize("spoilt", ["[]", "{", "{}", '{"weights_sha256": 3}', json.dumps({**RECORD, "w": "x"})])
def test_records_that_name_no_weights_are_refused(tmp_path: Path, spoilt: str) -> None:
    path = write_weights(tmp_path / "set.safetensors", OLD, RECORD)
    path.with_suffix(".json").write_text(spoilt)
    with pytest.raises(StoreError, match="set"):
        read_weights(path)


@pytest.mark.parametrize("missing", [".json", ".safetensors"])
def test_a_missing_half_is_named(tmp_path: Path, missing: str) -> None:
    path = write_weights(tmp_path / "set.safetensors", OLD, RECORD)
    path.with_suffix(missing).unlink()
    with pytest.raises(StoreError, match=f"No such file.*set{missing}"):
        read_weights(path)


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "set.safetensors", OLD, RECORD)
    record = path.with_suffix(".json").read_text()
    short = save(OLD)[:20]
    path.write_bytes(short)
    named = json.loads(record) | {"weights_sha256": hashlib.sha256(short).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(named))
    with pytest.raises(StoreError, match="cannot be read"):
        read_weights(path)
