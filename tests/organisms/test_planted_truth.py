"""Planted truth: what only known blocks can do, no other block does, bit for bit."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import InputError
from dit_lens.files.shipped import ORGANISMS
from dit_lens.organisms import PLACES, Planted, load_planted, organism_names, with_identity_blocks
from dit_lens.organisms.build import OrganismConfig, random_pipeline
from dit_lens.organisms.confine import Crossing
from dit_lens.organisms.training.presets import PRESETS
from dit_lens.runs.identity import difference, setup_of

BLOCKS = (1, 2)
RELAY = (Crossing(1, reads=((1, 0),)), Crossing(3, reads=((2, 1), (3, 1), (4, 1))))
HEAD = (Crossing(2, head=1),)
TASK = dl.tasks.Permanence()
DEFAULTS = OrganismConfig().run_defaults


def confined(**blocks: Any) -> dl.VideoDiT:
    """A random model of five blocks, so that nothing is zero by training."""
    config = OrganismConfig(layers=5, vae_base=8, frame_local_vae=True, **blocks)
    return dl.VideoDiT(random_pipeline(config), defaults=DEFAULTS)


def velocities(model: dl.VideoDiT, instance: Any, *interventions: Any, prompt: str | None = None) -> Tensor:
    """Velocity of the first step, (C, F, H, W)."""
    capture = dl.Capture(dl.Sites("velocity", steps=0))
    inputs = {"prompt": prompt or instance.prompt, "image": instance.image}
    run = model.run(inputs, seed=3, interventions=[*interventions, capture], stop_after=0)
    return only(run, "velocity")[0]


@pytest.fixture(scope="module")
def pair() -> Any:
    """Two pictures, one prompt: what comes out has another colour."""
    return TASK.pair(seed=0, kind="colour")


def only(run: dl.Run, component: str) -> Tensor:
    (site,) = (s for s in run.captured() if s.component == component)
    return run[site]


def differing_frames(one: Tensor, two: Tensor) -> list[int]:
    return [f for f in range(one.shape[1]) if not torch.equal(one[:, f], two[:, f])]


def test_without_its_blocks_no_frame_hears_of_the_first(pair: Any) -> None:
    model = confined(frame_attention=BLOCKS)
    assert pair.original.prompt == pair.counterfactual.prompt
    bypass = dl.Bypass(dl.Sites("delta", layers=list(BLOCKS)))
    with_blocks = [velocities(model, side) for side in pair]
    without = [velocities(model, side, bypass) for side in pair]
    assert differing_frames(*with_blocks) == [0, 1, 2, 3, 4]
    assert differing_frames(*without) == [0]


def test_before_its_blocks_the_residual_streams_of_other_frames_are_the_same(pair: Any) -> None:
    model = confined(frame_attention=BLOCKS)
    capture = dl.Capture(dl.Sites("resid", steps=0))
    runs = [model.run(side, seed=3, interventions=[capture], stop_after=0) for side in pair]
    heard = []
    for layer in range(model.layers):
        one, two = (run[f"s00/cond/L{layer:02d}/resid/video"][0] for run in runs)
        heard.append(not torch.equal(one[1:], two[1:]))
    assert heard == [False, True, True, True, True]


def test_any_change_of_one_frame_stays_in_it_without_its_blocks() -> None:
    assert heard_of(3, confined(frame_attention=BLOCKS), without=BLOCKS) == [3]


def heard_of(frame: int, model: dl.VideoDiT, without: tuple[int, ...] = ()) -> list[int]:
    """The frames whose velocity changes with the input of one: not with the condition alone, but with its state too."""
    transformer, generator = copy.deepcopy(model.pipeline.transformer), torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 18, 5, 4, 4, generator=generator)
    changed = inputs.clone()
    changed[:, :, frame] += 1
    given = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(1, 16, 32, generator=generator)}
    kept = [block for layer, block in enumerate(transformer.blocks) if layer not in without]
    transformer.blocks = torch.nn.ModuleList(kept)
    with torch.no_grad():
        one, two = (transformer(hidden_states=x, **given, return_dict=False)[0] for x in (inputs, changed))
    return differing_frames(one[0], two[0])


def test_attention_confined_to_frames_is_attention_with_a_mask(pair: Any) -> None:
    """Against the stock processor under a block-diagonal mask, run outside of the transformer."""
    model = confined(frame_attention=())
    attention = model.pipeline.transformer.blocks[0].attn1
    stock = confined().pipeline.transformer.blocks[0].attn1
    stock.load_state_dict(attention.state_dict())
    hidden = torch.randn(2, 5 * 16, 128, generator=torch.Generator().manual_seed(0))
    frame = torch.arange(80) // 16
    mask = frame[:, None] == frame[None]
    with torch.no_grad():
        ours = attention(hidden, None, None, None)
        masked = stock(hidden, None, mask, None)
    torch.testing.assert_close(ours, masked, rtol=0, atol=1e-5)


def attention_of(*crossings: int | Crossing) -> Tensor:
    """What the heads of block 0 give, side by side, for a stream of noise: (2, tokens, heads, head width)."""
    model = confined(frame_attention=crossings)
    attention = model.pipeline.transformer.blocks[0].attn1
    attention.to_out = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    hidden = torch.randn(2, 5 * 16, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = attention(hidden, None, None, None)
    return found.unflatten(2, (attention.heads, -1))


def test_a_crossing_that_crosses_nothing_or_everything_is_one_or_the_other() -> None:
    local, whole = attention_of(), attention_of(0)
    assert (local - whole).abs().max() > 1e-3
    torch.testing.assert_close(attention_of(Crossing(0, reads=())), local, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention_of(Crossing(0)), whole, rtol=0, atol=1e-6)


def test_a_crossing_of_one_head_leaves_the_others_within_their_frames() -> None:
    local, whole, found = attention_of(), attention_of(0), attention_of(Crossing(0, head=2))
    torch.testing.assert_close(found[:, :, 2], whole[:, :, 2], rtol=0, atol=1e-6)
    others = [0, 1, 3]
    torch.testing.assert_close(found[:, :, others], local[:, :, others], rtol=0, atol=1e-6)


def test_a_crossing_of_frames_is_attention_to_these_frames_alone() -> None:
    """The second frame of a video of two frames, in which all frames read all, reads the same."""
    found = attention_of(Crossing(0, reads=((3, 1),))).unflatten(1, (5, 16))
    local = attention_of().unflatten(1, (5, 16))
    others = [0, 1, 2, 4]
    torch.testing.assert_close(found[:, others], local[:, others], rtol=0, atol=1e-6)
    stock = confined().pipeline.transformer.blocks[0].attn1
    stock.to_out = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    hidden = torch.randn(2, 5 * 16, 128, generator=torch.Generator().manual_seed(0)).unflatten(1, (5, 16))
    with torch.no_grad():
        pair = stock(hidden[:, [1, 3]].flatten(1, 2), None, None, None).unflatten(1, (2, 16))
    torch.testing.assert_close(found[:, 3].flatten(2), pair[:, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("without", "hearing"),
    [
        ((), {0: [0, 1, 2, 3, 4], 1: [1, 2, 3, 4], 2: [2], 3: [3], 4: [4]}),
        ((1,), {0: [0], 1: [1, 2, 3, 4], 4: [4]}),
        ((3,), {0: [0, 1], 1: [1], 4: [4]}),
        ((1, 3), {0: [0], 1: [1], 4: [4]}),
    ],
)
def test_a_relay_is_heard_along_its_way_alone(without: tuple[int, ...], hearing: dict[int, list[int]]) -> None:
    model = confined(frame_attention=RELAY)
    assert {frame: heard_of(frame, model, without) for frame in hearing} == hearing


def test_the_blocks_of_a_relay_in_the_other_order_carry_nothing_to_the_end() -> None:
    """Frame 1 is read before it has heard of frame 0."""
    turned = tuple(replace(crossing, block=4 - crossing.block) for crossing in RELAY)
    assert heard_of(0, confined(frame_attention=turned)) == [0, 1]


def without_heads(model: dl.VideoDiT, layer: int, heads: list[int]) -> dl.VideoDiT:
    """A model of which some heads give exactly nothing: the output projection has zeros where it takes them."""
    pipeline = copy.copy(model.pipeline)
    transformer = copy.deepcopy(pipeline.transformer)
    attention = transformer.blocks[layer].attn1
    with torch.no_grad():
        attention.to_out[0].weight.unflatten(1, (attention.heads, -1))[:, heads] = 0
    pipeline.register_modules(transformer=transformer)
    return dl.VideoDiT(pipeline, defaults=model.defaults)


def test_models_of_the_same_weights_and_another_relay_do_not_have_the_same_setup() -> None:
    turned = tuple(replace(crossing, reads=tuple((a, b) for b, a in crossing.reads or ())) for crossing in RELAY)
    one, again, other = (confined(frame_attention=crossings) for crossings in (RELAY, RELAY, turned))
    setups = [setup_of(model.pipeline, [model.pipeline.transformer]) for model in (one, again, other)]
    assert one.id == other.id
    assert difference(setups[0], setups[1]) == ""
    assert difference(setups[0], setups[2]) == "transformer"


def test_without_its_head_no_frame_hears_of_another(pair: Any) -> None:
    model = confined(frame_attention=HEAD)
    assert differing_frames(*(velocities(model, side) for side in pair)) == [0, 1, 2, 3, 4]
    assert heard_of(3, model) == [0, 1, 2, 3, 4]
    silent, alone = without_heads(model, 2, [1]), without_heads(model, 2, [0, 2, 3])
    assert [heard_of(frame, silent) for frame in range(5)] == [[0], [1], [2], [3], [4]]
    assert heard_of(3, alone) == [0, 1, 2, 3, 4]
    assert differing_frames(*(velocities(silent, side) for side in pair)) == [0]


def test_without_its_blocks_no_word_is_heard(pair: Any) -> None:
    model = confined(text_attention=BLOCKS)
    words = ("sort the bars up", "play x and win")
    bypass = dl.Bypass(dl.Sites("delta", layers=list(BLOCKS)))
    assert not torch.equal(*(velocities(model, pair.original, prompt=p) for p in words))
    assert torch.equal(*(velocities(model, pair.original, bypass, prompt=p) for p in words))
    silent = [dl.Capture(dl.Sites("cross_attn", steps=0, layers=[0, 3, 4]))]
    run = model.run(pair.original, seed=0, interventions=silent, stop_after=0)
    assert all(not run[site].any() for site in run.captured())


@pytest.mark.parametrize("blocks", [{"frame_attention": (5,)}, {"text_attention": (-1,)}])
def test_blocks_that_are_not_there_are_refused(blocks: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="has blocks 0 to 4"):
        confined(**blocks)


@pytest.mark.parametrize(
    ("crossings", "reason"),
    [
        ((Crossing(5),), "has blocks 0 to 4, not"),
        ((1, Crossing(-1)), "has blocks 0 to 4, not"),
        ((Crossing(1, head=4),), "block 1 has heads 0 to 3, not 4"),
        ((Crossing(1, head=-1),), "block 1 has heads 0 to 3, not -1"),
        ((Crossing(1, reads=((5, 0),)),), "latent frames are 0 to 4"),
        ((Crossing(1, reads=((1, -1),)),), "latent frames are 0 to 4"),
        ((Crossing(1, head=0), Crossing(1, head=2)), "one crossing for each block"),
        ((1, Crossing(1)), "one crossing for each block"),
    ],
)
def test_crossings_of_what_is_not_there_are_refused(crossings: tuple[int | Crossing, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        confined(frame_attention=crossings)


@pytest.mark.parametrize("crossings", [BLOCKS, tuple(Crossing(layer) for layer in range(5))])
def test_another_number_of_frames_than_the_models_is_refused(pair: Any, crossings: tuple[int | Crossing, ...]) -> None:
    with pytest.raises(InputError, match="are not 5 latent frames"):
        confined(frame_attention=crossings).run(pair.original, num_frames=13)


# -- identity blocks ---------------------------------------------------------------------------------------------------


def test_identity_blocks_change_nothing_and_add_nothing(pair: Any) -> None:
    model = confined()
    planted = with_identity_blocks(model, [0, 3, 7])
    assert planted.blocks == (0, 3, 7)
    assert (model.layers, planted.model.layers) == (5, 8)
    plain, same = (m.run(pair.original, seed=0, decode=False) for m in (model, planted.model))
    assert torch.equal(plain.latents, same.latents)
    capture = dl.Capture(dl.Sites("delta", steps=0))
    run = planted.model.run(pair.original, seed=0, interventions=[capture], stop_after=0)
    still = [layer for layer in range(8) if not run[f"s00/cond/L{layer:02d}/delta/video"].any()]
    assert still == [0, 3, 7]


def test_identity_blocks_leave_the_original_model_alone(pair: Any) -> None:
    model = confined()
    before = {name: p.clone() for name, p in model.pipeline.transformer.named_parameters()}
    planted = with_identity_blocks(model, [2])
    assert planted.model.pipeline.transformer is not model.pipeline.transformer
    after = dict(model.pipeline.transformer.named_parameters())
    assert all(
        torch.equal(after[name], p) and after[name].requires_grad == p.requires_grad for name, p in before.items()
    )
    idle = planted.model.pipeline.transformer.blocks[2]
    assert float(idle.ffn.net[0].proj.weight.detach().abs().sum()) > 0


@pytest.mark.parametrize("at", [[], [6], [-1], [1, 1]])
def test_depths_that_the_new_model_does_not_have_are_refused(at: list[int]) -> None:
    with pytest.raises(InputError, match="need different depths"):
        with_identity_blocks(confined(), at)


# -- the shipped ones --------------------------------------------------------------------------------------------------

PLANTED = [name for name in organism_names() if name.startswith("planted/")]


PLACED = [f"planted/{kind}-{place}" for kind in ("frames", "text") for place in PLACES]


def planted_at(name: str) -> Planted:
    kind, _, place = name.removeprefix("planted/").partition("-")
    return load_planted(kind, place or None)


def test_three_places_of_two_kinds_a_relay_and_a_head_are_shipped() -> None:
    assert sorted([*PLACED, "planted/head", "planted/relay"]) == PLANTED


@pytest.mark.parametrize("name", PLANTED)
def test_the_recipe_of_a_planted_model_is_the_preset(name: str) -> None:
    recipe = (ORGANISMS / name / "recipe.json").read_text()
    assert recipe == json.dumps(asdict(PRESETS[name]["cpu"]), indent=1)


@pytest.mark.parametrize("name", PLANTED)
def test_a_shipped_planted_model_solves_its_task_and_is_confined(name: str, pair: Any) -> None:
    planted = planted_at(name)
    assert planted.task is not None
    instances = planted.task.sample(40, seed=1)
    frames = planted.model.run(instances, seed=list(range(40))).frames
    assert frames is not None
    assert np.mean(planted.task.score(frames, instances).strict) > 0.3
    bypass = dl.Bypass(dl.Sites("delta", layers=list(planted.blocks)))
    if "text" not in name:
        assert differing_frames(*(velocities(planted.model, side) for side in pair)) == [0, 1, 2, 3, 4]
        assert differing_frames(*(velocities(planted.model, side, bypass) for side in pair)) == [0]
    else:
        words = [side.prompt for side in planted.task.pair(seed=0, kind="exit")]
        assert torch.equal(*(velocities(planted.model, pair.original, bypass, prompt=p) for p in words))
        assert not torch.equal(*(velocities(planted.model, pair.original, prompt=p) for p in words))


def test_the_shipped_relay_needs_both_its_blocks(pair: Any) -> None:
    planted = load_planted("relay")
    assert (planted.blocks, planted.heads) == ((1, 4), None)
    heard = [
        differing_frames(*(velocities(planted.model, side, dl.Bypass(dl.Sites("delta", layers=k))) for side in pair))
        for k in range(6)
    ]
    everywhere = [0, 1, 2, 3, 4]
    assert heard == [everywhere, [0], everywhere, everywhere, [0, 1], everywhere]


def test_the_shipped_head_is_the_only_one_that_is_heard(pair: Any) -> None:
    planted = load_planted("head")
    assert (planted.blocks, planted.heads) == ((3,), (2,))
    silent, alone = (without_heads(planted.model, 3, heads) for heads in ([2], [0, 1, 3]))
    assert differing_frames(*(velocities(silent, side) for side in pair)) == [0]
    assert differing_frames(*(velocities(alone, side) for side in pair)) == [0, 1, 2, 3, 4]


def test_ablating_the_head_stops_all_but_the_rounding(pair: Any) -> None:
    """The head's share is taken from a sum that was made with it, which leaves its last bits."""
    model = load_planted("head").model
    ablate = dl.Ablate(dl.Sites("head", layers=3, heads=2))
    clean, ablated = (
        torch.sub(*(velocities(model, side, *what) for side in pair))[:, 1:].abs().max() for what in ([], [ablate])
    )
    assert clean > 1
    assert ablated < 1e-5


def test_the_random_model_has_the_same_architecture_and_nothing_planted() -> None:
    random, trained = load_planted("random"), load_planted("frames", "middle")
    assert random.blocks == ()
    assert random.model.layers == trained.model.layers
    assert random.model.id != trained.model.id


@pytest.mark.parametrize(("kind", "place"), [("words", "early"), ("text", "top")])
def test_unknown_planted_models_are_refused(kind: str, place: str) -> None:
    with pytest.raises(InputError, match="kinds are"):
        load_planted(kind, place)


@pytest.mark.parametrize("kind", ["relay", "head", "random"])
def test_a_place_for_a_kind_that_has_none_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="leave the place out"):
        load_planted(kind, "middle")


def test_by_default_a_planted_model_is_in_the_middle() -> None:
    assert load_planted("frames").model.id == load_planted("frames", "middle").model.id
