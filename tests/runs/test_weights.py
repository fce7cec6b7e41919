"""Weights are read wherever they are kept, by a sample that passes over no row and no column."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dit_lens as dl
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.runs.weights import contents, stride, tensors
from tests.engine.modes import MODES

#: Modes that compute with other values, and so are other models.
OTHERS = {"bf16", "fp16", "layerwise_casting", "quantised", "fused_qkv", "lora"}


@given(st.integers(1, 400), st.integers(1, 400))
def test_a_sample_meets_every_row_and_every_column_and_little_more(rows: int, columns: int) -> None:
    chosen = range(0, rows * columns, stride((rows, columns)))
    assert {place // columns for place in chosen} == set(range(rows))
    assert {place % columns for place in chosen} == set(range(columns))
    assert len(chosen) <= 4 * max(rows, columns)


@given(st.integers(1, 300))
def test_what_has_one_axis_is_read_whole(size: int) -> None:
    assert stride((size,)) == stride((1, size)) == 1


@pytest.mark.parametrize("name", sorted(MODES.keys() - OTHERS))
def test_a_model_is_the_same_in_every_mode_that_does_not_change_its_values(name: str, tmp_path: Path) -> None:
    tiny = TINY["wan2.1-t2v"]
    model = dl.VideoDiT(tiny.build(), defaults=tiny.settings)
    model.pipeline.set_progress_bar_config(disable=True)
    known = model.id, model.full_id()
    with MODES[name](model.pipeline, tmp_path):
        assert (model.id, model.full_id()) == known
        model.run(tiny.inputs()[0], num_inference_steps=1, decode=False)
        assert (model.id, model.full_id()) == known


def test_weights_on_the_disk_are_read_there(tmp_path: Path) -> None:
    """Memory holds anything at all then: other bytes there are not another model, another file is."""
    tiny = TINY["wan2.1-t2v"]
    model = dl.VideoDiT(tiny.build(), defaults=tiny.settings)
    known = model.id
    with MODES["group_offload_blocks"](model.pipeline, tmp_path):
        for parameter in model.pipeline.transformer.blocks.parameters():
            parameter.data.fill_(7)
        assert model.id == known
        for file in tmp_path.glob("*.safetensors"):
            content = bytearray(file.read_bytes())
            content[-4:] = b"\x00\x00\x00\x40"
            file.write_bytes(content)
        assert model.id != known


def test_tensors_of_every_kind_are_read() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("saved", torch.ones(3))
            self.register_buffer("computed", torch.ones(2), persistent=False)
            self.weight = nn.Parameter(torch.ones(2, 3))
            self.away = nn.Parameter(torch.empty(4, 4, device="meta"))
            self.turned = nn.Parameter(torch.ones(3, 2).T)

    module = Wrapped()
    assert sorted(tensors(module)) == ["away", "saved", "turned", "weight"]
    assert sorted(tensors(module, computed=True)) == ["computed"]

    def read() -> list[bytes]:
        return [*contents(tensors(module)), *contents(tensors(module), whole=True)]

    before = read()
    for tensor in (module.saved, module.weight.data, module.turned.data):
        tensor[(0,) * tensor.ndim] = 5
        assert read() != before
        tensor[(0,) * tensor.ndim] = 1
    assert read() == before
    half = list(contents({"x": torch.ones(3) / 3}, half=True))
    assert half == list(contents({"x": torch.ones(3) / 3 * (1 + 1e-7)}, half=True))
    assert half != list(contents({"x": torch.ones(3) / 3 * 1.01}, half=True))
