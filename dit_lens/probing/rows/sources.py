"""Where the sampler's states that a probe reads come from: sampling, noising the true video, or inverting it.

The three give different verdicts (arXiv 2606.05328, 2603.14294), so that every result names its source:

- ``sample``: the states that the sampler itself makes. What the model has not solved is not in them.
- ``forward-noise``: the true video, encoded, alpha x0 + sigma noise at each step's level, with the noise of the row's
  own first state. The answer is in the input of every step but the first.
- ``invert``: the true video, encoded, followed backwards through the model's own conditional prediction (DDIM
  inversion, Song et al. 2020, arXiv 2010.02502; Euler's steps in flow matching).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import EvidenceError, InputError, UnsupportedModel
from dit_lens.families.registry import family_named
from dit_lens.interventions.base import At, Intervention
from dit_lens.model import VideoDiT
from dit_lens.probing.rows.data import Source
from dit_lens.runs.run import Run
from dit_lens.runs.schedule import Schedule
from dit_lens.sites.sites import Sites

SOURCES: tuple[Source, ...] = ("sample", "forward-noise", "invert")

#: Below this share of the next state in a step, the step cannot be undone.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True, eq=False)
class ForwardNoise:
    """Write the clean video, noised to each step's level, in the place of the sampler's states.

    Parameters
    ----------
    clean : Tensor of shape (B, C, F, H, W)
        In the sampler's normalised latents.
    sites : Sites
        ``latents`` from step 0 on: the first state is the noise.
    """

    clean: Tensor
    sites: Sites = field(default_factory=lambda: Sites("latents"))
    _noise: list[Tensor] = field(default_factory=list, repr=False)

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        alpha, sigma = at.site.alpha, at.site.sigma
        assert alpha is not None
        assert sigma is not None
        if at.site.step == 0:
            self._noise[:] = [activation.float() / sigma]
        state = alpha * self.clean.to(activation.device, torch.float32) + sigma * self._noise[0]
        return state.to(activation.dtype)


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

    @property
    def noise(self) -> Tensor:
        """The state before step 0: (B, C, F, H, W)."""
        return self.states[0]


def require_source(model: VideoDiT, source: str, geometry: Any) -> None:
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
            f"{family}: the pipeline overwrites latent frame {frames} of the state at every step, so that no other "
            f"state can be given; source={source!r} is not possible, source='sample' is"
        )
    if "audio" in geometry.streams or family == "ltx-2":
        raise UnsupportedModel(
            f"{family}: the state includes audio and guidance works on x0hat, neither of which a video alone fixes; "
            f"source={source!r} is not possible, source='sample' is"
        )


def state_writers(
    model: VideoDiT, task: Any, instances: Sequence[Any], seeds: Sequence[int], source: Source
) -> list[Intervention]:
    """What a run needs for its states to come from a source."""
    if source == "sample":
        return []
    clean = model.encode(task.render(instances))
    if source == "forward-noise":
        return [ForwardNoise(clean)]
    return [WriteStates(invert(model, list(instances), clean, seeds).states)]


@torch.no_grad()
def invert(
    model: VideoDiT, inputs: Any, clean: Tensor, seed: int | Sequence[int] = 0, *, rounds: int = 5, **settings: Any
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

    Raises
    ------
    UnsupportedModel
        The family fixes frames or guides on x0hat; the state is not the first channels of the denoiser's input; or a
        step forgets its state.
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"invert(rounds={rounds!r}): need a whole number of at least 1")
    run = model.run(inputs, seed, record=True, decode=False, **settings)
    require_source(model, "invert", run.geometry)
    if clean.shape != run.latents.shape:
        raise InputError(f"invert: clean is {tuple(clean.shape)}, the sampler's state {tuple(run.latents.shape)}")
    state = clean.to(run.latents.device, torch.float32)
    states = []
    for step in reversed(range(run.geometry.steps)):
        state = _before(model, run, step, state, rounds)
        states.append(state)
    return Inversion(torch.stack(states[::-1]), clean, run.schedule)


def _before(model: VideoDiT, run: Run, step: int, after: Tensor, rounds: int) -> Tensor:
    """The state whose step leads to ``after``."""
    keep, lead = _step_of(run.schedule, step)
    if abs(keep) < _LEAST_SHARE:
        raise UnsupportedModel(f"step {step} of a {run.schedule.kind} prediction forgets its state; it has no inverse")
    state = after
    for _ in range(rounds):
        state = (after - lead * _predicted(model, run, step, state)) / keep
    return state


def _step_of(schedule: Schedule, step: int) -> tuple[float, float]:
    """A deterministic step is linear: next state = keep state + lead prediction."""
    alpha, sigma = schedule.alphas[step], schedule.sigmas[step]
    onward, level = schedule.alphas[step + 1], schedule.sigmas[step + 1]
    skip, out = schedule.skips[step], schedule.outs[step]
    return onward * skip + level * (1 - alpha * skip) / sigma, onward * out - level * alpha * out / sigma


def _predicted(model: VideoDiT, run: Run, step: int, state: Tensor) -> Tensor:
    """The conditional prediction of a recorded step at another state: (B, C, F, H, W) in float32."""
    _require_state_first(run, step)
    given = run.schedule.model_input(step, state)
    replay = model.replay(run, step, [_GiveState(given, Sites("model_input", steps=step, branches="cond"))])
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
