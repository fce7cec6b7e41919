"""Planted truth: what only known blocks can do, no other block does, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import InputError
from dit_lens.organisms import PLACES, load_planted, organism_names, with_identity_blocks
from dit_lens.organisms.build import OrganismConfig, random_pipeline

BLOCKS = (1, 2)
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
    """Not the condition alone: the state of one latent frame is changed."""
    model = confined(frame_attention=BLOCKS)
    transformer, generator = model.pipeline.transformer, torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 18, 5, 4, 4, generator=generator)
    changed = inputs.clone()
    changed[:, :, 3] += 1
    text = torch.randn(1, 16, 32, generator=generator)
    kept = [block for layer, block in enumerate(transformer.blocks) if layer not in BLOCKS]
    transformer.blocks = torch.nn.ModuleList(kept)
    with torch.no_grad():
        one, two = (
            transformer(hidden_states=x, timestep=torch.tensor([500.0]), encoder_hidden_states=text, return_dict=False)[
                0
            ]
            for x in (inputs, changed)
        )
    assert differing_frames(one[0], two[0]) == [3]


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


def test_another_number_of_frames_than_the_models_is_refused(pair: Any) -> None:
    with pytest.raises(InputError, match="are not 5 latent frames"):
        confined(frame_attention=BLOCKS).run(pair.original, num_frames=13)


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


def test_three_places_of_each_trained_kind_are_shipped() -> None:
    assert sorted(f"planted/{kind}-{place}" for kind in ("frames", "text") for place in PLACES) == PLANTED


@pytest.mark.parametrize("name", PLANTED)
def test_a_shipped_planted_model_solves_its_task_and_is_confined(name: str, pair: Any) -> None:
    kind, place = name.removeprefix("planted/").split("-")
    planted = load_planted(kind, place)
    instances = planted.task.sample(40, seed=1)
    frames = planted.model.run(instances, seed=list(range(40))).frames
    assert frames is not None
    assert np.mean(planted.task.score(frames, instances).strict) > 0.3
    bypass = dl.Bypass(dl.Sites("delta", layers=list(planted.blocks)))
    if kind == "frames":
        assert differing_frames(*(velocities(planted.model, side, bypass) for side in pair)) == [0]
    else:
        words = [side.prompt for side in planted.task.pair(seed=0, kind="exit")]
        assert torch.equal(*(velocities(planted.model, pair.original, bypass, prompt=p) for p in words))
        assert not torch.equal(*(velocities(planted.model, pair.original, prompt=p) for p in words))


def test_the_random_model_has_the_same_architecture_and_nothing_planted() -> None:
    random, trained = load_planted("random"), load_planted("frames", "middle")
    assert random.blocks == ()
    assert random.model.layers == trained.model.layers
    assert random.model.id != trained.model.id


@pytest.mark.parametrize(("kind", "place"), [("words", "early"), ("text", "top")])
def test_unknown_planted_models_are_refused(kind: str, place: str) -> None:
    with pytest.raises(InputError, match="kinds are"):
        load_planted(kind, place)
