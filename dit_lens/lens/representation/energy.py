"""The energy lens: how long each token's activation is, on the grid, by layer and latent frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dit_lens.errors import EvidenceError, InputError
from dit_lens.lens.reading import Reading, tidy
from dit_lens.lens.representation.read import read, require_readable
from dit_lens.lens.source import geometry_of
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools, Floats
from dit_lens.results.intervals import over_instances
from dit_lens.results.plots import heatmap
from dit_lens.results.result import Result
from dit_lens.runs.inputs import gather
from dit_lens.runs.run import Run
from dit_lens.sites.sites import Sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Energy(Result):
    """Token norms of one component.

    Attributes
    ----------
    norms : Tensor of shape (steps, layers, B, F, H, W), or (steps, layers, B, N) of a text stream
        L2 norm over the channels of each token, in the dtype of the activation.
    reading : Reading
        Steps, layers, rows and the rest of where they were read.
    regions : dict from name to bool array of shape (B, F, H, W)
        What is compared with the rest of its latent frames.
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

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Mean norms, and the norms of each region over those of the rest, of single rows.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, layer, kind, component, stream, on the grid latent_frame,
        where there are regions region and control, then instance, seed, measure, value. "energy" is the mean over the
        tokens of each latent frame, of a text stream over all of its tokens. "ratio" is the mean in a region over the
        mean of the rest of the same latent frame, averaged over the latent frames that have both; the control
        "permuted" gives each instance the region of the next one, to show what the position on the grid alone would
        make of it.

        Raises
        ------
        EvidenceError
            The rest has energy 0 somewhere.
        """
        norms, places, rows = (
            _floats(self.norms).reshape(-1, *self.norms.shape[2:]),
            self.reading.table,
            self.reading.rows,
        )
        axes = tuple(range(3 if self.on_grid else 2, norms.ndim))
        own = {"latent_frame": range(norms.shape[2])} if self.on_grid else {}
        table = tidy(places, rows, {"energy": norms.mean(axis=axes)}, own)
        parts = [
            tidy(places.assign(region=name, control=control), rows, {"ratio": _over_rest(norms, mask, name)})
            for name, control, mask in self._masks()
        ]
        return _joined(table, parts) if parts else table

    @cached_property
    def table(self) -> pd.DataFrame:
        """`samples`, the mean over instances with its 95 % bootstrap interval; ``n`` have region and rest."""
        return over_instances(self.samples)

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
        """Heat map of layer by latent frame, the mean over instances and over the steps that were read, or of one step.

        Raises
        ------
        SiteError
            The step was not read.
        """
        table = self.table[self.table["measure"] == "energy"]
        table = table if self.on_grid else table.assign(latent_frame=0)
        if step is not None:
            self.reading.index_of("step", step)
            table = table[table["step"] == step]
        axis = heatmap(table.astype({"latent_frame": int}), "layer", "latent_frame", "value", axis)
        of_steps = f"step {step}" if step is not None else f"{len(self.reading.steps)} steps"
        r = self.reading
        means = f"mean of {len(r.instances)} instances and {of_steps}"
        axis.set(title=f"energy of {r.component}, {r.stream}, {r.branch}, {means}")
        axis.set(xlabel="latent frame" if self.on_grid else f"all tokens of {r.stream}")
        axis.tick_params(axis="y", rotation=0)
        return axis


def energy(
    model: VideoDiT,
    source: Any,
    *,
    sites: Sites = Sites(),  # noqa: B008 - it is frozen
    branch: str = "cond",
    regions: Mapping[str, Any] | None = None,
    **run_arguments: Any,
) -> Energy:
    """The L2 norm over channels of every token; the norms are taken where the activations are made.

    Parameters
    ----------
    source : Run made with ``record=True``, or inputs as in `VideoDiT.run`, which are run up to the last site
    sites : Sites
        Steps and layers of one component ("resid", "delta", or a term of the block such as "attn") and stream.
    branch : str
    regions : mapping from name to bool array of shape (B, F, H, W), or (F, H, W) for all rows, optional
        Of a video stream.
    **run_arguments
        Of inputs ``seed``, ``interventions`` and the others of `VideoDiT.run`; of a run only ``interventions``, under
        which its steps are read: a run that was made under some needs them, or [] for none.

    Raises
    ------
    SiteError
        A step, layer, component, branch or stream that the model does not have.
    InputError
        The run was not recorded; or, before anything runs, a region that is not boolean or does not fit the grid, or
        regions of a text stream.
    EvidenceError
        A region that no latent frame has beside a rest.

    Notes
    -----
    Token energy of "Demystifying Video Reasoning" (arXiv 2603.16870), experiment E6, on ``resid`` of ``cond``.
    """
    sites = require_readable("energy", sites, branch)
    if regions and sites.stream != "video":
        raise InputError(f"regions lie on the grid of the video; the {sites.stream} stream has none")
    shape = _shape(model, source, run_arguments) if regions else ()
    masks = {name: _region(name, mask, shape) for name, mask in (regions or {}).items()}
    reading, found = read(model, source, sites, {"norm": "norm"}, run_arguments)
    return Energy(found["norm"], reading, masks)


def _shape(model: VideoDiT, source: Any, run_arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """(B, F, H, W) of what will be read."""
    if isinstance(source, Run):
        return len(source.rows), *source.geometry.grid
    rows = gather(source, run_arguments.get("seed", 0)).rows
    return len(rows), *geometry_of(model, source, run_arguments).grid


def _joined(energies: pd.DataFrame, ratios: list[pd.DataFrame]) -> pd.DataFrame:
    """One table; energies are of no region, ratios of no single latent frame."""
    first = energies.assign(region=None, control=None).astype({"latent_frame": object})
    columns = [*energies.columns[:-4], "region", "control", *energies.columns[-4:]]
    return pd.concat([first, *(of_region.assign(latent_frame=None) for of_region in ratios)], ignore_index=True)[
        columns
    ]


def _floats(norms: Tensor) -> Floats:
    return norms.detach().to("cpu", torch.float64).numpy()


def _region(name: str, mask: Any, shape: tuple[int, ...]) -> Bools:
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype != np.bool_:
        raise InputError(f"region {name!r}: need booleans, got {array.dtype}")
    if array.shape not in (shape, shape[1:]):
        raise InputError(f"region {name!r}: need shape {shape} (B, F, H, W) or {shape[1:]}, got {array.shape}")
    region = np.array(np.broadcast_to(array, shape))
    if not _frames_with_both(region).any():
        raise EvidenceError(f"region {name!r} has no latent frame with tokens both inside and outside of it")
    return region


def _frames_with_both(mask: Bools) -> Bools:
    """Latent frames with tokens inside and outside of a region (B, F, H, W): bool (B, F)."""
    return np.asarray(mask.any(axis=(2, 3)) & ~mask.all(axis=(2, 3)))


def _over_rest(norms: Floats, mask: Bools, name: str) -> Floats:
    """Mean inside over mean outside by latent frame, averaged over the frames that have both: (places, B).

    Parameters
    ----------
    norms : float of shape (places, B, F, H, W)
    mask : bool of shape (B, F, H, W)
    """
    both = _frames_with_both(mask)
    means = [(norms * m).sum(axis=(3, 4)) / np.maximum(m.sum(axis=(2, 3)), 1) for m in (mask, ~mask)]
    if (means[1][:, both] == 0).any():
        raise EvidenceError(f"region {name!r}: the rest has energy 0 somewhere, so nothing can be compared with it")
    ratios = np.divide(means[0], means[1], out=np.zeros_like(means[0]), where=both)
    count = both.sum(axis=1)
    return np.where(count > 0, ratios.sum(axis=2) / np.maximum(count, 1), np.nan)
