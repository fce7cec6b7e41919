"""The step lens: what the model believes the clean video to be, at every denoising step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.engine.dispatcher import velocities
from dit_lens.errors import InputError, SiteError
from dit_lens.families.registry import family_named
from dit_lens.interventions.capture import Capture
from dit_lens.lens.decoding import decode_estimates, require_made_by
from dit_lens.lens.preview import Preview
from dit_lens.model import VideoDiT
from dit_lens.results.intervals import means_over_instances
from dit_lens.results.plots import curves
from dit_lens.runs.inputs import Row
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select, indices
from dit_lens.sites.sites import Sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The combined prediction, among the names of branches.
GUIDED = "guided"
#: What `StepLens.frame` measures.
MEASURES = ("cosine", "distance", "change")
_NAME = "step_lens"


@dataclass(frozen=True)
class StepLens:
    """x0hat of every step of a run, in the sampler's normalised latents.

    Attributes
    ----------
    estimates : dict from branch to Tensor of shape (S, B, C, F, H, W)
        "guided" is of the combined prediction; the others are of one branch's alone, before guidance.
    sigmas, alphas : tuple of float, S of them
    experts : tuple of str or None, S of them
    run : Run
    """

    estimates: Mapping[str, Tensor]
    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    experts: tuple[str | None, ...]
    run: Run

    @classmethod
    def of(cls, run: Run, branches: str | Sequence[str] = ()) -> StepLens:
        """The step lens of a finished run, from its record: nothing is computed by the model.

        Parameters
        ----------
        run : Run made with ``record=True``
        branches : list of str, or "all"
            As in `step_lens`.

        Raises
        ------
        InputError
            The run was not made with ``record=True``, or no step of it was finished.
        SiteError
            A branch that the run does not have.
        """
        wanted = _branches(branches, run.geometry.branches)
        states, predicted = {}, {}
        for step in sorted({call.step for call in run.calls}):
            calls = run.recorded(step)
            found = {name: v for call in calls for name, v in velocities(call, call.output).items()}
            if set(found) == set(run.geometry.branches):  # a run may have been stopped within its last step
                guide, states[step] = family_named(run.family).guide, run.states[step]
                found[GUIDED] = guide(found, calls[-1].scales, states[step], calls[0].sigma)
                predicted[step] = found
        return cls._from(run, wanted, states, predicted)

    @classmethod
    def _from(
        cls,
        run: Run,
        branches: Sequence[str],
        states: Mapping[int, Tensor],
        predicted: Mapping[int, Mapping[str, Tensor]],
    ) -> StepLens:
        """From the state and the predictions by branch of each step."""
        if not predicted:
            raise InputError("step lens: no step of this run was finished")
        estimates = {
            branch: torch.stack([run.clean(s, states[s], predicted[s][branch]) for s in sorted(predicted)])
            for branch in (GUIDED, *branches)
        }
        calls = {call.step: call for call in run.calls if call.step in predicted}
        sigmas, alphas, experts = zip(*((c.sigma, c.alpha, c.expert) for c in calls.values()), strict=True)
        return cls(estimates, sigmas, alphas, experts, run)

    @property
    def x0hat(self) -> Tensor:
        """Clean estimates of the guided prediction: (S, B, C, F, H, W)."""
        return self.estimates[GUIDED]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Task instance and seed of each row."""
        return self.run.rows

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
        steps: Select | None = None,
        frames: Select | None = None,
        branch: str = GUIDED,
        preview: Preview | None = None,
        batch: int = 32,
    ) -> NDArray[np.uint8]:
        """Decoded estimates: uint8 (steps, B, T, height, width, 3).

        Parameters
        ----------
        model : VideoDiT
            The model that made the run.
        steps, frames : Select, optional
            Decode only these steps and pixel frames, each in order (default: all). Where the VAE's decoder is causal,
            no latent frame behind the last that is needed is decoded.
        branch : str
        preview : Preview, optional
            Draw with this linear map instead of the VAE, at the same size.
        batch : int
            Videos that the VAE is given at once; the rows of all steps share batches.

        Raises
        ------
        SiteError
            A step, frame or branch that there is not.
        MadeForAnother
            A model of which the run is not, or a preview of another VAE.
        """
        require_made_by(model, self.run.model_id, preview)
        estimates = self.branch(branch)
        chosen = estimates[indices("all" if steps is None else steps, len(estimates), "step")]
        return decode_estimates(model, chosen, frames, preview, batch)

    def frame(self) -> pd.DataFrame:
        """How each estimate stands to where the run ended: the commitment curve of arXiv 2603.30043, on whole latents.

        Returns
        -------
        DataFrame with columns step, sigma, alpha, expert, branch, instance, seed, and
            cosine : of the estimate to the run's final latents
            distance : from them, relative to their norm
            change : from the estimate of the step before, relative to that one's norm; NaN at the first
        """
        rows = []
        for branch, estimates in self.estimates.items():
            values = np.stack(measures(estimates, self.run.latents), axis=-1)  # (S, B, measures)
            for step, of_step in enumerate(values):
                place = step, self.sigmas[step], self.alphas[step], self.experts[step], branch
                rows += [
                    (*place, row.instance, row.seed, *numbers) for row, numbers in zip(self.rows, of_step, strict=True)
                ]
        names = ["step", "sigma", "alpha", "expert", "branch", "instance", "seed", *MEASURES]
        return pd.DataFrame(rows, columns=names)

    def plot(self, axis: Axes | None = None, measure: str = "cosine") -> Axes:
        """One measure over the steps, a line for each branch: mean over instances, 95 % bootstrap interval.

        A vertical line stands where the expert changes.

        Parameters
        ----------
        measure : one of ``MEASURES``
        """
        if measure not in MEASURES:
            raise SiteError(f"unknown measure {measure!r}; one of {', '.join(MEASURES)}")
        table = self.frame().dropna(subset=[measure])
        axis = curves(means_over_instances(table, ["branch", "step"], measure), "step", measure, "branch", axis)
        for step in range(1, len(self.experts)):
            if self.experts[step] != self.experts[step - 1]:
                axis.axvline(step - 0.5, color="0.5", linestyle=":", linewidth=1)
        shown = range(0, len(self.sigmas), max(1, len(self.sigmas) // 10))
        axis.set_xticks(list(shown), [f"{s}\n{self.sigmas[s]:.2f}" for s in shown])
        axis.set(xlabel="step, and its sigma", ylabel=_LABELS[measure])
        axis.set_title(f"step lens, {len({row.instance for row in self.rows})} instances", fontsize=9)
        return axis


_LABELS = {
    "cosine": "cosine of x0hat to the final latents",
    "distance": "distance of x0hat from the final latents",
    "change": "change of x0hat since the step before",
}


def step_lens(
    model: VideoDiT,
    inputs: Any,
    seed: int | Sequence[int] = 0,
    *,
    branches: str | Sequence[str] = (),
    **run_arguments: Any,
) -> StepLens:
    """Run and keep x0hat at every step, from the guidance-combined prediction (x_s - sigma_s v in flow matching).

    Of a run that was recorded, `StepLens.of` makes the same without running.

    Parameters
    ----------
    inputs, seed, **run_arguments
        As in `VideoDiT.run`.
    branches : list of str, or "all"
        Guidance branches whose own estimates are kept besides the guided one ("cond", "uncond" ...).

    Raises
    ------
    SiteError
        Before the run: a branch that it will not have.

    Notes
    -----
    The Chain-of-Steps viewer of "Demystifying Video Reasoning" (arXiv 2603.16870), experiment E1.
    """
    given = [branches] if isinstance(branches, str) else list(branches)
    names = "all" if given == ["all"] else tuple(name for name in given if name != GUIDED)
    captures = [Capture(Sites(("latents", GUIDED)), name=_NAME)]
    if names:
        captures.append(Capture(Sites("velocity", branches=names), name=f"{_NAME}.branches"))
    others = list(run_arguments.pop("interventions", ()))
    run = model.run(inputs, seed, interventions=[*others, *captures], **run_arguments)
    # What the estimates are made of need not stay in memory beside them.
    around, inside = run.captures.pop(_NAME, {}), run.captures.pop(f"{_NAME}.branches", {})
    states = {site.step: tensor for site, tensor in around.items() if site.component == "latents"}
    predicted = {site.step: {GUIDED: tensor} for site, tensor in around.items() if site.component == GUIDED}
    for site, tensor in inside.items():
        if site.step in predicted and site.branch is not None:
            predicted[site.step][site.branch] = tensor
    return StepLens._from(run, _branches(names, run.geometry.branches), states, predicted)


def measures(estimates: Tensor, final: Tensor) -> tuple[NDArray[np.float64], ...]:
    """Cosine to and relative distance from the final latents, and relative change: three of shape (S, B).

    Parameters
    ----------
    estimates : Tensor of shape (S, B, C, F, H, W)
    final : Tensor of shape (B, C, F, H, W)
    """
    x, end = estimates.flatten(2).double(), final.to(estimates.device).flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(x, end.expand_as(x), dim=-1)
    distance = (x - end).norm(dim=-1) / end.norm(dim=-1)
    change = torch.full_like(distance, torch.nan)
    change[1:] = (x[1:] - x[:-1]).norm(dim=-1) / x[:-1].norm(dim=-1)
    return tuple(values.cpu().numpy() for values in (cosine, distance, change))


def _branches(given: str | Sequence[str], there: Sequence[str]) -> list[str]:
    """Branches besides the guided prediction, in the order of the run."""
    if given == "all":
        return list(there)
    names = [given] if isinstance(given, str) else list(given)
    if unknown := [name for name in names if name not in (*there, GUIDED)]:
        raise SiteError(f"no branch {unknown[0]!r}; this run has {', '.join(there)} and {GUIDED!r}")
    return [name for name in there if name in names]
