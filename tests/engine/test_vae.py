"""Between pixels and the sampler's latents: `VideoDiT.encode` and `VideoDiT.decode`, in every family."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import InputError, NotFinite, SiteError, UnsupportedModel
from dit_lens.families.common import temporal_factor
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.organisms import organism_tasks


@cache
def model_of(name: str) -> dl.VideoDiT:
    pipeline, settings = TINY[name].build(), dict(TINY[name].settings)
    if name == "allegro":  # one tile, for they take seconds
        settings |= {"width": 128}
    return dl.VideoDiT(pipeline, defaults=settings)


@pytest.fixture(params=list(TINY))
def model(request: pytest.FixtureRequest) -> dl.VideoDiT:
    return model_of(request.param)


def videos(model: dl.VideoDiT, count: int = 2) -> NDArray[np.uint8]:
    """Smooth colours that differ from frame to frame and from row to row."""
    pixels = model.geometry().pixels
    assert pixels is not None
    waves = np.random.default_rng(0).uniform(-0.3, 0.3, (count, 3, 4))
    t, y, x = np.meshgrid(*(np.arange(n) for n in (pixels.frames, pixels.height, pixels.width)), indexing="ij")
    phases = np.einsum("bck,kthw->bthwc", waves, np.stack([3 * t, y, x, np.ones_like(t)]))
    return (127.5 + 127.5 * np.sin(phases)).round().astype(np.uint8)


class Reached(Exception):
    """The VAE's decoder was called."""


def given_to_vae(model: dl.VideoDiT, latents: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What `decode` gives the VAE."""
    rows = []

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> None:
        rows.append(z)
        raise Reached

    monkeypatch.setattr(model.pipeline.vae, "decode", decode)
    for row in latents:
        with pytest.raises(Reached):
            model.decode(row[None])
    return torch.cat(rows)


def test_what_decode_gives_the_vae_is_what_the_vae_made_of_the_video(
    model: dl.VideoDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, vae = videos(model, 1), model.pipeline.vae
    seen, encode = [], vae.encode

    def spy(video: Tensor) -> Any:
        seen.append((video, encode(video)))
        return seen[-1][1]

    monkeypatch.setattr(vae, "encode", spy)
    latents = model.encode(frames)
    assert tuple(latents.shape) == (1, *model.geometry().shapes["latents"])
    assert latents.dtype == torch.float32
    [(video, posterior)] = seen
    prepared = model.pipeline.video_processor.preprocess_video(frames[0] / np.float32(255))
    torch.testing.assert_close(video, prepared.to(vae.dtype))
    given, mode = given_to_vae(model, latents, monkeypatch), posterior.latent_dist.mode()
    torch.testing.assert_close(given, mode, rtol=1e-5, atol=1e-6)
    if vae.config.get("scaling_factor", 1.0) != 1 or hasattr(vae.config, "latents_mean"):
        assert (latents[:, :, -mode.shape[2] :] - mode).abs().max() > 1e-3  # there was something to undo


def test_padding_that_is_never_decoded_repeats_the_first_latent_frame() -> None:
    model = model_of("cogvideox-1.5")
    latents = model.encode(videos(model, 1))
    assert latents.shape[2] == 4
    assert torch.equal(latents[:, :, 0], latents[:, :, 1])
    assert not torch.equal(latents[:, :, 1], latents[:, :, 2])


def noise(model: dl.VideoDiT, rows: int = 1, frames: int | None = None) -> Tensor:
    channels, latent_frames, height, width = model.geometry().shapes["latents"]
    shape = (rows, channels, frames or latent_frames, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_which_decoders_are_causal(model: dl.VideoDiT) -> None:
    """Whether other latents behind it change a bit of what a prefix becomes, before any rounding to 8 bits.

    Both videos have the same shape, so that every processor does the same operations with both: what differs differs
    because the decoder looks ahead.
    """
    family = model.architecture
    if family.family == "allegro":
        assert not family.causal_decoder  # its tiles are six latent frames long: there are no prefixes
        return
    latents, temporal = noise(model, frames=5), temporal_factor(model.pipeline)
    whole, unmoved = family.decode(model.pipeline, latents), True
    for count in range(1, 5):
        other = latents.clone()
        other[:, :, count:] = 3 * latents[:, :, count:].flip(-1)
        changed, frames = family.decode(model.pipeline, other), 1 + (count - 1) * temporal
        assert not torch.equal(changed[:, :, frames:], whole[:, :, frames:])
        unmoved &= torch.equal(changed[:, :, :frames], whole[:, :, :frames])
    assert unmoved == family.causal_decoder


@torch.no_grad()
def test_the_first_latent_frames_alone_give_the_first_frames_of_a_causal_decoder(model: dl.VideoDiT) -> None:
    """To the rounding of the dtype: other shapes may have other kernels, whose sums are in another order."""
    family = model.architecture
    if not family.causal_decoder:
        pytest.skip("the decoder looks ahead")
    latents, temporal = noise(model, frames=5), temporal_factor(model.pipeline)
    whole = family.decode(model.pipeline, latents)
    unit = torch.finfo(whole.dtype).eps * whole.abs().max()
    for count in range(1, 5):
        part = family.decode(model.pipeline, latents[:, :, :count])
        assert part.shape[2] == 1 + (count - 1) * temporal
        assert (part - whole[:, :, : part.shape[2]]).abs().max() <= 256 * unit


def test_chosen_frames_are_those_of_the_whole_video(model: dl.VideoDiT) -> None:
    latents = noise(model)
    whole = model.decode(latents).astype(int)
    assert np.array_equal(model.decode(latents, frames=-1), whole[:, [-1]])  # the same latents, so the same bits
    if model.architecture.family == "allegro":
        return  # takes seconds
    apart = np.abs(model.decode(latents, frames=[0, 2]) - whole[:, [0, 2]])
    if model.architecture.causal_decoder:
        # Fewer latents, and so last bits of their own: a pixel between two levels may be rounded to the other one.
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01
    else:
        assert not apart.any()
    with pytest.raises(SiteError, match=rf"no frame {whole.shape[1]}; .*frames 0\.\.{whole.shape[1] - 1}"):
        model.decode(latents, frames=whole.shape[1])


def test_a_causal_decoder_is_given_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("wan2.1-t2v")
    latents = noise(model, frames=5)
    for frame, needed in ((0, 1), (1, 2), (4, 2), (5, 3), (16, 5)):
        seen = []
        decode = type(model.pipeline.vae).decode

        def spy(z: Tensor, *args: Any, decode: Any = decode, seen: list[int] = seen, **kwargs: Any) -> Any:
            seen.append(z.shape[2])
            return decode(model.pipeline.vae, z, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(model.pipeline.vae, "decode", spy)
            model.decode(latents, frames=frame)
        assert seen == [needed]


def test_latents_that_cannot_be_decoded_are_refused() -> None:
    model = model_of("wan2.1-t2v")
    latents = noise(model)
    for wrong in (latents[0], latents[:0]):
        with pytest.raises(InputError, match=r"\(B, C, F, H, W\)"):
            model.decode(wrong)
    with pytest.raises(InputError, match="batches of 0"):
        model.decode(latents, batch=0)
    latents[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(NotFinite, match="1 values"):
        model.decode(latents)


def test_sizes_that_a_run_could_not_have_are_refused(model: dl.VideoDiT) -> None:
    frames = videos(model, 1)
    kind = UnsupportedModel if model.architecture.family == "allegro" else InputError
    with pytest.raises(kind, match=r"nearest valid|tiles"):
        model.encode(np.repeat(frames, 2, axis=1)[:, : frames.shape[1] + 1])
    with pytest.raises(InputError, match=rf"height={frames.shape[2] + 1} .*nearest valid value is {frames.shape[2]}"):
        model.encode(np.pad(frames, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0))))


def test_what_is_no_video_is_refused() -> None:
    model = model_of("wan2.1-t2v")
    frames = videos(model, 1)
    wrong = [frames / 255, frames[0], frames[..., :2], torch.from_numpy(frames), frames.tolist()]
    for given in wrong:
        with pytest.raises(InputError, match=r"uint8 array of shape \(B, T, height, width, 3\)"):
            model.encode(given)
    for count, batch in ((0, 4), (1, 0)):
        with pytest.raises(InputError, match="at least one"):
            model.encode(frames[:count], batch=batch)


@pytest.mark.parametrize("name", ["wan2.1-t2v", "hunyuanvideo-1.5"])
def test_batches_are_rows(name: str) -> None:
    model = model_of(name)
    frames = videos(model, 3)
    one_by_one = torch.cat([model.encode(frames[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model.encode(frames, batch=2), one_by_one, rtol=1e-4, atol=2e-5)
    assert (one_by_one[0] - one_by_one[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["maze", "puzzles"])
def test_shipped_organisms_give_true_videos_back_as_right_answers(name: str) -> None:
    model = dl.load_organism(name)
    for task in organism_tasks(name):
        instances = task.sample(8, seed=5)
        true = np.stack([instance.video for instance in instances])
        again = model.decode(model.encode(true))
        error = np.square((again.astype(np.float64) - true) / 255).mean()
        assert again.shape == true.shape
        assert -10 * np.log10(error) > 25, task.name
        assert task.score(again, instances).strict.all(), task.name
