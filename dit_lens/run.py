"""What a generation leaves behind: frames, latents, captures, recorded calls and a ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import InputError, SiteError
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site, name_some

if TYPE_CHECKING:
    from dit_lens.families import Architecture
    from dit_lens.families.base import Latent
    from dit_lens.schedule import Schedule


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


@dataclass
class Context:
    """What everything in one run shares.

    Attributes
    ----------
    architecture : Architecture
    geometry : Geometry
    rows : tuple of Row
    schedule : Schedule or None
        None until the pipeline has set its timesteps.
    prepared : tuple
        What the pipeline's ``prepare_latents`` returned besides the state.
    finish : callable (state or estimate) -> the same as the pipeline leaves it at its end
    recorder : Recorder or None
        Of the active run; None once it is over.
    """

    architecture: Architecture
    geometry: Geometry
    rows: tuple[Row, ...]
    schedule: Schedule | None = None
    prepared: tuple[Any, ...] = ()
    finish: Callable[[Tensor], Tensor] = lambda state: state
    recorder: Any = None

    def clean(self, step: int, state: Tensor, prediction: Tensor) -> Tensor:
        """x0hat of a state and a combined prediction, as the pipeline would finish it: (B, C, F, H, W)."""
        assert self.schedule is not None
        return self.finish(self.schedule.clean(step, state, prediction))

    @property
    def latent(self) -> Latent:
        """(C, F, H, W) of one row of the sampler's state."""
        c, f, h, w = self.geometry.shapes["latents"]
        return c, f, h, w


@dataclass(frozen=True)
class Call:
    """One denoiser call of a run.

    Attributes
    ----------
    step, nth : int
        Denoising step, and the call's place within it.
    branches : tuple of str
        Guidance branches whose rows the call carries, one after the other.
    expert : str or None
        "high_noise" or "low_noise" in models of two experts.
    sigma, alpha : float
        The state at this step is alpha x0 + sigma noise.
    timestep : float
    scales : dict
        The numbers with which this step's branches are combined; the experts of one model may differ in them.
    args, kwargs, output : the call's arguments and what it returned, where the run records them, else empty
    context : Context
    """

    step: int
    nth: int
    branches: tuple[str, ...]
    expert: str | None
    sigma: float
    alpha: float
    timestep: float
    scales: Mapping[str, float] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None
    context: Any = field(default=None, repr=False, compare=False)

    @property
    def branch(self) -> str:
        """The branch of a call that carries one; of a batched call the names joined by "+"."""
        return "+".join(self.branches)

    def rows(self, branch: str) -> slice:
        """Where a branch's rows lie in the call's batch."""
        count, place = len(self.context.rows), self.branches.index(branch)
        return slice(place * count, (place + 1) * count)


@dataclass
class Run:
    """A finished generation of B rows.

    Attributes
    ----------
    id : str
        Hash of the model, the inputs, the settings, the interventions and the versions.
    model_id : str
        Hash of the model alone.
    rows : tuple of Row, B of them
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
    """

    id: str
    model_id: str
    rows: tuple[Row, ...]
    frames: NDArray[np.uint8] | None
    latents: Tensor
    schedule: Schedule
    geometry: Geometry
    settings: Mapping[str, Any]
    captures: dict[str, dict[Site, Tensor]]
    calls: tuple[Call, ...]
    states: tuple[Tensor, ...]
    ledger: Ledger

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
        The clean estimate of the combined prediction.
    conditioning : dict from branch to what the model's head needs besides the residual stream, by module path
    captures : dict from capture name to dict from Site to Tensor
    ledger : Ledger
    """

    step: int
    velocities: dict[str, Tensor]
    guided: Tensor
    x0hat: Tensor
    conditioning: dict[str, dict[str, Any]]
    captures: dict[str, dict[Site, Tensor]]
    ledger: Ledger


@dataclass(frozen=True)
class Resume:
    """Start a run from the record of an earlier one.

    Denoiser calls before ``step`` are answered with what the earlier run recorded; at ``step`` the blocks before
    ``layer`` are answered with the residual streams that it captured after block ``layer - 1``. Bit-identical to
    computing them again.

    Parameters
    ----------
    run : Run
        Made with ``record=True`` from the same inputs, seeds and settings; for ``layer`` > 0 also with
        ``Capture(Sites("resid", steps=step, layers=layer - 1, stream="all"))``.
    step : int
    layer : int
    """

    run: Run
    step: int
    layer: int = 0

    def check(self, model_id: str, context: Context, settings: Mapping[str, Any]) -> None:
        """Refuse a record that is not of this run.

        Raises
        ------
        InputError
            Names what differs, or what was not recorded.
        """
        run, geometry = self.run, context.geometry
        if run.model_id != model_id:
            raise InputError(f"resume: the record is of model {run.model_id}, this is {model_id}")
        if run.rows != context.rows:
            raise InputError(f"resume: the record has rows {run.rows}, this run {context.rows}")
        names = sorted(set(run.settings) | set(settings))
        for name in names:
            if not _same(run.settings.get(name), settings.get(name)):
                raise InputError(
                    f"resume: the record has {name}={run.settings.get(name)!r}, this {settings.get(name)!r}"
                )
        if not 0 <= self.step < geometry.steps or not 0 <= self.layer < geometry.layers:
            valid = f"steps 0..{geometry.steps - 1}, layers 0..{geometry.layers - 1}"
            raise InputError(f"resume at step {self.step}, layer {self.layer}: this run has {valid}")
        if self.layer and any(block.carried for _, block in context.architecture.stacks):
            family = context.architecture.family
            raise InputError(
                f"resume at layer {self.layer}: {family} carries a stream that is not recorded; use layer=0"
            )
        for step in range(self.step + bool(self.layer)):
            run.recorded(step)
        if not run.states:
            raise InputError("resume: the record has no states; run with record=True")
        if self.layer:
            for branch in geometry.branches:
                for stream in geometry.streams:
                    self.residual(branch, stream)

    def residual(self, branch: str, stream: str) -> Tensor:
        """The residual stream after block ``layer - 1``: (B, F, H, W, D), or (B, N, D) of a text stream."""
        site = Site(self.step, branch, self.layer - 1, "resid", stream)
        found = self.run.captures.get("", {}).get(site)
        if found is None:
            raise InputError(f"resume at layer {self.layer}: the record has no capture of {site} (whole and unnamed)")
        return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return bool(a is b or a == b)
