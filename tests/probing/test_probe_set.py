"""Trained probes: what is saved is what was fitted, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, MadeForAnother, SiteError, StoreError
from dit_lens.files.weights import read_weights
from dit_lens.probing.evaluate import evaluate_probes
from dit_lens.probing.probe_set import ProbeSet, load_probes, probe_names
from dit_lens.probing.rows.data import Place
from dit_lens.probing.rows.readout import Readout
from dit_lens.probing.stream import stream_probes
from dit_lens.runs.seeds import row_seeds
from dit_lens.sites.sites import Sites
from dit_lens.tasks import Permanence
from tests.forged import rewrite, spoilt

LABELS = ["shape", "out", "steps"]


@cache
def model() -> dl.VideoDiT:
    return dl.load_organism("puzzles")


@cache
def probes() -> ProbeSet:
    """Probes of every kind: three classes, two, and a number."""
    readout = Readout.of("clip", steps=[0, 2], layers=[3])
    return stream_probes(model(), Permanence(), readout, train=16, test=4, labels=LABELS).probes


EMBED, BLOCK, LATER = "s00/cond/-/embed/video", "s00/cond/L03/resid/video", "s02/cond/L03/resid/video"


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    path = probes().save(tmp_path / "new" / "set")
    again = ProbeSet.load(path)
    assert again.card == json.loads(json.dumps(probes().card))
    assert set(again.coef) == set(probes().coef)
    for place, coef in probes().coef.items():
        assert torch.equal(again.coef[place], coef.float())
        assert torch.equal(again.intercept[place], probes().intercept[place].float())
    assert again.labels == LABELS
    assert again.task == Permanence()
    assert load_probes(path).card == again.card
    assert set(again.table["control"]) == {"none", "shuffled", "input", "position", "random", "majority"}
    assert {"n", "source", "step", "layer", "component"} <= set(again.table)
    for name in ("model_id", "estimator", "versions", "date", "train", "test", "sites", "sigmas"):
        assert again.card[name]


def test_loaded_probes_score_as_when_they_were_trained(tmp_path: Path) -> None:
    """The same instances with the same seeds: the table on the card comes out again."""
    again = ProbeSet.load(probes().save(tmp_path / "set"))
    test = Permanence().sample(4, seed=0, split="test")
    found = evaluate_probes(model(), Permanence(), again, test, seed=again.card["test"]["seed"]).table
    pd.testing.assert_frame_equal(found, again.table, check_dtype=False, atol=1e-3)


def test_the_answer_to_steer_towards_is_named_or_given_and_nothing_else_is() -> None:
    given, towards = probes(), partial(probes().direction, "out", BLOCK)
    for true in (None, True, np.True_, "True"):
        assert torch.equal(towards(true), towards())
    for false in (False, np.False_, "False"):
        assert torch.equal(towards(false), -towards())
    with pytest.raises(InputError, match="classes False, True; answer='banana' is none"):
        towards("banana")
    with pytest.raises(InputError, match="'steps' is a number"):
        given.direction("steps", BLOCK, 4)
    # Two classes that are no booleans.
    asked = [
        a | {"classes": [0, 1], "names": ["left", "right"]} if a["name"] == "out" else a for a in given.card["asked"]
    ]
    sides = replace(given, card={**given.card, "asked": asked})
    for left in ("left", 0, np.int64(0)):
        assert torch.equal(sides.direction("out", BLOCK, left), -towards())
    assert torch.equal(sides.direction("out", BLOCK, "right"), towards())


def test_sites_are_named_by_their_canonical_strings(tmp_path: Path) -> None:
    direction = probes().direction("out", BLOCK)
    for site in ("s00/cond/L03/resid", dl.Site.parse(BLOCK)):
        assert torch.equal(probes().direction("out", site), direction)
        assert str(probes().steer("out", site, 1.0).sites) == "resid, steps 0, layers 3, branch cond"
    with pytest.raises(SiteError, match="'L03' is no site"):
        probes().direction("out", "L03")
    assert ProbeSet.load(probes().save(tmp_path / "set")).sites == [
        EMBED, BLOCK, EMBED.replace("s00", "s02"), LATER
    ]  # fmt: skip
    assert {place.control for place in probes().coef} == {"none", "input", "position", "random"}


def test_instances_that_the_probes_were_trained_on_are_refused_by_name() -> None:
    train = Permanence().sample(16, seed=0, split="train")
    given = [train[0], *Permanence().sample(3, seed=1, split="test")]
    with pytest.raises(EvidenceError, match=f"1 task instances are in training and in test: '{train[0].id}'"):
        evaluate_probes(model(), Permanence(), probes(), given)
    with pytest.raises(EvidenceError, match="is that of the training runs: they had the same noise"):
        evaluate_probes(model(), Permanence(), probes(), 4, seed=probes().card["train"]["seed"])


def test_another_noise_level_or_expert_is_refused() -> None:
    fewer = dl.VideoDiT(model().pipeline, defaults=model().defaults | {"num_inference_steps": 6})
    with pytest.raises(MadeForAnother, match=r"step 2 at sigma 0\.\d+; in this run it is at 0\.\d+"):
        evaluate_probes(fewer, Permanence(), probes(), 4)
    other = replace(probes(), card={**probes().card, "experts": {"0": "high_noise", "2": None}})
    with pytest.raises(MadeForAnother, match=r"step 0 at sigma 1\.0000 of the expert high_noise; .* at 1\.0000$"):
        evaluate_probes(model(), Permanence(), other, 4)


def test_a_pooling_function_is_given_again() -> None:
    trained = stream_probes(
        model(), Permanence(), Readout(Sites(steps=0, layers=3), level="clip", controls=(), pool=lambda x: x.std(1)),
        train=8, test=4, labels=["out"],
    ).probes  # fmt: skip
    with pytest.raises(EvidenceError, match="unknown pooling"):
        evaluate_probes(model(), Permanence(), trained, 4)
    found = evaluate_probes(model(), Permanence(), trained, 4, pool=lambda x: x.std(1))
    assert found.groups == 4


def test_a_task_that_cannot_be_written_down_or_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        name = "plain"

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing may run")

    monkeypatch.setattr(dl.VideoDiT, "run", forbidden)
    with pytest.raises(InputError, match="no dataclass"):
        stream_probes(model(), Plain())
    own = replace(probes(), card={**probes().card, "task": {"name": "mine", "options": {}}})
    with pytest.raises(InputError, match="task 'mine', which dit_lens does not have: give yours"):
        evaluate_probes(model(), own.task, own)


def test_answers_are_in_the_labels_own_values() -> None:
    width = probes().coef[Place(0, BLOCK)].shape[1]
    answers = probes().predict(BLOCK, torch.randn(5, width))
    assert set(answers["shape"]) <= {0, 1, 2}
    assert answers["out"].dtype == bool
    assert answers["steps"].dtype.kind == "f"


def test_a_directions_score_rises_along_it() -> None:
    width = probes().coef[Place(0, BLOCK)].shape[1]
    start, asked = torch.zeros(width), {a.name: a for a in probes().asked if a.control == "none"}
    for label, answer in (("out", None), ("steps", None), ("out", False)):
        moved = probes().scores(BLOCK, start + probes().direction(label, BLOCK, answer))
        change = float((moved - probes().scores(BLOCK, start))[asked[label].start])
        assert (change < 0) == (answer is False)
    for k, shape in enumerate(asked["shape"].names):
        far = start + 1e6 * probes().direction("shape", BLOCK, shape)
        change = probes().scores(BLOCK, far) - probes().scores(BLOCK, start)
        own = change[asked["shape"].start : asked["shape"].stop]
        assert own[k] > own.mean()
    steer = probes().steer("out", LATER, 0.5, tokens=dl.Tokens(frames=-1))
    assert [str(s) for s in steer.sites.resolve(model().geometry(Permanence().sample(1)))] == [
        "s02/cond/L03/resid/video"
    ]
    assert float(steer.direction.norm()) == pytest.approx(1, abs=1e-5)
    assert str(steer.sites.tokens) == "frames=-1"


def test_another_model_site_or_width_is_refused() -> None:
    with pytest.raises(MadeForAnother, match=f"are of model {model().id}, this is"):
        evaluate_probes(dl.load_organism("maze"), Permanence(), probes(), 2)
    for site in ("s01/cond/L03/resid", "s00/cond/L05/resid", "s00/cond/L03/attn"):
        with pytest.raises(MadeForAnother, match=f"no probes of step ., {site}/video; there are {EMBED}, {BLOCK}"):
            probes().scores(site, torch.zeros(3))
    with pytest.raises(MadeForAnother, match="read width 128, these features have 64"):
        probes().scores(BLOCK, torch.zeros(2, 64))
    with pytest.raises(InputError, match="no probe of 'colour'; there are shape, out, steps"):
        probes().direction("colour", BLOCK)
    with pytest.raises(InputError, match="circle, square, triangle; answer='star' is none"):
        probes().direction("shape", BLOCK, "star")


def test_files_that_are_no_probes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shipped are"):
        load_probes("nobody")
    path = probes().save(tmp_path / "set")
    tensors, card = read_weights(path)
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        (card | {"schema": 99}, "field 'card.schema' is 99"),
        ({k: v for k, v in card.items() if k != "asked"}, "holds no probes: field 'card.asked' is missing"),
        (card | {"asked": card["asked"][:2]}, "the card names 4 outputs"),
        (card | {"sites": card["sites"][:3]}, "field 'card.sites' is .*; the probes are of s00/cond/-/embed/video"),
        (card | {"branch": "uncond"}, "field 'card.branch' is 'uncond'"),
        (card | {"tokens": {"frames": "most"}}, "field 'card.tokens' is "),
        (card | {"scores": card["scores"][1:]}, "field 'card.scores' has not one row for every site"),
    )
    for given, match in changes:
        rewrite(path, given, tensors)
        with pytest.raises(StoreError, match=match):
            ProbeSet.load(path)
    rewrite(path, card, {name: x * np.nan for name, x in tensors.items()})
    with pytest.raises(StoreError, match="hold numbers that are not finite"):
        ProbeSet.load(path)
    rewrite(path, card, tensors)
    ProbeSet.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="ends after 100 bytes, within its header"):
        ProbeSet.load(path)


def _is_right(place: str, value: str) -> bool:
    """Whether a value is one that a field may have, if not the one that it had."""
    name = place.rpartition(".")[2]
    if place.startswith("scores.") and name in ("value", "low", "high"):
        return value in ("None", "-1")
    if "classes." in place:
        return value == "-1" or value.isdigit()
    if place.startswith("tokens"):
        return value in ("-1", "(left out)") or value.isdigit()
    if place.startswith("versions"):
        return value in ("(left out)", "[]", "{}")
    return (place, value) == ("estimator.alpha", "-1")


def test_no_wrong_card_is_read(tmp_path: Path) -> None:
    path = probes().save(tmp_path / "set")
    tensors, card = read_weights(path)
    tried = 0
    for change, _, given in spoilt(card):
        place, _, value = change.partition(" = ")
        rewrite(path, given, tensors)
        tried += 1
        try:
            ProbeSet.load(path)
        except StoreError:
            continue
        assert _is_right(place, value), change
    assert tried > 1000
    rewrite(path, card, tensors)
    assert ProbeSet.load(path).card == card


def test_shipped_probes_are_of_the_shipped_models_and_small() -> None:
    names = probe_names()
    assert {"maze", "puzzles"} <= set(names)
    for name, path in names.items():
        found = load_probes(name)
        found.require(dl.load_organism(name.partition("/")[0]))
        assert path.stat().st_size < 2e6
        skills = found.table[found.table["measure"] == "skill"]
        places = ["step", "layer", "component", "label"]
        assert skills.groupby(places, dropna=False)["control"].nunique().eq(6).all()
        both = found.table[found.table["control"] == "none"].pivot(index=places, columns="measure", values="value")
        assert (both["selectivity"] <= both["skill"].clip(lower=0) + 1e-3).all()


def test_shipped_weights_score_as_their_card_says() -> None:
    probes = load_probes("maze")
    few = replace(probes, coef={place: x for place, x in probes.coef.items() if place.step == 0})
    card, count = probes.card, 24
    test = probes.task.sample(card["test"]["instances"], seed=card["seed"], split="test")
    assert [maze.id for maze in test] == card["test"]["ids"]
    seeds = row_seeds(card["test"]["seed"], count)
    found = evaluate_probes(dl.load_organism("maze"), probes.task, few, test[:count], seed=seeds).table
    places = ["label", "layer", "component", "control", "measure"]
    both = found.merge(probes.table.query("step == 0"), on=places, suffixes=("", "_card"))
    assert len(both) == len(found)
    # A quarter of the card's instances: their own interval holds what the card says of all.
    skills = both[(both["measure"] == "skill") & (both["control"] == "none")]
    inside = (skills["low"] - 0.02 <= skills["value_card"]) & (skills["value_card"] <= skills["high"] + 0.02)
    assert inside.mean() > 0.9
    assert skills.loc[(skills["label"] == "on_path") & (skills["layer"] == 7), "value"].item() > 0.7
