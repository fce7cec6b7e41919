"""The step lens: what the model believes the clean video to be, at every denoising step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dit_lens.engine.dispatcher import velocities
from dit_lens.errors import InputError, SiteError
from dit_lens.files.video import Video
from dit_lens.interventions.capture import Capture
from dit_lens.lens.decoding import decode_estimates, require_made_by
from dit_lens.lens.preview import Preview
from dit_lens.lens.reading import among, tidy
from dit_lens.lens.source import Recorded, arguments_of, is_finished, require_sites
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import over_instances
from dit_lens.results.plots import curves
from dit_lens.results.result import Result
from dit_lens.runs.inputs import Row
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The combined prediction, among the names of branches.
GUIDED = "guided"
#: What `StepLens.table` measures.
MEASURES = ("cosine", "distance", "change")
_NAME = "step_lens"


@dataclass(frozen=True, repr=False)
class StepLens(Result):
    """x0hat at the steps of a run, in the sampler's normalised latents.

    Attributes
    ----------
    estimates : dict from branch to Tensor of shape (S, B, C, F, H, W)
        "guided" is of the combined prediction; the others are of one branch's alone, before guidance.
    steps : tuple of int, S of them
    sigmas, alphas : tuple of float, S of them
    experts : tuple of str or None, S of them
    rows : tuple of Row, B of them
    final : Tensor of shape (B, C, F, H, W), or None
        The latents with which the run ended; None where it was stopped before its last step.
    model_id : str
        Of the model that made the run.
    """

    estimates: Mapping[str, Tensor]
    steps: tuple[int, ...]
    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    experts: tuple[str | None, ...]
    rows: tuple[Row, ...]
    final: Tensor | None
    model_id: str

    @property
    def x0hat(self) -> Tensor:
        """Clean estimates of the guided prediction: (S, B, C, F, H, W)."""
        return self.branch(GUIDED)

    def branch(self, name: str) -> Tensor:
        """Clean estimates of one branch, or of "guided": (S, B, C, F, H, W).

        Raises
        ------
        SiteError
            The branch is not in this lens.
        """
        if name not in self.estimates:
            raise SiteError(f"this lens has no branch {name!r}; it has {', '.join(self.estimates)}")
        return self.estimates[name]

    def decode(
        self,
        model: VideoDiT,
        *,
        sites: Sites = Sites(GUIDED),  # noqa: B008 - it is frozen
        branch: str = GUIDED,
        frames: Select = "all",
        preview: Preview | None = None,
        batch: int = 32,
    ) -> Video:
        """Decoded estimates: uint8 (steps, B, T, height, width, 3).

        Parameters
        ----------
        model : VideoDiT
            The model that made the run.
        sites : Sites
            Decode only these of the steps that were read.
        branch : str
        frames : Select
            Decode only these pixel frames, in order. Where the VAE's decoder is causal, no latent frame behind the last
            that is needed is decoded.
        preview : Preview, optional
            Draw with this linear map instead of the VAE, at the same size.
        batch : int
            Videos that the VAE is given at once; the rows of all steps share batches.

        Raises
        ------
        SiteError
            A step, frame or branch that there is not.
        MadeForAnother
            Another model than that of the run, or a preview of another VAE.
        """
        require_made_by(model, self.model_id, preview)
        chosen = self.branch(branch)[among("step", self.steps, sites.steps)]
        return decode_estimates(model, chosen, frames, preview, batch)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """How each estimate stands to where the run ended: the commitment curve of arXiv 2603.30043, on whole latents.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, alpha, instance, seed, measure, value; measures are
            cosine : of the estimate to the run's final latents; NaN where it was stopped before its last step
            distance : from them, relative to their norm; NaN there too
            change : from the estimate of the step before, relative to that one's norm; NaN where that was not read
        """
        names = ["step", "sigma", "expert", "alpha"]
        levels = pd.DataFrame(zip(self.steps, self.sigmas, self.experts, self.alphas, strict=True), columns=names)
        parts = []
        for branch, estimates in self.estimates.items():
            found = dict(zip(MEASURES, measures(estimates, self.final, self.steps), strict=True))
            places = levels.assign(branch=branch)[["step", "sigma", "expert", "branch", "alpha"]]
            parts.append(tidy(places, self.rows, found))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def table(self) -> pd.DataFrame:
        """`samples`, the mean over instances with its 95 % bootstrap interval."""
        return over_instances(self.samples)

    def plot(self, axis: Axes | None = None, *, measure: str = "cosine") -> Axes:
        """One measure over the steps, a line for each branch: mean over instances, 95 % bootstrap interval.

        A vertical line stands where the expert changes.

        Parameters
        ----------
        measure : one of ``MEASURES``
        """
        if measure not in MEASURES:
            raise InputError(f"unknown measure {measure!r}; one of {', '.join(MEASURES)}")
        table = self.table[self.table["measure"] == measure].dropna(subset=["value"])
        if table.empty:
            raise InputError(
                f"this run was stopped before its last step and has no {measure} to its end; plot 'change'"
            )
        axis = curves(table, "step", "value", "branch", axis)
        for place in range(1, len(self.steps)):
            if self.experts[place] != self.experts[place - 1]:
                axis.axvline(self.steps[place] - 0.5, color="0.5", linestyle=":", linewidth=1)
        shown = range(0, len(self.steps), max(1, len(self.steps) // 10))
        axis.set_xticks([self.steps[i] for i in shown], [f"{self.steps[i]}\n{self.sigmas[i]:.2f}" for i in shown])
        axis.set(xlabel="step, and its sigma", ylabel=_LABELS[measure])
        axis.set_title(f"step lens, {len({row.instance for row in self.rows})} instances", fontsize=9)
        return axis


_LABELS = {
    "cosine": "cosine of x0hat to the final latents",
    "distance": "distance of x0hat from the final latents",
    "change": "change of x0hat since the step before",
}


@torch.no_grad()
def step_lens(
    model: VideoDiT,
    source: Any,
    *,
    sites: Sites = Sites(GUIDED),  # noqa: B008 - it is frozen
    **run_arguments: Any,
) -> StepLens:
    """x0hat at every step, from the guidance-combined prediction (x_s - sigma_s v in flow matching).

    Of a recorded run the model computes nothing. Inputs are run to the end, with which estimates are compared.

    Parameters
    ----------
    source : Run made with ``record=True``, or inputs as in `VideoDiT.run`
    sites : Sites
        Steps, and which predictions the estimates are of: "guided", the combined one, or "velocity", that of each of
        ``branches`` alone, or both.
    **run_arguments
        Of inputs ``seed``, ``interventions`` and the others of `VideoDiT.run`; of a run none.

    Raises
    ------
    InputError
        The run was not made with ``record=True``, no step of it was finished, or arguments beside it.
    SiteError
        Before a run: a step or branch that it will not have, or another component.
    MadeForAnother
        The run is of another model.

    Notes
    -----
    The Chain-of-Steps viewer of "Demystifying Video Reasoning" (arXiv 2603.16870), experiment E1.
    """
    require_sites("step_lens", sites, [GUIDED, "velocity"])
    if isinstance(source, Run):
        return _of_run(model, source, sites, run_arguments)
    seed, interventions, others = arguments_of(run_arguments)
    captures = [Capture(sites, name=_NAME), Capture(sites.at(component="latents"), name=f"{_NAME}.states")]
    run = model.run(source, seed, interventions=[*interventions, *captures], decode=False, **others)
    # What the estimates are made of need not stay in memory beside them.
    states = {site.step: state for site, state in run.captures.pop(f"{_NAME}.states").items()}
    return _lens(run, states, _by_step(run.captures.pop(_NAME)))


def _of_run(model: VideoDiT, run: Run, sites: Sites, run_arguments: Mapping[str, Any]) -> StepLens:
    """From the record: nothing is computed by the model."""
    if "interventions" in run_arguments:
        raise InputError("interventions= beside a run: a step lens of a run reads its record; make the run under them")
    recorded = Recorded.of(model, run, sites, {**run_arguments, "interventions": ()})  # no step is done again
    steps = recorded.steps(sites)
    if unfinished := [step for step in steps if not is_finished(run, step)]:
        raise InputError(f"step {unfinished[0]} of this run was not finished; choose steps before it")
    wanted = {site for site in sites.resolve(run.geometry) if site.step in steps}
    found = {site: x for step in steps for site, x in _predictions(model, run, step).items() if site in wanted}
    return _lens(run, {step: run.states[step] for step in steps}, _by_step(found))


def _predictions(model: VideoDiT, run: Run, step: int) -> dict[Site, Tensor]:
    """What each branch predicted at a recorded step, and the combined prediction."""
    calls = run.recorded(step)
    found = {name: v for call in calls for name, v in velocities(call, call.output).items()}
    guided = model.architecture.guide(found, calls[-1].scales, run.states[step], calls[0].sigma)
    return {Site(step, None, None, GUIDED): guided} | {
        Site(step, name, None, "velocity"): found[name] for name in run.geometry.branches
    }


def _by_step(found: Mapping[Site, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Predictions by step and branch."""
    steps: dict[int, dict[str, Tensor]] = {}
    for site, prediction in found.items():
        steps.setdefault(site.step, {})[site.branch or GUIDED] = prediction
    return steps


def _lens(run: Run, states: Mapping[int, Tensor], predicted: Mapping[int, Mapping[str, Tensor]]) -> StepLens:
    """From the state and the predictions of each step."""
    steps = sorted(predicted)
    calls = {call.step: call for call in run.calls}
    return StepLens(
        estimates={
            name: torch.stack([run.clean(s, states[s], predicted[s][name]) for s in steps])
            for name in sorted(predicted[steps[0]], key=lambda name: name != GUIDED)
        },
        steps=tuple(steps),
        sigmas=tuple(calls[s].sigma for s in steps),
        alphas=tuple(calls[s].alpha for s in steps),
        experts=tuple(calls[s].expert for s in steps),
        rows=run.rows,
        final=run.latents if run.ended else None,
        model_id=run.model_id,
    )


def measures(estimates: Tensor, final: Tensor | None, steps: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """Cosine to and relative distance from the final latents, and relative change: three of shape (S, B).

    Parameters
    ----------
    estimates : Tensor of shape (S, B, C, F, H, W)
    final : Tensor of shape (B, C, F, H, W), or None
        Without it there is no cosine and no distance: they are NaN.
    steps : list of int, S of them
        There is a change only where the step before is one of them.
    """
    x = estimates.flatten(2).double()
    cosine = distance = change = torch.full(x.shape[:2], torch.nan, dtype=x.dtype, device=x.device)
    if final is not None:
        end = final.to(x.device).flatten(1).double()
        cosine = torch.nn.functional.cosine_similarity(x, end.expand_as(x), dim=-1)
        distance = (x - end).norm(dim=-1) / end.norm(dim=-1)
    change = change.clone()
    change[1:] = (x[1:] - x[:-1]).norm(dim=-1) / x[:-1].norm(dim=-1)
    change[1:][torch.tensor(np.diff(steps) != 1, dtype=torch.bool)] = torch.nan
    return _numbers(cosine), _numbers(distance), _numbers(change)


def _numbers(values: Tensor) -> Floats:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)
