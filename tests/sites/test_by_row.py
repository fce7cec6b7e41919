"""Tokens of each row: a row under its own mask is what it would be alone under it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import DonorError, InputError, SiteError
from dit_lens.lens.depth import depth_lens
from dit_lens.probing.rows.readout import Readout
from tests.interventions.by_hand import make_at, make_geometry
from tests.subjects import Subject

GRID = (3, 2, 4)
masks = st.lists(st.booleans(), min_size=48, max_size=48).map(lambda bits: np.array(bits).reshape(2, *GRID))


@given(masks.filter(lambda mask: mask.any()))
def test_what_is_taken_and_put_back_is_the_same(mask: Any) -> None:
    tokens = dl.Tokens(mask=mask)
    for component, whole in (("resid", torch.randn(2, *GRID, 5)), ("latents", torch.randn(2, 5, *GRID))):
        part = tokens.take(whole, component)
        assert part.shape[2 if component == "latents" else 1] == mask.reshape(2, -1).sum(axis=1).max()
        assert torch.equal(tokens.put(whole, part, component), whole)
        moved = tokens.put(whole, part + 1, component) != whole
        cells = moved.any(dim=1) if component == "latents" else moved.any(dim=-1)
        assert torch.equal(cells, torch.from_numpy(mask))
    assert dl.Tokens.from_json(json.loads(json.dumps(tokens.to_json()))) == tokens


@given(st.lists(st.lists(st.integers(-7, 6)), min_size=2, max_size=2).filter(any))
def test_positions_of_each_row_likewise(positions: list[list[int]]) -> None:
    tokens, text = dl.Tokens(positions=positions), torch.randn(2, 7, 5)
    moved = (tokens.put(text, tokens.take(text) + 1) != text).any(dim=-1)
    assert [set(row.nonzero().flatten().tolist()) for row in moved] == [{p % 7 for p in row} for row in positions]
    assert dl.Tokens.from_json(json.loads(json.dumps(tokens.to_json()))) == tokens


def half(grid: tuple[int, int, int], counts: tuple[int, int]) -> Any:
    """A mask of the first so many tokens of one row and the last so many of the other."""
    mask = np.zeros((2, int(np.prod(grid))), dtype=bool)
    mask[0, : counts[0]], mask[1, -counts[1] :] = True, True
    return mask.reshape(2, *grid)


def made(name: str, tokens: dl.Tokens, run: dl.Run, rows: list[int]) -> Any:
    sites = dl.Sites("resid", steps=1, layers=1, branches="cond", tokens=tokens)
    donor = {"rows": [1 - row for row in rows]}
    width = run["s01/cond/L01/resid"].shape[-1]
    return {
        "zero": dl.Ablate(sites),
        "mean": dl.Ablate(sites, "mean", run),
        "mean over tokens": dl.Ablate(sites, "mean", run, over="tokens"),
        "resample": dl.Ablate(sites, "resample", run, rows=donor["rows"]),
        "patch": dl.Patch(run, sites, **donor),
        "patch a tensor": dl.Patch(torch.linspace(-1, 1, width)[None], sites, mode="add"),
        "noise": dl.Noise(sites, "add"),
        "replace": dl.Noise(sites, "replace"),
        "state": dl.Noise(sites.at(component="latents", branches="all", layers="all"), "add", dose=0.5),
        "steer": dl.Steer(sites, torch.linspace(-1, 1, width), unit="norm"),
        "own": dl.intervention(sites)(lambda x, at: x * 2 + 1),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["zero", "mean", "mean over tokens", "resample", "patch", "patch a tensor", "noise", "replace", "state", "steer",
     "own"],
)  # fmt: skip
def test_every_intervention_does_to_a_row_what_it_does_to_it_alone(organism: Subject, name: str) -> None:
    """The counts differ, so that one row is padded."""
    model, inputs, seeds = organism.model, list(organism.inputs), [3, 4]
    whole = model.run(inputs, seeds, interventions=[dl.Capture(dl.Sites("resid"))], stop_after=1)
    grid = whole.geometry.grid
    mask = half(grid, (7, 3))
    both = model.run(inputs, seeds, interventions=[made(name, dl.Tokens(mask=mask), whole, [0, 1])], stop_after=1)
    assert not torch.allclose(both.latents, whole.latents)
    for row in range(2):
        own = dl.Tokens(mask=mask[row])
        intervention = made(name, own, whole, [row])
        if name == "mean over tokens":  # alone it has one mask for all rows of the reference, as here
            intervention = dl.Ablate(intervention.sites, "mean", whole, over="tokens")
        alone = model.run(inputs[row], seeds[row], interventions=[intervention], stop_after=1)
        torch.testing.assert_close(both.latents[row : row + 1], alone.latents, rtol=1e-4, atol=1e-4)


def test_a_capture_keeps_only_what_was_asked_for_and_reductions_leave_padding_out(organism: Subject) -> None:
    model, inputs = organism.model, list(organism.inputs)
    grid = model.geometry(inputs[0]).grid
    mask = half(grid, (5, 2))
    sites = dl.Sites("resid", steps=0, layers=0, branches="cond")
    captures = [
        dl.Capture(sites),
        dl.Capture(sites.at(tokens=dl.Tokens(mask=mask)), name="own"),
        dl.Capture(sites.at(tokens=dl.Tokens(mask=mask)), "token_mean", name="mean"),
        dl.Capture(sites.at(component="latents", branches="all", layers="all", tokens=dl.Tokens(mask=mask)),
                   "token_mean", name="cells"),
    ]  # fmt: skip
    run = model.run(inputs, [0, 1], interventions=captures, stop_after=0)
    (kept,), (mean,) = run.captures["own"].values(), run.captures["mean"].values()
    whole = run["s00/cond/L00/resid"]
    assert kept.shape == (2, 5, whole.shape[-1])
    assert run.ledger.captured_bytes < 1.2 * whole.numel() * 4
    for row, count in enumerate((5, 2)):
        chosen = whole[row][torch.from_numpy(mask[row])]
        assert torch.equal(kept[row, :count], chosen)
        assert not kept[row, count:].any()
        torch.testing.assert_close(mean[row], chosen.mean(dim=0))
    (cells,) = run.captures["cells"].values()
    assert cells.shape == (2, run.latents.shape[1])


def test_what_cannot_be_right_is_refused(organism: Subject) -> None:
    model, inputs = organism.model, list(organism.inputs)
    grid = model.geometry(inputs[0]).grid
    sites = dl.Sites("resid", steps=0, layers=0, tokens=dl.Tokens(mask=half(grid, (4, 4))))
    with pytest.raises(SiteError, match=r"tokens of 2 rows, and this run has 1"):
        model.run(inputs[0], interventions=[dl.Ablate(sites)])
    with pytest.raises(SiteError, match="does not fit the grid"):
        model.run(inputs, interventions=[dl.Ablate(sites.at(tokens=dl.Tokens(mask=np.ones((2, 1, 1, 1), dtype=bool))))])
    for wrong in (dl.Patch("rows", sites, rows=[1, 0]), dl.Ablate(sites, "resample"), dl.Patch.from_row(0, sites)):
        with pytest.raises(DonorError, match="whose own tokens are others"):
            model.run(inputs, interventions=[wrong])
    with pytest.raises(DonorError, match="whose own tokens are others"):
        model.run(inputs[0], [0, 1], interventions=[dl.Merge(sites, group=2)])
    with pytest.raises(SiteError, match="same tokens of every row"):
        depth_lens(model, model.run(inputs, record=True), sites=dl.Sites(tokens=sites.tokens))
    with pytest.raises(SiteError, match="same tokens of every row"):
        Readout(sites)
    with pytest.raises(InputError, match="every row alike"):
        dl.Noise(sites.at(component="latents", layers="all"), "add").energy(make_geometry(), [1.0] * 9)
    with pytest.raises(SiteError, match="select nothing"):
        dl.Tokens(positions=[[], []])
    with pytest.raises(SiteError, match="no whole number"):
        dl.Tokens(positions=[["red"], [1]])


def test_rows_can_be_reordered_and_joined() -> None:
    tokens = dl.Tokens(mask=half(GRID, (2, 3)))
    assert tokens.of_rows([1, 0]).of_rows([1, 0]) == tokens
    assert tokens.of_rows([0, None]).mask.tensor()[1].any() == torch.tensor(False)
    assert not tokens.same_in(0, 1)
    assert tokens.of_any_row.mask.tensor().sum() == 5
    positions = dl.Tokens(positions=[[1], [2, 3]])
    assert positions.of_rows([1, None, 0]) == dl.Tokens(positions=[[2, 3], [], [1]])
    assert positions.of_any_row == dl.Tokens(positions=(1, 2, 3))
    assert str(positions) == "positions=those of 2 rows"


def test_noise_of_a_row_does_not_depend_on_what_other_rows_select() -> None:
    at = make_at("s00/cond/L00/resid/video", 2)
    drawn: list[Tensor] = []
    for other in (3, 9):
        own = torch.arange(max(5, other))[None] < torch.tensor([[5], [other]])
        drawn.append(dl.At(**{**vars(at), "own": own}).noise(torch.zeros(2, own.shape[1], 6))[0, :5])
    assert torch.equal(*drawn)


def test_tokens_of_each_row_are_not_taken_for_those_of_every_batch(organism: Subject) -> None:
    model, inputs = organism.model, [*organism.inputs, *organism.inputs]
    grid = model.geometry(inputs[0]).grid
    ablate = dl.Ablate(dl.Sites("delta", layers=0, tokens=dl.Tokens(mask=half(grid, (4, 2)))))
    with pytest.raises(InputError, match="tokens of 2 rows, and 4 rows are run 2 at once"):
        model.runs(inputs, [0, 1, 2, 3], batch=2, interventions=[ablate])
    made = model.runs(inputs, [0, 1, 2, 3], batch=2, interventions=lambda given, seeds: [ablate], stop_after=0)
    assert len(list(made)) == 2
