"""What a generation leaves behind: frames, latents, captures, recorded calls and a ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_lens.errors import InputError, SiteError
from dit_lens.files.video import Video
from dit_lens.runs.call import Call, Context
from dit_lens.runs.inputs import Row
from dit_lens.runs.ledger import Ledger
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site, name_some

if TYPE_CHECKING:
    from dit_lens.runs.schedule import Schedule


@dataclass
class Run:
    """A finished generation of B rows.

    Attributes
    ----------
    id : str
        Hash of the model, its setup, the inputs, the settings, the interventions and the versions.
    model_id : str
        Hash of the transformers alone.
    setup : dict from part of the pipeline ("scheduler", "text_encoder", "pipeline" ...) to its hash
        Without the parts that only decode: what the latents depend on besides the transformers' weights.
    inputs : tuple, B of them
        What each row was given: a task instance, a prompt or a mapping.
    rows : tuple of Row, B of them
    content : str
        Hash of the prompts and pictures.
    frames : uint8 array of shape (B, T, height, width, 3), or None where the run was not decoded
    latents : Tensor of shape (B, C, F, H, W)
        The sampler's state where the run ended.
    schedule : Schedule
        alpha and sigma of every step, and x0hat from a state and a prediction.
    geometry : Geometry
    settings : dict
        All arguments of the pipeline.
    captures : dict from capture name to dict from Site to Tensor
    calls : tuple of Call
        With arguments and output where the run was made with ``record=True``.
    states : tuple of Tensor of shape (B, C, F, H, W)
        The sampler's state before each step, where the run was made with ``record=True``, else empty.
    ledger : Ledger
    text_valid : dict from branch to bool Tensor of shape (B, N)
        Where a text stream was met of which attention reads only some positions: which.
    """

    id: str
    model_id: str
    setup: Mapping[str, str]
    inputs: tuple[Any, ...] = field(repr=False)
    rows: tuple[Row, ...]
    content: str
    frames: Video | None
    latents: Tensor
    schedule: Schedule
    geometry: Geometry
    settings: Mapping[str, Any]
    captures: dict[str, dict[Site, Tensor]]
    calls: tuple[Call, ...]
    states: tuple[Tensor, ...]
    ledger: Ledger
    text_valid: dict[str, Tensor] = field(default_factory=dict)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the steps; S + 1 of them where the scheduler names a last one."""
        return self.schedule.sigmas

    @property
    def experts(self) -> dict[int, str | None]:
        """The expert that each step called, None in models of one."""
        return {call.step: call.expert for call in self.calls}

    def clean(self, step: int, state: Tensor, prediction: Tensor) -> Tensor:
        """x0hat of a state and a prediction at a step, as the pipeline would finish it: (B, C, F, H, W).

        Parameters
        ----------
        step : int
        state, prediction : Tensor of shape (B, C, F, H, W)
            The sampler's state before the step, and the combined prediction or one branch's.
        """
        context: Context = self.calls[0].context
        return context.clean(step, state, prediction)

    def recorded(self, step: int) -> list[Call]:
        """The calls of a step with what they were given.

        Raises
        ------
        InputError
            The run was not made with ``record=True``, or has no such step.
        """
        calls = [c for c in self.calls if c.step == step]
        if not calls or calls[0].output is None:
            raise InputError(f"step {step} was not recorded; run with record=True, steps 0..{self.geometry.steps - 1}")
        return calls

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

    @cached_property
    def _own_sites(self) -> dict[Site, Site]:
        return {site: site for site in self.captures.get("", {})}

    def sigma_at(self, site: Site) -> float | None:
        """Noise level at which a site was captured; None where it was not, or has none."""
        own = self._own_sites.get(site)
        return None if own is None else own.sigma

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
