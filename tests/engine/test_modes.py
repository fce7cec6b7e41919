"""What docs/modes.md says of every mode: a run in it is the plain pipeline in it, or is refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import DiffusionPipeline, WanTransformer3DModel, hooks
from nnsight.intervention.source import STATE
from torch import Tensor, nn

import dit_lens as dl
from dit_lens.engine.modes import refuse_modes
from dit_lens.errors import PipelineBusy, UnsupportedModel
from dit_lens.families.common import linear_weight
from dit_lens.families.tiny.pipelines import TINY
from tests.engine.modes import FOR_GOOD, LAYER, MODES, edit_delta, halve_attn, load_lora, model_offload
from tests.subjects import Edit, Subject, capture, different, forward_hooks, raw_captures

GUIDANCE, STEPS = 3.0, 2
READ = ("model_input", "embed", "delta", "resid", "velocity")
EVERYTHING = (*READ, "attn", "cross_attn", "ffn", "latents", "guided")

# torch deprecates its own quantisation, and says so whenever it is used.
QUIET = (
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
)
EVERY_MODE = [pytest.param(name, marks=QUIET if name == "quantised" else ()) for name in MODES]


def build(pipeline: Any = None) -> Subject:
    """A pipeline of one's own for every test: modes change it for good."""
    tiny = TINY["wan2.1-t2v"]
    model = dl.VideoDiT(tiny.build() if pipeline is None else pipeline, defaults=tiny.settings)
    return Subject("mode", model, tiny.inputs(), (5, 6))


def run(subject: Subject, *interventions: Any, which: int = 0, **more: Any) -> dl.Run:
    return subject.run(which, GUIDANCE, num_inference_steps=STEPS, interventions=interventions, **more)


def plain(subject: Subject, which: int = 0, **more: Any) -> Tensor:
    latents: Tensor = subject.plain(which, GUIDANCE, num_inference_steps=STEPS, **more)
    return latents


def standing(subject: Subject) -> dict[str, Any]:
    """What stands in the modules where a run takes its place."""
    return {
        path: (type(m.__dict__.get("forward")), m.__dict__.get(STATE), len(m._forward_hooks), len(m._forward_pre_hooks))
        for path, m in subject.pipeline.transformer.named_modules()
    }


def halved(component: str) -> Edit:
    return Edit(dl.Sites(component, layers=LAYER), lambda activation, at: activation * 0.5)


def require_reading(subject: Subject, times: int = 3) -> Tensor:
    """Reading everything leaves the plain pipeline's bits, which are returned, and gives those that raw hooks see."""
    with raw_captures(subject) as seen:
        expected = plain(subject)
    for _ in range(times):
        found = run(subject, capture(*EVERYTHING))
        assert torch.equal(found.latents, expected)
        for component in READ:
            ours = [v for site, v in found.captures[""].items() if site.component == component]
            raw = [
                x if x.shape == v.shape else x.unflatten(1, v.shape[1:4])
                for x, v in zip(seen[component], ours, strict=True)
            ]
            assert all(map(torch.equal, ours, raw)), component
    return expected


def require_editing(subject: Subject) -> None:
    """Edits are the ones that raw hooks make, bit for bit."""
    transformer, clean = subject.pipeline.transformer, plain(subject)
    with raw_captures(subject) as seen:
        plain(subject, 1)
    donated = iter(seen["delta"][LAYER :: len(transformer.blocks)])
    donor = run(subject, capture("delta", layers=LAYER), which=1)
    raw_edits: list[tuple[Any, AbstractContextManager[None]]] = [
        (halved("delta"), edit_delta(lambda own: own * 0.5)(transformer)),
        (halved("attn"), halve_attn(transformer)),
        (dl.Patch(donor, dl.Sites("delta", layers=LAYER)), edit_delta(lambda own: next(donated))(transformer)),
    ]
    for edit, by_hand in raw_edits:
        with by_hand:
            expected = plain(subject)
        assert different(expected, clean)
        assert torch.equal(run(subject, edit).latents, expected), edit


def require_mode(subject: Subject) -> None:
    before = standing(subject)
    latents = require_reading(subject)
    require_editing(subject)
    own = run(subject, capture("delta"), capture("resid", steps=1, layers=LAYER), record=True)
    assert torch.equal(run(subject, dl.Patch(own, dl.Sites("delta", layers=LAYER))).latents, latents)
    assert torch.equal(run(subject, resume=dl.Resume(own, step=1, layer=LAYER + 1)).latents, latents)
    assert torch.equal(subject.model.replay(own, 1).velocities["cond"], own.recorded(1)[0].output[0])
    assert torch.equal(plain(subject), latents)
    assert standing(subject) == before


@pytest.mark.parametrize("name", EVERY_MODE)
def test_a_run_is_the_plain_pipeline_of_the_mode(name: str, tmp_path: Path) -> None:
    pipeline = TINY["wan2.1-t2v"].build()
    with MODES[name](pipeline, tmp_path):
        require_mode(build(pipeline))


@pytest.mark.parametrize("name", EVERY_MODE)
def test_a_mode_may_be_entered_and_left_between_runs(name: str, tmp_path: Path) -> None:
    subject = build()
    before = run(subject, capture(*EVERYTHING), body=lambda call, dit: dit.blocks[0].attn1.to_q.output).latents
    with MODES[name](subject.pipeline, tmp_path):
        expected = plain(subject)
        assert torch.equal(run(subject, capture(*EVERYTHING)).latents, expected)
        with edit_delta(lambda own: own * 0.5)(subject.pipeline.transformer):
            edited = plain(subject)
        body = lambda call, dit: dit.blocks[0].attn1.to_out[0].output  # noqa: E731 (controllers on all modules)
        assert torch.equal(run(subject, halved("delta"), body=body).latents, edited)
    if name not in FOR_GOOD:
        assert torch.equal(run(subject, capture(*EVERYTHING)).latents, before)
        assert torch.equal(plain(subject), before)


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.parametrize(("argument", "dtype"), [("dtype", torch.bfloat16), ("torch_dtype", torch.float16)])
def test_loaded_in_half_precision_with_parts_in_float32(argument: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny = TINY["wan2.1-t2v"]
    tiny.build().save_pretrained(tmp_path)
    model = dl.VideoDiT(tmp_path, defaults=tiny.settings, **{argument: dtype})
    model.pipeline.set_progress_bar_config(disable=True)
    assert {p.dtype for p in model.pipeline.transformer.parameters()} == {dtype, torch.float32}
    require_mode(Subject("loaded", model, tiny.inputs(), (5, 6)))


def test_model_offload_is_asked_at_every_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a CPU the move itself is nothing, so count who asks for it."""
    subject, asked = build(), list[nn.Module]()
    stock = CpuOffload.pre_forward

    def counting(hook: CpuOffload, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        asked.append(module)
        return stock(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", counting)
    with model_offload(subject.pipeline, tmp_path):
        plain(subject)
        counts = [asked.count(subject.pipeline.transformer)]
        for interventions in ([], [capture(*EVERYTHING)], [halved("attn")]):
            asked.clear()
            run(subject, *interventions)
            counts.append(asked.count(subject.pipeline.transformer))
        assert counts == [2 * STEPS] * 4
        assert run(subject, capture("resid", steps=0, layers=0), stop_after="last site").latents is not None
        assert torch.equal(run(subject).latents, plain(subject))


# Parameters of the transformer itself are keys too, and accelerate expects modules alone.
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
def test_device_map_of_from_pretrained(tmp_path: Path) -> None:
    pipeline = TINY["wan2.1-t2v"].build()
    pipeline.save_pretrained(tmp_path)
    names = [*(n for n, _ in pipeline.transformer.named_children()), "scale_shift_table"]
    places = dict.fromkeys(names, "cpu") | {"blocks": "disk"}
    pipeline.transformer = WanTransformer3DModel.from_pretrained(
        tmp_path, subfolder="transformer", device_map=places, offload_folder=tmp_path / "off"
    )
    assert {p.device.type for p in pipeline.transformer.parameters()} == {"cpu", "meta"}
    require_reading(build(pipeline), times=1)
    mapped = DiffusionPipeline.from_pretrained(tmp_path, device_map="cpu")
    mapped.set_progress_bar_config(disable=True)
    require_reading(build(mapped), times=1)


# LoRA


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_adapters_are_scaled_mixed_fused_and_taken_out(tmp_path: Path) -> None:
    subject = build()
    pipeline, seen = subject.pipeline, [plain(subject)]

    def require_new(heads: bool = False) -> None:
        seen.append(plain(subject))
        assert all(different(seen[-1], earlier) for earlier in seen[:-1])
        components = (*EVERYTHING, "head") if heads else EVERYTHING
        assert torch.equal(run(subject, capture(*components)).latents, seen[-1])

    load_lora(pipeline, tmp_path, "one")
    require_new()
    pipeline.set_adapters(["one"], [0.5])
    require_new()
    load_lora(pipeline, tmp_path, "second", ("ffn.net.0.proj", "ffn.net.2"))
    pipeline.set_adapters(["one", "second"], [1.0, 0.7])
    require_new()
    require_editing(subject)
    pipeline.fuse_lora(adapter_names=["one", "second"])
    pipeline.unload_lora_weights()
    require_new(heads=True)
    require_editing(subject)
    torch.testing.assert_close(seen[-1], seen[-2], atol=1e-4, rtol=0)


def test_heads_are_refused_behind_an_adapter(tmp_path: Path) -> None:
    subject = build()
    load_lora(subject.pipeline, tmp_path, "one")
    with pytest.raises(UnsupportedModel, match="heads cannot be told apart"):
        run(subject, capture("head", layers=LAYER))
    require_reading(subject, times=1)
    read: list[Tensor] = []
    run(subject, body=lambda call, dit: read.append(dit.blocks[0].attn1.to_q.lora_A["one"].output))
    assert read[0].shape[-1] == 4  # modules that came with the adapter can be read too


def test_weights_that_heads_can_be_told_apart_by(tmp_path: Path) -> None:
    """What ``head`` needs of an output projection, and why it cannot have it."""
    given = torch.zeros(1, 2, 32)
    pipeline = TINY["wan2.1-t2v"].build()
    projections = [block.attn1.to_out for block in pipeline.transformer.blocks]
    assert linear_weight(projections[0][0], given) is projections[0][0].weight
    with pytest.raises(UnsupportedModel, match=r"weight is torch.float8_e4m3fn on cpu, what it is given torch.float32"):
        linear_weight(nn.Linear(32, 32).to(torch.float8_e4m3fn), given)
    with pytest.raises(UnsupportedModel, match=r"weight is torch.float32 on meta"):
        linear_weight(nn.Linear(32, 32, device="meta"), given)
    with pytest.raises(UnsupportedModel, match="NonDynamicallyQuantizableLinear"):
        linear_weight(nn.modules.linear.NonDynamicallyQuantizableLinear(32, 32), given)
    load_lora(pipeline, tmp_path, "one")
    with pytest.raises(UnsupportedModel, match=r"behind an adapter; call the pipeline's fuse_lora\(\)"):
        linear_weight(projections[0][0], given)
    before = projections[0][0].base_layer.weight.clone()
    pipeline.fuse_lora()
    assert different(linear_weight(projections[0][0], given), before)


#: Where an output projection has no plain weight that heads could be told apart by.
HEADLESS = {"quantised", "lora"}


@pytest.mark.parametrize("name", EVERY_MODE)
def test_every_lens_reads_the_weights_of_the_mode(name: str, tmp_path: Path) -> None:
    """Parameters that are read outside of a forward are those that the forward would use."""
    pipeline = TINY["wan2.1-t2v"].build()
    with MODES[name](pipeline, tmp_path):
        subject = build(pipeline)
        model, plain_latents = subject.model, plain(subject)
        record = run(subject, capture("resid", "velocity", "attn", stream="all"), record=True)
        own = record[dl.Site(1, "cond", None, "velocity")]
        at = dl.Sites(steps=1)
        depth = dl.depth_lens(model, record, sites=at)
        assert torch.equal(depth.velocities[0, -1], own)
        assert different(depth.velocities[0, 0], own)
        replay = model.replay(record, 1)
        last = record[dl.Site(1, "cond", model.layers - 1, "resid")]
        assert torch.equal(model.read_out(record.recorded(1)[0], last, replay.conditioning["cond"]), own)
        steps = dl.step_lens(model, record)
        assert torch.equal(steps.x0hat[-1], record.clean(1, record.states[1], replay.guided))
        assert torch.isfinite(dl.attention(model, record, sites=at.at(component="head")).entropy).all()
        if name not in ("bf16", "fp16"):  # half precision is not affine to the precision that is asked for
            shares = dl.contributions(model, record, sites=at)
            assert torch.isfinite(shares.constant).all()
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
        inputs, seeds = list(subject.inputs), list(subject.seeds)
        energy = dl.energy(model, inputs[0], seed=seeds[0], sites=at, **options)
        assert torch.equal(energy.norms[0], torch.stack([_norm(record, k) for k in range(model.layers)]))
        assert (dl.pca_map(model, inputs, seed=seeds, sites=at, **options).explained > 0).any()
        features = dl.cka_features(model, inputs, seed=seeds, sites=at, **options)
        np.testing.assert_allclose(np.diag(dl.cka(features).values[0, :, 0]), 1, atol=1e-6)
        # What a lens brought is taken away again, and what follows is as it was.
        assert torch.equal(plain(subject), plain_latents)
        assert torch.equal(run(subject).latents, plain_latents)


def _norm(record: dl.Run, layer: int) -> Tensor:
    return dl.reduce.norm(record[dl.Site(1, "cond", layer, "resid")])


@pytest.mark.parametrize("name", [n for n in EVERY_MODE if n.values[0] not in HEADLESS])
def test_heads_are_told_apart_in_the_mode(name: str, tmp_path: Path) -> None:
    pipeline = TINY["wan2.1-t2v"].build()
    with MODES[name](pipeline, tmp_path):
        subject, heads = build(pipeline), dl.Sites("head", layers=LAYER)
        found = run(subject, capture("head", "attn", layers=LAYER))
        assert torch.equal(found.latents, plain(subject))
        count = found.geometry.layer(LAYER).heads["video"]
        gap = _bias(run(subject, capture("attn", layers=LAYER), dl.Ablate(heads)), found)
        for site, attn in ((s, x) for s, x in found.captures[""].items() if s.component == "attn"):
            total = sum(found[dl.Site(site.step, site.branch, LAYER, "head", head=h)].float() for h in range(count))
            tolerance = 0.1 if attn.dtype in (torch.bfloat16, torch.float16) else 1e-4
            torch.testing.assert_close(total + gap[site].float(), attn.float(), atol=tolerance, rtol=tolerance)
        halved_heads = run(subject, Edit(heads, lambda x, at: x * 0.5)).latents
        assert different(halved_heads, found.latents)
        assert torch.equal(plain(subject), found.latents)


def _bias(without: dl.Run, found: dl.Run) -> dict[dl.Site, Tensor]:
    """What the attention adds without its heads."""
    return {site: x for site, x in without.captures[""].items() if site.component == "attn"}


#: What a check finds that is so in the mode: a hook between two blocks, a block that is more than its parts, and
#: quantisation that depends on what else is in the batch.
FOUND = {"changing_hooks": {"layers"}, "own_forward": {"sum rule"}, "quantised": {"rows"}}


@pytest.mark.parametrize("name", EVERY_MODE)
def test_the_checks_hold_in_the_mode(name: str, tmp_path: Path) -> None:
    pipeline = TINY["wan2.1-t2v"].build()
    with MODES[name](pipeline, tmp_path):
        report = dl.check(build(pipeline).model)
    failed = {check: result.detail for check, result in report.checks.items() if not result.passed}
    assert failed.keys() == FOUND.get(name, set()), failed
    refused = "left out: heads cannot be told apart behind"
    assert report.checks["heads"].detail.startswith(refused) == (name in HEADLESS)


def test_an_offloaded_head_is_not_read_while_the_transformer_computes(tmp_path: Path) -> None:
    """Its weights would be gone when it goes on."""
    pipeline = TINY["wan2.1-t2v"].build()
    subject = build(pipeline)
    record = run(subject, capture("resid"), record=True)
    replay, call = subject.model.replay(record, 1), record.recorded(1)[0]
    last = record[dl.Site(1, "cond", subject.model.layers - 1, "resid")]

    def read(x: Tensor, at: dl.At) -> None:
        seen.append(subject.model.read_out(call, last, replay.conditioning["cond"]))

    seen: list[Tensor] = []
    edit = Edit(dl.Sites("delta", steps=0, layers=LAYER), read)
    assert torch.equal(run(subject, edit).latents, record.latents)
    assert all(torch.equal(x, record.recorded(1)[0].output[0]) for x in seen)
    with (
        MODES["group_offload_blocks"](pipeline, tmp_path),
        pytest.raises(PipelineBusy, match="in a run or replay already"),
    ):
        run(subject, edit)


def test_a_replay_gives_the_weights_back_as_a_run_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = TINY["wan2.2-a14b"]
    subject = Subject("experts", dl.VideoDiT(tiny.build(), defaults=tiny.settings), tiny.inputs(), (5, 6))
    freed: list[str] = []
    stock = CpuOffload.pre_forward
    with model_offload(subject.pipeline, tmp_path):
        record = subject.run(record=True)
        free = subject.pipeline.maybe_free_model_hooks
        monkeypatch.setattr(subject.pipeline, "maybe_free_model_hooks", lambda: freed.append("free") or free())
        assert stock is CpuOffload.pre_forward
        for step in (0, record.geometry.steps - 1):
            before = len(freed)
            subject.model.replay(record, step)
            assert len(freed) == before + 1
        sites = dl.Sites("resid", layers=0)
        subject.model.gradients(record, 0, lambda replay: replay.x0hat.sum(), sites)
        assert len(freed) == 3
        with pytest.raises(MemoryError):
            subject.model.replay(record, 0, [Edit(sites, _no_memory)])
        assert len(freed) == 4


def _no_memory(x: Tensor, at: dl.At) -> None:
    raise MemoryError


# Refused


@pytest.mark.parametrize(
    "config",
    [
        hooks.FirstBlockCacheConfig(threshold=10.0),
        hooks.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        ),
        hooks.FasterCacheConfig(current_timestep_callback=lambda: 500),
        hooks.TaylorSeerCacheConfig(),
    ],
    ids=lambda config: type(config).__name__,
)
def test_caches_are_refused_until_disabled(config: Any) -> None:
    subject = build()
    subject.pipeline.transformer.enable_cache(config)
    with pytest.raises(UnsupportedModel, match=rf"cache enabled \({type(config).__name__}\).*disable_cache"):
        run(subject)
    subject.pipeline.transformer.disable_cache()
    require_reading(subject, times=1)


APPLIED: dict[str, Callable[[Any], Any]] = {
    "FBC": lambda t: hooks.apply_first_block_cache(t, hooks.FirstBlockCacheConfig(threshold=10.0)),
    "TransformerBlockSkip": lambda t: hooks.apply_layer_skip(t, hooks.LayerSkipConfig(indices=[1], fqn="blocks")),
}


@pytest.mark.parametrize("hook", APPLIED)
def test_hooks_that_replace_what_blocks_compute_are_refused(hook: str) -> None:
    """Put on directly, without ``enable_cache``."""
    subject = build()
    APPLIED[hook](subject.pipeline.transformer)
    with pytest.raises(UnsupportedModel, match=f"carries diffusers' {hook}"):
        run(subject)


COMPILED: dict[str, Callable[[Any], Any]] = {
    "in_place": lambda t: t.compile(backend="eager"),
    "repeated_blocks": lambda t: t.compile_repeated_blocks(backend="eager"),
    "inner": lambda t: t.blocks[2].attn1.to_out[0].compile(backend="eager"),
    "block_replaced": lambda t: t.blocks.__setitem__(1, torch.compile(t.blocks[1], backend="eager")),
    "forward_replaced": lambda t: setattr(t, "forward", torch.compile(t.forward, backend="eager")),
}


@pytest.mark.parametrize("form", COMPILED)
def test_compiled_models_are_refused(form: str) -> None:
    subject = build()
    COMPILED[form](subject.pipeline.transformer)
    with pytest.raises(UnsupportedModel, match=r"compiled.*load the pipeline without torch\.compile"):
        run(subject)


@pytest.mark.parametrize("form", ["in_place", "repeated_blocks"])
def test_a_compiled_model_runs_where_torch_leaves_compiled_code_aside(form: str) -> None:
    subject = build()
    COMPILED[form](subject.pipeline.transformer)
    with torch.compiler.set_stance("force_eager"):
        require_reading(subject, times=2)
        if form == "in_place":
            require_editing(subject)


def test_a_transformer_that_was_replaced_is_refused() -> None:
    subject = build()
    held = subject.pipeline.transformer
    refuse_modes([held], pipeline=subject.pipeline)
    subject.pipeline.transformer = torch.compile(held, backend="eager")
    with pytest.raises(UnsupportedModel, match="no longer holds the WanTransformer3DModel"):
        refuse_modes([held], pipeline=subject.pipeline)
    with pytest.raises(UnsupportedModel, match="OptimizedModule"):
        dl.VideoDiT(subject.pipeline)


def test_gradient_checkpointing_is_refused_for_gradients_alone() -> None:
    subject = build()
    record = run(subject, record=True)
    sites = dl.Sites("resid", steps=1, layers=LAYER)
    metric = lambda replay: replay.x0hat.square().mean()  # noqa: E731
    expected = subject.model.gradients(record, 1, metric, sites).gradients
    subject.pipeline.transformer.enable_gradient_checkpointing()
    with pytest.raises(UnsupportedModel, match=r"checkpointing is enabled.*disable_gradient_checkpointing\(\)"):
        subject.model.gradients(record, 1, metric, sites)
    assert torch.equal(subject.model.replay(record, 1).velocities["cond"], record.recorded(1)[0].output[0])
    subject.pipeline.transformer.disable_gradient_checkpointing()
    found = subject.model.gradients(record, 1, metric, sites).gradients
    assert all(torch.equal(found[site], expected[site]) and expected[site].any() for site in expected)


# Copies, and hooks of one's own


def test_copies_and_saved_models_are_whole(tmp_path: Path) -> None:
    subject = build()
    latents = run(subject, capture(*EVERYTHING)).latents
    for copied in (copy.deepcopy(subject.model), build(copy.deepcopy(subject.pipeline)).model):
        other = Subject("copy", copied, subject.inputs, subject.seeds)
        nn.init.zeros_(subject.pipeline.transformer.proj_out.weight)  # the copy has weights of its own
        assert torch.equal(run(other, capture(*EVERYTHING)).latents, latents)
        require_editing(other)
        subject = other
    subject.pipeline.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    expected = dict(subject.pipeline.transformer.state_dict())
    assert all(torch.equal(v, expected.pop(k)) for k, v in again.transformer.state_dict().items())
    assert not expected


def test_a_forward_hook_changes_the_run_and_not_what_is_captured_at_its_own_module() -> None:
    """nnsight reads a module inside its forward hooks: what they change is seen from the next module on."""
    subject = build()
    block = subject.pipeline.transformer.blocks[LAYER]
    with forward_hooks(block, lambda m, a, k, output: output * 1.5), raw_captures(subject) as seen:
        expected = plain(subject)
        found = run(subject, capture("resid", "delta", steps=0, layers=(LAYER, LAYER + 1)))
    assert torch.equal(found.latents, expected)
    site = f"s00/cond/L0{LAYER}/resid/video"
    after = seen["resid"][LAYER].unflatten(1, found.geometry.grid)
    assert torch.equal(found[site] * 1.5, after)
