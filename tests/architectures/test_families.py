"""What every family's file says of its transformer, against what plain torch hooks see."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from dit_lens.architectures import architecture_of
from dit_lens.tiny import TINY
from tests.architectures.raw import RawCall, watch, worst_sum_error


@cache
def recorded(name: str) -> tuple[object, list[RawCall], tuple[int, int, int]]:
    tiny = TINY[name]
    pipeline = tiny.build()
    architecture = architecture_of(pipeline)
    grid = architecture.grid(pipeline.transformer, architecture.latent(pipeline, tiny.settings))
    inputs = tiny.inputs()
    arguments = {**inputs[0], "prompt": [i["prompt"] for i in inputs]}
    generators = [torch.Generator().manual_seed(s) for s in (0, 1)]
    with torch.no_grad(), watch(architecture, pipeline.transformer, math.prod(grid)) as calls:
        pipeline(**arguments, **tiny.settings, generator=generators, output_type="latent")
    return pipeline, calls, grid


@pytest.fixture(params=list(TINY))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_setting_is_worth_testing(name: str) -> None:
    pipeline, calls, grid = recorded(name)
    assert len(set(grid)) == 3
    assert len(architecture_of(pipeline).blocks(pipeline.transformer)) >= 4
    tiny = TINY[name]
    per_step = architecture_of(pipeline).calls(pipeline, tiny.settings)
    assert len([b for call in per_step for b in call]) > 1
    if getattr(pipeline, "transformer_2", None) is None:
        assert len(calls) == len(per_step) * tiny.settings["num_inference_steps"]


def test_blocks_follow_each_other_and_events_come_in_the_order_stated(name: str) -> None:
    pipeline, calls, _ = recorded(name)
    layers = architecture_of(pipeline).layers(pipeline.transformer)
    for call in calls:
        assert [layer.met.module for layer in call.layers] == [module for _, module, _ in layers]
        for before, after in zip(call.layers, call.layers[1:], strict=False):
            for stream in after.inputs:
                assert torch.equal(after.inputs[stream], before.outputs[stream])
        for layer in call.layers:
            assert layer.order == [e for e in layer.block.events if e in layer.order]


@torch.no_grad()
def test_a_blocks_update_is_the_sum_of_its_terms(name: str) -> None:
    _, calls, _ = recorded(name)
    for call in calls:
        for layer in call.layers:
            for stream in layer.inputs:
                assert worst_sum_error(layer, stream) < 16


@torch.no_grad()
def test_a_term_is_not_negligible(name: str) -> None:
    """A sum rule means something only where every term is large against the error it allows."""
    _, calls, _ = recorded(name)
    for layer in calls[0].layers:
        for stream in layer.inputs:
            for component, value in layer.terms(stream).items():
                assert value.abs().max() > 1e-4 * layer.outputs[stream].abs().max(), (component, stream)


@torch.no_grad()
def test_heads_sum_to_attention(name: str) -> None:
    _, calls, _ = recorded(name)
    for layer in calls[0].layers:
        for term in (t for t in layer.block.terms if t.heads is not None):
            assert term.component == "attn"
            heads, value = term.heads(layer.met), term.value(layer.met)
            assert heads.shape[-2] > 1
            assert heads.shape == (*value.shape[:2], heads.shape[-2], value.shape[-1])
            total = heads.sum(dim=-2) + (term.headless(layer.met) if term.headless else 0)
            assert torch.allclose(total, value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


@torch.no_grad()
def test_the_head_reads_the_last_layer_as_the_model_does(name: str) -> None:
    pipeline, calls, grid = recorded(name)
    architecture = architecture_of(pipeline)
    for call in calls:
        residual = call.layers[-1].outputs["video"]
        velocity = architecture.head(pipeline.transformer, residual, call.conditioning, grid)
        assert torch.equal(velocity, call.output[0])


@torch.no_grad()
def test_the_latents_have_the_shape_stated(name: str) -> None:
    pipeline, calls, grid = recorded(name)
    architecture = architecture_of(pipeline)
    latent = architecture.latent(pipeline, TINY[name].settings)
    prediction = architecture.unpack(calls[0].output[0], latent)
    assert prediction.shape[2:] == latent[1:]
    assert torch.equal(architecture.pack(prediction, latent), calls[0].output[0])
    assert calls[0].layers[0].inputs["video"].shape[1:] == (math.prod(grid), architecture.width(pipeline.transformer))
