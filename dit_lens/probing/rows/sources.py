"""Where the sampler's states that a probe reads come from: sampling, noising the true video, or inverting it.

The three give different verdicts (arXiv 2606.05328, 2603.14294), so every result names its source:

- ``sample``: the states that the sampler itself makes. What the model has not solved is not in them.
- ``forward-noise``: the true video, encoded, alpha x0 + sigma noise at each step's level, with the noise of the row's
  own first state. The answer is in the input of every step but the first.
- ``invert``: the true video, encoded, followed backwards through the model's own conditional prediction (DDIM
  inversion, Song et al. 2020, arXiv 2010.02502; Euler's steps in flow matching).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError, InputError, UnsupportedModel
from dit_lens.families.registry import family_named
from dit_lens.interventions.base import At, Intervention
from dit_lens.lens.source import Recorded
from dit_lens.model import VideoDiT
from dit_lens.probing.rows.data import Source
from dit_lens.runs.run import Run
from dit_lens.runs.schedule import Schedule
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import STEP_COMPONENTS
from dit_lens.sites.sites import Sites
from dit_lens.tasks.base import Task
from dit_lens.tasks.evidence import require

SOURCES: tuple[Source, ...] = ("sample", "forward-noise", "invert")

#: Below this share of the next state in a step, the step cannot be undone.
_LEAST_SHARE = 1e-3


class ForwardNoise:
    """Write the clean video, noised to each step's level, in the place of the sampler's states.

    The noise is that of the first state of each run, which it keeps until the next run begins.

    Parameters
    ----------
    clean : Tensor of shape (B, C, F, H, W)
        In the sampler's normalised latents.
    """

    sites = Sites("latents")

    def __init__(self, clean: Tensor) -> None:
        self.clean = clean
        self._noise: Tensor | None = None

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        alpha, sigma = at.site.alpha, at.site.sigma
        assert alpha is not None
        assert sigma is not None
        if at.site.step == 0:
            self._noise = activation.float() / sigma
        if self._noise is None:
            raise InputError(f"{at.site}: the noise is that of step 0, which this run does not meet; start it there")
        state = alpha * self.clean.to(activation.device, torch.float32) + sigma * self._noise
        return state.to(activation.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Without the noise, which is no setting but what one run gave."""
        return {"clean": self.clean, "_noise": None}


@dataclass(frozen=True, eq=False)
class WriteStates:
    """Write given states in the place of the sampler's.

    Parameters
    ----------
    states : Tensor of shape (S, B, C, F, H, W)
    sites : Sites
    """

    states: Tensor
    sites: Sites = field(default_factory=lambda: Sites("latents"))

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        return self.states[at.site.step].to(activation)


@dataclass(frozen=True, eq=False)
class _GiveState:
    """Give the denoiser another state, its conditioning channels left as they are."""

    given: Tensor
    sites: Sites

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        changed = activation.clone()
        changed[:, : self.given.shape[1]] = self.given.to(activation)
        return changed


@dataclass(frozen=True)
class Inversion:
    """A clean video followed backwards through the sampler's steps.

    Attributes
    ----------
    states : Tensor of shape (S, B, C, F, H, W)
        The state before each step, in float32.
    clean : Tensor of shape (B, C, F, H, W)
        Where it started.
    schedule : Schedule
    """

    states: Tensor
    clean: Tensor
    schedule: Schedule

    __repr__ = short_repr

    @property
    def noise(self) -> Tensor:
        """The state before step 0: (B, C, F, H, W)."""
        return self.states[0]


def require_source(model: VideoDiT, source: str, geometry: Geometry) -> None:
    """Refuse a source that is unknown or that this model cannot be given.

    Raises
    ------
    EvidenceError
        An unknown source.
    UnsupportedModel
        A family that fixes frames of the state, or whose state holds more than the video.
    """
    if source not in SOURCES:
        raise EvidenceError(f"unknown source {source!r}; one of {', '.join(SOURCES)}")
    if source == "sample":
        return
    family = model.architecture.family
    if geometry.fixed_frames:
        frames = ", ".join(map(str, geometry.fixed_frames))
        raise UnsupportedModel(
            f"{family}: the pipeline overwrites latent frame {frames} of the state at every step, so no other state "
            f"can be given; source={source!r} is not possible, source='sample' is"
        )
    if not model.architecture.video_fixes_state:
        raise UnsupportedModel(
            f"{family}: the state includes audio, which a video alone does not fix; source={source!r} is not possible, "
            "source='sample' is"
        )


def state_writers(
    model: VideoDiT, task: Task, instances: Sequence[Any], seeds: Sequence[int], source: Source, **settings: Any
) -> list[Intervention]:
    """What a run needs for its states to come from a source; ``settings`` are those of the run."""
    if source == "sample":
        return []
    clean = model.encode(require(task, "render", who=f"source={source!r}").render(instances))
    if source == "forward-noise":
        return [ForwardNoise(clean)]
    return [WriteStates(invert(model, list(instances), clean, seeds, **settings).states)]


@torch.no_grad()
def invert(
    model: VideoDiT,
    inputs: Any,
    clean: Tensor,
    seed: int | Sequence[int] = 0,
    *,
    rounds: int = 5,
    interventions: Iterable[Intervention] = (),
    **settings: Any,
) -> Inversion:
    """The states by which deterministic sampling at guidance 1 would come to ``clean``.

    From the last step upwards each state is the one whose Euler (or DDIM) step, with the conditional prediction alone,
    leads to the next. The prediction is first made at the next state, which is DDIM inversion; every further round
    makes it again at the state that was found (fixed-point iteration).

    Parameters
    ----------
    inputs, seed, **settings
        As in `VideoDiT.run`; the seed plays no part in what is found.
    clean : Tensor of shape (B, C, F, H, W)
        From `VideoDiT.encode`.
    rounds : int
        Predictions per step; 1 is plain DDIM inversion. More rounds return nearer to ``clean``, from noise that may be
        less like the sampler's: near the data every state leads to the same video.
    interventions : iterable of Intervention
        Inside the denoiser: the model that is inverted is the one with them.

    Raises
    ------
    InputError
        Rounds below 1, a clean video of another shape, or interventions around the denoiser.
    UnsupportedModel
        The family fixes frames or guides on x0hat; the state is not the first channels of the denoiser's input; or a
        step forgets its state.
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"invert(rounds={rounds!r}): need a whole number of at least 1")
    changes = listed(interventions)
    if around := [i for i in changes if set(i.sites.components) & set(STEP_COMPONENTS)]:
        raise InputError(f"invert: {around[0]!r:.60} is around the denoiser, where inversion writes the states itself")
    run = model.run(inputs, seed, record=True, decode=False, interventions=changes, **settings)
    require_source(model, "invert", run.geometry)
    if clean.shape != run.latents.shape:
        raise InputError(f"invert: clean is {tuple(clean.shape)}, the sampler's state {tuple(run.latents.shape)}")
    state = clean.to(run.latents.device, torch.float32)
    states = []
    for step in reversed(range(run.geometry.steps)):
        state = _before(model, run, step, state, rounds, changes)
        states.append(state)
    return Inversion(torch.stack(states[::-1]), clean, run.schedule)


def _before(
    model: VideoDiT, run: Run, step: int, after: Tensor, rounds: int, changes: Sequence[Intervention]
) -> Tensor:
    """The state whose step leads to ``after``."""
    keep, lead = _step_of(run.schedule, step)
    if abs(keep) < _LEAST_SHARE:
        raise UnsupportedModel(f"step {step} of a {run.schedule.kind} prediction forgets its state; it has no inverse")
    state = after
    for _ in range(rounds):
        state = (after - lead * _predicted(model, run, step, state, changes)) / keep
    return state


def _step_of(schedule: Schedule, step: int) -> tuple[float, float]:
    """A deterministic step is linear: next state = keep state + lead prediction."""
    alpha, sigma = schedule.alphas[step], schedule.sigmas[step]
    onward, level = schedule.alphas[step + 1], schedule.sigmas[step + 1]
    skip, out = schedule.skips[step], schedule.outs[step]
    return onward * skip + level * (1 - alpha * skip) / sigma, onward * out - level * alpha * out / sigma


def _predicted(model: VideoDiT, run: Run, step: int, state: Tensor, changes: Sequence[Intervention]) -> Tensor:
    """The conditional prediction of a recorded step at another state: (B, C, F, H, W) in float32."""
    _require_state_first(run, step)
    given = run.schedule.model_input(step, state)
    give = _GiveState(given, Sites("model_input", steps=step, branches="cond"))
    replay = Recorded(run, (give, *changes)).replay(model, step)
    return replay.velocities["cond"].float()


def _require_state_first(run: Run, step: int) -> None:
    """Refuse a family whose denoiser is given the state anywhere but in its first channels."""
    call = next(c for c in run.recorded(step) if "cond" in c.branches)
    context = call.context
    recorded = family_named(run.family).unpack(call.kwargs["hidden_states"][call.rows("cond")], context.latent)
    expected = run.schedule.model_input(step, run.states[step]).to(recorded.dtype)
    found = recorded[:, : expected.shape[1]]
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=1e-2):
        raise UnsupportedModel(
            f"{run.family}: the state is not the first channels of the denoiser's input; cannot invert"
        )
