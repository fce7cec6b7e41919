"""The curves against plain runs and replays with `Patch`, and deep models against every one of their layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.analysis.flow import measure
from dit_lens.analysis.flow.result import InformationFlow
from dit_lens.organisms.build import OrganismConfig, random_pipeline
from dit_lens.runs.seeds import row_seeds
from tests.analysis.flow.flows import flow_of
from tests.subjects import Subject

# Named, for the pictures of mazes of one size differ in every frame once a VAE of random weights has encoded them.
SOURCE = dl.Tokens(frames=0)
TARGET = dl.Tokens(frames=[3, 4], rows=(1, 3))
SEED = 3


@dataclass(frozen=True)
class ByHand:
    """Both sides of one pair at one step from one state, and what patches between them come to.

    Attributes
    ----------
    runs : (original's, counterfactual's) Run
    step : int
    branches : "cond" or "all"
    way : Tensor of shape (C, F, H, W)
        From the original's final latents to the counterfactual's, zero outside the target.
    """

    model: dl.VideoDiT
    runs: tuple[dl.Run, dl.Run]
    step: int
    branches: str
    way: Tensor

    def effect(self, sites: dl.Sites) -> float:
        """As a share of the whole donor's movement, both directions averaged."""
        return self._mean(sites) / self._mean(None)

    def _mean(self, sites: dl.Sites | None) -> float:
        there, back = (self._moved(sites, row) for row in (0, 1))
        return (there - back) / 2

    def _moved(self, sites: dl.Sites | None, row: int) -> float:
        """Along the way of the original, by the donor's activations or by the whole donor."""
        own, donor = self.runs[row], self.runs[1 - row]
        clean = self._estimate(self.model.replay(own, self.step), own)
        if sites is None:
            after = self._estimate(self.model.replay(donor, self.step), own)
        else:
            after = self._estimate(self.model.replay(own, self.step, [dl.Patch(donor, sites)]), own)
        moved = (after - clean)[0].double()
        return float((moved * self.way).sum() / self.way.square().sum())

    def _estimate(self, replay: dl.Replay, run: dl.Run) -> Tensor:
        predicted = replay.guided if self.branches == "all" else replay.velocities["cond"]
        return run.clean(self.step, run.states[self.step], predicted)

    def after(self, layer: int, tokens: dl.Tokens) -> dl.Sites:
        sites = dl.Sites("embed" if layer < 0 else "resid", steps=self.step, branches=self.branches, tokens=tokens)
        return sites if layer < 0 else sites.at(layers=layer)


def by_hand(subject: Subject, pair: Any, step: int, branches: str, **settings: Any) -> ByHand:
    (seed,), model = row_seeds(SEED, 1), subject.model
    keep = [
        dl.Capture(dl.Sites(("embed", "resid"), steps=step, branches=branches)),
        dl.Capture(dl.Sites("context", steps=step, branches=branches, stream="text")),
    ]
    ends = [model.run(side, seed, record=True, decode=False, **settings) for side in pair]
    tokens = target_of(ends[0].geometry)
    way = (ends[1].latents - ends[0].latents)[0].double() * tokens.float()
    state = dl.Patch(ends[0].states[step], dl.Sites("latents", steps=step))
    acts = [*([state] if step else []), *keep]
    runs = [model.run(side, seed, interventions=acts, record=True, decode=False, **settings) for side in pair]
    return ByHand(model, (runs[0], runs[1]), step, branches, way)


def target_of(geometry: dl.Geometry) -> Tensor:
    """The target's latent cells, which are the tokens of these models."""
    assert geometry.grid == geometry.latent_grid
    chosen = torch.zeros(geometry.grid, dtype=torch.bool)
    chosen[3:5, 1:3] = True
    return chosen


@pytest.mark.parametrize(
    ("guidance", "branches", "step"), [(1.0, "cond", 0), (2.0, "cond", 0), (2.0, "all", 0), (2.0, "cond", 1)]
)
def test_every_curve_is_what_plain_patches_give(organism: Subject, guidance: float, branches: str, step: int) -> None:
    pair = (organism.inputs[0], {**organism.inputs[1], "prompt": "move the blue circle"})
    settings = {**organism.options, "num_inference_steps": 4, "guidance_scale": guidance}
    more = {"source": SOURCE, "target": TARGET, "seed": SEED, "step": step, "branches": branches}
    flow = flow_of(organism.model, dl.tasks.Pairs([pair]), 1, **more, **settings)
    own = by_hand(organism, pair, step, branches, **settings)
    assert flow.n == 1
    assert flow.ends_exact
    target = target_of(own.runs[0].geometry)
    source = torch.zeros_like(target)
    source[0] = True
    sets = {"A": source, "B": target, "M": ~(source | target), "all": torch.ones_like(target)}
    assert all(mask.any() for mask in sets.values())
    for name, mask in sets.items():
        expected = [own.effect(own.after(layer, dl.Tokens(mask=mask))) for layer in flow.layers]
        np.testing.assert_allclose(flow.effects[name][:, 0], expected, rtol=0, atol=2e-5, err_msg=name)
    told = dl.Sites("context", steps=step, branches=branches, stream="text")
    assert flow.doors["context of text"][0] == pytest.approx(own.effect(told), abs=1e-4)
    # Neither nothing nor everything, so that none of this holds by chance.
    assert np.ptp(flow.effects["A"]) > 1e-3
    assert np.ptp(flow.effects["B"]) > 0.5


# -- deep models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep() -> dl.VideoDiT:
    config = OrganismConfig(layers=20, heads=2, head_width=16, ffn=48, vae_base=8)
    return dl.VideoDiT(random_pipeline(config), defaults={"num_frames": 9, "max_sequence_length": 16})


def flow_of_deep(model: dl.VideoDiT, organism: Subject) -> InformationFlow:
    settings = {**organism.options, "num_inference_steps": 1}
    return flow_of(model, dl.tasks.Pairs([organism.inputs]), 1, source=SOURCE, target=TARGET, **settings)


WINDOWS = (-1, 1, 4, 7, 9, 11, 14, 17, 19)


def test_a_deep_model_is_measured_where_something_changes_and_there_as_everywhere(
    deep: dl.VideoDiT, organism: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = flow_of_deep(deep, organism)
    monkeypatch.setattr(measure, "CHANGES", 10.0)
    windows = flow_of_deep(deep, organism)
    monkeypatch.setattr(measure, "DEEP", 20)
    every = flow_of_deep(deep, organism)
    assert windows.layers == WINDOWS
    assert every.layers == tuple(range(-1, 20))
    assert set(WINDOWS) <= set(found.layers) < set(every.layers)
    for flow in (windows, found):
        assert flow.ends_exact
        assert flow.forwards < every.forwards
        rows = [every.layers.index(layer) for layer in flow.layers]
        for name, values in flow.effects.items():
            np.testing.assert_allclose(values, every.effects[name][rows], rtol=0, atol=1e-5, err_msg=name)
    # What is left unmeasured lies in windows in which nothing changed.
    for low, high in zip(found.layers, found.layers[1:], strict=False):
        if high - low > 1:
            for name in ("A", "B", "all"):
                at = [found.layers.index(layer) for layer in (low, high)]
                assert abs(np.diff(found.effects[name][at, 0]))[0] <= 0.02


def test_a_window_has_one_row_and_no_single_block(
    deep: dl.VideoDiT, organism: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "CHANGES", 10.0)
    windows = flow_of_deep(deep, organism)
    rows = windows.per_block
    assert rows["layer"].tolist() == list(WINDOWS[1:])
    assert rows["first"].tolist() == [layer + 1 for layer in WINDOWS[:-1]]
    assert rows["departure"].sum() == pytest.approx(windows.effects["A"][0, 0] - windows.effects["A"][-1, 0])


def test_every_window_in_which_something_changes_is_cut_to_its_blocks(
    deep: dl.VideoDiT, organism: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "CHANGES", 0.0)
    assert flow_of_deep(deep, organism).layers == tuple(range(-1, 20))
