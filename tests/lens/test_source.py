"""What lenses read: inputs or a recorded run, the same either way, with interventions; and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import DidNotFire, InputError, SiteError
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result
from tests.subjects import STEPS, Subject

Lens = Callable[..., Result]

#: Every lens, with sites of a few places.
LENSES: dict[str, tuple[Lens, dl.Sites]] = {
    "step_lens": (dl.step_lens, dl.Sites("guided", steps=[0, 1])),
    "depth_lens": (dl.depth_lens, dl.Sites(steps=[0, 1], layers=[1, 3])),
    "contributions": (dl.contributions, dl.Sites(("attn", "ffn"), steps=[0, 1], layers=[1, 3])),
    "attention": (dl.attention, dl.Sites("head", steps=[0, 1], layers=[1, 3])),
    "energy": (dl.energy, dl.Sites(steps=[0, 1], layers=[1, 3])),
    "pca_map": (dl.pca_map, dl.Sites(steps=[0, 1], layers=[1, 3])),
    "cka": (lambda *given, **more: dl.cka(dl.cka_features(*given, **more)), dl.Sites(steps=[0, 1], layers=[1, 3])),
}
HALVED = dl.intervention(dl.Sites("resid", steps=1, layers=0))(lambda activation, at: activation / 2)


@pytest.fixture(params=list(LENSES))
def lens(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def settings(subject: Subject) -> dict[str, Any]:
    return {"num_inference_steps": STEPS, "guidance_scale": 2.0, **subject.options}


def read(name: str, subject: Subject, source: Any, **more: Any) -> Result:
    function, sites = LENSES[name]
    return function(subject.model, source, **{"sites": sites, **more})


def recorded(subject: Subject, **more: Any) -> dl.Run:
    given = {"record": True, "decode": False, **settings(subject), **more}
    return subject.model.run(list(subject.inputs), [3, 4], **given)


def test_a_run_and_its_inputs_read_the_same_and_the_table_has_the_vocabulary(lens: str, organism: Subject) -> None:
    of_run = read(lens, organism, recorded(organism))
    of_inputs = read(lens, organism, list(organism.inputs), seed=[3, 4], **settings(organism))
    pd.testing.assert_frame_equal(of_run.table, of_inputs.table, check_exact=True)
    columns = list(of_run.table)
    own = [c for c in columns if c in SITE_COLUMNS]
    assert own == [c for c in SITE_COLUMNS if c in columns]
    assert columns[: len(own)] == own
    assert columns[-len(VALUE_COLUMNS) :] == list(VALUE_COLUMNS)
    assert set(of_run.table["step"]) == {0, 1}
    assert of_run.to_json()["table"]


def test_interventions_are_seen_in_a_run_as_in_inputs(lens: str, organism: Subject) -> None:
    plain = read(lens, organism, recorded(organism)).table
    made = read(lens, organism, list(organism.inputs), seed=[3, 4], interventions=[HALVED], **settings(organism)).table
    assert not plain["value"].equals(made["value"])
    if lens == "step_lens":
        with pytest.raises(InputError, match="make the run under them"):
            read(lens, organism, recorded(organism), interventions=[HALVED])
        again = read(lens, organism, recorded(organism, interventions=[HALVED]))
    else:
        again = read(lens, organism, recorded(organism), interventions=[HALVED])
    pd.testing.assert_frame_equal(again.table, made, check_exact=True)


@pytest.mark.parametrize("component", ["model_input", "embed", "attn", "velocity"])
def test_a_lens_of_inputs_sees_what_the_run_under_the_interventions_had(component: str, organism: Subject) -> None:
    """The oracle: a capture in one run, without a record and a replay. An edit must not act twice."""
    edit = dl.intervention(dl.Sites(component, steps=[0, 2]))(lambda activation, at: 1.5 * activation)
    keep = dl.Capture(dl.Sites("velocity"))
    given = {"seed": [3, 4], **settings(organism)}
    run = organism.model.run(list(organism.inputs), interventions=[edit, keep], decode=False, **given)
    found = dl.depth_lens(organism.model, list(organism.inputs), interventions=[edit], **given)
    own = torch.stack([run[f"s{step:02d}/cond/-/velocity"] for step in range(STEPS)])
    assert torch.equal(found.velocity, own)


def test_edits_of_the_state_are_in_the_record_and_not_done_again(organism: Subject) -> None:
    """An edit between calls reaches a lens through the run, and beside a run it would reach nothing."""
    kept: list[Any] = []

    @dl.intervention(dl.Sites("latents", steps=1))
    def nudge(activation: torch.Tensor, at: dl.At) -> torch.Tensor:
        kept.append(at.site)
        return 2 * activation

    run = recorded(organism, interventions=[nudge])
    given = {"seed": [3, 4], "interventions": [nudge], **settings(organism)}
    found = dl.depth_lens(organism.model, list(organism.inputs), **given)
    assert torch.equal(found.velocity, dl.depth_lens(organism.model, run).velocity)
    assert not torch.equal(found.velocity, dl.depth_lens(organism.model, recorded(organism)).velocity)
    assert len(kept) == 2
    with pytest.raises(DidNotFire, match="within no denoiser call of the steps that are read, 0, 1, 2; for the"):
        dl.depth_lens(organism.model, run, interventions=[nudge])
    with pytest.raises(DidNotFire, match="steps that are read, 0;"):
        dl.depth_lens(organism.model, run, sites=dl.Sites(steps=0), interventions=[HALVED])


def test_what_has_no_meaning_beside_a_run_or_is_the_lenss_own_is_refused(lens: str, organism: Subject) -> None:
    run = recorded(organism)
    for name, value in {"seed": 0, "num_inference_steps": 3, "body": None}.items():
        with pytest.raises(InputError, match=f"{name}= beside a run that is made already"):
            read(lens, organism, run, **{name: value})
    for name, value in {"record": True, "decode": False, "stop_after": 1}.items():
        with pytest.raises(InputError, match=f"{name}= is set by the lens"):
            read(lens, organism, list(organism.inputs), **{name: value})
    with pytest.raises(InputError, match="record=True"):
        read(lens, organism, recorded(organism, record=False))
    if lens != "step_lens":
        with pytest.raises(InputError, match="is no intervention"):
            read(lens, organism, run, interventions=["bypass"])


def test_sites_that_do_not_fit_are_refused_before_anything_runs(lens: str, organism: Subject) -> None:
    def fail(activation: torch.Tensor, at: dl.At) -> None:
        raise AssertionError("the model ran")

    def refused(sites: dl.Sites, match: str, error: type[Exception] = SiteError, **more: Any) -> None:
        edit = dl.intervention(dl.Sites("resid"), reads_only=True)(fail)
        given = {"sites": sites, "interventions": [edit], **settings(organism), **more}
        with pytest.raises(error, match=match):
            read(lens, organism, list(organism.inputs), **given)

    own = LENSES[lens][1]
    refused(own.at(component="model_input"), "'model_input' is none of them")
    refused(own.at(steps=9), r"steps 0\.\.2")
    refused(own.at(stream="audio"), "audio")
    if lens != "attention":
        refused(own.at(heads=[0]), "does not tell heads apart")
    if lens not in ("attention", "depth_lens"):
        refused(own.at(tokens=dl.Tokens(frames=[0])), "reads all tokens")
    if lens == "step_lens":
        refused(own.at(layers=[0]), "reads what belongs to no layer")
    else:
        refused(own.at(layers=9), r"layers 0\.\.3")
        refused(own.at(branches="uncond"), "of branch 'uncond' and branch='cond'")
        refused(own, "unknown branch 'stg'", branch="stg")
        refused(own, "one branch at a time", InputError, branch="all")


def test_a_step_that_needs_no_later_one_stops_the_run(organism: Subject) -> None:
    forwards: list[int] = []

    @dl.intervention(dl.Sites("model_input"), reads_only=True)
    def watch(activation: torch.Tensor, at: dl.At) -> None:
        forwards.append(at.site.step)

    given = {"interventions": [watch], **settings(organism)}
    dl.contributions(organism.model, organism.inputs[0], sites=dl.Sites(steps=0), **given)
    assert set(forwards) == {0}


def test_a_run_that_was_stopped_is_read_as_far_as_it_went(organism: Subject) -> None:
    run = recorded(organism, stop_after=1)
    for name in ("step_lens", "depth_lens", "energy"):
        sites = LENSES[name][1].at(steps="all")
        assert set(read(name, organism, run, sites=sites).table["step"]) == {0, 1}
        with pytest.raises(InputError, match="step 2 was not recorded"):
            read(name, organism, run, sites=sites.at(steps=2))


def test_plain_code_is_not_done_again_and_so_refused(organism: Subject) -> None:
    given = {"body": lambda call, dit: None}
    with pytest.raises(InputError, match="body= is not done again"):
        dl.depth_lens(organism.model, organism.inputs[0], **given)
    with pytest.raises(InputError, match="body= is not done again"):
        dl.fit_tuned_lens(organism.model, ["a", "b"], ["c", "d"], **given)


def test_rows_of_one_instance_are_averaged_first(organism: Subject) -> None:
    found = dl.energy(organism.model, organism.inputs[0], seed=[1, 2, 3], sites=dl.Sites(steps=0), **settings(organism))
    assert (found.table["n"] == 1).all()
    first = found.samples[(found.samples["layer"] == 0) & (found.samples["latent_frame"] == 0)]["value"]
    assert len(first) == 3
    np.testing.assert_allclose(found.table["value"].iloc[0], first.mean())


def test_a_saved_lens_is_the_same_lens(lens: str, organism: Subject, tmp_path: Any) -> None:
    found = read(lens, organism, recorded(organism))
    again = type(found).load(found.save(tmp_path / lens))
    pd.testing.assert_frame_equal(again.table, found.table, check_exact=True)


def test_regions_are_saved_too(organism: Subject, tmp_path: Any) -> None:
    run = recorded(organism)
    half = np.arange(run.geometry.grid[-1]) < 2
    region = {
        "left": np.broadcast_to(half, run.geometry.grid),
        "again": torch.from_numpy(half).expand(run.geometry.grid),
    }
    found = dl.energy(organism.model, run, sites=dl.Sites(steps=0), regions=region)
    ratios = found.table[found.table["measure"] == "ratio"]
    assert set(ratios["region"]) == {"left", "again"}
    again = dl.Energy.load(found.save(tmp_path / "energy"))
    pd.testing.assert_frame_equal(again.table, found.table, check_exact=True)


def test_a_run_that_was_edited_says_so_and_is_read_only_as_told(lens: str, organism: Subject) -> None:
    run = recorded(organism, interventions=[HALVED, dl.Capture(dl.Sites("resid"), name="seen")])
    assert [(edit.where, edit.steps, edit.within) for edit in run.edited] == [("resid, step 1, layer 0", (1,), True)]
    assert "made under interventions at resid, step 1, layer 0" in repr(run)
    if lens == "step_lens":
        read(lens, organism, run)  # the record itself
        return
    with pytest.raises(InputError, match="made under interventions at resid, step 1, layer 0: give interventions="):
        read(lens, organism, run)
    plain, edited = recorded(organism), {"seed": [3, 4], "interventions": [HALVED], **settings(organism)}
    under = read(lens, organism, list(organism.inputs), **edited)
    assert_same(read(lens, organism, run, interventions=[HALVED]), under)
    first = LENSES[lens][1].at(steps=0)
    assert_same(read(lens, organism, run, sites=first), read(lens, organism, plain, sites=first))
    assert not read(lens, organism, run, interventions=[]).table["value"].equals(under.table["value"])


def assert_same(one: Result, other: Result) -> None:
    pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)


def test_a_body_is_an_edit_and_a_resumed_run_has_those_of_its_record(organism: Subject) -> None:
    run = recorded(organism, body=lambda call, dit: None, interventions=[dl.Noise(dl.Sites("latents", steps=1), "add")])
    assert [(edit.where, edit.steps, edit.within) for edit in run.edited] == [
        ("latents, step 1", (1,), False),
        ("body", (0, 1, 2), True),
    ]
    with pytest.raises(InputError, match="made under interventions at body: give"):
        dl.depth_lens(organism.model, run)
    assert [edit.steps for edit in recorded(organism, resume=dl.Resume(run, 1)).edited] == [(1,), (0,)]
    assert recorded(organism, resume=dl.Resume(run, 0)).edited == ()
    assert run.select([1]).edited == run.edited


MIXED = dl.intervention(dl.Sites(("latents", "embed"), steps=1))(lambda activation, at: activation / 2)


def test_what_lies_between_calls_is_refused_where_a_step_is_done_again(organism: Subject) -> None:
    run, given = recorded(organism), {"seed": [3, 4], **settings(organism)}
    with pytest.raises(SiteError, match="s01/-/-/latents/video lies between denoiser calls"):
        dl.depth_lens(organism.model, run, interventions=[MIXED])
    for component in ("latents", "guided"):
        keep = dl.Capture(dl.Sites((component, "embed")))
        with pytest.raises(SiteError, match=f"s01/-/-/{component}/video lies between denoiser calls"):
            organism.model.replay(run, 1, [keep])
    keep = dl.Capture(dl.Sites("velocity", steps=1))
    under = organism.model.run(list(organism.inputs), interventions=[MIXED, keep], decode=False, **given)
    found = dl.depth_lens(organism.model, list(organism.inputs), interventions=[MIXED], **given)
    assert torch.equal(found.velocity[1], under["s01/cond/-/velocity"])


@pytest.mark.parametrize("given", [None, "resid", dl.Tokens()])
def test_sites_that_are_none_are_refused(lens: str, organism: Subject, given: Any) -> None:
    with pytest.raises(SiteError, match=r"needs sites=Sites\(...\), got "):
        read(lens, organism, organism.inputs[0], sites=given)
