"""Trained probes: what is saved is what was fitted, and nothing else is taken for it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import InputError, MadeForAnother
from dit_lens.probing.stream import evaluate_probes, stream_probes
from dit_lens.probing.trained import ProbeSet, load_probes, probe_names
from dit_lens.tasks import Permanence

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
    with pytest.raises(MadeForAnother, match="readouts input, embed, L03"):
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
    card = json.loads(path.with_suffix(".json").read_text())
    for spoilt in (card | {"schema": 99}, {k: v for k, v in card.items() if k != "asked"}, [card]):
        path.with_suffix(".json").write_text(json.dumps(spoilt))
        with pytest.raises(InputError, match="set"):
            ProbeSet.load(path)
    path.with_suffix(".json").write_text(json.dumps(card | {"asked": card["asked"][:2]}))
    with pytest.raises(InputError, match="the card names 4 outputs"):
        ProbeSet.load(path)
    path.with_suffix(".json").write_text(json.dumps(card))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="no probes"):
        ProbeSet.load(path)


def test_shipped_probes_are_of_the_shipped_models_and_small() -> None:
    names = probe_names()
    assert {"maze", "puzzles"} <= set(names)
    for name, path in names.items():
        found = load_probes(name)
        found.require(dl.load_organism(name.partition("/")[0]))
        assert path.stat().st_size < 2e6
        assert found.frame()["missing"].eq("").all()
