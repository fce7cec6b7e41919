"""Derivatives of a metric of pairs by every site of a run, and the estimates that they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.engine.gradients import Gradients
from dit_lens.engine.plan import acting
from dit_lens.errors import InputError, UnsupportedModel
from dit_lens.results.arrays import Floats
from dit_lens.runs.replay import Replay
from dit_lens.runs.run import Run
from dit_lens.sites.sites import Sites
from dit_lens.sweeps.metrics import Metric, Moved, Sides
from dit_lens.sweeps.plan import SweepPlan
from dit_lens.tasks.base import Pair

#: Step, layer and head of a site.
Place = tuple[int, int | None, int | None]
_WHO = "attribution_patching"
#: By how much of its norm a state may be off what an Euler step makes of the one before, in float32.
_ROUNDING = 1e-4


class Estimator(ABC):
    """Estimates at some places, one gradient of each step for each batch of pairs.

    Attributes
    ----------
    blocks : int
        Block forwards, each of one row of one branch, that were computed.
    noise : dict from step to its sigma, alpha and expert
    """

    def __init__(self, plan: SweepPlan, sites: Sites, places: Sequence[Place]) -> None:
        self.plan, self.sites, self.places = plan, sites, places
        self.steps = sorted({step for step, *_ in places})
        self.blocks = 0
        self.noise: dict[int, dict[str, Any]] = {}

    def of_all(self, pairs: Sequence[Pair]) -> Floats:
        """Of all pairs, both directions: (K, P, 2)."""
        plan, last = self.plan, self.plan.last_step
        runs = plan.model.runs(
            [side for pair in pairs for side in pair],
            [seed for batch in plan.batches for seed in batch.seeds],
            batch=max(2, plan.rows_at_once // 2 * 2),
            progress="attribution",
            interventions=plan.until(last),
            record=True,
            decode=False,
            stop_after=None if last == plan.geometry.steps - 1 else last,
            **plan.arguments,
        )
        found = np.concatenate([self._of_run(run) for run in runs], axis=1)
        return found.reshape(len(self.places), len(pairs), 2)

    def _of_run(self, run: Run) -> Floats:
        """Of the sides of some pairs: (K, R)."""
        self.blocks += run.ledger.block_forwards
        sides = tuple(Pair(*rows) for rows in zip(run.inputs[::2], run.inputs[1::2], strict=True))
        metric = Still(
            self.plan.metrics[0], tuple(run.inputs), Sides(self.plan.model, self.plan.task, sides, self.plan.geometry)
        )
        found: dict[Place, Floats] = {}
        for gradients in self._at_steps(run, metric):
            for site, own in gradients.activations.items():
                change = (own[metric.sides.partners].double() - own.double()) * gradients.gradients[site].double()
                place = site.step, site.layer, site.head
                found[place] = found.get(place, 0.0) + change.flatten(1).sum(dim=1).cpu().numpy()
                self.noise[site.step] = {"sigma": site.sigma, "alpha": site.alpha, "expert": site.expert}
        return np.stack([found[place] for place in self.places])

    @abstractmethod
    def _at_steps(self, run: Run, metric: Still) -> Iterator[Gradients]:
        """Derivatives by the sites of every step."""

    def _gradients(self, run: Run, step: int, value: Callable[[Replay], Tensor], sites: Sites) -> Gradients:
        base = acting(self.plan.interventions, run.geometry, step)
        found = self.plan.model.gradients(run, step, value, sites, base)
        self.blocks += found.replay.ledger.block_forwards
        return found


class EstimatorOfSteps(Estimator):
    """Of the clean estimate of each site's own step."""

    def _at_steps(self, run: Run, metric: Still) -> Iterator[Gradients]:
        for step in self.steps:
            yield self._gradients(run, step, lambda replay: metric(replay.x0hat), self.sites)


class EstimatorOfEnd(Estimator):
    """Of the clean estimate of the last step, from the last step back to the first that has a site.

    The state x after a step is x + (sigma' - sigma) v, of which v depends on the sites and on the state before. So the
    derivative by the state before is that by the state after, plus what comes back through the denoiser's input.
    """

    def of_all(self, pairs: Sequence[Pair]) -> Floats:
        """As of every estimator; refused before any run where another state is denoised beside the video."""
        architecture = self.plan.model.architecture
        if any(block.carried for _, block in architecture.stacks):
            raise UnsupportedModel(
                f"{_WHO}(on='final'): {architecture.family} denoises another stream beside the video, through which "
                "derivatives do not come back; use on='step'"
            )
        return super().of_all(pairs)

    def _at_steps(self, run: Run, metric: Still) -> Iterator[Gradients]:
        last, behind = self.plan.geometry.steps - 1, torch.empty(0)
        for step in range(last, self.steps[0] - 1, -1):
            ahead = _Last(run, step, metric) if step == last else _Euler(run, step, behind)
            if step in self.steps:
                yield self._gradients(run, step, ahead, self.sites)
            if step > self.steps[0]:
                behind = self._by_state(run, step, ahead)

    def _by_state(self, run: Run, step: int, ahead: _Ahead) -> Tensor:
        """Derivative by the state before a step: double (R, C, F, H, W)."""
        found = self._gradients(run, step, ahead, Sites("model_input"))
        total = ahead.by_state(found.replay, self.plan.model.architecture.guide)
        channels = run.states[step].shape[1]
        for site, given in found.activations.items():
            _require_state(run, step, given[:, :channels])
            total = total + found.gradients[site][:, :channels].double()
        return total


class _Ahead(ABC):
    """What comes of a step: a number of its state and its combined prediction."""

    def __init__(self, run: Run, step: int) -> None:
        self.run, self.step = run, step

    def __call__(self, replay: Replay) -> Tensor:
        return self._value(self._state(replay), replay.guided)

    def _state(self, replay: Replay) -> Tensor:
        return self.run.states[self.step].to(replay.guided.device)

    def by_state(self, replay: Replay, guide: Callable[..., Tensor]) -> Tensor:
        """Derivative by the state where what the denoiser predicts stays as it is."""
        call = self.run.recorded(self.step)[0]
        with torch.enable_grad():
            leaf = self._state(replay).detach().double().requires_grad_()
            guided = guide(replay.velocities, call.scales, leaf, call.sigma)
            (found,) = torch.autograd.grad(self._value(leaf, guided), leaf)
        return found

    @abstractmethod
    def _value(self, state: Tensor, guided: Tensor) -> Tensor: ...


class _Last(_Ahead):
    """The metric of the clean estimate."""

    def __init__(self, run: Run, step: int, metric: Still) -> None:
        super().__init__(run, step)
        self.metric = metric

    def _value(self, state: Tensor, guided: Tensor) -> Tensor:
        return self.metric(self.run.clean(self.step, state, guided))


class _Euler(_Ahead):
    """What the steps behind make of the next state, to first order."""

    def __init__(self, run: Run, step: int, behind: Tensor) -> None:
        super().__init__(run, step)
        self.behind, self.stride = behind, run.sigmas[step + 1] - run.sigmas[step]

    def __call__(self, replay: Replay) -> Tensor:
        _require_euler(self.run, self.step, self._state(replay) + self.stride * replay.guided.detach())
        return super().__call__(replay)

    def _value(self, state: Tensor, guided: Tensor) -> Tensor:
        return (self.behind * (state + self.stride * guided)).sum()


def _require_euler(run: Run, step: int, expected: Tensor) -> None:
    true = run.states[step + 1].to(expected.device).double()
    allowed = max(_ROUNDING, torch.finfo(run.states[step + 1].dtype).eps)
    if float((expected.double() - true).norm()) > allowed * float(true.norm()):
        raise UnsupportedModel(
            f"{_WHO}(on='final'): the state after step {step} is not x + (sigma' - sigma) v: derivatives do not come "
            "back through this sampler, or through an edit of the state; use on='step', or an Euler sampler"
        )


def _require_state(run: Run, step: int, given: Tensor) -> None:
    if given.shape != run.states[step].shape or not torch.equal(given, run.states[step].to(given)):
        raise UnsupportedModel(
            f"{_WHO}(on='final'): at step {step} the {run.family} denoiser is not given the sampler's state as it is; "
            "use on='step'"
        )


@dataclass(frozen=True, eq=False)
class Still:
    """A metric of rows that have not moved yet, summed. Rows do not meet: each has the gradient of its own number."""

    metric: Metric
    instances: tuple[Any, ...]
    sides: Sides

    def __call__(self, x0hat: Tensor) -> Tensor:
        clean = x0hat.detach()
        found = self.metric.function(Moved(x0hat, clean, self.instances, clean[self.sides.partners], self.sides))
        if not isinstance(found, Tensor) or found.shape != (len(clean),) or not found.requires_grad:
            got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            how = "" if isinstance(found, Tensor) and found.requires_grad else " without a derivative"
            raise InputError(
                f"{_WHO}: metric {self.metric.name!r} gave {got}{how}; it must give a number for each of {len(clean)} "
                "rows, made of x0hat by torch operations"
            )
        return found.sum()
