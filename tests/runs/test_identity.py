"""Ids change with whatever changes the result, and with nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dit_lens as dl
from dit_lens.errors import InputError, MadeForAnother
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.runs.identity import difference
from tests.engine.modes import load_lora
from tests.subjects import Edit, Subject, capture, subject_of

DELTA = dl.Sites("delta", layers=1)


def fresh(name: str = "wan2.1-t2v") -> tuple[dl.VideoDiT, Any]:
    tiny = TINY[name]
    model = dl.VideoDiT(tiny.build(), defaults=tiny.settings)
    model.pipeline.set_progress_bar_config(disable=True)
    return model, tiny.inputs()[0]


def run(model: dl.VideoDiT, given: Any, *interventions: Any, **more: Any) -> dl.Run:
    return model.run(given, 3, **{"num_inference_steps": 2, "decode": False, "interventions": interventions, **more})


# -- weights


@pytest.mark.parametrize("expert", ["transformer", "transformer_2"])
@given(data=st.data())
@settings(max_examples=40)
def test_any_row_or_column_that_changes_behind_torchs_back_is_seen(expert: str, data: st.DataObject) -> None:
    model = subject_of("two_experts").model
    known = model.id
    parameter = data.draw(st.sampled_from(list(getattr(model.pipeline, expert).parameters())))
    matrix = parameter.data.flatten(1) if parameter.ndim > 1 else parameter.data[None]
    axis = data.draw(st.integers(0, 1)) if parameter.ndim > 1 else 0
    place = data.draw(st.integers(0, matrix.shape[axis] - 1))
    before = matrix.select(axis, place).clone()
    matrix.select(axis, place).add_(1)  # through .data: torch counts no change
    assert model.id != known
    matrix.select(axis, place).copy_(before)
    assert model.id == known


def test_other_memory_in_the_place_of_a_weight_is_seen() -> None:
    """How EMA weights are put in, and group offloading moves them."""
    model, _ = fresh()
    known, parameter = model.id, next(model.pipeline.transformer.blocks[1].parameters())
    own = parameter.data
    parameter.data = own.clone()
    assert model.id == known
    parameter.data = own + 1
    assert model.id != known


def test_one_value_is_seen_by_the_full_id() -> None:
    model, _ = fresh()
    known, weight = model.full_id(), model.pipeline.transformer.blocks[0].attn1.to_q.weight
    for place in ((0, 1), (7, 3), (30, 31)):
        own = float(weight.data[place])
        weight.data[place] = own + 1
        assert model.full_id() != known
        weight.data[place] = own
    assert model.full_id() == known


def test_adapters_swapped_and_scaled_in_place_are_seen(tmp_path: Path) -> None:
    model, _ = fresh()
    seen = [model.id]
    load_lora(model.pipeline, tmp_path, "one")
    seen.append(model.id)
    layer: Any = model.pipeline.transformer.blocks[0].attn1.to_q
    layer.lora_A["one"].weight.data.mul_(0.5)
    seen.append(model.id)
    for scale in (0.5, 0.25):
        model.pipeline.set_adapters(["one"], [scale])
        seen.append(model.id)
    layer.scaling["one"] = 3.0
    seen.append(model.id)
    assert len(set(seen)) == len(seen)
    model.pipeline.unload_lora_weights()
    assert model.id == seen[0]


def test_a_copy_and_what_was_saved_and_loaded_are_the_same_model(tmp_path: Path) -> None:
    model, given_ = fresh()
    model.pipeline.save_pretrained(tmp_path)
    for other in (dl.VideoDiT(copy.deepcopy(model.pipeline)), dl.VideoDiT(tmp_path)):
        other.defaults = model.defaults
        other.pipeline.set_progress_bar_config(disable=True)
        assert (other.id, other.full_id()) == (model.id, model.full_id())
        assert run(other, given_).id == run(model, given_).id


# -- the rest of the pipeline


def other_setting(pipeline: Any) -> None:
    pipeline.scheduler.register_to_config(solver_order=1)


def later_shift(pipeline: Any) -> None:
    pipeline.scheduler.set_shift(pipeline.scheduler.shift + 1)


def other_text(pipeline: Any) -> None:
    next(pipeline.text_encoder.parameters()).data.add_(0.1)


def other_words(pipeline: Any) -> None:
    pipeline.tokenizer.model_max_length = 5


def other_positions(pipeline: Any) -> None:
    pipeline.transformer.rope.freqs_cos.mul_(0.5)


class MyProcessor:
    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
        return 0.5 * self.stock(attn, *args, **kwargs)


def other_attention(pipeline: Any) -> None:
    attention = pipeline.transformer.blocks[0].attn1
    attention.processor = MyProcessor(attention.processor)


def other_boundary(pipeline: Any) -> None:
    pipeline.register_to_config(boundary_ratio=0.5)


def disabled_guider(pipeline: Any) -> None:
    pipeline.guider.disable()


def tiled_vae(pipeline: Any) -> None:
    pipeline.vae.enable_tiling(16, 16, 8, 8)


def other_guider(pipeline: Any) -> None:
    pipeline.guider = pipeline.guider.new(guidance_scale=2.5)


CHANGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "scheduler": ("wan2.1-t2v", other_setting),
    "scheduler's shift": ("ltx-video", later_shift),
    "text_encoder": ("wan2.1-t2v", other_text),
    "tokenizer": ("wan2.1-t2v", other_words),
    "transformer": ("wan2.1-t2v", other_positions),
    "transformer's attention": ("wan2.1-t2v", other_attention),
    "pipeline": ("wan2.2-a14b", other_boundary),
    "guider": ("hunyuanvideo-1.5", other_guider),
    "guider's switch": ("hunyuanvideo-1.5", disabled_guider),
    "vae": ("wan2.1-i2v", tiled_vae),
}


@pytest.mark.parametrize("name", TINY)
def test_a_run_leaves_the_setup_as_it_was(name: str) -> None:
    model, given_ = fresh(name)
    before = model.setup
    run(model, given_)
    assert model.setup == before


@pytest.mark.parametrize("name", [name for name in TINY if name != "allegro"])  # whose VAE decodes only in tiles
def test_saving_and_loading_change_nothing(name: str, tmp_path: Path) -> None:
    model, given_ = fresh(name)
    record = run(model, given_, record=True)
    model.pipeline.save_pretrained(tmp_path)
    assert run(model, given_, resume=dl.Resume(record, 1)).latents is not None
    loaded = dl.VideoDiT(tmp_path, defaults=model.defaults)
    loaded.pipeline.set_progress_bar_config(disable=True)
    assert difference(loaded.setup, model.setup) == ""
    assert run(loaded, given_).id == run(model, given_).id
    # Weights that lie otherwise in memory are multiplied by other kernels.
    torch.testing.assert_close(run(loaded, given_, resume=dl.Resume(record, 1)).latents, record.latents)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_pipeline_is_another_run_and_no_record_is_spliced(change: str) -> None:
    name, make = CHANGES[change]
    model, given_ = fresh(name)
    before = run(model, given_, record=True)
    assert run(model, given_).id == before.id
    assert run(model, given_, resume=dl.Resume(before, 1)).latents is not None
    make(model.pipeline)
    part = change.partition("'")[0]
    assert difference(before.setup, model.setup) == part
    assert model.id == before.model_id
    with pytest.raises(InputError, match=f"resume: the record was made with another {part} than the pipeline has now"):
        run(model, given_, resume=dl.Resume(before, 1))
    assert run(model, given_).id != before.id


def test_another_class_of_scheduler_is_another_run() -> None:
    model, given_ = fresh()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    model.pipeline.scheduler = UniPCMultistepScheduler(**flow)
    before = run(model, given_, record=True)
    model.pipeline.scheduler = DPMSolverMultistepScheduler(**flow)
    assert run(model, given_).id != before.id
    with pytest.raises(InputError, match="another scheduler"):
        run(model, given_, resume=dl.Resume(before, 1))


def test_the_vae_matters_where_it_encodes_a_picture_and_to_frames() -> None:
    model, given_ = fresh()
    before = run(model, given_, record=True)
    next(model.pipeline.vae.parameters()).data.add_(0.1)
    assert run(model, given_).id != before.id  # its frames are others
    assert torch.equal(run(model, given_, resume=dl.Resume(before, 1)).latents, before.latents)
    model, given_ = fresh("wan2.1-i2v")
    before = run(model, given_, record=True)
    next(model.pipeline.vae.parameters()).data.add_(0.1)
    with pytest.raises(InputError, match="another vae"):
        run(model, given_, resume=dl.Resume(before, 1))


def test_a_replay_asks_for_nothing_but_the_transformers() -> None:
    """Text encoders may be freed once a run is recorded."""
    model, given_ = fresh()
    before = run(model, given_, record=True)
    model.pipeline.text_encoder = None
    assert torch.equal(model.replay(before, 1).velocities["cond"], before.recorded(1)[0].output[0])
    next(model.pipeline.transformer.parameters()).data.add_(0.1)
    with pytest.raises(MadeForAnother, match=f"made by model {before.model_id}"):
        model.replay(before, 1)


def test_a_store_takes_no_run_of_another_scheduler(tmp_path: Path) -> None:
    model, given_ = fresh()
    keep = dl.Capture(DELTA, reduce="token_mean")
    with dl.Store(tmp_path / "runs") as store:
        store.add(run(model, given_, keep))
        stock = model.pipeline.scheduler
        model.pipeline.scheduler = type(stock).from_config(stock.config, solver_order=1)
        with pytest.raises(MadeForAnother, match="activations of runs with another scheduler"):
            store.add(model.run(given_, 4, num_inference_steps=2, decode=False, interventions=[keep]))
        with pytest.raises(MadeForAnother, match="another scheduler"):
            store.require(model)
    store = dl.Store(tmp_path / "runs")
    assert len(store) == 1
    model.pipeline.scheduler = stock
    store.require(model)
    next(model.pipeline.vae.parameters()).data.add_(0.1)
    store.require(model)  # activations do not depend on what only decodes
    next(model.pipeline.transformer.parameters()).data.add_(0.1)
    with pytest.raises(MadeForAnother, match=f"the store has activations of model .*, these are of model {model.id}"):
        store.require(model)


# -- interventions and inputs


def test_a_sweep_of_closures_is_a_sweep(tmp_path: Path) -> None:
    """Ids that were the same let a store take the whole sweep for its first run."""
    model, given_ = fresh()
    edits = [Edit(DELTA, lambda x, at, factor=factor: x * factor) for factor in (0.0, 0.5, 1.0)]
    bodies = [_body(factor) for factor in (0.5, 1.0)]
    runs = [run(model, given_, edit) for edit in edits] + [run(model, given_, body=body) for body in bodies]
    assert len({r.id for r in runs}) == len(runs)
    assert [run(model, given_, edit).id for edit in edits] == [r.id for r in runs[:3]]


def _body(factor: float) -> Callable[[Any, Any], None]:
    def body(call: Any, dit: Any) -> None:
        dit.blocks[0].output = dit.blocks[0].output * factor

    return body


def test_interventions_may_come_from_a_generator() -> None:
    model, given_ = fresh()
    edit = Edit(DELTA, lambda x, at: 0 * x)
    listed = run(model, given_, edit)
    drawn = model.run(given_, 3, num_inference_steps=2, decode=False, interventions=(e for e in [edit]))
    assert drawn.id == listed.id != run(model, given_).id
    assert torch.equal(drawn.latents, listed.latents)
    record = run(model, given_, record=True)
    one, two = (model.replay(record, 1, given).guided for given in ([edit], iter([edit])))
    assert torch.equal(one, two)
    with pytest.raises(InputError, match="need a list of interventions, if only of one"):
        model.run(given_, 3, interventions=edit)  # type: ignore[arg-type]


def test_where_a_run_ended_and_what_it_went_on_from_are_in_its_id() -> None:
    model, given_ = fresh()
    record = run(model, given_, Edit(DELTA.at(steps=0), lambda x, at: 0 * x), record=True)
    runs = [run(model, given_), run(model, given_, stop_after=0), run(model, given_, resume=dl.Resume(record, 1))]
    assert len({r.id for r in runs}) == 3


def test_ids_are_made_of_what_interventions_hold_before_the_run() -> None:
    model, given_ = fresh()

    def used_up(factor: float) -> Edit:
        left = [factor] * 8
        return Edit(DELTA, lambda x, at: x * left.pop())

    seen: list[float] = []
    log = Edit(DELTA, lambda x, at: seen.append(float(x.mean())))
    assert run(model, given_, used_up(0.5)).id != run(model, given_, used_up(2.0)).id
    first = run(model, given_, log).id
    seen.clear()
    assert run(model, given_, log).id == first


def test_inputs_of_one_name_are_told_apart() -> None:
    """A task instance may be named as another is."""
    model, given_ = fresh()
    one, other = (SimpleNamespace(id="a", prompt=prompt) for prompt in (given_["prompt"], given_["prompt"].split()[0]))
    before = run(model, one, record=True)
    assert run(model, other).rows == before.rows
    assert run(model, other).id != before.id
    with pytest.raises(InputError, match="the record is of other prompts or pictures"):
        run(model, other, resume=dl.Resume(before, 1))
    pictured, given_ = fresh("wan2.1-i2v")
    names = set()
    for colour in (0, 200):
        picture = Image.new("P", given_["image"].size)
        picture.putpalette([colour, 0, 0])
        names.add(run(pictured, {**given_, "image": picture}).id)
    assert len(names) == 2


def test_lists_of_noise_levels_may_be_arrays() -> None:
    model, given_ = fresh("hunyuanvideo")
    levels = [1.0, 0.7, 0.4]
    record = model.run(given_, 3, decode=False, record=True, sigmas=np.array(levels))
    again = model.run(given_, 3, decode=False, resume=dl.Resume(record, 1), sigmas=np.array(levels))
    assert torch.equal(again.latents, record.latents)
    with pytest.raises(InputError, match="the record has sigmas"):
        model.run(given_, 3, decode=False, resume=dl.Resume(record, 1), sigmas=np.array([1.0, 0.7, 0.5]))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_a_picture_of_any_mode_is_taken(mode: str) -> None:
    model, given_ = fresh("wan2.1-i2v")
    picture = given_["image"].convert(mode)
    alone, twice = (run(model, x) for x in ({**given_, "image": picture}, [{**given_, "image": picture}, given_]))
    torch.testing.assert_close(alone.latents, twice.latents[:1], atol=1e-4, rtol=1e-4)


def test_rows_are_named_by_the_picture_too() -> None:
    model, given_ = fresh("wan2.1-i2v")
    picture = given_["image"]

    class Instance:
        def __init__(self, image: Any) -> None:
            self.prompt, self.image = given_["prompt"], image

    other = Image.fromarray(255 - np.asarray(picture))
    names = {run(model, x).rows[0].instance for x in (Instance(picture), Instance(other), {**given_, "image": other})}
    assert len(names) == 2
    assert run(model, Instance(picture)).id == run(model, given_).id


def test_asking_changes_nothing(subject: Subject) -> None:
    before = subject.run(interventions=[capture("delta")])
    known = [p._version for p in subject.pipeline.transformer.parameters()]
    assert subject.model.id == subject.model.id == before.model_id
    assert subject.model.setup == subject.model.setup
    assert [p._version for p in subject.pipeline.transformer.parameters()] == known
    assert torch.equal(subject.run().latents, before.latents)
