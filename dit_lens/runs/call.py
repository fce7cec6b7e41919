"""One denoiser call of a run, and what all calls of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.families.base import Fixed, Latent
from dit_lens.runs.inputs import Row
from dit_lens.runs.schedule import Schedule
from dit_lens.sites.geometry import Geometry


@dataclass
class Context:
    """What all calls of one run share: plain data.

    Attributes
    ----------
    family : str
    geometry : Geometry
    rows : tuple of Row
    schedule : Schedule or None
        None until the pipeline has set its timesteps.
    fixed : Fixed or None
        What the pipeline puts into its final latents.
    """

    family: str
    geometry: Geometry
    rows: tuple[Row, ...]
    schedule: Schedule | None = None
    fixed: Fixed | None = None

    __repr__ = short_repr

    def clean(self, step: int, state: Tensor, prediction: Tensor) -> Tensor:
        """x0hat of a state and a combined prediction, as the pipeline would finish it: (B, C, F, H, W)."""
        assert self.schedule is not None
        return self.finished(self.schedule.clean(step, state.to(prediction.device), prediction))

    def finished(self, state: Tensor) -> Tensor:
        """A state or an estimate (B, C, F, H, W) as the pipeline leaves it at its end."""
        return state if self.fixed is None else self.fixed(state)

    @property
    def latent(self) -> Latent:
        """(C, F, H, W) of one row of the sampler's state."""
        c, f, h, w = self.geometry.shapes["latents"]
        return c, f, h, w


@dataclass(frozen=True)
class Prepared:
    """What a pipeline made of pictures and seeds before its first step, besides the state itself.

    Attributes
    ----------
    rest : tuple
        All else that ``prepare_latents`` returned, such as encoded pictures.
    generators : uint8 Tensor of shape (B, n)
        The state of each row's generator after that.
    """

    rest: tuple[Any, ...]
    generators: Tensor

    __repr__ = short_repr


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
        Not saved with the call: a `Run` that is loaded gives it to its calls.
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
    context: Any = field(default=None, repr=False, compare=False, metadata={"saved": False})

    __repr__ = short_repr

    @property
    def branch(self) -> str:
        """The branch of a call that carries one; of a batched call the names joined by "+"."""
        return "+".join(self.branches)

    def rows(self, branch: str) -> slice:
        """Where a branch's rows lie in the call's batch."""
        count, place = len(self.context.rows), self.branches.index(branch)
        return slice(place * count, (place + 1) * count)
