"""What the sampler's state is made of at every step, and what a prediction says about the clean video."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import InputError, SiteError, UnsupportedModel

#: (alpha, sigma) of every step, and of the final state.
Levels = list[tuple[float, float]]


@dataclass(frozen=True)
class Schedule:
    """Noise levels of a run and the meaning of its predictions: plain numbers, taken from a scheduler once.

    At step s the sampler's state is alpha x0 + sigma noise, in the scale of the state: alpha stays 1 where the state's
    variance grows with the noise (Euler and EDM schedulers). The clean estimate is linear in state and prediction.

    Attributes
    ----------
    kind : str
        What the transformer predicts: "flow", "epsilon", "v_prediction", "sample", or "edm" (v_prediction between data
        of a standard deviation other than 1 and noise, of either sign).
    alphas, sigmas : tuple of float, S + 1 of them
        The last is the level of the final state.
    skips, outs : tuple of float, S of them
        x0hat = skip state + out prediction.
    scales : tuple of float, S of them
        The denoiser is given scale times the state.

    Examples
    --------
    >>> from diffusers import FlowMatchEulerDiscreteScheduler
    >>> scheduler = FlowMatchEulerDiscreteScheduler()
    >>> scheduler.set_timesteps(sigmas=[1.0, 0.5])
    >>> schedule = Schedule.of(scheduler)
    >>> schedule.kind, schedule.sigmas, schedule.alpha(1)
    ('flow', (1.0, 0.5, 0.0), 0.5)
    """

    kind: str
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    skips: tuple[float, ...]
    outs: tuple[float, ...]
    scales: tuple[float, ...]

    __repr__ = short_repr

    @classmethod
    def of(cls, scheduler: Any) -> Schedule:
        """The schedule on which a diffusers scheduler is set.

        Raises
        ------
        UnsupportedModel
            It is not known what its step makes of a prediction, or no linear map says it.
        InputError
            It has not been given its steps.
        """
        known, kind = _known(scheduler)
        count = len(scheduler.timesteps)
        levels = known.levels(scheduler)[: count + 1]
        _check_levels(scheduler, kind, levels[:count])
        data = float(scheduler.config.sigma_data) if kind == "edm" else 1.0
        scales = [1 / math.hypot(sigma, data) if known.exploding else 1.0 for _, sigma in levels[:count]]
        maps = [_CLEAN[kind](*level, scale, data) for level, scale in zip(levels, scales, strict=False)]
        sign = -1.0 if known.turned(scheduler.config) else 1.0
        alphas, sigmas = zip(*levels, strict=True)
        return cls(kind, alphas, sigmas, tuple(m[0] for m in maps), tuple(sign * m[1] for m in maps), tuple(scales))

    @property
    def steps(self) -> int:
        """Number of steps S."""
        return len(self.scales)

    def sigma(self, s: int) -> float:
        """Weight of the noise in the state before step s."""
        return self.sigmas[self._index(s)]

    def alpha(self, s: int) -> float:
        """Weight of the clean video in the state before step s."""
        return self.alphas[self._index(s)]

    def clean(self, s: int, state: Tensor, prediction: Tensor) -> Tensor:
        """x0hat of a state and the guidance-combined prediction, all (B, C, F, H, W).

        The state is taken to float32 at least and the prediction scaled in its own dtype, as in the schedulers' steps.
        """
        s = self._index(s)
        return self.skips[s] * _wide(state) + self.outs[s] * prediction

    def prediction(self, s: int, state: Tensor, x0hat: Tensor) -> Tensor:
        """The prediction of which `clean` makes x0hat; all (B, C, F, H, W), in float32 at least."""
        s = self._index(s)
        return (_wide(x0hat) - self.skips[s] * _wide(state)) / self.outs[s]

    def noise(self, s: int, state: Tensor, prediction: Tensor) -> Tensor:
        """The noise estimate: what is left of the state without alpha x0hat, over sigma; all (B, C, F, H, W)."""
        s = self._index(s)
        alpha, sigma = self.alphas[s], self.sigmas[s]
        # In one step: subtracting x0hat from the state would cancel most digits where the noise is small.
        return (1 - alpha * self.skips[s]) / sigma * _wide(state) - alpha * self.outs[s] / sigma * prediction

    def noisy(self, s: int, x0: Tensor, noise: Tensor) -> Tensor:
        """The state alpha x0 + sigma noise before step s; all (B, C, F, H, W), in float32 at least."""
        s = self._index(s)
        return self.alphas[s] * _wide(x0) + self.sigmas[s] * _wide(noise)

    def model_input(self, s: int, state: Tensor) -> Tensor:
        """What the denoiser is given of a state (B, C, F, H, W), before the cast to its dtype."""
        return self.scales[self._index(s)] * _wide(state)

    def _index(self, s: int) -> int:
        if not 0 <= s < self.steps:
            raise SiteError(f"step {s}: this schedule has steps 0..{self.steps - 1}")
        return s


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _flow(scheduler: Any) -> Levels:
    """With invert_sigmas (Mochi) the scheduler's "sigma" is the share of the video, and rises from 0 to 1."""
    levels = _straight(scheduler)
    return [(sigma, alpha) for alpha, sigma in levels] if scheduler.config.invert_sigmas else levels


def _straight(scheduler: Any) -> Levels:
    return [(1 - sigma, sigma) for sigma in scheduler.sigmas.tolist()]


def _solver(scheduler: Any) -> Levels:
    """UniPC and DPM-Solver keep either flow sigmas or sigma / alpha of a state of unit variance."""
    if scheduler.config.use_flow_sigmas:
        return _straight(scheduler)
    return [(1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)) for ratio in scheduler.sigmas.tolist()]


def _exploding(scheduler: Any) -> Levels:
    return [(1.0, sigma) for sigma in scheduler.sigmas.tolist()]


def _preserving(scheduler: Any, final: Any = 1.0) -> Levels:
    products = [*scheduler.alphas_cumprod.cpu()[scheduler.timesteps.cpu()].tolist(), float(final)]
    return [(math.sqrt(product), math.sqrt(1 - product)) for product in products]


def _ddim(scheduler: Any) -> Levels:
    """DDIM's last step goes to a training timestep that it counts back, where that is not below zero."""
    products = scheduler.alphas_cumprod
    last = int(scheduler.timesteps[-1]) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return _preserving(scheduler, products[last] if last >= 0 else scheduler.final_alpha_cumprod)


def _v_prediction(alpha: float, sigma: float, scale: float, data: float) -> tuple[float, float]:
    """Of alpha noise - sigma x0 in the scaled state (Salimans & Ho 2022), with data as in EDM (Karras et al. 2022)."""
    return (data * scale) ** 2 * alpha, -data * scale * sigma


#: Skip and out of a kind of prediction, from alpha, sigma, scale and the standard deviation of the data.
_CLEAN: dict[str, Callable[[float, float, float, float], tuple[float, float]]] = {
    "flow": lambda alpha, sigma, scale, data: (1.0, -sigma),
    "epsilon": lambda alpha, sigma, scale, data: (1 / alpha, -sigma / alpha),
    "v_prediction": _v_prediction,
    "sample": lambda alpha, sigma, scale, data: (0.0, 1.0),
    "edm": _v_prediction,
}


@dataclass(frozen=True)
class _Known:
    """How a scheduler class is read.

    ``types`` are kinds by prediction type, or the one kind of a class that has none to choose; ``edits`` settings under
    which its step does not take prediction and x0hat as they are; ``turned`` whether the prediction points backwards.
    """

    levels: Callable[[Any], Levels]
    types: dict[str, str] | str
    exploding: bool = False
    edits: tuple[str, ...] = ()
    turned: Callable[[Any], bool] = lambda config: False


_TWO = {"epsilon": "epsilon", "v_prediction": "v_prediction"}
_THREE = _TWO | {"sample": "sample"}
_SOLVER = _Known(_solver, _THREE | {"flow_prediction": "flow"}, edits=("thresholding", "variance_type"))
_KNOWN = {
    "FlowMatchEulerDiscreteScheduler": _Known(_flow, "flow", turned=lambda config: bool(config.invert_sigmas)),
    "UniPCMultistepScheduler": _SOLVER,
    "DPMSolverMultistepScheduler": _SOLVER,
    # These two have a setting clip_sample, and their steps do not look at it.
    "CogVideoXDDIMScheduler": _Known(_ddim, _THREE),
    "CogVideoXDPMScheduler": _Known(_ddim, _THREE),
    "DDIMScheduler": _Known(_ddim, _THREE, edits=("clip_sample", "thresholding")),
    "DDPMScheduler": _Known(_preserving, _THREE, edits=("clip_sample", "thresholding")),
    "EulerDiscreteScheduler": _Known(_exploding, _THREE, exploding=True),
    "EulerAncestralDiscreteScheduler": _Known(_exploding, _TWO, exploding=True),
    # What it calls "epsilon" is a v_prediction of the other sign, as in the EDM paper.
    "EDMEulerScheduler": _Known(
        _exploding,
        dict.fromkeys(_TWO, "edm"),
        exploding=True,
        turned=lambda config: config.prediction_type == "epsilon",
    ),
}


def _known(scheduler: Any) -> tuple[_Known, str]:
    """How to read it, and the kind of its predictions; a subclass is refused, for it may step in its own way."""
    if getattr(scheduler, "order", 1) != 1:
        raise _refusal(scheduler, f"it calls the model {scheduler.order} times a step, so steps and sigmas do not pair")
    if (known := _KNOWN.get(type(scheduler).__name__)) is None:
        raise _refusal(scheduler, f"its step is not known; known are {', '.join(_KNOWN)}")
    config = scheduler.config
    kind = known.types if isinstance(known.types, str) else known.types.get(config.prediction_type)
    if kind is None:
        raise _refusal(scheduler, f"its step is not known; known are {', '.join(known.types)}")
    if edits := [setting for setting in known.edits if config.get(setting)]:
        raise _refusal(scheduler, f"with {' and '.join(edits)} its step does not take prediction and x0hat as they are")
    if known is _SOLVER and config.use_flow_sigmas != (kind == "flow"):
        raise _refusal(scheduler, f"it does not go together with use_flow_sigmas={config.use_flow_sigmas}")
    steps = getattr(scheduler, "num_inference_steps", None)
    if steps is None and len(scheduler.timesteps) >= config.num_train_timesteps:
        raise InputError(f"{type(scheduler).__name__} has no steps yet: call its set_timesteps first")
    return known, kind


def _check_levels(scheduler: Any, kind: str, levels: Levels) -> None:
    for s, (alpha, sigma) in enumerate(levels):
        # Negative: Cosmos 2 does its steps with a flow-matching scheduler on sigmas up to 80. Rounding may pass 1.
        if sigma <= 0 or (alpha <= 0 if kind == "epsilon" else alpha < -1e-6):
            raise _refusal(scheduler, f"at step {s} alpha is {alpha:g} and sigma {sigma:g}, which leaves x0hat open")


def _refusal(scheduler: Any, reason: str) -> UnsupportedModel:
    prediction = getattr(scheduler, "config", {}).get("prediction_type", "not stated")
    return UnsupportedModel(f"{type(scheduler).__name__}, prediction type {prediction}: {reason}")
