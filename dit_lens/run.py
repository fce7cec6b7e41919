"""What a generation leaves behind: frames, latents, captures, recorded calls and a ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import SiteError
from dit_lens.sites import Geometry, Site


@dataclass(frozen=True)
class Row:
    """One row of a batch: a task instance (or prompt) and a seed."""

    instance: str
    seed: int


@dataclass
class Ledger:
    """What a run cost.

    Attributes
    ----------
    calls : int
        Calls of a denoiser, whatever their batch.
    denoiser_forwards : int
        Calls times rows: what counts when methods are compared at equal compute.
    block_forwards : int
        Forwards of single blocks times rows.
    captured_bytes : int
    seconds : float
        Wall time of the whole run, encoding and decoding included.
    """

    calls: int = 0
    denoiser_forwards: int = 0
    block_forwards: int = 0
    captured_bytes: int = 0
    seconds: float = 0.0

    def add(self, other: Ledger) -> None:
        """Add another ledger's counts to this one."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class Call:
    """One denoiser call of a run.

    Attributes
    ----------
    step, nth : int
        Denoising step, and the call's place within it.
    branch : str
        Guidance branch.
    expert : str or None
        "high_noise" or "low_noise" in models of two experts.
    sigma, timestep : float
    guidance_scale : float
        With which this step's branches are combined; the experts of one model may differ in it.
    args, kwargs : the call's arguments, where the run records them, else empty
    """

    step: int
    nth: int
    branch: str
    expert: str | None
    sigma: float
    timestep: float
    guidance_scale: float = 1.0
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """A finished generation of B rows.

    Attributes
    ----------
    id : str
        Hash of the model, the inputs, the settings, the interventions and the versions.
    rows : tuple of Row, B of them
    frames : uint8 array of shape (B, T, height, width, 3), or None where the run was not decoded
    latents : Tensor of shape (B, C, F, H, W)
        The sampler's state at the end.
    sigmas : tuple of float, S + 1 of them
    geometry : Geometry
    guidance_scale : float
    captures : dict from capture name to dict from Site to Tensor
    calls : tuple of Call
        With arguments where the run was made with ``record=True``.
    states : tuple of Tensor of shape (B, C, F, H, W)
        The sampler's state before each step, where the run was made with ``record=True``, else empty.
    ledger : Ledger
    """

    id: str
    rows: tuple[Row, ...]
    frames: NDArray[np.uint8] | None
    latents: Tensor
    sigmas: tuple[float, ...]
    geometry: Geometry
    guidance_scale: float
    captures: dict[str, dict[Site, Tensor]]
    calls: tuple[Call, ...]
    states: tuple[Tensor, ...]
    ledger: Ledger

    def __getitem__(self, site: Site | str) -> Tensor:
        """The capture of one site, of shape (B, F, H, W, D) for the residual stream and (B, C, F, H, W) for latents.

        Raises
        ------
        SiteError
            The site was not captured; the message names some that were.
        """
        site = Site.parse(site) if isinstance(site, str) else site
        found = self.captures.get("", {})
        if site not in found:
            raise SiteError(f"{site} was not captured; {name_some(found)}")
        return found[site]

    def captured(self, name: str = "") -> dict[Site, Tensor]:
        """All captures under a name, in the order in which they were made."""
        if name not in self.captures:
            raise SiteError(f"no capture is named {name!r}; this run has {sorted(self.captures) or 'none'}")
        return self.captures[name]

    def stack(self, component: str, *, step: int, branch: str | None = "cond", name: str = "") -> Tensor:
        """One component at all captured layers of a step and branch: Tensor of shape (layers, B, ...)."""
        sites = [s for s in self.captured(name) if (s.step, s.branch, s.component) == (step, branch, component)]
        if not sites:
            raise SiteError(
                f"no {component} of step {step}, branch {branch} was captured; {name_some(self.captured(name))}"
            )
        return torch.stack([self.captures[name][s] for s in sorted(sites, key=lambda s: s.layer or 0)])


@dataclass
class Replay:
    """One denoising step of a recorded run, done again with other interventions.

    Attributes
    ----------
    velocities : dict from branch to Tensor of shape (B, C, F, H, W)
    guided : Tensor of shape (B, C, F, H, W)
        The combined prediction.
    x0hat : Tensor of shape (B, C, F, H, W)
        The clean estimate x_s - sigma_s * guided.
    conditioning : dict from branch to what the model's head needs besides the residual stream
    captures : dict from capture name to dict from Site to Tensor
    ledger : Ledger
    """

    step: int
    velocities: dict[str, Tensor]
    guided: Tensor
    x0hat: Tensor
    conditioning: dict[str, Any]
    captures: dict[str, dict[Site, Tensor]]
    ledger: Ledger


def name_some(sites: Iterable[Site], most: int = 6) -> str:
    """A few sites in words, for error messages."""
    names = [str(s) for s in sites]
    if not names:
        return "no site was"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"there are {', '.join(names[:most])}{more}"
