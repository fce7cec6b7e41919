"""PCA maps: tokens of all layers and steps in one basis, on the grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import EvidenceError, InputError, MadeForAnother, SiteError
from dit_lens.interventions.base import At
from dit_lens.interventions.reduce import token_mean, tokens
from dit_lens.interventions.shapes import require_choice
from dit_lens.lens.reading import Reading
from dit_lens.lens.representation.read import read, require_readable
from dit_lens.lens.source import reusable
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.plots import axes
from dit_lens.results.result import Result
from dit_lens.sites.sites import Sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class PCABasis:
    """k directions of a model's activations, one basis for all layers and steps that it was fitted on.

    Attributes
    ----------
    directions : Tensor of shape (k, D), float64
        Orthonormal rows; of each the entry of largest magnitude is positive.
    centres : Tensor of shape (layers, D), float64
        What is taken off a token of each layer before it is projected.
    scales : Tensor of shape (layers,), float64
        By what it is divided then.
    explained : Tensor of shape (k,), float64
        Share of the variance of the tokens that it was fitted on.
    fitted_on : int
        How many tokens these were.
    layer_scale : "equal" or "own"
    reading : Reading
        Model, component, stream, layers and steps that it was fitted on.
    """

    directions: Tensor
    centres: Tensor
    scales: Tensor
    explained: Tensor
    fitted_on: int
    layer_scale: str
    reading: Reading

    __repr__ = short_repr

    def project(self, activation: Tensor, layer: int) -> Tensor:
        """Coordinates of tokens (..., D) of a layer: (..., k), in float32 at least.

        Raises
        ------
        MadeForAnother
            The tokens are of another width.
        SiteError
            The basis was not fitted on this layer.
        """
        place = self.reading.index_of("layer", layer)
        width = self.directions.shape[1]
        if activation.shape[-1] != width:
            raise MadeForAnother(f"this basis is of width {width}, the tokens of layer {layer} {activation.shape[-1]}")
        dtype = torch.promote_types(activation.dtype, torch.float32)
        centred = activation.to(dtype) - self.centres[place].to(activation.device, dtype)
        return centred @ self.directions.T.to(activation.device, dtype) / float(self.scales[place])

    def apply(
        self,
        model: VideoDiT,
        source: Any,
        *,
        sites: Sites | None = None,
        branch: str | None = None,
        **run_arguments: Any,
    ) -> PCAMap:
        """Project another run of the same model.

        The coordinates are taken where the activations are made: of each token k + 1 numbers are kept.

        Parameters
        ----------
        source, **run_arguments
            As in `pca_map`.
        sites : Sites, optional
            Of the component and stream of the fit; by default its steps and layers.
        branch : str, optional
            By default that of the fit.

        Raises
        ------
        MadeForAnother
            The model is not the one that the basis was fitted on.
        SiteError
            A layer that the basis was not fitted on, or one that the model does not have; another component or stream.
        """
        fitted = self.reading
        if model.id != fitted.model_id:
            raise MadeForAnother(f"this basis is of model {fitted.model_id}, the given model is {model.id}")
        own = Sites(fitted.component, steps=fitted.steps, layers=fitted.layers, stream=fitted.stream)
        sites = own if sites is None else sites
        if (sites.component, sites.stream) != (own.component, own.stream):
            raise SiteError(f"this basis is of {own.component}, {own.stream}; the sites are of {sites}")
        sites = require_readable("PCABasis.apply", sites, fitted.branch if branch is None else branch)
        reading, found = read(model, source, sites, {"tokens": self._keep, "mean": token_mean}, run_arguments)
        kept = found["tokens"]
        chosen = [fitted.index_of("layer", layer) for layer in reading.layers]
        means = found["mean"].to("cpu", torch.float64) - self.centres[chosen][:, None]
        means = means / self.scales[chosen][:, None, None]
        return PCAMap(kept[..., :-1], kept[..., -1], means, self, reading)

    def _keep(self, activation: Tensor, at: At) -> Tensor:
        """Coordinates of each token, and its squared length once centred and scaled: (B, ..., k + 1)."""
        assert at.site.layer is not None
        place = self.reading.index_of("layer", at.site.layer)
        coordinates = self.project(activation, at.site.layer)
        centred = activation.to(coordinates.dtype) - self.centres[place].to(coordinates)
        length = (centred / float(self.scales[place])).square().sum(dim=-1, keepdim=True)
        return torch.cat([coordinates, length], dim=-1)


@dataclass(frozen=True, repr=False)
class PCAMap(Result):
    """A run in a basis.

    Attributes
    ----------
    projections : Tensor of shape (steps, layers, B, F, H, W, k), or (steps, layers, B, N, k) of a text stream
    lengths : Tensor of shape (steps, layers, B, F, H, W), or (steps, layers, B, N)
        Squared length of each token, centred and scaled as the basis says.
    means : Tensor of shape (steps, layers, B, D), float64
        Mean over the tokens, centred and scaled.
    basis : PCABasis
    reading : Reading
        Steps, layers and rows of this run.
    """

    projections: Tensor
    lengths: Tensor
    means: Tensor
    basis: PCABasis
    reading: Reading

    @property
    def explained(self) -> Floats:
        """Share of each layer's and step's variance, about its own mean, along each direction: (steps, layers, k).

        The shares of different layers are of different totals, so they need not fall from one direction to the next.
        """
        parts, total = self._second_moments()
        means = self.means.mean(dim=2)
        along = parts - (means @ self.basis.directions.T).square().numpy()
        return _share(along, total - means.square().sum(dim=-1).numpy())

    @property
    def explained_in_all(self) -> Floats:
        """Share of the variance of all layers and steps together along each direction: (k,).

        Of the tokens of the fit it is ``basis.explained``.
        """
        parts, total = self._second_moments()
        mean = self.means.mean(dim=(0, 1, 2))
        along = parts.mean(axis=(0, 1)) - (self.basis.directions @ mean).square().numpy()
        return _share(along, total.mean() - mean.square().sum().numpy())

    def _second_moments(self) -> tuple[Floats, Floats]:
        """Mean squares along the directions (steps, layers, k), and of the whole token (steps, layers)."""
        squares = self.projections.to("cpu", torch.float64).square().flatten(2, -2).mean(dim=2)
        lengths = self.lengths.to("cpu", torch.float64).flatten(2).mean(dim=2)
        return squares.numpy(), lengths.numpy()

    @cached_property
    def table(self) -> pd.DataFrame:
        """The explained variance.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, layer, kind, component, stream, direction (0..k-1), measure
        ("explained", the share of this layer's and step's variance), value, low and high (NaN: a share of all rows
        together), n (instances)
        """
        explained = self.explained
        directions = pd.DataFrame({"direction": range(explained.shape[-1])})
        table = self.reading.table.merge(directions, how="cross").assign(measure="explained")
        return table.assign(value=explained.reshape(-1), low=np.nan, high=np.nan, n=len(self.reading.instances))

    def plot(self, axis: Axes | None = None, *, row: int = 0, latent_frame: int = -1) -> Axes:
        """Layers down, steps across: one latent frame of one row, the first three directions as red, green and blue.

        The colours run from the 1st to the 99th percentile of each direction over all that is shown, so they can be
        compared between tiles. With fewer than three directions the first is shown in grey.

        Raises
        ------
        SiteError
            There is no such row or latent frame.
        InputError
            A text stream, which has no grid.
        """
        if self.projections.ndim != 7:
            raise InputError(f"a picture needs tokens on the grid; these are of the {self.reading.stream} stream")
        row, frames = self.reading.row_index(row), self.projections.shape[3]
        if not -frames <= latent_frame < frames:
            raise SiteError(f"no latent frame {latent_frame}; there are latent frames 0..{frames - 1}")
        picture = _colours(self.projections[:, :, row, latent_frame].to("cpu", torch.float64).numpy())
        axis = axes(axis)
        axis.imshow(_tiled(picture), interpolation="nearest")
        self._label(axis, height=picture.shape[2] + 1, width=picture.shape[3] + 1)
        shown = self.reading.rows[row]
        axis.set_title(
            f"{self.reading.component} of {shown.instance}, latent frame {latent_frame % frames}", fontsize=9
        )
        return axis

    def _label(self, axis: Axes, height: int, width: int) -> None:
        levels = zip(self.reading.steps, self.reading.sigmas, strict=True)
        steps = [f"{step}\n{sigma:.2f}" for step, sigma in levels]
        layers = [str(layer) for layer in self.reading.layers]
        axis.set_xticks([i * width + width / 2 - 1 for i in range(len(steps))], steps, fontsize=8)
        axis.set_yticks([i * height + height / 2 - 1 for i in range(len(layers))], layers)
        axis.set(xlabel="step, sigma", ylabel="layer")
        axis.spines[:].set_visible(False)


def pca_map(
    model: VideoDiT,
    source: Any,
    *,
    sites: Sites = Sites(),  # noqa: B008 - it is frozen
    branch: str = "cond",
    directions: int = 3,
    layer_scale: str = "equal",
    fit_tokens: int | None = 256,
    **run_arguments: Any,
) -> PCAMap:
    """Fit one basis across layers and steps, and project the run onto it.

    The generation is run (or its steps are done again) twice, first for the basis and then for the coordinates, so no
    whole activation is kept but of ``fit_tokens`` tokens. The basis is scikit-learn's ``PCA`` in float64.

    Parameters
    ----------
    source : Run made with ``record=True``, or inputs as in `VideoDiT.run`, which are run up to the last site
    sites : Sites
        Steps and layers of one component ("resid", "delta", or a term of the block such as "attn") and stream.
    branch : str
    directions : int
        How many, k.
    layer_scale : "equal" or "own"
        "equal" centres each layer and divides it by one number, so its tokens have a mean squared length of 1: every
        layer has the same say in the basis. The residual stream grows with depth (in the shipped maze model its tokens
        spread twice as far at the end as at the start). As it comes ("own", one mean for all) the late layers weigh
        more, and directions are spent on what tells one layer from another. Directions are comparable between layers
        either way, for no channel is scaled by itself.
    fit_tokens : int or None
        Tokens of each row, layer and step that the basis is fitted on, one random subset for all; None for every one.
    **run_arguments
        Of inputs ``seed``, ``interventions`` and the others of `VideoDiT.run`; of a run only ``interventions``, under
        which its steps are read: a run that was made under some needs them, or [] for none.

    Raises
    ------
    SiteError
        A step, layer, component, branch or stream that the model does not have.
    InputError
        Another ``layer_scale``, more directions than there are channels or tokens, or a run that was not recorded.
    EvidenceError
        A layer whose tokens are all the same.
    """
    require_choice("pca_map", "layer_scale", layer_scale, ("equal", "own"))
    _require_count("directions", directions)
    if fit_tokens is not None:
        _require_count("fit_tokens", fit_tokens)
    chosen = require_readable("pca_map", sites, branch)
    arguments: Mapping[str, Any] = reusable(run_arguments)
    kept = None if fit_tokens is None else _at_most(fit_tokens)
    reading, found = read(model, source, chosen, {"fit": kept}, arguments)
    basis = _fit(found["fit"].to(torch.float64).cpu(), directions, layer_scale, reading)
    return basis.apply(model, source, **arguments)


def _at_most(count: int) -> Any:
    def some(activation: Tensor) -> Tensor:
        flat = activation.flatten(1, -2)
        subset: Tensor = tokens(min(count, flat.shape[1]))(flat)
        return subset

    return some


def _fit(sample: Tensor, count: int, layer_scale: str, reading: Reading) -> PCABasis:
    """From float64 tokens (steps, layers, B, ..., D)."""
    from sklearn.decomposition import PCA

    sample = sample.flatten(2, -2).movedim(0, 1).flatten(1, 2)  # (layers, tokens of all steps and rows, D)
    if count > min(sample.shape[-1], sample.shape[0] * sample.shape[1]):
        raise InputError(
            f"directions={count}: there are {sample.shape[-1]} channels and {sample[..., 0].numel()} tokens"
        )
    centres = sample.mean(dim=1)
    scales = (sample - centres[:, None]).square().sum(dim=-1).mean(dim=1).sqrt()
    _require_spread(scales, sample, reading)
    if layer_scale == "own":
        centres, scales = centres.mean(dim=0).expand_as(centres), torch.ones_like(scales)
    prepared = ((sample - centres[:, None]) / scales[:, None, None]).flatten(0, 1)
    fitted = PCA(count, random_state=0).fit(prepared.numpy())
    directions = torch.from_numpy(fitted.components_)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    explained = torch.from_numpy(fitted.explained_variance_ratio_)
    return PCABasis(directions * largest.sign(), centres, scales, explained, len(prepared), layer_scale, reading)


def _require_spread(scales: Tensor, sample: Tensor, reading: Reading) -> None:
    # What is left of equal tokens once their mean is taken off is rounding.
    flat = scales <= 1e-12 * sample.square().sum(dim=-1).mean(dim=1).sqrt()
    if flat.any():
        layer = reading.layers[int(flat.nonzero()[0])]
        raise EvidenceError(f"all tokens of {reading.component} at layer {layer} are the same; leave this layer out")


def _require_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"pca_map({name}={value!r}): need a whole number of at least 1")


def _share(along: Any, total: Any) -> Floats:
    """Parts (..., k) of totals (...), 0 of nothing."""
    whole = np.asarray(total)[..., None]
    return np.asarray(np.divide(along, whole, out=np.zeros_like(along), where=whole > 0))


def _colours(values: Floats) -> Floats:
    """Projections (steps, layers, H, W, k) as colours (steps, layers, H, W, 3) in [0, 1]."""
    chosen = values[..., :3] if values.shape[-1] >= 3 else np.repeat(values[..., :1], 3, axis=-1)
    low, high = np.percentile(chosen.reshape(-1, 3), [1, 99], axis=0)
    return np.asarray(np.clip((chosen - low) / np.where(high > low, high - low, 1), 0, 1))


def _tiled(picture: Floats) -> Floats:
    """Tiles (steps, layers, H, W, 3) side by side with a white line between them: (rows, columns, 3)."""
    bordered = np.pad(picture, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    rows = np.concatenate(list(bordered), axis=2)  # steps across
    return np.asarray(np.concatenate(list(rows), axis=0)[:-1, :-1])
