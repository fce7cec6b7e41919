"""The depth lens: the logit lens of a diffusion transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dit_lens.errors import InputError
from dit_lens.files.video import Video
from dit_lens.interventions.capture import Capture
from dit_lens.lens.decoding import decode_estimates, require_made_by
from dit_lens.lens.preview import Preview
from dit_lens.lens.reading import Reading, among, reading_of, tidy
from dit_lens.lens.source import Recorded, at_branch, require_sites
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import over_instances
from dit_lens.results.plots import curves
from dit_lens.results.result import Result
from dit_lens.sites.select import Select, indices
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What `DepthLens.table` measures, each against the model's own answer.
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


@dataclass(frozen=True, repr=False)
class DepthLens(Result):
    """What each layer's residual stream would answer if it were the last.

    Attributes
    ----------
    reading : Reading
        Steps S, layers L and rows B, and the model that was read.
    velocities, x0hat : Tensor of shape (S, L, B, C, F, H, W)
        At the model's last layer they equal its own, bit for bit.
    velocity, own_x0hat : Tensor of shape (S, B, C, F, H, W)
        The model's own prediction of this branch, and the clean estimate that it means.
    read : bool Tensor of shape (F, H, W)
        Cells of the latent grid whose tokens were read at each layer; in all others the answer is the model's own.
    lens : str
        "plain", or the name of the translator.
    """

    reading: Reading
    velocities: Tensor
    x0hat: Tensor
    velocity: Tensor
    own_x0hat: Tensor
    read: Tensor
    lens: str = "plain"

    def decode(
        self,
        model: VideoDiT,
        *,
        sites: Sites = Sites(),  # noqa: B008 - it is frozen
        frames: Select = "all",
        preview: Preview | None = None,
        batch: int = 32,
    ) -> Video:
        """Decoded estimates: uint8 (steps, layers, B, T, height, width, 3).

        Parameters
        ----------
        model : VideoDiT
            The model that the lens was read from.
        sites : Sites
            Decode only these of the steps and layers that were read.
        frames : Select
            Decode only these pixel frames, in order. Where the VAE's decoder is causal, no latent frame behind the last
            that is needed is decoded.
        preview : Preview, optional
            Draw with this linear map instead of the VAE, at the same size.
        batch : int
            Videos that the VAE is given at once; the rows of all steps and layers share batches.

        Raises
        ------
        SiteError
            A step or layer that was not read, or a frame that there is not.
        MadeForAnother
            Another model, or a preview of another VAE.
        """
        require_made_by(model, self.reading.model_id, preview)
        steps, layers = (
            among("step", self.reading.steps, sites.steps),
            among("layer", self.reading.layers, sites.layers),
        )
        return decode_estimates(model, self.x0hat[steps][:, layers], frames, preview, batch)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """How near each layer's answer is to the model's own in every row, over the cells that were read.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, layer, kind, component, stream, lens, instance, seed,
        measure (the cosine to the model's own and the distance from it relative to its norm, of velocity and x0hat),
        value
        """
        found = [
            *similarities(self.velocities, self.velocity, self.read),
            *similarities(self.x0hat, self.own_x0hat, self.read),
        ]
        places = self.reading.table.assign(lens=self.lens)
        return tidy(places, self.reading.rows, dict(zip(MEASURES, found, strict=True)))

    @cached_property
    def table(self) -> pd.DataFrame:
        """`samples`, the mean over instances with its 95 % bootstrap interval."""
        return over_instances(self.samples)

    def plot(self, axis: Axes | None = None, *, measure: str = "velocity_cosine") -> Axes:
        """One measure over the layers, a line for each step, with 95 % bootstrap intervals over instances.

        Parameters
        ----------
        measure : one of ``MEASURES``
        """
        if measure not in MEASURES:
            raise InputError(f"unknown measure {measure!r}; one of {', '.join(MEASURES)}")
        several = len(self.reading.steps) > 1
        chosen = self.table[self.table["measure"] == measure]
        axis = curves(chosen, "layer", "value", "step" if several else None, axis)
        axis.set_ylabel(measure)
        axis.set_title(f"{self.lens} depth lens, {self.reading.title}", fontsize=9)
        return axis


@torch.no_grad()
def depth_lens(
    model: VideoDiT,
    source: Any,
    *,
    sites: Sites = Sites(),  # noqa: B008 - it is frozen
    branch: str = "cond",
    translator: Translator | None = None,
    **run_arguments: Any,
) -> DepthLens:
    """Read the residual stream after each block through the model's own output head, with its own modulation.

    Parameters
    ----------
    source : Run made with ``record=True``, or inputs as in `VideoDiT.run`
    sites : Sites
        Steps, layers and tokens of the component "resid". Of other tokens than these the model's own last residual is
        kept at each layer, so that what is read stands in a whole and decodable answer. The heads of all families read
        every token alone: the answers of disjoint parts put together are the answer of the whole.
    branch : str
        The estimate is of this branch alone, before guidance.
    translator : Translator, optional
        A tuned lens of this model: maps each layer's residual before the head reads it.
    **run_arguments
        Of inputs ``seed``, ``interventions`` and the others of `VideoDiT.run`; of a run only ``interventions``, under
        which its steps are read: a run that was made under some needs them, or [] for none.

    Raises
    ------
    InputError
        The run was not made with ``record=True``, or arguments beside it.
    SiteError
        A step, layer, branch or token that the run does not have, or another component.
    MadeForAnother
        The run is of another model, or the translator was made for another model or branch.

    Notes
    -----
    Follows the logit lens (nostalgebraist 2020) with the adaptive output norm of a DiT in the place of the unembedding.
    """
    require_sites("depth_lens", sites, ["resid"], tokens=True)
    sites = at_branch(sites, branch)
    if translator is not None:
        translator.require(model, branch)
    recorded = Recorded.of(model, source, sites, run_arguments)
    run = recorded.run
    found = {step: _at_step(model, recorded, sites.at(steps=step), translator) for step in recorded.steps(sites)}
    calls = {step: recorded.call(step, branch) for step in found}
    layers = indices(sites.layers, run.geometry.layers, "layer")
    levels = {step: (call.sigma, call.expert) for step, call in calls.items()}
    clean = [[recorded.clean(step, v) for v in (*shown, own)] for step, (shown, own) in found.items()]
    return DepthLens(
        reading=reading_of(run, levels, layers, "resid", "video", branch),
        velocities=torch.stack([torch.stack(shown) for shown, _ in found.values()]),
        x0hat=torch.stack([torch.stack(of_step[:-1]) for of_step in clean]),
        velocity=torch.stack([own for _, own in found.values()]),
        own_x0hat=torch.stack([of_step[-1] for of_step in clean]),
        read=cells_of(sites.tokens.resolve(run.geometry), run.geometry.grid, run.geometry.latent_grid),
        lens="plain" if translator is None else translator.name,
    )


def _at_step(
    model: VideoDiT, recorded: Recorded, sites: Sites, translator: Translator | None
) -> tuple[list[Tensor], Tensor]:
    """The velocity that each layer of one step shows, and the model's own."""
    step, branch, tokens = sites.steps, sites.branches, sites.tokens
    assert isinstance(step, int)
    assert isinstance(branch, str)
    parts = Capture(sites, name="lens.parts")
    last = Capture(sites.at(layers=recorded.run.geometry.layers - 1, tokens=Tokens()), name="lens.last")
    replay = recorded.replay(model, step, [parts] if tokens.is_all else [parts, last])
    call, resolved, shown = recorded.call(step, branch), tokens.resolve(recorded.run.geometry), []
    for site, part in replay.captures["lens.parts"].items():
        if translator is not None:
            assert site.layer is not None
            part = translator(part, site.layer, call.sigma, call.expert)
        whole = part if tokens.is_all else resolved.put(next(iter(replay.captures["lens.last"].values())), part)
        shown.append(model.read_out(call, whole, replay.conditioning[branch]))
    return shown, replay.velocities[branch]


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


def similarities(values: Tensor, own: Tensor, read: Tensor) -> tuple[Floats, Floats]:
    """Cosine to, and distance relative to the norm of, the model's own, over the read cells: two (S L, B).

    Parameters
    ----------
    values : Tensor of shape (S, L, B, C, F, H, W)
    own : Tensor of shape (S, B, C, F, H, W)
    read : bool Tensor of shape (F, H, W)
    """
    mask = read.to(own.device)
    a, b = (x[..., mask].flatten(-2).double() for x in (values, own[:, None]))
    distance = (a - b).norm(dim=-1) / b.norm(dim=-1)
    cosine = torch.nn.functional.cosine_similarity(a, b.expand_as(a), dim=-1)
    return _places(cosine), _places(distance)


def _places(values: Tensor) -> Floats:
    """(S, L, B) as (S L, B)."""
    return np.asarray(values.flatten(0, 1).cpu().numpy(), dtype=np.float64)
