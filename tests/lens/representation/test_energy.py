"""The energy lens: against torch's own hooks, and on regions whose energy is known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, NotFinite, SiteError
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.lens.representation.energy import Energy, energy
from dit_lens.validation.witness import Subject as Checked
from tests.subjects import Edit, Subject

#: Cross attention; joint attention of two kinds of blocks; joint attention, frames first; two experts.
FAMILIES = ("wan2.1-t2v", "hunyuanvideo", "cogvideox-1.0", "wan2.2-a14b")


@cache
def checked(name: str) -> Checked:
    tiny = TINY[name]
    return Checked(dl.VideoDiT(tiny.build()), tiny.inputs(), dict(tiny.settings))


def of_tiny(subject: Checked, **options: Any) -> Energy:
    return energy(subject.model, list(subject.inputs), seed=[11, 12], **options, **subject.settings)


def ratios(found: Energy) -> pd.DataFrame:
    """What the regions are over the rest, for each control."""
    return found.table[found.table["measure"] == "ratio"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_norms_are_those_that_torchs_hooks_see_in_the_plain_pipeline(name: str) -> None:
    subject = checked(name)
    found = of_tiny(subject, sites=dl.Sites(steps=0))
    calls = subject.architecture.calls(subject.model.pipeline, dict(subject.base.settings))
    ((call, part),) = [(i, names.index("cond")) for i, names in enumerate(calls) if "cond" in names]
    for k, seen in enumerate(subject.plain.calls[call]):
        after = seen.after["video"].unflatten(1, found.reading.grid)[2 * part : 2 * part + 2]
        assert torch.equal(found.norms[0, k], torch.linalg.vector_norm(after, dim=-1))
    assert found.reading.layers == tuple(range(subject.model.layers))
    assert found.reading.kinds == tuple(k.kind for k in subject.base.geometry.kinds)


def test_both_experts_are_named() -> None:
    found = of_tiny(checked("wan2.2-a14b"), sites=dl.Sites(layers=1))
    assert set(found.reading.experts) == {"high_noise", "low_noise"}
    named = found.table.drop_duplicates("step").set_index("step")["expert"]
    assert tuple(named) == found.reading.experts


def test_the_frame_is_tidy_and_holds_the_means_of_the_maps(organism: Subject) -> None:
    options = {"seed": [1, 2], "num_inference_steps": 3, **organism.options}
    found = energy(organism.model, list(organism.inputs), sites=dl.Sites(steps=[0, 2]), **options)
    table = found.samples
    assert len(table) == found.norms[..., 0, 0].numel()
    one = table[(table.step == 2) & (table.layer == 3) & (table.seed == 2)].sort_values("latent_frame")
    assert np.array_equal(one["value"], found.maps(layer=3, step=2)[1].mean(axis=(1, 2)))
    assert (
        table["sigma"] == table["step"].map(dict(zip(found.reading.steps, found.reading.sigmas, strict=True)))
    ).all()
    assert not table.duplicated(["step", "layer", "instance", "seed", "latent_frame"]).any()
    axis = found.plot(step=2)
    assert axis.get_ylabel() == "layer"
    assert axis.get_xlabel() == "latent frame"


def test_reading_changes_nothing_and_sees_what_was_edited_before(organism: Subject) -> None:
    keep = dl.Capture(dl.Sites("guided"), name="own")
    with_lens: dict[dl.Site, torch.Tensor] = {}

    def look(activation: torch.Tensor, at: dl.At) -> None:
        with_lens[at.site] = activation.clone()

    watch = Edit(dl.Sites("guided"), look, reads_only=True)
    options = {"num_inference_steps": 3, "seed": 5, **organism.options}
    plain = energy(organism.model, organism.inputs[0], interventions=[watch], **options)
    own = organism.model.run(organism.inputs[0], interventions=[keep], decode=False, **options).captured("own")
    assert all(torch.equal(with_lens[site], tensor) for site, tensor in own.items())
    double = Edit(dl.Sites("resid", layers=1), lambda activation, at: 2 * activation)
    sites = dl.Sites(steps=0, layers=[0, 1])
    edited = energy(organism.model, organism.inputs[0], sites=sites, interventions=[double], **options)
    assert torch.equal(edited.norms[0, 0], plain.norms[0, 0])
    assert torch.equal(edited.norms[0, 1], 2 * plain.norms[0, 1])


def planted(rows: int = 6) -> Energy:
    """Tokens of energy 2 in the left column and 1 elsewhere, doubled in latent frame 1."""
    model = checked("wan2.1-t2v")
    found = of_tiny(model, sites=dl.Sites(steps=0, layers=[0, 1]))
    norms = torch.ones(1, 2, rows, *found.reading.grid)
    norms[..., 0] = 2
    norms[:, :, :, 1] *= 2
    instances = tuple(dl.Row(f"instance {i // 2}", i) for i in range(rows))
    return replace(found, norms=norms, reading=replace(found.reading, rows=instances))


def test_a_region_is_compared_with_the_rest_of_its_own_frames() -> None:
    found = planted()
    mask = np.zeros(found.norms.shape[2:], dtype=bool)
    mask[:, 1, :, 0] = True  # of frame 1 alone: that this frame has more energy than frame 0 must not count
    table = ratios(replace(found, regions={"left": mask}))
    assert (table["value"] == 2).all()
    assert (table["n"] == 3).all()
    assert set(table["control"]) == {"none", "permuted"}


def test_the_control_gives_every_instance_the_region_of_another() -> None:
    found = planted()
    left = np.array([2.0, 3.0, 5.0])  # energy of the left column of each instance, 1 elsewhere
    norms = torch.ones_like(found.norms)
    norms[..., 0] = torch.tensor(left, dtype=norms.dtype).repeat_interleave(2)[None, None, :, None, None]
    mask = np.zeros(norms.shape[2:], dtype=bool)
    mask[:2, :, :, 0] = True  # instance 0: the left column
    mask[2:, :, :, 1] = True  # the others: one that is like the rest but for the left
    found = replace(found, norms=norms, regions={"r": mask})
    table = ratios(found).set_index(["control", "layer"])["value"]
    others = norms.shape[-1] - 2  # columns of the rest besides the left one
    elsewhere = 1 / ((left + others) / (1 + others))
    assert np.isclose(table["none", 0], np.mean([left[0], elsewhere[1], elsewhere[2]]))
    # Instance 2 is given the left column by the first one, the others the second column by their next.
    assert np.isclose(table["permuted", 0], np.mean([elsewhere[0], elsewhere[1], left[2]]))
    assert not np.isclose(table["none", 0], table["permuted", 0])
    assert found._of_the_next_instance() == [2, 2, 4, 4, 0, 0]


def test_rows_without_the_region_are_left_out_and_one_instance_has_no_interval() -> None:
    found = planted()
    mask = np.zeros(found.norms.shape[2:], dtype=bool)
    mask[0, :, :, 0] = True
    table = ratios(replace(found, regions={"left": mask}))
    own = table[table.control == "none"]
    assert (own["n"] == 1).all()
    assert (own["value"] == 2).all()
    assert own[["low", "high"]].isna().all(axis=None)


def test_text_streams_have_positions_and_no_grid() -> None:
    subject = checked("hunyuanvideo")
    found = of_tiny(subject, sites=dl.Sites(steps=0, stream="text"))
    base, shared = subject.base.captures[""], subject.base.text_valid["cond"].all(dim=0)
    assert not shared.all()  # there is padding, of which nothing is read
    for k in range(subject.model.layers):
        own = base[dl.Site(0, "cond", k, "resid", "text")][:, shared]
        torch.testing.assert_close(found.norms[0, k], own.norm(dim=-1))
    assert "latent_frame" not in found.table
    found.plot()
    with pytest.raises(InputError, match="text stream has none"):
        of_tiny(subject, sites=dl.Sites(steps=0, stream="text"), regions={"r": np.ones((2, 2, 3, 4), dtype=bool)})


def test_bad_input_is_refused(organism: Subject) -> None:
    def read(component: Any = "resid", regions: Any = None, branch: str = "cond", **sites: Any) -> Energy:
        given = {"sites": dl.Sites(component, **sites), "regions": regions, "branch": branch, **organism.options}
        return energy(organism.model, organism.inputs[0], num_inference_steps=3, interventions=edits, **given)

    edits: list[Any] = []

    with pytest.raises(SiteError, match=r"layers 0\.\.3"):
        read(layers=7)
    with pytest.raises(SiteError, match="energy reads resid, delta"):
        read(component="velocity")
    with pytest.raises(InputError, match="one branch at a time"):
        read(branch="all")
    with pytest.raises(SiteError, match="video"):
        read(stream="text")
    with pytest.raises(InputError, match="need booleans"):
        read(steps=0, regions={"r": np.ones((5, 4, 4))})
    with pytest.raises(InputError, match="need shape"):
        read(steps=0, regions={"r": np.ones((2, 2), dtype=bool)})
    for wrong in (np.ones((5, 4, 4)), np.ones((2, 2), dtype=bool)):  # before anything runs

        def fail(activation: torch.Tensor, at: dl.At) -> None:
            raise AssertionError("the model ran")

        edits[:] = [Edit(dl.Sites("resid"), fail)]
        with pytest.raises(InputError, match="region 'r'"):
            read(steps=0, regions={"r": wrong})
    nan = Edit(dl.Sites("resid", layers=1), lambda activation, at: activation * float("nan"))
    edits[:] = [nan]
    with pytest.raises(NotFinite, match="L01"):
        read(steps=0)
    edits.clear()
    found = read(steps=0, layers=[1, 2])
    with pytest.raises(SiteError, match="layer 0 was not read; there are layers 1, 2"):
        found.maps(layer=0, step=0)
    with pytest.raises(SiteError, match="step 2 was not read"):
        found.plot(step=2)
    assert "region" not in found.table
    with pytest.raises(EvidenceError, match="both inside and outside"):
        read(steps=0, regions={"r": np.ones(found.norms.shape[2:], dtype=bool)})
    half = np.zeros(found.norms.shape[2:], dtype=bool)
    half[..., 0] = True
    with pytest.raises(EvidenceError, match="the rest has energy 0 somewhere"):
        replace(found, regions={"r": half}, norms=found.norms * torch.from_numpy(half)).table  # noqa: B018
    with pytest.raises(InputError, match="name one, for several are not compared"):
        read(("resid", "delta"))


def test_in_the_shipped_model_the_path_stands_out_late_and_only_its_own(shipped: Subject) -> None:
    task = dl.tasks.Maze(size=6)
    mazes = task.sample(6, seed=3)
    path = {"path": task.labels(mazes, 5)["on_path"].values}
    sites = dl.Sites(steps=9, layers=[6])
    found = energy(shipped.model, mazes, seed=list(range(6)), sites=sites, regions=path)
    table = ratios(found).set_index("control")
    assert table.loc["none", "low"] > 1.1
    assert table.loc["permuted", "low"] < 1.05
