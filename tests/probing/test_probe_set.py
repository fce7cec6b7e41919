"""Trained probes: what is saved is what was fitted, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, MadeForAnother, SiteError, StoreError
from dit_lens.files.weights import read_weights
from dit_lens.probing.evaluate import evaluate_probes
from dit_lens.probing.probe_set import ProbeSet, load_probes, probe_names
from dit_lens.probing.stream import stream_probes
from dit_lens.tasks import Permanence
from tests.forged import rewrite, spoilt

LABELS = ["shape", "out", "steps"]


@cache
def model() -> dl.VideoDiT:
    return dl.load_organism("puzzles")


@cache
def probes() -> ProbeSet:
    """Probes of every kind: three classes, two, and a number."""
    return stream_probes(
        model(), Permanence(), train=16, test=4, steps=[0, 2], layers=[3], level="clip", labels=LABELS
    ).probes


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
    assert {"shuffled", "input", "position", "random", "majority", "n", "source"} <= set(again.frame().columns)
    for name in ("model_id", "estimator", "versions", "date", "train", "test", "sites", "sigmas"):
        assert again.card[name]


def test_loaded_probes_score_as_when_they_were_trained(tmp_path: Path) -> None:
    """The same instances with the same seeds: the table on the card comes out again."""
    again = ProbeSet.load(probes().save(tmp_path / "set"))
    test = Permanence().sample(4, seed=0, split="test")
    found = evaluate_probes(again, model(), test=test, first_run_seed=16).table()
    kept = again.frame()
    np.testing.assert_allclose(found["skill"], kept["skill"].astype(float), atol=1e-3)
    np.testing.assert_allclose(found["random"], kept["random"].astype(float), atol=1e-3)


def test_the_answer_to_steer_towards_is_named_or_given_and_nothing_else_is() -> None:
    given, towards = probes(), partial(probes().direction, "out", 0, 3)
    for true in (None, True, np.True_, "True"):
        assert torch.equal(towards(true), towards())
    for false in (False, np.False_, "False"):
        assert torch.equal(towards(false), -towards())
    with pytest.raises(InputError, match="classes False, True; answer='banana' is none"):
        towards("banana")
    with pytest.raises(InputError, match="'steps' is a number"):
        given.direction("steps", 0, 3, 4)
    # Two classes that are no booleans.
    asked = [
        a | {"classes": [0, 1], "names": ["left", "right"]} if a["name"] == "out" else a for a in given.card["asked"]
    ]
    sides = replace(given, card={**given.card, "asked": asked})
    for left in ("left", 0, np.int64(0)):
        assert torch.equal(sides.direction("out", 0, 3, left), -towards())
    assert torch.equal(sides.direction("out", 0, 3, "right"), towards())


def test_layers_are_named_by_number_from_the_end_or_as_readouts(tmp_path: Path) -> None:
    direction = probes().direction("out", 0, 3)
    for layer in (-1, "L03"):
        assert torch.equal(probes().direction("out", 0, layer), direction)
        assert str(probes().steer("out", 0, layer, 1.0).sites) == str(probes().steer("out", 0, 3, 1.0).sites)
    for wrong in (-2, "position", "random/L03", "L3"):
        with pytest.raises(SiteError, match="layer"):
            probes().direction("out", 0, wrong)
    assert ProbeSet.load(probes().save(tmp_path / "set")).readouts[:3] == ["embed", "L03", "input"]


def test_instances_that_the_probes_were_trained_on_are_refused_by_name() -> None:
    train = Permanence().sample(16, seed=0, split="train")
    with pytest.raises(EvidenceError, match=f"1 task instances are in training and in test: '{train[0].id}'"):
        evaluate_probes(probes(), model(), test=[train[0], *Permanence().sample(3, seed=1, split="test")])


def test_another_noise_level_or_expert_is_refused() -> None:
    fewer = dl.VideoDiT(model().pipeline, defaults=model().defaults | {"num_inference_steps": 6})
    with pytest.raises(MadeForAnother, match=r"step 2 at sigma 0\.\d+; in this run it is at 0\.\d+"):
        evaluate_probes(probes(), fewer, test=4)
    other = replace(probes(), card={**probes().card, "experts": {"0": "high_noise", "2": None}})
    with pytest.raises(MadeForAnother, match=r"step 0 at sigma 1\.0000 of the expert high_noise; .* at 1\.0000$"):
        evaluate_probes(other, model(), test=4)


def test_a_pooling_function_is_given_again() -> None:
    trained = stream_probes(
        model(), Permanence(), train=8, test=4, steps=[0], layers=[3], level="clip", labels=["out"], controls=(),
        pool=lambda x: x.std(1),
    ).probes  # fmt: skip
    with pytest.raises(EvidenceError, match="unknown pooling"):
        evaluate_probes(trained, model(), test=4)
    found = evaluate_probes(trained, model(), test=4, pool=lambda x: x.std(1))
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
    with pytest.raises(InputError, match="task 'mine', which dit_lens does not have: give task="):
        evaluate_probes(own, model())


def test_answers_are_in_the_labels_own_values() -> None:
    width = probes().coef[0, "L03"].shape[1]
    answers = probes().predict(0, "L03", torch.randn(5, width))
    assert set(answers["shape"]) <= {0, 1, 2}
    assert answers["out"].dtype == bool
    assert answers["steps"].dtype.kind == "f"


def test_a_directions_score_rises_along_it() -> None:
    width = probes().coef[0, "L03"].shape[1]
    start, asked = torch.zeros(width), {a.name: a for a in probes().asked if a.control == "none"}
    for label, answer in (("out", None), ("steps", None), ("out", False)):
        moved = probes().scores(0, "L03", start + probes().direction(label, 0, 3, answer))
        change = float((moved - probes().scores(0, "L03", start))[asked[label].start])
        assert (change < 0) == (answer is False)
    for k, shape in enumerate(asked["shape"].names):
        far = start + 1e6 * probes().direction("shape", 0, 3, shape)
        change = probes().scores(0, "L03", far) - probes().scores(0, "L03", start)
        own = change[asked["shape"].start : asked["shape"].stop]
        assert own[k] > own.mean()
    steer = probes().steer("out", 2, 3, 0.5, tokens=dl.Tokens(frames=-1))
    assert [str(s) for s in steer.sites.resolve(model().geometry(Permanence().sample(1)))] == [
        "s02/cond/L03/resid/video"
    ]
    assert float(steer.direction.norm()) == pytest.approx(1, abs=1e-5)
    assert str(steer.sites.tokens) == "frames=-1"


def test_another_model_site_or_width_is_refused() -> None:
    with pytest.raises(MadeForAnother, match=f"are of model {model().id}, this is"):
        evaluate_probes(probes(), dl.load_organism("maze"), test=2)
    with pytest.raises(MadeForAnother, match="no probes of step 1, L03; there are steps 0, 2"):
        probes().scores(1, "L03", torch.zeros(3))
    with pytest.raises(MadeForAnother, match="readouts embed, L03, input"):
        probes().direction("out", 0, 5)
    with pytest.raises(MadeForAnother, match="read width 128, these features have 64"):
        probes().scores(0, "L03", torch.zeros(2, 64))
    with pytest.raises(InputError, match="no probe of 'colour'; there are shape, out, steps"):
        probes().direction("colour", 0, 3)
    with pytest.raises(InputError, match="circle, square, triangle; answer='star' is none"):
        probes().direction("shape", 0, 3, "star")


def test_files_that_are_no_probes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shipped are"):
        load_probes("nobody")
    path = probes().save(tmp_path / "set")
    tensors, card = read_weights(path)
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        (card | {"schema": 99}, "field 'card.schema' is 99"),
        ({k: v for k, v in card.items() if k != "asked"}, "holds no probes: field 'card.asked' is missing"),
        (card | {"asked": card["asked"][:2]}, "the card names 4 outputs"),
        (card | {"layers": [4]}, "field 'card.layers' is \\[4\\]; the probes are of embed, L03"),
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


#: Null where a control is missing or a measure is none of its kind of label; all but the texts may be negative.
MEASURES = {"skill", "low", "high", "shuffled", "input", "position", "random", "majority", "selectivity",
            "selectivity_low", "selectivity_high", "excess", "excess_low", "excess_high", "accuracy",
            "majority_accuracy"}  # fmt: skip


def _is_right(place: str, value: str) -> bool:
    """Whether a value is one that a field may have, if not the one that it had."""
    name = place.rpartition(".")[2]
    if place.startswith("scores.") and name in MEASURES | {"best"}:
        return value in ("None", "-1") and (value == "None" or name != "best")
    if "classes." in place:
        return value == "-1" or value.isdigit()
    if place.startswith(("frames", "controls", "versions")):
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
        assert found.frame()["missing"].eq("").all()
        assert (found.frame()["selectivity"] <= found.frame()["skill"].clip(lower=0) + 1e-3).all()


def test_shipped_weights_score_as_their_card_says() -> None:
    probes = load_probes("maze")
    few = replace(probes, coef={k: v for k, v in probes.coef.items() if k[0] == 0})
    card, count = probes.card, 24
    test = probes.task.sample(card["test"]["instances"], seed=card["seed"], split="test")
    assert [maze.id for maze in test] == card["test"]["ids"]
    found = evaluate_probes(
        few, dl.load_organism("maze"), test=test[:count], first_run_seed=card["seed"] + card["train"]["instances"]
    ).table(0, replicates=200)
    kept = probes.frame()
    both = found.merge(kept[kept["step"] == 0], on=["label", "readout"], suffixes=("", "_card"))
    assert len(both) == len(found)
    # A quarter of the card's instances: their own interval holds what the card says of all.
    inside = (both["low"] - 0.02 <= both["skill_card"]) & (both["skill_card"] <= both["high"] + 0.02)
    assert inside.mean() > 0.9
    assert both.loc[(both["label"] == "on_path") & (both["readout"] == "L07"), "skill"].item() > 0.7
