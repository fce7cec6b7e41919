"""A new definition of ids changes the ids on cards and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import dit_lens as dl
from dit_lens.errors import MadeForAnother
from dit_lens.files.shipped import ORGANISMS
from dit_lens.files.weights import read_weights, write_weights
from dit_lens.organisms.load import load_organism
from dit_lens.organisms.stamp import stamp
from dit_lens.probing.probe_set import ProbeSet


def test_stamping_puts_the_ids_right_and_leaves_the_weights(tmp_path: Path) -> None:
    folder = tmp_path / "maze"
    shutil.copytree(ORGANISMS / "maze", folder)
    cards = sorted(folder.glob("*.safetensors"))
    assert [path.stem for path in cards] == ["preview", "probes-clips", "probes", "tuned_lens"]
    shipped = {path: path.read_bytes() for path in cards}
    for path in cards:
        tensors, card = read_weights(path)
        write_weights(path, tensors, card | {"vae" if path.stem == "preview" else "model_id": "another"})
    model = load_organism("maze")
    with pytest.raises(MadeForAnother, match="of model another"):
        ProbeSet.load(folder / "probes").require(model)
    with pytest.raises(MadeForAnother, match="VAE another"):
        dl.Preview.load(folder / "preview.safetensors").require(model)
    lines = list(stamp("maze", folder))
    assert [line.partition(" another -> ")[2].split(",")[0] for line in lines] == [
        dl.Preview.load("maze").vae, model.id, model.id, model.id,
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in cards} == shipped


@pytest.mark.parametrize("name", ["maze", "puzzles"])
def test_what_ships_is_stamped(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(ORGANISMS / name, folder)
    for path, line in zip(sorted(folder.glob("*.safetensors")), stamp(name, folder), strict=True):
        before, _, after = line.partition(" -> ")
        assert before.split()[-1] == after.split(",")[0]
        assert path.read_bytes() == (ORGANISMS / name / path.name).read_bytes()
        assert all(torch.isfinite(x).all() for x in read_weights(path)[0].values())
