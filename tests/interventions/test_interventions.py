"""What each intervention does to an activation, known beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dit_lens as dl
from tests.subjects import STEPS, Subject, capture, different

SEEDS = (1, 2, 3)


def run_rows(subject: Subject, *interventions: dl.Intervention, inputs: Any = None, seeds: Any = SEEDS) -> dl.Run:
    given = subject.inputs[0] if inputs is None else inputs
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "decode": False}
    return subject.model.run(given, seeds, interventions=interventions, **settings)


@pytest.fixture
def unmerged(subject: Subject) -> dl.Run:
    return run_rows(subject, capture())


# -- merge -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["resid", "delta", "velocity", "latents"])
@pytest.mark.parametrize("receiver", [0, 2])
def test_a_merge_changes_its_receiver_and_leaves_the_donors_bit_for_bit(
    subject: Subject, unmerged: dl.Run, component: str, receiver: int
) -> None:
    merge = dl.Merge(dl.Sites(component, steps=[0, 1], layers=[1, 2]), group=3, receiver=receiver)
    merged = run_rows(subject, merge, capture())
    donors = [row for row in range(3) if row != receiver]
    assert all(torch.equal(merged[site][donors], tensor[donors]) for site, tensor in unmerged.captured().items())
    assert torch.equal(merged.latents[donors], unmerged.latents[donors])
    assert different(merged.latents[receiver], unmerged.latents[receiver])


def test_the_receiver_gets_the_mean_of_its_group(subject: Subject, unmerged: dl.Run) -> None:
    merged = run_rows(subject, dl.Merge(dl.Sites("resid", steps=0, layers=1)), capture("resid", steps=0, layers=1))
    site = dl.Site(0, "cond", 1, "resid")
    assert torch.equal(merged[site][0], unmerged[site].mean(dim=0))


def test_merging_into_all_rows_makes_them_one(subject: Subject, unmerged: dl.Run) -> None:
    merged = run_rows(subject, dl.Merge(dl.Sites("resid", steps=1, layers=1), receiver="all"), capture())
    mean = unmerged["s01/cond/L01/resid/video"].mean(dim=0)
    for row in range(3):
        assert torch.equal(merged["s01/cond/L01/resid/video"][row], mean)
    # From there on the step's rows are the same; what is before it is not.
    last = merged["s01/cond/-/velocity/video"]
    torch.testing.assert_close(last, last[:1].expand_as(last), rtol=0, atol=1e-5)
    assert different(merged["s01/cond/L00/resid/video"][0], merged["s01/cond/L00/resid/video"][1])


def test_groups_are_consecutive_rows_and_do_not_mix(subject: Subject) -> None:
    a, b = ({**given, "prompt": word} for given, word in zip(subject.inputs, ("red", "blue"), strict=True))
    see = capture("delta", steps=0, layers=1)
    arguments = {"inputs": [a, a, b, b], "seeds": (1, 2, 1, 2)}
    plain = run_rows(subject, see, **arguments)["s00/cond/L01/delta/video"]
    merge = dl.Merge(dl.Sites("delta", steps=0, layers=1), group=2, receiver=1)
    merged = run_rows(subject, merge, see, **arguments)["s00/cond/L01/delta/video"]
    for first in (0, 2):
        assert torch.equal(merged[first], plain[first])
        # An edited delta is read off the stream again, which rounds.
        torch.testing.assert_close(merged[first + 1], plain[first : first + 2].mean(dim=0), rtol=0, atol=1e-5)


# -- tokens ------------------------------------------------------------------------------------------------------------

SELECTIONS = {
    "one frame": (dl.Tokens(frames=1), (slice(1, 2), slice(None), slice(None))),
    "two frames": (dl.Tokens(frames=[0, -1]), ([0, 2], slice(None), slice(None))),
    "rows": (dl.Tokens(rows=(1, 2)), (slice(None), slice(1, 2), slice(None))),
    "columns": (dl.Tokens(columns=(1, 4)), (slice(None), slice(None), slice(1, 4))),
    "a box": (dl.Tokens(frames=slice(1, 3), rows=(0, 1), columns=(2, 3)), (slice(1, 3), slice(0, 1), slice(2, 3))),
}


@pytest.mark.parametrize("component", ["resid", "delta", "embed"])
@pytest.mark.parametrize("which", list(SELECTIONS))
def test_a_patch_of_some_tokens_edits_these_tokens_and_no_other(
    text_to_video: Subject, which: str, component: str
) -> None:
    tokens, index = SELECTIONS[which]
    see = capture(component, steps=0, layers=0)
    plain, donor = (text_to_video.run(i, interventions=[see]) for i in (0, 1))
    (site,) = plain.captured()
    patch = dl.Patch(donor, dl.Sites(component, steps=0, layers=0, tokens=tokens))
    patched = text_to_video.run(interventions=[patch, see])[site]
    chosen = torch.zeros(plain.geometry.grid, dtype=torch.bool)
    chosen[index] = True
    assert 0 < chosen.sum() < chosen.numel()
    assert torch.equal(patched[:, ~chosen], plain[site][:, ~chosen])
    assert different(donor[site], plain[site])
    tolerance = 1e-5 if component == "delta" else 0.0
    torch.testing.assert_close(patched[:, chosen], donor[site][:, chosen], rtol=0, atol=tolerance)


@pytest.mark.parametrize("which", list(SELECTIONS))
def test_a_capture_of_some_tokens_has_these_tokens(text_to_video: Subject, which: str) -> None:
    tokens, (frames, rows, columns) = SELECTIONS[which]
    whole = text_to_video.run(interventions=[capture("resid", steps=0, layers=2)])["s00/cond/L02/resid/video"]
    assert tuple(whole.shape) == (1, 3, 2, 4, 32)
    part = text_to_video.run(interventions=[capture("resid", steps=0, layers=2, tokens=tokens)])
    assert torch.equal(part["s00/cond/L02/resid/video"], whole[:, frames][:, :, rows][:, :, :, columns])


def test_tokens_lie_where_their_part_of_the_latents_is(text_to_video: Subject) -> None:
    # One changed latent patch changes exactly the token of that frame, row and column in the embedding.
    states = text_to_video.run(record=True).states[0]
    changed = states.clone()
    changed[:, :, 2, 2:4, 6:8] += 1
    runs = [
        text_to_video.run(latents=latents, interventions=[capture("embed", steps=0)])["s00/cond/-/embed/video"]
        for latents in (states, changed)
    ]
    moved = (runs[0] != runs[1]).any(dim=-1)[0].nonzero().tolist()
    assert moved == [[2, 1, 3]]


# -- patch -------------------------------------------------------------------------------------------------------------


def test_a_donor_of_one_row_serves_all_rows(subject: Subject) -> None:
    sites = dl.Sites("resid", steps=0, layers=1)
    donor = subject.run(1, interventions=[dl.Capture(sites)])
    patched = run_rows(subject, dl.Patch(donor, sites), dl.Capture(sites))
    given = donor["s00/cond/L01/resid/video"]
    assert torch.equal(patched["s00/cond/L01/resid/video"], given.expand(3, *given.shape[1:]))


def test_donor_rows_go_where_they_are_sent(subject: Subject) -> None:
    sites = dl.Sites("resid", steps=0, layers=1)
    donor = run_rows(subject, dl.Capture(sites), seeds=(7, 8))
    patched = run_rows(subject, dl.Patch(donor, sites, rows=(1, 0, -1)), dl.Capture(sites))
    site = dl.Site(0, "cond", 1, "resid")
    assert torch.equal(patched[site], donor[site][[1, 0, 1]])
    assert different(donor[site][0], donor[site][1])


def test_donor_rows_pair_one_to_one_by_default(subject: Subject) -> None:
    sites = dl.Sites("delta")
    donor = run_rows(subject, dl.Capture(sites))
    assert torch.equal(run_rows(subject, dl.Patch(donor, sites)).latents, donor.latents)
    swapped = run_rows(subject, dl.Patch(donor, sites, rows=(1, 0, 2)))
    assert torch.equal(swapped.latents[2], donor.latents[2])
    assert different(swapped.latents[0], donor.latents[0])


def test_a_tensor_goes_to_every_site(organism: Subject) -> None:
    given = torch.randn(1, 5, 4, 4, 128, generator=torch.Generator().manual_seed(0))
    sites = dl.Sites("resid", steps=[0, 2], layers=[1, 3])
    run = organism.run(interventions=[dl.Patch(given, sites), dl.Capture(sites)])
    assert len(run.captured()) == 4
    assert all(torch.equal(tensor, given) for tensor in run.captured().values())


def test_a_patch_at_one_step_changes_later_steps_and_no_earlier_one(subject: Subject) -> None:
    donor = subject.run(1, interventions=[capture("delta", steps=1)])
    plain = subject.run(interventions=[capture()])
    run = subject.run(interventions=[dl.Patch(donor, dl.Sites("delta", steps=1, layers=2)), capture()])
    for site, tensor in plain.captured().items():
        after = (site.step, site.layer if site.layer is not None else -1) >= (1, 2) or site.step > 1
        after |= site.step == 1 and site.component in ("velocity", "guided")
        assert torch.equal(run[site], tensor) != after, str(site)


# -- capture -----------------------------------------------------------------------------------------------------------


def test_a_reduced_capture_is_the_reduction_of_the_whole(subject: Subject) -> None:
    def mean(x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(1, 2, 3))

    run = subject.run(interventions=[capture("resid"), dl.Capture(dl.Sites("resid"), reduce=mean, name="mean")])
    assert all(torch.equal(run.captured("mean")[site], mean(whole)) for site, whole in run.captured().items())


def test_stack_puts_the_layers_of_one_step_in_order(organism: Subject) -> None:
    run = organism.run(guidance=2.0, interventions=[capture("delta", layers=[3, 0])])
    stacked = run.stack("delta", step=1, branch="uncond")
    assert torch.equal(stacked[0], run["s01/uncond/L00/delta/video"])
    assert torch.equal(stacked[1], run["s01/uncond/L03/delta/video"])
    assert len(stacked) == 2


def test_the_delta_is_what_a_block_adds(subject: Subject) -> None:
    run = subject.run(interventions=[capture("embed", "delta", "resid", steps=0)])
    stream = run["s00/cond/-/embed/video"]
    for layer in range(subject.model.layers):
        after = run[dl.Site(0, "cond", layer, "resid")]
        assert torch.equal(after - stream, run[dl.Site(0, "cond", layer, "delta")])
        stream = after


@pytest.mark.parametrize("kind", [dl.Capture, dl.Merge, dl.Patch])
def test_the_interventions_that_ship_keep_the_protocol(kind: type) -> None:
    arguments = (torch.zeros(1), dl.Sites()) if kind is dl.Patch else (dl.Sites(),)
    assert isinstance(kind(*arguments), dl.Intervention)
