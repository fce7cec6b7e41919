"""Gradients of one denoising step, against finite differences and torch's own autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import UnsupportedModel
from tests.subjects import Edit, Subject, forward_hooks

COMPONENTS = ("model_input", "embed", "attn", "cross_attn", "ffn", "head", "delta", "resid", "velocity",
              "modulation", "head_modulation")  # fmt: skip


def energy(replay: dl.Replay) -> Tensor:
    return replay.x0hat.square().sum()


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_gradient_is_the_finite_difference(text_to_video: Subject, component: str) -> None:
    model, run = text_to_video.model, text_to_video.run(guidance=2.0, record=True)
    sites = dl.Sites(component, layers=1, branches="cond", heads=0)
    found = model.gradients(run, 1, energy, sites)
    (site,) = found.gradients
    direction = torch.randn(found.gradients[site].shape, generator=torch.Generator().manual_seed(0))

    def moved(amount: float) -> float:
        edit = Edit(sites, lambda x, at: x + amount * direction)
        return float(model.replay(run, 1, [edit]).x0hat.double().square().sum())

    expected = (moved(1e-2) - moved(-1e-2)) / 2e-2
    assert float((found.gradients[site] * direction).sum()) == pytest.approx(expected, rel=5e-3, abs=1e-2)
    assert float(found.value) == pytest.approx(moved(0.0), rel=1e-5)


def test_the_gradient_by_the_residual_stream_is_torchs_own(text_to_video: Subject) -> None:
    model, run = text_to_video.model, text_to_video.run(record=True)
    found = model.gradients(run, 0, energy, dl.Sites("resid", layers=1))
    leaf: list[Tensor] = []

    def reroot(_module: object, args: tuple[Tensor, ...], kwargs: object) -> object:
        leaf.append(args[0].detach().requires_grad_())
        return (leaf[0], *args[1:]), kwargs

    call = run.calls[0]
    with torch.enable_grad(), forward_hooks(model.pipeline.transformer.blocks[2], reroot, before=True):
        velocity = model.pipeline.transformer(**call.kwargs)[0]
        value = run.schedule.clean(0, run.states[0], velocity).square().sum()
        (own,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(found.gradients[dl.Site(0, "cond", 1, "resid")].flatten(1, 3), own, rtol=1e-4, atol=1e-5)


def test_attribution_to_first_order_is_what_patching_does(text_to_video: Subject) -> None:
    """A small step from one's own activation to a donor's moves the metric by gradient times difference."""
    model = text_to_video.model
    sites = dl.Sites("attn", layers=2)
    donor = text_to_video.run(1, interventions=[dl.Capture(sites)])
    run = text_to_video.run(record=True)
    found = model.gradients(run, 0, energy, sites)
    (site,) = found.gradients
    weight = 1e-2
    step = weight * (donor[site] - found.activations[site])
    moved = model.replay(run, 0, [Edit(sites, lambda x, at: x + step)])
    estimated = float((found.gradients[site] * step).sum())
    assert float(energy(moved) - found.value) == pytest.approx(estimated, rel=0.05, abs=1e-3)


def test_only_the_selected_tokens_have_a_gradient(text_to_video: Subject) -> None:
    run = text_to_video.run(record=True)
    tokens = dl.Tokens(frames=1, rows=(0, 1))
    found = text_to_video.model.gradients(run, 0, energy, dl.Sites("resid", layers=0, tokens=tokens))
    whole = text_to_video.model.gradients(run, 0, energy, dl.Sites("resid", layers=0))
    (site,) = found.gradients
    torch.testing.assert_close(found.gradients[site], whole.gradients[site][:, 1:2, :1])


def test_gradients_are_off_again_and_the_run_as_it_was(text_to_video: Subject) -> None:
    run = text_to_video.run(record=True)
    found = text_to_video.model.gradients(run, 0, energy, dl.Sites("resid", layers=0))
    assert not found.replay.x0hat.requires_grad
    assert not found.value.requires_grad
    parameters = list(text_to_video.pipeline.transformer.parameters())
    assert all(p.requires_grad and p.grad is None for p in parameters)
    assert torch.equal(text_to_video.run().latents, run.latents)


def test_a_layer_on_which_the_metric_does_not_depend_has_gradient_zero(text_to_video: Subject) -> None:
    run = text_to_video.run(guidance=2.0, record=True)
    metric = lambda replay: replay.velocities["cond"].sum()  # noqa: E731
    found = text_to_video.model.gradients(run, 0, metric, dl.Sites("resid", layers=3))
    assert found.gradients[dl.Site(0, "cond", 3, "resid")].abs().sum() > 0
    assert not found.gradients[dl.Site(0, "uncond", 3, "resid")].any()


def test_gradient_checkpointing_is_refused(text_to_video: Subject) -> None:
    run, transformer = text_to_video.run(record=True), text_to_video.pipeline.transformer
    transformer.enable_gradient_checkpointing()
    try:
        with pytest.raises(UnsupportedModel, match=r"gradient checkpointing.*disable_gradient_checkpointing"):
            text_to_video.model.gradients(run, 0, energy, dl.Sites("resid", layers=0))
    finally:
        transformer.disable_gradient_checkpointing()
