"""The attention lens: selections, bounded memory, tables, refusals, and models whose attention is known."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import matplotlib as mpl
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

import dit_lens as dl
from dit_lens.engine.attention_calls import attention_modules, watched
from dit_lens.errors import InputError, MadeForAnother, NotFinite, SiteError, UnsupportedModel
from tests.lens.attention.one_step import attention
from tests.subjects import STEPS, Subject, leftovers, subject_of

mpl.use("Agg")

PLACES = ("early", "middle", "late")
EXACT = 1e-6


@cache
def recorded(name: str = "organism", **more: Any) -> dl.Run:
    return subject_of(name).run(record=True, **more)


@pytest.fixture
def run(organism: Subject) -> dl.Run:
    return recorded()


@cache
def planted(place: str | None, kind: str = "frames") -> tuple[dl.organisms.Planted, dl.Run]:
    truth = dl.organisms.load_planted(kind, place)
    run = truth.model.run(truth.task.sample(2, seed=1), 0, num_inference_steps=2, record=True, decode=False)
    return truth, run


@pytest.mark.parametrize("place", PLACES)
def test_in_planted_models_frames_see_each_other_in_the_planted_blocks_only(place: str) -> None:
    truth, run = planted(place)
    found = attention(truth.model, run, 0)
    assert found.frames is not None
    own = torch.eye(found.grid[0], dtype=torch.bool)
    outside = found.frames[..., ~own]
    for layer in found.layers:
        if layer in truth.blocks:
            assert float(outside[layer].min()) > 0
        else:
            assert (outside[layer] == 0).all()
            assert (found.frames[layer][..., own] - 1).abs().max() < EXACT
    table = found.table.pivot(index=["layer", "head"], columns="measure", values="value").reset_index()
    moving = table[table["between"] > 0]
    assert set(moving["layer"]) == set(truth.blocks)
    assert len(moving) == len(truth.blocks) * len(found.heads)
    assert table["distance"].isna().tolist() == (table["between"] == 0).tolist()
    assert (table["uniform"] > 0).tolist() == (table["between"] > 0).tolist()


@pytest.mark.parametrize(
    ("kind", "reads"),
    [
        ("relay", {(1, head, 1, 0) for head in range(4)} | {(4, h, f, 1) for h in range(4) for f in (2, 3, 4)}),
        ("head", {(3, 2, one, other) for one, other in itertools.permutations(range(5), 2)}),
    ],
)
def test_frames_look_at_each_other_where_a_relay_or_a_head_lets_them(
    kind: str, reads: set[tuple[int, int, int, int]]
) -> None:
    truth, run = planted(None, kind)
    found = attention(truth.model, run, 0).frames
    assert found is not None
    least, most = found.amin(1), found.amax(1)
    for mass in (least, most):
        assert {(k, head, one, other) for k, head, one, other in mass.nonzero().tolist() if one != other} == reads


def test_attention_within_frames_is_that_of_a_whole_map_with_all_other_frames_closed() -> None:
    """The processor makes rows of frames; the reference puts the frames back together with a mask."""
    truth, run = planted("late")
    block = truth.model.pipeline.transformer.blocks[1].attn1
    seen: list[Tensor] = []
    handle = block.to_out[0].register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    values: list[Tensor] = []
    other = block.to_v.register_forward_hook(lambda _module, _given, out: values.append(out))
    try:
        found = attention(truth.model, run, 1, layers=1, keep_maps=True)
    finally:
        handle.remove()
        other.remove()
    heads, rows = block.heads, len(run.rows)
    value = values[0].reshape(rows, -1, heads, values[0].shape[-1] // heads).transpose(1, 2)
    expected = seen[0].reshape(rows, -1, seen[0].shape[-1])
    assert found.maps is not None
    assert ((found.maps[0] @ value).transpose(1, 2).flatten(2) - expected).abs().max() < 5e-6 * value.abs().max()
    some = attention(truth.model, run, 1, layers=1, queries=dl.Tokens(frames=[3, 1]), keep_maps=True)
    assert some.maps is not None
    assert torch.equal(some.maps, found.maps[..., some.queries, :])


def test_what_silenced_blocks_look_at_adds_nothing() -> None:
    """Mass is not effect: where the prompt cannot be read, attention to it looks as it does elsewhere."""
    truth = dl.organisms.load_planted("text", "middle")
    record = truth.model.run(truth.task.sample(1, seed=1), 0, num_inference_steps=1, record=True, decode=False)
    found = attention(truth.model, record, 0, kind="cross")
    silenced = [k for k in found.layers if k not in truth.blocks]
    assert found.text is not None
    assert (found.text.sum(-1) - 1).abs().max() < EXACT
    assert float(found.entropy_share[silenced].min()) < 1 - 1e-3
    terms = truth.model.replay(record, 0, [dl.Capture(dl.Sites("cross_attn", steps=0))]).captures[""]
    assert {s.layer for s, t in terms.items() if t.abs().max() > 0} == set(truth.blocks)


@pytest.mark.parametrize("tokens", [dl.Tokens(frames=[0, 2]), dl.Tokens(frames=1, rows=(1, 3), columns=(0, 2))])
def test_chosen_queries_are_rows_of_the_whole_map(organism: Subject, run: dl.Run, tokens: dl.Tokens) -> None:
    whole = attention(organism.model, run, 1, keep_maps=True)
    some = attention(organism.model, run, 1, queries=tokens, keep_maps=True)
    assert whole.maps is not None
    assert some.maps is not None
    numbers = torch.arange(math.prod(whole.grid)).view(1, *whole.grid, 1)
    assert torch.equal(some.queries, tokens.take(numbers).flatten())
    assert (some.maps - whole.maps[..., some.queries, :]).abs().max() < EXACT
    asked = some.counts > 0
    assert some.frames is not None
    assert some.frames[..., asked, :].isfinite().all()
    assert some.frames[..., ~asked, :].isnan().all()
    assert set(some.by_frame("frames")["query_frame"]) == set(asked.nonzero().flatten().tolist())
    mask = torch.zeros(whole.grid, dtype=torch.bool)
    mask.view(-1)[some.queries] = True
    by_mask = attention(organism.model, run, 1, queries=dl.Tokens(mask=mask), keep_maps=True)
    assert by_mask.maps is not None
    assert torch.equal(by_mask.maps, some.maps)


def test_heads_and_layers_are_those_asked_for(organism: Subject, run: dl.Run) -> None:
    whole = attention(organism.model, run, 1)
    some = attention(organism.model, run, 1, heads=[-1], layers=slice(1, 3))
    assert whole.frames is not None
    assert some.frames is not None
    assert (some.layers, some.heads) == ((1, 2), (whole.heads[-1],))
    assert (some.frames - whole.frames[1:3, :, -1:]).abs().max() < EXACT
    assert not torch.equal(whole.frames[1:3, :, :1], some.frames)


def test_any_budget_gives_the_same_and_one_too_small_is_refused(organism: Subject, run: dl.Run) -> None:
    region, queries = dl.Tokens(box=(0, 0, 16, 16)), dl.Tokens(frames=[0, 2])
    whole = attention(organism.model, run, 1, region=region, queries=queries)
    keys = math.prod(whole.grid)
    row = 5 * 8 * keys
    for budget in (row, 3 * row + 1, 200 * row):
        part = attention(organism.model, run, 1, region=region, queries=queries, budget=budget)
        for name in ("frames", "entropy", "entropy_share", "region", "uniform"):
            assert torch.allclose(getattr(part, name), getattr(whole, name), rtol=0, atol=EXACT, equal_nan=True)
    with pytest.raises(InputError, match=f"one query's {keys} keys; give at least {row:,}"):
        attention(organism.model, run, 1, budget=row - 1)


def test_maps_beyond_the_budget_are_refused_before_they_are_made(organism: Subject, run: dl.Run) -> None:
    with pytest.raises(InputError, match=r"maps of 4 steps and layers x 1 rows x \d+ heads .* choose fewer"):
        attention(organism.model, run, 1, keep_maps=True, budget=30_000)


@pytest.mark.parametrize("allowed", ["highest", "medium"])
def test_the_users_precision_of_products_is_given_back(organism: Subject, run: dl.Run, allowed: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        attention(organism.model, run, 0, layers=0)
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)


def test_reading_changes_nothing_and_leaves_nothing(subject: Subject, guidance: float) -> None:
    run = subject.run(guidance=guidance, record=True)
    plain = subject.model.replay(run, 1)
    call = next(c for c in run.recorded(1) if "cond" in c.branches)
    stack = subject.model.architecture.layers(subject.model.experts[call.expert])
    seen = []
    modules = attention_modules(stack, list(range(len(stack))), "self", "wan")
    with watched(modules, 0, lambda met: seen.append(met.layer)):
        replay = subject.model.replay(run, 1)
    assert seen == list(modules)
    for branch, velocity in plain.velocities.items():
        assert torch.equal(replay.velocities[branch], velocity)
    assert leftovers(subject.pipeline) == []


def test_nothing_is_left_when_reading_fails(organism: Subject, run: dl.Run) -> None:
    with pytest.raises(SiteError, match="head 9"):
        attention(organism.model, run, 0, heads=9)
    assert leftovers(organism.pipeline) == []
    assert torch._C._len_torch_function_stack() == 0  # no public way of asking


def test_guidance_branches_are_told_apart(text_to_video: Subject) -> None:
    run = text_to_video.run(guidance=3.0, record=True)
    cond, uncond = (attention(text_to_video.model, run, 0, kind="cross", branch=b) for b in ("cond", "uncond"))
    assert cond.text is not None
    assert uncond.text is not None
    assert (cond.branch, uncond.branch) == ("cond", "uncond")
    assert (cond.text - uncond.text).abs().max() > 1e-3


def test_rows_are_told_apart(organism: Subject) -> None:
    several = organism.model.run(list(organism.inputs), [3, 4], num_inference_steps=2, record=True, decode=False)
    both = attention(organism.model, several, 0).frames
    alone = organism.model.run(organism.inputs[1], 4, num_inference_steps=2, record=True, decode=False)
    one = attention(organism.model, alone, 0).frames
    assert both is not None
    assert one is not None
    assert (both[:, 1:] - one).abs().max() < EXACT
    assert (both[:, :1] - one).abs().max() > EXACT


def test_interventions_are_seen(organism: Subject, run: dl.Run) -> None:
    """What a bypassed block would have changed is not there; blocks before it look where they looked."""
    plain = attention(organism.model, run, 1).frames
    bypassed = attention(organism.model, run, 1, interventions=[dl.Bypass(dl.Sites("delta", layers=1))]).frames
    assert plain is not None
    assert bypassed is not None
    assert torch.equal(bypassed[:1], plain[:1])
    assert not torch.equal(bypassed[2], plain[2])


def test_fused_projections_are_understood(text_to_video: Subject) -> None:
    """At step 0 the latents are the same noise, whether projections are fused or not."""
    plain = attention(text_to_video.model, text_to_video.run(record=True), 0).frames
    blocks = text_to_video.pipeline.transformer.blocks
    for block in blocks:
        block.attn1.fuse_projections()
    try:
        assert blocks[0].attn1.fused_projections
        model = dl.VideoDiT(text_to_video.pipeline, defaults=text_to_video.model.defaults)
        run = model.run(
            text_to_video.inputs[0], text_to_video.seeds[0], num_inference_steps=STEPS, record=True, decode=False
        )
        fused = attention(model, run, 0).frames
    finally:
        for block in blocks:
            block.attn1.unfuse_projections()
    assert plain is not None
    assert fused is not None
    assert (fused - plain).abs().max() < 10 * EXACT  # the fused product is rounded otherwise, and blocks follow


def test_backends_that_call_torchs_attention_are_understood(text_to_video: Subject) -> None:
    run = text_to_video.run(record=True)
    plain = attention(text_to_video.model, run, 1).frames
    with backend(text_to_video.pipeline.transformer, "_native_math"):
        other = attention(text_to_video.model, run, 1).frames
    assert plain is not None
    assert other is not None
    assert (other - plain).abs().max() < 10 * EXACT


class backend:
    """An attention backend on the processors alone; ``set_attention_backend`` would change it for the whole process."""

    def __init__(self, transformer: Any, name: str | None) -> None:
        self.processors = [m.processor for m in transformer.modules() if hasattr(m, "processor")]
        self.name = name

    def __enter__(self) -> None:
        for processor in self.processors:
            processor._attention_backend = self.name

    def __exit__(self, *_: object) -> None:
        for processor in self.processors:
            processor._attention_backend = None


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")  # that is how it is here
def test_another_backend_is_refused_by_name(text_to_video: Subject) -> None:
    run = text_to_video.run(record=True)
    with (
        backend(text_to_video.pipeline.transformer, "flex"),
        pytest.raises(UnsupportedModel, match=r"layer 0: attn1 computes with .* 'flex', .*set_attention_backend"),
    ):
        attention(text_to_video.model, run, 1)


class Halves(WanAttnProcessor):  # type: ignore[misc]  # diffusers has no types
    """Attention within two halves of the tokens, and not a word of it."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any) -> Tensor:
        apart = hidden_states.unflatten(1, (2, -1)).flatten(0, 1)
        mixed: Tensor = super().__call__(attn, apart)
        return mixed.unflatten(0, (-1, 2)).flatten(1, 2)


def test_a_processor_with_rows_of_its_own_is_refused(text_to_video: Subject) -> None:
    run = text_to_video.run(record=True)
    attn = text_to_video.pipeline.transformer.blocks[2].attn1
    before = attn.processor
    attn.set_processor(Halves())
    try:
        with pytest.raises(UnsupportedModel, match=r"layer 2: attn1 .* are not 1 rows of a grid .*latent_frames"):
            attention(text_to_video.model, run, 1)
    finally:
        attn.set_processor(before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "joint"}, InputError, "one of self, cross, image"),
        ({"layers": 9}, SiteError, r"layers 0\.\.3"),
        ({"branch": "uncond"}, SiteError, "this run has cond"),
        ({"queries": dl.Tokens(frames=7)}, SiteError, r"latent frames 0\.\.4"),
        ({"queries": dl.Tokens(positions=1)}, SiteError, "text stream"),
        ({"region": dl.Tokens(positions=1)}, SiteError, "text stream"),
        ({"kind": "cross", "region": dl.Tokens(frames=1)}, SiteError, "has positions"),
        ({"kind": "cross", "region": dl.Tokens(positions=99)}, SiteError, r"text positions 0\.\.15"),
        ({"kind": "cross", "region": dl.Tokens(mask=torch.ones(3, dtype=torch.bool))}, SiteError, "16 positions"),
        ({"kind": "image"}, UnsupportedModel, "reads text and no image"),
        ({"step": 9}, SiteError, "step 9"),
    ],
)
def test_what_is_not_there_is_refused(
    organism: Subject, run: dl.Run, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {"step": 0, **change}
    with pytest.raises(error, match=message):
        attention(organism.model, run, options.pop("step"), **options)


def test_a_run_that_was_not_recorded_or_is_another_models_is_refused(organism: Subject, text_to_video: Subject) -> None:
    with pytest.raises(InputError, match="record=True"):
        attention(organism.model, organism.run(), 0)
    with pytest.raises(MadeForAnother, match="was made by model"):
        attention(text_to_video.model, recorded(), 0)


def test_nan_is_an_error_that_names_the_layer(organism: Subject, run: dl.Run) -> None:
    """Brought in between: a run with weights that are not finite would not get so far as to be recorded."""
    handle = organism.pipeline.transformer.blocks[1].attn1.norm_k.register_forward_hook(
        lambda _module, _given, out: out * torch.nan
    )
    try:
        with pytest.raises(NotFinite, match="self-attention of layer 1 is not finite"):
            attention(organism.model, run, 0)
    finally:
        handle.remove()


def test_every_step_is_what_it_is_alone(organism: Subject, run: dl.Run) -> None:
    both = dl.attention(organism.model, run, sites=dl.Sites("head", steps=[0, 2]))
    assert both.frames is not None
    for place, step in enumerate((0, 2)):
        alone = attention(organism.model, run, step)
        assert torch.equal(both.frames[place], alone.frames)
        assert torch.equal(both.entropy[place], alone.entropy)


def test_the_tables_say_what_the_tensors_say(organism: Subject) -> None:
    several = organism.model.run(list(organism.inputs), [3, 4], num_inference_steps=2, record=True, decode=False)
    found = attention(organism.model, several, 1, layers=[1, 2], kind="self")
    assert found.frames is not None
    table = found.by_frame("frames")
    places = ["step", "sigma", "expert", "branch", "layer", "kind", "component", "stream", "head", "attention"]
    values = ["instance", "seed", "measure", "value"]
    assert list(table.columns) == [*places, "query_frame", "key_frame", *values]
    assert list(found.samples.columns) == [*places, *values]
    assert len(table) == found.frames.numel()
    row = table.query("layer == 2 and seed == 4 and head == 1 and query_frame == 0 and key_frame == 2")
    assert row["value"].item() == pytest.approx(float(found.frames[1, 1, 1, 0, 2]))
    assert set(table["sigma"]) == {several.sigmas[1]}
    with pytest.raises(InputError, match="there are frames, uniform, entropy, entropy_share"):
        found.by_frame("text")
    with pytest.raises(InputError, match="unknown measure 'mass'"):
        found.by_frame("mass")
    assert len(found.by_frame("entropy")) == 2 * 2 * len(found.heads) * found.grid[0]


def test_mass_between_frames_is_that_of_the_maps(organism: Subject) -> None:
    several = organism.model.run(list(organism.inputs), [3, 4], num_inference_steps=2, record=True, decode=False)
    queries = dl.Tokens(frames=[0, 2], rows=(0, 2))
    found = attention(organism.model, several, 0, queries=queries, keep_maps=True)
    size = found.grid[1] * found.grid[2]
    apart = (found.queries[:, None] // size - torch.arange(math.prod(found.grid)) // size).abs().double()
    assert found.maps is not None
    maps = found.maps.double()
    between = (maps * (apart > 0)).sum(-1).mean(-1)  # (layers, B, heads)
    far = (maps * apart).sum(-1).mean(-1)
    samples = found.samples.set_index(["measure", "layer", "seed", "head"])["value"]
    for layer, row, head in itertools.product(found.layers, range(2), found.heads):
        place = layer, 3 + row, head
        assert samples["between", *place] == pytest.approx(float(between[layer, row, head]), abs=EXACT)
        distance = float(far[layer, row, head] / between[layer, row, head])
        assert samples["distance", *place] == pytest.approx(distance, abs=1e-5)
        assert samples["uniform", *place] == pytest.approx(1 - 1 / found.grid[0])
    table = found.table
    assert (table["n"] == 2).all()
    assert (table["low"] <= table["value"] + EXACT).all()
    assert (table["value"] <= table["high"] + EXACT).all()
    assert attention(organism.model, recorded(), 0).table["low"].isna().all()
    cross = attention(organism.model, several, 0, kind="cross", region=dl.Tokens(positions=[0, 1]))
    assert set(cross.table["measure"]) == {"text", "region", "entropy", "entropy_share"}
    means = cross.table[cross.table["measure"] == "text"]["value"]
    assert means.to_numpy() == pytest.approx(1, abs=EXACT)


def test_means_over_queries_weigh_every_query_alike(organism: Subject, run: dl.Run) -> None:
    mask = torch.zeros(run.geometry.grid, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, :, :] = True
    found = attention(organism.model, run, 0, queries=dl.Tokens(mask=mask), keep_maps=True)
    size = found.grid[1] * found.grid[2]
    assert found.maps is not None
    expected = found.maps.double().unflatten(-1, (-1, size)).sum(-1).mean(3)
    assert (found.over_queries("frames") - expected).abs().max() < EXACT
    entropy = torch.special.entr(found.maps.double()).sum(-1).mean(-1)
    assert (found.over_queries("entropy") - entropy).abs().max() < EXACT
    assert found.on_grid().shape == (*found.maps.shape[:-1], *found.grid)
    assert torch.equal(found.on_grid().flatten(-3), found.maps)
    with pytest.raises(InputError, match="keep_maps=True"):
        attention(organism.model, run, 0).on_grid()


def test_pictures(organism: Subject, run: dl.Run) -> None:
    import matplotlib.pyplot as plt

    found = attention(organism.model, run, 0)
    assert "self-attention, step 0" in found.plot().get_title()
    axis = found.plot_frames(2, head=1)
    assert axis.get_title().startswith("layer 2, head 1")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("key_frame", "query_frame")
    with pytest.raises(SiteError, match="no layer 7"):
        found.plot_frames(7)
    cross = attention(organism.model, run, 0, kind="cross")
    assert "cross-attention" in cross.plot().get_title()
    plt.close("all")
