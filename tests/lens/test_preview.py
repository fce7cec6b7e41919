"""The preview decoder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LinearRegression
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, MadeForAnother, NotFinite, SiteError, StoreError
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.files.weights import read_weights
from dit_lens.lens.preview import Preview, Quality, Scale, averaged, psnr
from dit_lens.organisms import organism_names, organism_tasks
from tests.forged import rewrite, spoilt
from tests.subjects import Subject


def noise(model: dl.VideoDiT, rows: int, seed: int = 0) -> Tensor:
    shape = (rows, *model.geometry().shapes["latents"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def true_videos(name: str) -> np.ndarray:
    """Of every task of the default size, mixed."""
    samples = [task.sample(4, seed=21, split="test") for task in organism_tasks(name)]
    size = samples[0][0].video.shape
    return np.stack([i.video for of_tasks in zip(*samples, strict=True) for i in of_tasks if i.video.shape == size])


@cache
def shipped(name: str) -> tuple[dl.VideoDiT, Tensor, np.ndarray]:
    """A model, and latents of true videos with what its VAE makes of them."""
    model = dl.load_organism(name)
    latents = model.encode(true_videos(name))
    return model, latents, model.decode(latents)


# Of each way in which latent frames become pixel frames; Allegro's VAE, which is not causal, takes seconds a tile.
@pytest.mark.parametrize("name", ["wan2.1-t2v", "cogvideox-1.5", "mochi", "ltx-video"])
def test_it_has_the_size_of_the_vaes_frames_in_every_layout(name: str) -> None:
    model = dl.VideoDiT(TINY[name].build(), defaults=TINY[name].settings)
    latents = noise(model, 4)
    preview = Preview.fit(model, latents, groups=range(4))
    video = model.decode(latents)
    assert preview.video(latents).shape == video.shape
    assert preview(latents).shape == (4, *latents.shape[2:], 3)
    assert preview.scale.padding == (name == "cogvideox-1.5")
    assert np.array_equal(preview.video(latents, [0, 3]), preview.video(latents)[:, [0, 3]])
    with pytest.raises(SiteError, match=f"no frame {video.shape[1]}"):
        preview.video(latents, video.shape[1])


def test_which_latent_frame_a_pixel_frame_is_of() -> None:
    assert Scale(8, 4, 1, 0).sources(3) == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert Scale(8, 4, 4, 0).sources(2) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert Scale(8, 4, 1, 1).sources(3) == [1, 2, 2, 2, 2]


def test_cells_are_means_of_their_pixels() -> None:
    video = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 6, 3), dtype=np.uint8)
    cells = averaged(video, Scale(2, 4, 1, 0), 2)
    assert cells.shape == (2, 2, 2, 3, 3)
    np.testing.assert_allclose(cells[1, 0, 1, 2], video[1, 0, 2:4, 4:6].mean(axis=(0, 1)))
    np.testing.assert_allclose(cells[0, 1, 0, 1], video[0, 1:, :2, 2:4].mean(axis=(0, 1, 2)))


def test_without_a_ridge_it_is_the_least_squares_fit_of_scikit_learn() -> None:
    model, latents, video = shipped("puzzles")
    preview = Preview.fit(model, latents[:6], latents[6:], ridge=0.0)
    x = latents[:6].movedim(1, -1).flatten(0, 3).numpy()
    y = averaged(video[:6], preview.scale, latents.shape[2]).reshape(-1, 3)
    own = LinearRegression().fit(x, y)
    np.testing.assert_allclose(preview.weight, own.coef_, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(preview.bias, own.intercept_, rtol=1e-3, atol=1e-2)


def test_a_vae_that_is_linear_in_its_latents_is_met_to_the_rounding() -> None:
    model = dl.VideoDiT(TINY["wan2.1-t2v"].build(), defaults=TINY["wan2.1-t2v"].settings)
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)) / 40

    def linear(pipeline: object, latents: Tensor) -> Tensor:
        video = torch.einsum("bcfhw,kc->bkfhw", latents, weight)
        frames = torch.tensor([0, 1, 1, 1, 1])
        return video[:, :, frames].repeat_interleave(8, 3).repeat_interleave(8, 4)

    model.architecture = replace(model.architecture, decode=linear)
    preview = Preview.fit(model, noise(model, 6), groups=range(6), ridge=0.0)
    torch.testing.assert_close(preview.weight, 127.5 * weight, rtol=0, atol=0.05)
    assert preview.quality.cells > 50
    assert preview.quality.full > 50
    assert preview.quality.full_averaged == math.inf


@pytest.mark.parametrize("name", ["maze", "puzzles"])
def test_the_shipped_ones_fit_their_vae_and_say_how_well(name: str) -> None:
    model, latents, video = shipped(name)
    preview = Preview.load(name)
    preview.require(model)
    quality = preview.psnr(model, latents)
    true, mean = averaged(video, preview.scale, latents.shape[2]), (0, 1, 2, 3)
    assert quality.cells == pytest.approx(psnr(preview(latents), true))
    assert quality.cells_constant == pytest.approx(psnr(true.mean(axis=mean), true))
    assert quality.full == pytest.approx(psnr(preview.video(latents), video))
    assert quality.full_constant == pytest.approx(psnr(video.mean(axis=mean), video))
    for measured in (quality, preview.quality):
        assert measured.cells > measured.cells_constant + 2
        assert measured.full_constant + 0.5 < measured.full < measured.full_averaged
    assert f"{preview.quality.cells:.1f} dB on cells" in repr(preview)
    assert preview.quality.videos >= 100
    assert len((Path(dl.organisms.__file__).parent / name / "preview.safetensors").read_bytes()) < 4096


def test_planted_models_share_the_autoencoder_of_the_one_that_they_are_made_from() -> None:
    planted = dl.organisms.load_planted("frames", "early").model
    card = json.loads((Path(dl.organisms.__file__).parent / "planted/frames-early/organism.json").read_text())
    Preview.load(card["vae_of"]).require(planted)


def test_another_vae_is_refused(text_to_video: Subject) -> None:
    preview = Preview.load("maze")
    model, latents, _ = shipped("puzzles")
    for other in (model, text_to_video.model):
        with pytest.raises(MadeForAnother, match=rf"VAE {preview.vae}; the model has \w+"):
            preview.require(other)
    with pytest.raises(MadeForAnother, match="VAE"):
        preview.psnr(model, latents)
    with pytest.raises(MadeForAnother, match="8 channels, the latents have 4"):
        preview(latents[:, :4])


def test_changed_weights_make_another_vae() -> None:
    model = dl.VideoDiT(TINY["wan2.1-t2v"].build(), defaults=TINY["wan2.1-t2v"].settings)
    preview = Preview.fit(model, noise(model, 2), held_out=0.5, groups=range(2))
    preview.require(model)
    with torch.no_grad():
        model.pipeline.vae.decoder.conv_out.bias += 1
    with pytest.raises(MadeForAnother):
        preview.require(model)


def test_what_is_saved_is_read_back_the_same(tmp_path: Path) -> None:
    preview = Preview.load("puzzles")
    again = Preview.load(preview.save(tmp_path / "deep" / "mine.safetensors"))
    assert torch.equal(again.weight, preview.weight)
    assert torch.equal(again.bias, preview.bias)
    assert (again.scale, again.vae, again.quality) == (preview.scale, preview.vae, preview.quality)


def test_files_that_are_no_preview(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no preview 'nowhere'.*maze, puzzles"):
        Preview.load("nowhere")
    assert "puzzles" in organism_names()
    path = Preview.load("puzzles").save(tmp_path / "preview.safetensors")
    tensors, card = read_weights(path)
    path.write_text("no tensors")
    with pytest.raises(StoreError, match="ends after 10 bytes, within its header"):
        Preview.load(path)
    save_file(tensors, path)
    with pytest.raises(StoreError, match="field 'record' is missing"):
        Preview.load(path)
    for given, message in (
        ({"weight": torch.zeros(8, 3), "bias": torch.zeros(3)}, r"\(8, 3\)"),
        ({"weight": torch.zeros(3, 8)}, "make no colours"),
        ({name: x * math.nan for name, x in tensors.items()}, "not finite"),
    ):
        rewrite(path, card, given)
        with pytest.raises(StoreError, match=message):
            Preview.load(path)


def test_no_wrong_card_is_read(tmp_path: Path) -> None:
    path = Preview.load("puzzles").save(tmp_path / "preview.safetensors")
    tensors, card = read_weights(path)
    for change, _, given in spoilt(card):
        rewrite(path, given, tensors)
        if change.startswith("quality.") and change.endswith("= -1") and not change.startswith("quality.videos"):
            Preview.load(path)  # decibels may be negative
            continue
        with pytest.raises(StoreError, match=r"is no preview of this version|cannot be read"):
            Preview.load(path)
    infinite = replace(Preview.load("puzzles"), quality=Quality(math.inf, 1, 2, 3, math.inf, 4))
    assert Preview.load(infinite.save(path)).quality == infinite.quality


def test_latents_that_cannot_be_drawn() -> None:
    preview, latents = Preview.load("puzzles"), torch.zeros(1, 8, 2, 3, 3)
    with pytest.raises(InputError, match=r"\(B, C, F, h, w\)"):
        preview(latents[0])
    latents[0, 0, 0, 0, 0] = math.inf
    with pytest.raises(NotFinite, match="1 values"):
        preview(latents)


@pytest.mark.parametrize(("rows", "share"), [(0, 0.5), (1, 0.5), (4, 0.0), (4, 1.0)])
def test_nothing_to_fit_or_nothing_to_measure_on(rows: int, share: float) -> None:
    model, latents, _ = shipped("puzzles")
    with pytest.raises(EvidenceError, match=f"{rows} videos in {rows} groups, a share of {share:g}"):
        Preview.fit(model, latents[:rows], share, groups=range(rows))


def test_a_share_leaves_out_whole_groups() -> None:
    model, latents, _ = shipped("puzzles")
    groups = ["a", "b", "c", "d", "a", "b", "c", "d"]  # as the steps of a step lens follow one another
    apart = [name in "ad" for name in groups]  # half of them, evenly spread
    by_hand = Preview.fit(model, latents[:8][~torch.tensor(apart)], latents[:8][torch.tensor(apart)])
    preview = Preview.fit(model, latents[:8], 0.5, groups=groups)
    assert torch.equal(preview.weight, by_hand.weight)
    assert preview.quality == by_hand.quality
    with pytest.raises(EvidenceError, match=r"which are of one instance \(groups=\)"):
        Preview.fit(model, latents[:8])
    with pytest.raises(EvidenceError, match="7 groups for 8 videos"):
        Preview.fit(model, latents[:8], groups=range(7))
    with pytest.raises(EvidenceError, match="8 videos in 1 groups"):
        Preview.fit(model, latents[:8], groups=["a"] * 8)


def test_videos_are_encoded_first() -> None:
    model, _, _ = shipped("puzzles")
    given, held_out = true_videos("puzzles")[:4], true_videos("puzzles")[4:8]
    encoded = Preview.fit(model, model.encode(given), model.encode(held_out))
    assert torch.equal(Preview.fit(model, given, held_out).weight, encoded.weight)
