"""A model from a folder is the model that was saved there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import dit_lens as dl
from dit_lens.errors import StoreError
from dit_lens.files.shipped import CARD, ORGANISMS, organism_names
from dit_lens.organisms.load import organism_config
from dit_lens.sites.geometry import Pixels
from tests.forged import spoilt
from tests.subjects import STEPS, Subject, capture, subject_of


@pytest.mark.parametrize("name", ["organism", "text_to_video", "two_experts"])
def test_a_pipeline_loaded_from_its_folder_gives_the_same_results(name: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    subject.pipeline.save_pretrained(tmp_path)
    for folder in (str(tmp_path), tmp_path):
        loaded = dl.VideoDiT(folder, defaults=subject.model.defaults, dtype=torch.float32)
        assert loaded.pipeline is not subject.pipeline
        assert loaded.layers == subject.model.layers
        assert list(loaded.experts) == list(subject.model.experts)
    arguments = {
        "num_inference_steps": STEPS,
        "guidance_scale": 2.0,
        "interventions": [capture("resid", steps=0)],
        "decode": False,
    }
    one, two = (m.run(subject.inputs[0], subject.seeds[0], **arguments) for m in (subject.model, loaded))
    # Weights from a file lie at other addresses, for which other kernels may be chosen: up to 2e-5 apart was seen.
    torch.testing.assert_close(two.latents, one.latents, rtol=0, atol=1e-4)
    for site, tensor in one.captured().items():
        torch.testing.assert_close(two[site], tensor, rtol=0, atol=1e-4)


def test_from_pretrained_arguments_are_passed_on(organism: Subject, tmp_path: Path) -> None:
    organism.pipeline.save_pretrained(tmp_path)
    loaded = dl.VideoDiT(tmp_path, dtype=torch.bfloat16)
    assert loaded.pipeline.transformer.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError), match="nothing-here"):
        dl.VideoDiT(tmp_path / "nothing-here")


def test_the_id_is_of_the_weights_and_the_configuration(organism: Subject, tmp_path: Path) -> None:
    organism.pipeline.save_pretrained(tmp_path)
    loaded = dl.VideoDiT(tmp_path, dtype=torch.float32)
    assert loaded.id == organism.model.id
    changed = dl.VideoDiT(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        changed.pipeline.transformer.blocks[2].ffn.net[2].weight[0, 0] += 1
    assert changed.id != loaded.id


def test_geometry_says_what_a_run_will_have(text_to_video: Subject, two_experts: Subject) -> None:
    geometry = text_to_video.model.geometry(num_inference_steps=2, guidance_scale=2.0)
    assert (geometry.steps, geometry.layers, geometry.grid) == (2, 4, (3, 2, 4))
    assert (geometry.branches, geometry.streams) == (("cond", "uncond"), ("video",))
    assert [(k.kind, k.components["video"], k.heads["video"]) for k in geometry.kinds] == [
        ("single", ("modulation", "attn", "cross_attn", "ffn", "delta", "resid"), 2)
    ] * 4
    assert geometry.pixels == Pixels(frames=5, height=32, width=64, temporal=2)
    run = two_experts.run()
    assert (
        two_experts.model.geometry(two_experts.inputs[0], num_inference_steps=STEPS, guidance_scale=1.0) == run.geometry
    )


def test_the_shipped_organism_can_be_had_with_random_weights(shipped: Subject) -> None:
    one, again, other = (dl.load_organism("maze", random=True, seed=seed) for seed in (1, 1, 2))
    assert one.id == again.id
    assert len({one.id, other.id, shipped.model.id}) == 3
    assert one.layers == shipped.model.layers


def test_an_unknown_organism_is_refused_with_those_there_are() -> None:
    with pytest.raises(dl.errors.InputError, match="there are: maze"):
        dl.load_organism("chess")


@pytest.mark.parametrize("name", organism_names())
def test_a_card_that_is_read_and_written_again_is_the_same_file(name: str) -> None:
    text = (ORGANISMS / name / CARD).read_text()
    config = asdict(organism_config(name))
    assert text == json.dumps(json.loads(text) | {"config": config}, indent=1)


@pytest.mark.parametrize("name", ["planted/frames-early", "planted/relay", "planted/head"])
def test_no_wrong_card_of_an_organism_is_read(name: str, tmp_path: Path) -> None:
    card = json.loads((ORGANISMS / name / CARD).read_text())
    for change, _, given in spoilt(card):
        place, _, value = change.partition(" = ")
        (tmp_path / CARD).write_text(json.dumps(given))
        if _is_right(place, value):
            organism_config(folder=tmp_path)
            continue
        with pytest.raises(StoreError, match=r"organism\.json is no card of an organism|shares the autoencoder of"):
            organism_config(folder=tmp_path)


def _is_right(place: str, value: str) -> bool:
    """Whether a value is one that a field may have, if not the one that it had."""
    if place == "defaults":
        return value == "{}"
    if place.startswith("defaults."):
        return value in ("(left out)", "-1")
    lists = ("tasks", "config.words", "config.frame_attention", "config.text_attention")
    if place in lists or place.endswith(".reads"):
        return value == "[]" or (value == "None" and "attention" in place)
    items, _, last = place.rpartition(".")
    if items in lists or items.endswith(".reads"):
        return value == "(left out)"
    return (last, value) == ("head", "None") or (place, value) in {("config.shift", "-1"), ("vae_of", "None")}
