"""PCA maps: against scikit-learn on whole activations, on planted directions, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, MadeForAnother, SiteError
from dit_lens.lens.representation.pca import PCAMap, pca_map
from tests.lens.representation.test_energy import FAMILIES, checked
from tests.subjects import Edit, Subject


def of(subject: Subject, *, steps: Any = "all", layers: Any = "all", **options: Any) -> PCAMap:
    given = {"seed": [5, 6], "num_inference_steps": 3, **subject.options, **options}
    return pca_map(subject.model, list(subject.inputs), sites=dl.Sites(steps=steps, layers=layers), **given)


def captured(subject: Subject, steps: list[int]) -> Tensor:
    """(steps, layers, B, F, H, W, D), float64."""
    keep = dl.Capture(dl.Sites("resid", steps=steps, branches="cond"))
    run = subject.model.run(
        list(subject.inputs), [5, 6], num_inference_steps=3, decode=False, interventions=[keep], **subject.options
    )
    return torch.stack([run.stack("resid", step=step) for step in steps]).double()


def scaled(whole: Tensor) -> Tensor:
    """Each layer centred, and its tokens of mean squared length 1."""
    layers = whole.movedim(1, 0)
    centred = layers - layers.flatten(1, -2).mean(1)[:, None, None, None, None, None]
    sizes = centred.square().sum(-1).flatten(1).mean(1).sqrt()
    return (centred / sizes[:, None, None, None, None, None, None]).movedim(0, 1)


@pytest.mark.parametrize("layer_scale", ["equal", "own"])
def test_it_is_scikit_learns_pca_of_all_layers_and_steps_together(organism: Subject, layer_scale: str) -> None:
    steps, k = [0, 2], 4
    found = of(organism, steps=steps, directions=k, fit_tokens=None, layer_scale=layer_scale)
    whole = captured(organism, steps)
    values = scaled(whole) if layer_scale == "equal" else whole
    oracle = PCA(k, svd_solver="full").fit(values.flatten(0, -2).numpy())
    ours = found.basis.directions.numpy()
    assert np.allclose(np.abs((oracle.components_ * ours).sum(1)), 1, atol=1e-6)
    expected = oracle.transform(values.flatten(0, -2).numpy()) * np.sign((oracle.components_ * ours).sum(1))
    assert np.allclose(found.projections.flatten(0, -2).numpy(), expected, atol=2e-5 * np.abs(expected).max())
    assert np.allclose(found.basis.explained, oracle.explained_variance_ratio_, atol=1e-6)
    assert np.allclose(found.explained_in_all, oracle.explained_variance_ratio_, atol=1e-5)


def test_explained_variance_of_each_place_is_that_of_its_own_tokens(organism: Subject) -> None:
    steps = [0, 1]
    found = of(organism, steps=steps, directions=3)
    tokens = captured(organism, steps).flatten(2, -2)
    centred = tokens - tokens.mean(2, keepdim=True)
    along = (centred @ found.basis.directions.T).square().sum(2)
    expected = along / centred.square().sum((2, 3))[..., None]
    assert np.allclose(found.explained, expected, atol=1e-4)
    table = found.table
    one = table[(table.step == 1) & (table.layer == 2) & (table.direction == 1)]
    assert one["value"].item() == found.explained[1, 2, 1]
    assert len(table) == 2 * 4 * 3


def test_each_direction_has_its_largest_entry_positive_and_a_repetition_is_the_same(organism: Subject) -> None:
    one, two = of(organism, steps=0), of(organism, steps=0)
    directions = one.basis.directions
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()
    assert torch.equal(one.projections, two.projections)
    assert torch.allclose(directions @ directions.T, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_a_planted_direction_is_found_at_every_layer(organism: Subject) -> None:
    """One component of known direction and place outweighs all others, whatever the scale of its layer."""
    width = captured(organism, [0]).shape[-1]
    direction = torch.nn.functional.normalize(torch.arange(1.0, width + 1), dim=0)

    def plant(activation: Tensor, at: dl.At) -> Tensor:
        column = torch.linspace(-1, 1, activation.shape[3])[:, None] * direction
        return 1e-3 * activation + 10 ** (at.site.layer or 0) * column.expand_as(activation)

    found = of(organism, steps=0, interventions=[Edit(dl.Sites("resid"), plant)])
    assert torch.allclose(found.basis.directions[0], direction.double(), atol=1e-2)
    assert found.explained[..., 0].min() > 0.95
    columns = found.projections[0, :, 0, 0, 0, :, 0]
    assert torch.allclose(columns, columns[:1].expand_as(columns), atol=0.1)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str) -> None:
    subject = checked(name)
    found = pca_map(subject.model, list(subject.inputs), seed=[1, 2], fit_tokens=8, **subject.settings)
    steps, layers = subject.settings["num_inference_steps"], subject.model.layers
    assert found.projections.shape == (steps, layers, 2, *found.reading.grid, 3)
    base = found.basis.project(subject.base[dl.Site(0, "cond", 1, "resid")], 1)
    given = {"seed": [11, 12], "sites": dl.Sites(steps=0, layers=1), **subject.settings}
    again = found.basis.apply(subject.model, list(subject.inputs), **given)
    assert torch.equal(again.projections[0, 0], base)
    found.plot(row=1, latent_frame=0)


def test_a_text_stream_has_coordinates_and_no_picture() -> None:
    subject = checked("hunyuanvideo")
    found = pca_map(
        subject.model, list(subject.inputs), seed=[1, 2], sites=dl.Sites(steps=0, stream="text"), **subject.settings
    )
    assert found.projections.ndim == 5
    assert found.projections.shape[1] == subject.model.layers
    assert (found.explained.sum(-1) > 0).all()
    with pytest.raises(InputError, match="text stream"):
        found.plot()


def test_another_model_layer_or_width_is_refused(organism: Subject, shipped: Subject) -> None:
    found = of(organism, steps=0, layers=[0, 2])
    with pytest.raises(MadeForAnother, match=shipped.model.id):
        found.basis.apply(shipped.model, list(shipped.inputs))
    with pytest.raises(MadeForAnother, match="width"):
        found.basis.project(torch.zeros(2, 7), 0)
    with pytest.raises(SiteError, match="layer 1 was not read; there are layers 0, 2"):
        found.basis.project(torch.zeros(2, 7), 1)
    options = {"num_inference_steps": 3, **organism.options}
    with pytest.raises(SiteError, match="layer 1"):
        found.basis.apply(organism.model, list(organism.inputs), sites=dl.Sites(steps=0, layers=1), **options)
    with pytest.raises(SiteError, match="this basis is of resid, video; the sites are of delta"):
        found.basis.apply(organism.model, list(organism.inputs), sites=dl.Sites("delta"), **options)
    with pytest.raises(SiteError, match="row 2"):
        found.plot(row=2)
    with pytest.raises(SiteError, match="latent frame 9"):
        found.plot(latent_frame=9)


def test_bad_choices_are_refused(organism: Subject) -> None:
    with pytest.raises(InputError, match="one of 'equal', 'own'"):
        of(organism, layer_scale="unit")
    with pytest.raises(InputError, match="directions=0"):
        of(organism, directions=0)
    with pytest.raises(InputError, match="fit_tokens"):
        of(organism, fit_tokens=0)
    with pytest.raises(InputError, match="directions=999"):
        of(organism, steps=0, directions=999)
    with pytest.raises(SiteError, match=r"layers 0\.\.3"):
        of(organism, layers=9)
    same = Edit(dl.Sites("resid", layers=1), lambda activation, at: torch.full_like(activation, 0.1))
    with pytest.raises(EvidenceError, match="layer 1 are the same"):
        of(organism, steps=0, interventions=[same])


def test_the_picture_has_a_tile_for_every_layer_and_step(organism: Subject) -> None:
    found = of(organism, steps=[0, 2])
    height, width = found.reading.grid[1:]
    axis = found.plot(latent_frame=0)
    picture = np.asarray(axis.images[0].get_array())
    assert picture.shape == (4 * (height + 1) - 1, 2 * (width + 1) - 1, 3)
    values = found.projections[:, :, 0, 0].numpy()
    # The redder of two tokens lies further along the first direction.
    tile = picture[:height, width + 1 : 2 * width + 1, 0]
    assert np.corrcoef(tile.ravel(), values[1, 0, ..., 0].ravel())[0, 1] > 0.95
    assert (picture[height] == 1).all()
    grey = replace(found, projections=found.projections[..., :1]).plot()
    shown = np.asarray(grey.images[0].get_array())
    assert (shown[..., 0] == shown[..., 2]).all()
