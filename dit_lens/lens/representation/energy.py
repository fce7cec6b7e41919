"""The energy lens: how long each token's activation is, on the grid, by layer and latent frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dit_lens.errors import EvidenceError, InputError
from dit_lens.lens.representation.reading import Reading, geometry_of, read
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools, Floats
from dit_lens.results.intervals import mean_over_instances
from dit_lens.results.plots import heatmap
from dit_lens.runs.inputs import gather
from dit_lens.sites.select import Select

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Energy:
    """Token norms of one component.

    Attributes
    ----------
    norms : Tensor of shape (steps, layers, B, F, H, W), or (steps, layers, B, N) of a text stream
        L2 norm over the channels of each token, in the dtype of the activation.
    reading : Reading
        Steps, layers, rows and the rest of where they were read.
    regions : dict from name to bool array of shape (B, F, H, W)
        What `region_frame` compares.
    """

    norms: Tensor
    reading: Reading
    regions: Mapping[str, Bools] = field(default_factory=dict)

    @property
    def on_grid(self) -> bool:
        """Whether the tokens lie on the grid of the video."""
        return self.norms.ndim == 6

    def maps(self, layer: int, step: int) -> Floats:
        """Norms of one layer and step: float of shape (B, F, H, W), or (B, N) of a text stream.

        Raises
        ------
        SiteError
            The layer or the step was not read.
        """
        place = self.reading.index_of("step", step), self.reading.index_of("layer", layer)
        return _floats(self.norms[place])

    def frame(self) -> pd.DataFrame:
        """Mean over the tokens of each latent frame.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, stream, component, layer, kind, instance, seed, latent_frame
        and energy; of a text stream without latent_frame, the mean over all of its tokens
        """
        axes = (-2, -1) if self.on_grid else (-1,)
        means = _floats(self.norms).mean(axis=axes)
        means = means if self.on_grid else means[..., None]
        frames = pd.DataFrame({"latent_frame": range(means.shape[-1])})
        rows = pd.DataFrame([(r.instance, r.seed) for r in self.reading.rows], columns=["instance", "seed"])
        table = self.reading.table().merge(rows, how="cross").merge(frames, how="cross")
        table["energy"] = means.reshape(-1)
        return table if self.on_grid else table.drop(columns="latent_frame")

    def region_frame(self, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Energy of each region over that of the rest of the same latent frames.

        The ratio of the two means is taken in each latent frame that has both, averaged over those frames, then over
        the seeds of an instance, then over instances. The control "permuted" gives each instance the region of the next
        one: what the position on the grid alone would make of it.

        Parameters
        ----------
        replicates, seed : int
            Of the bootstrap over instances.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, stream, component, layer, kind, region, control, ratio, low,
        high (95 % interval, NaN for one instance alone) and n (instances that have region and rest)

        Raises
        ------
        EvidenceError
            There are no regions, or one has no frame with both region and rest.
        """
        if not self.regions:
            raise EvidenceError("no regions to compare; call energy(..., regions={'name': mask}), masks (B, F, H, W)")
        norms = _floats(self.norms).reshape(-1, *self.norms.shape[2:])
        parts = []
        for name, control, mask in self._masks():
            ratios = _over_rest(norms, mask, name)
            table = self.reading.table().assign(region=name, control=control)
            names = [row.instance for row in self.reading.rows]
            intervals = [mean_over_instances(of_place, names, replicates, seed) for of_place in ratios]
            table[["ratio", "low", "high", "n"]] = pd.DataFrame([(*interval, n) for interval, n in intervals])
            parts.append(table)
        return pd.concat(parts, ignore_index=True)

    def _masks(self) -> Iterator[tuple[str, str, Bools]]:
        for name, mask in self.regions.items():
            yield name, "none", mask
            if len(self.reading.instances) > 1:
                yield name, "permuted", mask[self._of_the_next_instance()]

    def _of_the_next_instance(self) -> list[int]:
        """For every row, a row of the next instance."""
        names = self.reading.instances
        first = {name: [row.instance for row in self.reading.rows].index(name) for name in names}
        following = dict(zip(names, [*names[1:], names[0]], strict=True))
        return [first[following[row.instance]] for row in self.reading.rows]

    def plot(self, axis: Axes | None = None, *, step: int | None = None) -> Axes:
        """Heat map of layer by latent frame, the mean over rows and over the steps that were read, or of one step.

        Raises
        ------
        SiteError
            The step was not read.
        """
        table = self.frame() if self.on_grid else self.frame().assign(latent_frame=0)
        if step is not None:
            self.reading.index_of("step", step)
            table = table[table["step"] == step]
        axis = heatmap(table, "layer", "latent_frame", "energy", axis)
        of_steps = f"step {step}" if step is not None else f"{len(self.reading.steps)} steps"
        r = self.reading
        axis.set(title=f"{r.component}, {r.stream}, {r.branch}, mean of {len(r.rows)} rows and {of_steps}")
        axis.set(xlabel="latent frame" if self.on_grid else f"all tokens of {r.stream}")
        axis.tick_params(axis="y", rotation=0)
        return axis


def energy(
    model: VideoDiT,
    inputs: Any,
    seed: int | Sequence[int] = 0,
    *,
    steps: Select = "all",
    layers: Select = "all",
    component: str = "resid",
    branch: str = "cond",
    stream: str = "video",
    regions: Mapping[str, Any] | None = None,
    **run_arguments: Any,
) -> Energy:
    """Run and keep the L2 norm over channels of every token; the norms are taken where the activations are made.

    Parameters
    ----------
    inputs, seed, **run_arguments
        As in `VideoDiT.run`; the number of denoising steps is ``num_inference_steps``.
    steps, layers : Select
        Which to read; the run ends after the last.
    component : str
        "resid", "delta", or a term of the block such as "attn" or "ffn".
    branch, stream : str
    regions : mapping from name to bool array of shape (B, F, H, W), or (F, H, W) for all rows, optional
        Of a video stream.

    Raises
    ------
    SiteError
        A step, layer, component, branch or stream that the model does not have.
    InputError
        Before the run: a region that is not boolean or does not fit the grid, or regions of a text stream.

    Notes
    -----
    Token energy of "Demystifying Video Reasoning" (arXiv 2603.16870), experiment E6, on ``resid`` of ``cond``.
    """
    masks: dict[str, Bools] = {}
    if regions:
        if stream != "video":
            raise InputError(f"regions lie on the grid of the video; the {stream} stream has none")
        shape = len(gather(inputs, seed).rows), *geometry_of(model, inputs, run_arguments).grid
        masks = {name: _region(name, mask, shape) for name, mask in regions.items()}
    reading, found = read(
        model,
        inputs,
        seed,
        {"norm": "norm"},
        steps=steps,
        layers=layers,
        component=component,
        branch=branch,
        stream=stream,
        **run_arguments,
    )
    return Energy(found["norm"], reading, masks)


def _floats(norms: Tensor) -> Floats:
    return norms.detach().to("cpu", torch.float64).numpy()


def _region(name: str, mask: Any, shape: tuple[int, ...]) -> Bools:
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype != np.bool_:
        raise InputError(f"region {name!r}: need booleans, got {array.dtype}")
    if array.shape not in (shape, shape[1:]):
        raise InputError(f"region {name!r}: need shape {shape} (B, F, H, W) or {shape[1:]}, got {array.shape}")
    return np.broadcast_to(array, shape)


def _over_rest(norms: Floats, mask: Bools, name: str) -> Floats:
    """Mean inside over mean outside by latent frame, averaged over the frames that have both: (places, B).

    Parameters
    ----------
    norms : float of shape (places, B, F, H, W)
    mask : bool of shape (B, F, H, W)
    """
    inside, outside = mask.sum(axis=(2, 3)), (~mask).sum(axis=(2, 3))
    both = (inside > 0) & (outside > 0)
    if not both.any():
        raise EvidenceError(f"region {name!r} has no latent frame with tokens both inside and outside of it")
    means = [(norms * m).sum(axis=(3, 4)) / np.maximum(m.sum(axis=(2, 3)), 1) for m in (mask, ~mask)]
    if (means[1][:, both] == 0).any():
        raise EvidenceError(
            f"region {name!r}: the rest has energy 0 somewhere, so that nothing can be compared with it"
        )
    ratios = np.divide(means[0], means[1], out=np.zeros_like(means[0]), where=both)
    count = both.sum(axis=1)
    return np.where(count > 0, ratios.sum(axis=2) / np.maximum(count, 1), np.nan)
