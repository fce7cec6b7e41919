"""A preview decoder: colours from latents by one linear map, where decoding through the VAE would take too long."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import EvidenceError, InputError, MadeForAnother, NotFinite, StoreError
from dit_lens.families.common import temporal_factor
from dit_lens.files import strict
from dit_lens.files.shipped import organism_names, shipped
from dit_lens.files.strict import Malformed
from dit_lens.files.video import Video
from dit_lens.files.weights import read_weights, write_weights
from dit_lens.model import VideoDiT
from dit_lens.runs.identity import model_id
from dit_lens.sites.select import Select, indices

SCHEMA = "dit_lens.preview/1"


class Quality(NamedTuple):
    """How near a preview comes to the VAE, in dB of peak signal to noise over all pixels of so many videos.

    Attributes
    ----------
    cells : float
        Against the VAE's frames averaged over each latent cell.
    cells_constant : float
        What one colour, the mean of all of them, would give there: a preview of no information.
    full : float
        Enlarged to the VAE's size, against its frames as they are.
    full_constant : float
        What one colour would give there.
    full_averaged : float
        What the VAE's own frames averaged over each cell would give there: no map to one colour a cell does better.
    videos : int
    """

    cells: float
    cells_constant: float
    full: float
    full_constant: float
    full_averaged: float
    videos: int

    def __str__(self) -> str:
        return (
            f"{self.cells:.1f} dB on cells (one colour {self.cells_constant:.1f}), {self.full:.1f} dB in full (one "
            f"colour {self.full_constant:.1f}, at best {self.full_averaged:.1f}), {self.videos} videos"
        )


_UNMEASURED = Quality(math.nan, math.nan, math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Scale:
    """How many pixels a cell of the latents is.

    Attributes
    ----------
    spatial, temporal : int
        Pixels along a side, and pixel frames.
    first : int
        Pixel frames of the first latent frame: 1 where the VAE is causal, else as many as the others.
    padding : int
        Latent frames in front that are never decoded.
    """

    spatial: int
    temporal: int
    first: int
    padding: int

    def sources(self, frames: int) -> list[int]:
        """The latent frame of each pixel frame, of so many latent frames."""
        rest = range(self.padding + 1, frames)
        return [self.padding] * self.first + [f for f in rest for _ in range(self.temporal)]


class _Measured(TypedDict):
    """`Quality` as JSON types, which have no infinity."""

    cells: float | Literal["inf"]
    cells_constant: float | Literal["inf"]
    full: float | Literal["inf"]
    full_constant: float | Literal["inf"]
    full_averaged: float | Literal["inf"]
    videos: int


class _Card(TypedDict):
    schema: Literal["dit_lens.preview/1"]
    vae: str
    scale: Scale
    quality: _Measured


@dataclass(frozen=True)
class Preview:
    """A linear map from the channels of a latent cell to the mean colour that the VAE gives it.

    Attributes
    ----------
    weight : float32 Tensor of shape (3, C)
    bias : float32 Tensor of shape (3,)
        To colours from 0 to 255, from the sampler's normalised latents.
    scale : Scale
    vae : str
        Hash of the configuration and weights of the VAE that it was fitted to.
    quality : Quality
        On videos that were held out of the fit.
    """

    weight: Tensor
    bias: Tensor
    scale: Scale
    vae: str
    quality: Quality

    def __repr__(self) -> str:
        return f"Preview({self.channels} channels to RGB, VAE {self.vae}, held out: {self.quality})"

    @property
    def channels(self) -> int:
        """C of the latents that it takes."""
        return self.weight.shape[1]

    @classmethod
    def fit(
        cls,
        model: VideoDiT,
        given: Tensor | Video,
        held_out: float | Tensor | Video = 0.25,
        *,
        groups: Sequence[Any] | None = None,
        ridge: float = 1e-3,
        batch: int = 32,
    ) -> Preview:
        """Fit to what the model's VAE makes of some latents, in closed form.

        Parameters
        ----------
        given : Tensor of shape (B, C, F, H, W), or uint8 array of shape (B, T, height, width, 3)
            Sampler latents, such as estimates of a step lens, or videos, which are encoded first.
        held_out : float, Tensor or uint8 array
            What the quality is measured on: latents or videos of their own, or the share of those given that is left
            out of the fit, in whole groups that are evenly spread.
        groups : list of B names, hashable
            Which latents belong together, so that a share leaves out all of them or none: the task instance of each.
            Of a step lens, whose estimates are all of the same few videos, ``[row.instance for row in lens.rows] *
            len(lens.x0hat)`` for ``lens.x0hat.flatten(0, 1)``. Videos are by default each a group of its own; of
            latents it must be said.
        ridge : float
            Penalty on the weights of the normalised channels, relative to the number of cells.
        batch : int
            Videos that the VAE is given at once.

        Raises
        ------
        EvidenceError
            Fewer than two videos or groups, a share that leaves none on either side, or a share of latents without
            ``groups``.
        """
        fitted, test = _share(given, held_out, groups) if isinstance(held_out, int | float) else (given, held_out)
        latents, others = (x if isinstance(x, Tensor) else model.encode(x, batch) for x in (fitted, test))
        video = model.decode(latents, batch)
        scale = _scale(model, latents, video)
        weight, bias = _solve(latents, averaged(video, scale, latents.shape[2]), scale, ridge)
        unmeasured = cls(weight, bias, scale, vae_id(model), _UNMEASURED)
        return replace(unmeasured, quality=unmeasured.psnr(model, others, batch))

    def require(self, model: VideoDiT) -> None:
        """Refuse another VAE.

        Raises
        ------
        MadeForAnother
            Names both.
        """
        if (given := vae_id(model)) != self.vae:
            raise MadeForAnother(f"this preview was fitted to VAE {self.vae}; the model has {given}: fit one to it")

    def __call__(self, latents: Tensor) -> Video:
        """One pixel for each latent cell: uint8 (B, F, h, w, 3).

        Parameters
        ----------
        latents : Tensor of shape (B, C, F, h, w)

        Raises
        ------
        InputError, MadeForAnother, NotFinite
            Latents of another number of axes or channels, or with NaN or infinity in them.
        """
        if latents.ndim != 5:
            raise InputError(f"preview: need latents of shape (B, C, F, h, w), got {tuple(latents.shape)}")
        if latents.shape[1] != self.channels:
            raise MadeForAnother(f"this preview is for {self.channels} channels, the latents have {latents.shape[1]}")
        if not torch.isfinite(latents).all():
            raise NotFinite(f"preview: {int((~torch.isfinite(latents)).sum())} values of the latents are not finite")
        weight, bias = self.weight.to(latents.device), self.bias.to(latents.device)
        colours = torch.einsum("bcfhw,kc->bfhwk", latents.float(), weight) + bias
        return np.asarray(colours.round().clamp(0, 255).to(torch.uint8).cpu().numpy())

    def video(self, latents: Tensor, frames: Select = "all") -> Video:
        """The same at the size at which the VAE decodes: uint8 (B, T, height, width, 3), cells as flat squares.

        Parameters
        ----------
        latents : Tensor of shape (B, C, F, h, w)
        frames : Select
            Only these pixel frames, in order.
        """
        sources = self.scale.sources(latents.shape[2])
        chosen = [sources[t] for t in indices(frames, len(sources), "frame")]
        needed = sorted(set(chosen))
        cells = self(latents[:, :, needed])[:, [needed.index(f) for f in chosen]]
        return cells.repeat(self.scale.spatial, axis=2).repeat(self.scale.spatial, axis=3)

    def psnr(self, model: VideoDiT, latents: Tensor, batch: int = 32) -> Quality:
        """How near it comes to the model's VAE on some latents (B, C, F, h, w).

        Raises
        ------
        MadeForAnother
            The model has another VAE.
        """
        self.require(model)
        return self._compare(latents, model.decode(latents, batch))

    def _compare(self, latents: Tensor, video: Video) -> Quality:
        frames = latents.shape[2]
        true = averaged(video, self.scale, frames)
        sources, side = [f - self.scale.padding for f in self.scale.sources(frames)], self.scale.spatial
        best = true[:, sources].repeat(side, axis=2).repeat(side, axis=3)
        return Quality(
            psnr(self(latents)[:, self.scale.padding :], true),
            psnr(true.mean(axis=(0, 1, 2, 3)), true),
            psnr(self.video(latents), video),
            psnr(video.mean(axis=(0, 1, 2, 3)), video),
            psnr(best, video),
            len(latents),
        )

    def save(self, path: str | Path) -> Path:
        """Write it as safetensors, a few kilobytes, with the VAE's id and the measured quality."""
        quality = {name: "inf" if value == math.inf else value for name, value in self.quality._asdict().items()}
        record = {"schema": SCHEMA, "vae": self.vae, "scale": asdict(self.scale), "quality": quality}
        return write_weights(Path(path), {"weight": self.weight, "bias": self.bias}, record)

    @classmethod
    def load(cls, name: str | Path) -> Preview:
        """Read one that was saved, or that of a shipped organism by its name ("puzzles", "maze").

        Raises
        ------
        InputError
            No such file or organism.
        StoreError
            The file is damaged, or holds something else.
        """
        path = shipped(str(name), "preview.safetensors") if name in organism_names() else Path(name)
        if not path.exists():
            there = ", ".join(n for n in organism_names() if shipped(n, "preview.safetensors").exists()) or "none"
            raise InputError(f"no preview {str(name)!r}; give a file, or an organism that has one: {there}")
        tensors, record = read_weights(path)
        try:
            card: _Card = strict.typed(record, _Card, "record")
        except Malformed as error:
            raise StoreError(f"{path} is no preview of this version ({SCHEMA}): {error}") from error
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        if shapes.keys() != {"weight", "bias"} or shapes["weight"][:-1] != (3,) or shapes["bias"] != (3,):
            raise StoreError(f"{path} is no preview: tensors of shapes {shapes} make no colours")
        if not all(torch.isfinite(x).all() for x in tensors.values()):
            raise StoreError(f"{path} holds numbers that are not finite")
        quality: dict[str, Any] = {n: math.inf if x == "inf" else x for n, x in card["quality"].items()}
        return cls(tensors["weight"], tensors["bias"], card["scale"], card["vae"], Quality(**quality))


def averaged(video: Video, scale: Scale, latent_frames: int) -> NDArray[np.float64]:
    """Mean colour of each latent cell, from 0 to 255: float (B, F, h, w, 3), latent frames of padding left out.

    Parameters
    ----------
    video : uint8 array of shape (B, T, height, width, 3)
    """
    count, frames, height, width, _ = video.shape
    side = scale.spatial
    cells = video.reshape(count, frames, height // side, side, width // side, side, 3).mean(axis=(3, 5))
    sources = np.array(scale.sources(latent_frames))
    return np.stack([cells[:, sources == f].mean(axis=1) for f in range(scale.padding, latent_frames)], axis=1)


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal to noise of values from 0 to 255, in dB; infinite where they are the same."""
    error = float(np.square(np.asarray(a, np.float64) - b).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def vae_id(model: VideoDiT) -> str:
    """Hash of the configuration of a model's VAE, of a sample of its weights, and of what else scales its latents."""
    own = model_id([model.pipeline.vae])
    # Cosmos keeps its latents in the scale of its scheduler's data.
    data = model.pipeline.scheduler.config.get("sigma_data")
    return own if data is None else hashlib.sha256(f"{own} {data}".encode()).hexdigest()[:12]


def _share(given: Tensor | Video, share: float, groups: Sequence[Any] | None) -> tuple[Tensor | Video, Tensor | Video]:
    """What is fitted and what is held out of it, whole groups of either."""
    if groups is None and isinstance(given, Tensor):
        raise EvidenceError(
            "preview: to hold out a share of latents say which are of one instance (groups=), or give held_out=latents"
        )
    of = list(range(len(given)) if groups is None else groups)
    if len(of) != len(given):
        raise EvidenceError(f"preview: {len(of)} groups for {len(given)} videos; name the group of each")
    names = list(dict.fromkeys(of))
    places = np.linspace(0, len(names) - 1, max(1, round(len(names) * share))).round() if names else np.zeros(0)
    chosen = {names[i] for i in places.astype(int)}
    test = np.array([name in chosen for name in of], dtype=bool)
    if not 0 < share < 1 or test.all():
        what = f"{len(given)} videos in {len(names)} groups, a share of {share:g} held out"
        raise EvidenceError(f"preview: {what}: need at least one group on either side")
    return given[~test], given[test]


def _scale(model: VideoDiT, latents: Tensor, video: Video) -> Scale:
    """From the sizes of latents and of what they were decoded to."""
    frames, made = latents.shape[2], video.shape[1]
    temporal = temporal_factor(model.pipeline)
    spatial = video.shape[2] // latents.shape[3]
    for scale in (Scale(spatial, temporal, first, padding) for padding in (0, 1) for first in (1, temporal)):
        if len(scale.sources(frames)) == made:
            return scale
    raise EvidenceError(f"preview: {frames} latent frames make {made} frames, which is not {temporal} to one")


def _solve(latents: Tensor, colours: NDArray[np.float64], scale: Scale, ridge: float) -> tuple[Tensor, Tensor]:
    """Ridge regression of colours (B, F, h, w, 3) on latents: weight (3, C) and bias (3,)."""
    cells = latents[:, :, scale.padding :].movedim(1, -1).flatten(0, -2).double().cpu().numpy()
    mean, target = cells.mean(axis=0), colours.reshape(-1, 3)
    spread = cells.std(axis=0).clip(min=1e-12)
    x = (cells - mean) / spread
    moments = x.T @ x / len(x) + ridge * np.eye(x.shape[1])
    slopes = np.linalg.solve(moments, x.T @ (target - target.mean(axis=0)) / len(x)) / spread[:, None]  # (C, 3)
    weight = torch.from_numpy(np.ascontiguousarray(slopes.T, dtype=np.float32))
    return weight, torch.from_numpy((target.mean(axis=0) - mean @ slopes).astype(np.float32))
