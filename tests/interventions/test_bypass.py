"""A bypassed block or sub-module adds nothing, and a bypassed block is not computed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import SiteError
from dit_lens.interventions.ablate import Ablate
from dit_lens.interventions.bypass import Bypass
from tests.interventions.by_hand import GRID, WIDTH, make_at, noise
from tests.subjects import STEPS, Subject, different, forward_hooks


@pytest.mark.parametrize("component", ["delta", "attn", "cross_attn", "ffn", "pos", "a2v", "bias"])
def test_what_is_added_becomes_zero(component: str) -> None:
    activation = noise(2, *GRID, WIDTH).bfloat16()
    added = Bypass(dl.Sites(component))(activation, make_at(f"s00/cond/L00/{component}/video"))
    assert torch.equal(added, torch.zeros_like(activation))
    assert added.dtype == activation.dtype


@pytest.mark.parametrize("component", ["resid", "head", "embed", "latents", "model_input", "velocity", "guided"])
def test_what_is_no_update_cannot_be_left_out(component: str) -> None:
    with pytest.raises(SiteError, match=rf"cannot leave out {component}; only delta, .*attn, cross_attn, .*ffn"):
        Bypass(dl.Sites(("delta", component)))


def test_it_is_an_intervention_that_skips() -> None:
    assert isinstance(Bypass(dl.Sites("delta")), dl.Intervention)
    assert Bypass.skips


def bypassed_by_hand(subject: Subject, layers: list[int], which: str) -> Tensor:
    """The final latents when raw hooks take the blocks, or a sub-module of them, out."""

    def pass_on(_module: Any, args: tuple[Any, ...], _kwargs: Any, _output: Tensor) -> Tensor:
        return args[0]

    def nothing(_module: Any, _args: Any, _kwargs: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    with ExitStack() as stack:
        for layer in layers:
            block = subject.pipeline.transformer.blocks[layer]
            module, hook = (block, pass_on) if which == "delta" else (getattr(block, which), nothing)
            stack.enter_context(forward_hooks(module, hook))
        latents: Tensor = subject.plain()
    return latents


def test_a_bypassed_block_passes_its_input_on_bit_for_bit(organism: Subject) -> None:
    run = organism.run(interventions=[Bypass(dl.Sites("delta", layers=[1, 2]))])
    assert torch.equal(run.latents, bypassed_by_hand(organism, [1, 2], "delta"))
    assert different(run.latents, organism.run().latents)


@pytest.mark.parametrize(("component", "module"), [("attn", "attn1"), ("cross_attn", "attn2"), ("ffn", "ffn")])
def test_a_bypassed_sub_module_adds_nothing(organism: Subject, component: str, module: str) -> None:
    run = organism.run(interventions=[Bypass(dl.Sites(component, layers=2))])
    by_hand = bypassed_by_hand(organism, [2], module)
    # The stream is moved back by what was added, which rounds.
    torch.testing.assert_close(run.latents, by_hand, rtol=0, atol=1e-5)
    assert float((run.latents - organism.run().latents).abs().max()) > 1e-3


def test_bypassing_all_sub_modules_is_bypassing_the_block(organism: Subject) -> None:
    parts = organism.run(interventions=[Bypass(dl.Sites(("attn", "cross_attn", "ffn"), layers=1))])
    whole = organism.run(interventions=[Bypass(dl.Sites("delta", layers=1))])
    torch.testing.assert_close(parts.latents, whole.latents, rtol=0, atol=1e-5)


def test_zeros_are_written_in_one_branch_alone(organism: Subject) -> None:
    sites = dl.Sites("delta", layers=1, branches="uncond")
    runs = [organism.run(guidance=2.0, interventions=[kind(sites)]) for kind in (Bypass, Ablate)]
    torch.testing.assert_close(runs[0].latents, runs[1].latents, rtol=0, atol=1e-5)
    assert different(runs[0].latents, organism.run(guidance=2.0).latents)


def test_a_bypassed_block_is_not_computed_and_not_counted(organism: Subject) -> None:
    layers = organism.model.layers
    assert organism.run().ledger.block_forwards == STEPS * layers
    run = organism.run(interventions=[Bypass(dl.Sites("delta", layers=[1, 3], steps=[0, 2]))])
    assert run.ledger.block_forwards == STEPS * layers - 4
    ablated = organism.run(interventions=[Ablate(dl.Sites("delta", layers=[1, 3], steps=[0, 2]))])
    assert ablated.ledger.block_forwards == STEPS * layers
    torch.testing.assert_close(run.latents, ablated.latents, rtol=0, atol=1e-5)


def test_the_residual_of_a_bypassed_block_is_the_one_before(organism: Subject) -> None:
    see = dl.Capture(dl.Sites(("delta", "resid"), steps=0, layers=[0, 1]))
    run = organism.run(interventions=[Bypass(dl.Sites("delta", layers=1)), see])
    assert torch.equal(run["s00/cond/L01/resid/video"], run["s00/cond/L00/resid/video"])
    assert not run["s00/cond/L01/delta/video"].any()
