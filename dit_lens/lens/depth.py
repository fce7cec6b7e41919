"""The depth lens: the logit lens of a diffusion transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import SiteError
from dit_lens.interventions.capture import Capture
from dit_lens.lens.decoding import decode_estimates, require_made_by
from dit_lens.lens.preview import Preview
from dit_lens.model import VideoDiT
from dit_lens.results.intervals import means_over_instances
from dit_lens.results.plots import curves
from dit_lens.runs.inputs import Row
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select, indices
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What `DepthLens.frame` measures, each against the model's own answer.
MEASURES = ("velocity_cosine", "velocity_distance", "x0hat_cosine", "x0hat_distance")


class Translator(Protocol):
    """What maps the residual stream after a block to an estimate of the last one; see `dit_lens.TunedLens`."""

    @property
    def name(self) -> str:
        """What tables call the lens."""
        ...

    def require(self, model: VideoDiT, branch: str) -> None:
        """Raise `MadeForAnother` where it was not made for this model and guidance branch."""
        ...

    def __call__(self, residual: Tensor, layer: int, sigma: float, expert: str | None = None) -> Tensor: ...


@dataclass(frozen=True)
class DepthLens:
    """What each layer's residual stream would answer if it were the last.

    Attributes
    ----------
    step : int
    sigma : float
    expert : str or None
    branch : str
    layers, kinds : tuple of int, tuple of str
        The layers that were read, and the kind of each block.
    rows : tuple of Row, B of them
    velocities, x0hat : Tensor of shape (layers, B, C, F, H, W)
        At layer L-1 they equal the model's own, bit for bit.
    velocity, own_x0hat : Tensor of shape (B, C, F, H, W)
        The model's own prediction of this branch at this step, and the clean estimate that it means.
    read : bool Tensor of shape (F, H, W)
        Cells of the latent grid whose tokens were read at each layer; in all others the answer is the model's own.
    model_id : str
        Of the model that it was read from.
    lens : str
        "plain", or the name of the translator.
    """

    step: int
    sigma: float
    expert: str | None
    branch: str
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    rows: tuple[Row, ...]
    velocities: Tensor
    x0hat: Tensor
    velocity: Tensor
    own_x0hat: Tensor
    read: Tensor
    model_id: str
    lens: str = "plain"

    def decode(
        self,
        model: VideoDiT,
        layers: Select | None = None,
        frames: Select | None = None,
        preview: Preview | None = None,
        batch: int = 32,
    ) -> NDArray[np.uint8]:
        """Decoded estimates: uint8 (layers, B, T, height, width, 3).

        Parameters
        ----------
        model : VideoDiT
            The model that the lens was read from.
        layers, frames : Select, optional
            Decode only these layers and pixel frames, each in order (default: all that were read, and all). Where the
            VAE's decoder is causal, no latent frame behind the last that is needed is decoded.
        preview : Preview, optional
            Draw with this linear map instead of the VAE, at the same size.
        batch : int
            Videos that the VAE is given at once; the rows of all layers share batches.

        Raises
        ------
        SiteError
            A layer that was not read, or a frame that there is not.
        MadeForAnother
            Another model, or a preview of another VAE.
        """
        require_made_by(model, self.model_id, preview)
        wanted = self.layers if layers is None or (isinstance(layers, str) and layers == "all") else layers
        chosen = indices(wanted, model.layers, "layer")
        if missing := [k for k in chosen if k not in self.layers]:
            raise SiteError(f"layer {missing[0]} was not read; this lens has layers {', '.join(map(str, self.layers))}")
        return decode_estimates(model, self.x0hat[[self.layers.index(k) for k in chosen]], frames, preview, batch)

    def frame(self) -> pd.DataFrame:
        """How near each layer's answer is to the model's own, over the cells that were read.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, lens, layer, kind, instance, seed, and of velocity and x0hat
        the cosine to the model's own and the distance from it relative to its norm
        """
        found = [
            similarities(self.velocities, self.velocity, self.read),
            similarities(self.x0hat, self.own_x0hat, self.read),
        ]
        values = np.stack([measure for pair in found for measure in pair], axis=-1)
        rows = [
            (self.step, self.sigma, self.expert, self.branch, self.lens, layer, kind, row.instance, row.seed, *numbers)
            for layer, kind, of_layer in zip(self.layers, self.kinds, values, strict=True)
            for row, numbers in zip(self.rows, of_layer, strict=True)
        ]
        names = ["step", "sigma", "expert", "branch", "lens", "layer", "kind", "instance", "seed", *MEASURES]
        return pd.DataFrame(rows, columns=names)

    def plot(self, axis: Axes | None = None, measure: str = "velocity_cosine") -> Axes:
        """One measure over the layers: the mean over instances and its 95 % bootstrap interval.

        Parameters
        ----------
        measure : one of ``MEASURES``
        """
        if measure not in MEASURES:
            raise SiteError(f"unknown measure {measure!r}; one of {', '.join(MEASURES)}")
        axis = curves(means_over_instances(self.frame(), ["layer"], measure), "layer", measure, axis=axis)
        axis.set_title(f"{self.lens} depth lens, step {self.step}, sigma {self.sigma:.2f}, {self.branch}", fontsize=9)
        return axis


@torch.no_grad()
def depth_lens(
    model: VideoDiT,
    run: Run,
    step: int,
    layers: Select = "all",
    branch: str = "cond",
    *,
    tokens: Tokens = Tokens(),  # noqa: B008 - it is frozen
    translator: Translator | None = None,
) -> DepthLens:
    """Read the residual stream after each block through the model's own output head, with its own modulation.

    Parameters
    ----------
    run : Run made with ``record=True``
    step : int
    layers : Select
    branch : str
        The estimate is of this branch alone, before guidance.
    tokens : Tokens
        Read only these at each layer; all others keep the model's own last residual, so that what is read stands in a
        whole and decodable answer. The heads of all families read every token alone: the answers of disjoint parts put
        together are the answer of the whole.
    translator : Translator, optional
        A tuned lens of this model: maps each layer's residual before the head reads it.

    Raises
    ------
    InputError
        The run was not made with ``record=True``, or has no such step.
    SiteError
        A layer, branch or token that the run does not have.
    MadeForAnother
        The run is of another model, or the translator was made for another model or branch.

    Notes
    -----
    Follows the logit lens (nostalgebraist 2020) with the adaptive output norm of a DiT in the place of the unembedding.
    """
    if translator is not None:
        translator.require(model, branch)
    geometry, context = run.geometry, run.recorded(step)[0].context
    chosen = indices(layers, geometry.layers, "layer")
    parts = Capture(Sites("resid", steps=step, layers=chosen, branches=branch, tokens=tokens), name="parts")
    last = Capture(Sites("resid", steps=step, layers=geometry.layers - 1, branches=branch), name="last")
    replay = model.replay(run, step, [parts] if tokens.is_all else [parts, last])
    call = next(c for c in run.recorded(step) if branch in c.branches)
    resolved = tokens.resolve(geometry)
    velocities = []
    for site, part in replay.captures["parts"].items():
        if translator is not None:
            assert site.layer is not None
            part = translator(part, site.layer, call.sigma, call.expert)
        whole = part if tokens.is_all else resolved.put(next(iter(replay.captures["last"].values())), part)
        velocities.append(model.read_out(call, whole, replay.conditioning[branch]))
    return DepthLens(
        step=step,
        sigma=call.sigma,
        expert=call.expert,
        branch=branch,
        layers=tuple(chosen),
        kinds=tuple(geometry.layer(k).kind for k in chosen),
        rows=run.rows,
        velocities=torch.stack(velocities),
        x0hat=torch.stack([run.clean(step, run.states[step], v) for v in velocities]),
        velocity=replay.velocities[branch],
        own_x0hat=run.clean(step, run.states[step], replay.velocities[branch]),
        read=cells_of(resolved, context.geometry.grid, context.latent[1:]),
        model_id=model.id,
        lens="plain" if translator is None else translator.name,
    )


def cells_of(tokens: Tokens, grid: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Cells of the latent grid that belong to tokens: bool (F, H, W).

    Parameters
    ----------
    tokens : Tokens, resolved
    grid : token grid
    cells : latent grid, a multiple of the token grid along every axis
    """
    none = torch.zeros(1, *grid, 1, dtype=torch.bool)
    chosen = tokens.put(none, torch.ones_like(tokens.take(none)))[0, ..., 0]
    for axis, (size, of_tokens) in enumerate(zip(cells, grid, strict=True)):
        chosen = chosen.repeat_interleave(size // of_tokens, dim=axis)
    return chosen


def similarities(values: Tensor, own: Tensor, read: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine to, and distance relative to the norm of, the model's own, over the read cells: two (layers, B).

    Parameters
    ----------
    values : Tensor of shape (layers, B, C, F, H, W)
    own : Tensor of shape (B, C, F, H, W)
    read : bool Tensor of shape (F, H, W)
    """
    mask = read.to(own.device)
    a, b = (x[..., mask].flatten(-2).double() for x in (values, own))
    distance = (a - b).norm(dim=-1) / b.norm(dim=-1)
    cosine = torch.nn.functional.cosine_similarity(a, b.expand_as(a), dim=-1)
    return cosine.cpu().numpy(), distance.cpu().numpy()
