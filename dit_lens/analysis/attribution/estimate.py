"""Attribution patching: what patching every site would do, to first order, from one backward pass of each step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dit_lens.analysis.attribution.backward import EstimatorOfEnd, EstimatorOfSteps, Place
from dit_lens.analysis.attribution.result import AttributionPatching
from dit_lens.errors import EvidenceError, InputError, SiteError, UnsupportedModel
from dit_lens.interventions.base import At
from dit_lens.interventions.patch import Patch
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.runs.seeds import row_seeds
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import indices
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites
from dit_lens.sweeps.metrics import Metric, metrics_of
from dit_lens.sweeps.plan import SweepPlan, plan_sweep
from dit_lens.sweeps.sweep import Sweep, carry_out
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.draw import draw_pairs
from dit_lens.tasks.evidence import declares, pairs_that_differ

_WHO = "attribution_patching"


def attribution_patching(
    model: VideoDiT,
    task: Task,
    pairs: int | Sequence[Pair] = 24,
    *,
    sites: Sites = Sites("delta"),  # noqa: B008 - it is frozen
    metric: str | Metric = "share",
    seed: int = 0,
    on: Literal["step", "final"] = "step",
    check: bool | Sites = True,
    **run_arguments: Any,
) -> AttributionPatching:
    """Estimate what patching the other side of a pair into each site does to the clean estimate.

    The estimate is ``(gradient * (donor - own)).sum()`` over tokens and channels, in both directions. One run without
    patches and one forward and backward pass of each step give it for all sites (Nanda 2023; Syed et al. 2023, arXiv
    2310.10348).

    Parameters
    ----------
    pairs : int, or list of pairs of the task
        Those whose right answers differ nowhere are left out.
    sites : Sites
        One component of the video stream: one site for each step, layer and head that is selected, patched in all
        selected branches and tokens.
    metric : "share", "projection" or Metric
        As in `sweep`, of the clean estimate. A function of one's own must be made of torch operations.
    seed : int
        Of the pairs that are drawn and of their noise, which the two sides of a pair share.
    on : "step" or "final"
        The clean estimate of the site's own step, or that of the last step: what the video is decoded from. The latter
        goes back through every step in between, where the sampler is Euler's and the denoiser is given its state as it
        is.
    check : bool or Sites
        Where the patches are made as well, by `sweep`, to compare: everywhere, nowhere, or at some of the sites.
    **run_arguments
        As in `sweep`: ``batch`` (rows at once), ``interventions`` (in every run), ``guidance_scale`` ...

    Raises
    ------
    EvidenceError
        No pairs whose answers differ, or a task that makes none.
    SiteError
        Sites of a text, of several components or around the denoiser, or that the model does not have.
    InputError
        A metric of frames or of a layer, one that has no derivative, or that gives anything but one number for a row.
    UnsupportedModel
        A float16 model: derivatives of many elements are too small for it. With ``on="final"`` another sampler, or a
        family that changes the state before the denoiser is given it.

    Examples
    --------
    ``dl.attribution_patching(model, task, sites=dl.Sites("head", steps=0), check=dl.Sites("head", steps=0, layers=3))``
    """
    if any(expert.dtype == torch.float16 for expert in model.experts.values()):
        raise UnsupportedModel(f"{_WHO}: derivatives are lost in float16; load the model in bfloat16 or float32")
    measured = _differentiable(metric, task)
    if on not in ("step", "final"):
        raise InputError(f"{_WHO}(on={on!r:.80}): 'step' (the clean estimate of a site's own step), or 'final'")
    tried = draw_pairs(task, pairs, seed, who=_WHO)
    given = _with_answers(task, tried)
    make = partial(_plan, model, task, given, metric=measured, on=on, seed=seed, run=run_arguments)
    plan = make(sites)
    patched = plan if isinstance(check, bool) else make(_part(check, sites))
    places = _places(plan)
    if missing := [place for place in _places(patched) if place not in places]:
        raise SiteError(f"{_WHO}(check={check}): {_named(missing[0], sites)} is none of the sites {sites}")
    started = time.perf_counter()
    estimator = (EstimatorOfSteps if on == "step" else EstimatorOfEnd)(plan, sites, places)
    estimates = estimator.of_all(given)
    seconds = time.perf_counter() - started
    truths = np.full_like(estimates, np.nan)
    true = carry_out(patched, progress="patches") if check else None
    if true is not None:
        truths[[places.index(place) for place in _places(patched)]] = _effects(patched, true, len(given))
    return AttributionPatching(
        model=model.id,
        task=task.title,
        metric=measured.name,
        on=on,
        sites=tuple(replace(_named(place, sites), **estimator.noise[place[0]]) for place in places),
        kinds=tuple(None if layer is None else plan.geometry.layer(layer).kind for _, layer, _ in places),
        pairs=tuple(unit for batch in plan.batches for unit in batch.units[::2]),
        tried=len(tried),
        seeds=tuple(row_seeds(seed, len(given))),
        estimates=estimates,
        truths=truths,
        forwards=estimator.blocks / plan.geometry.layers,
        true_forwards=0.0 if true is None else true.forwards,
        seconds=seconds,
        true_seconds=0.0 if true is None else true.seconds,
    )


def _differentiable(metric: str | Metric, task: Task) -> Metric:
    """The one metric, of the model's own clean estimate and with a derivative where nothing has moved."""
    found = metrics_of(metric, task)
    if len(found) != 1 or found[0].of != "x0hat" or found[0].layer is not None or metric == "distance":
        raise InputError(
            f"{_WHO}(metric={metric!r:.80}): need one metric of x0hat with a derivative where nothing has moved yet: "
            "'share', 'projection', or a Metric of your own without a layer"
        )
    return found[0]


def _with_answers(task: Task, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose right answers differ somewhere; all of them where the task does not say."""
    if not declares(task, "answer_mask"):
        return list(pairs)
    differing = pairs_that_differ(task, pairs, who=_WHO)
    if not differing:
        raise EvidenceError(f"{_WHO}: the right answers of no pair differ where what was given does not")
    return [pairs[number] for number in differing]


def _part(check: Sites, sites: Sites) -> Sites:
    """The sites to patch too, which differ from all in nothing but steps, layers and heads."""
    if not isinstance(check, Sites) or check.at(steps=sites.steps, layers=sites.layers, heads=sites.heads) != sites:
        raise SiteError(
            f"{_WHO}(check={check!s:.80}): need True, False, or some of the sites, with the same component, branches "
            "and tokens, such as sites.at(layers=0)"
        )
    return check


def _plan(
    model: VideoDiT,
    task: Task,
    pairs: Sequence[Pair],
    sites: Sites,
    *,
    metric: Metric,
    on: str,
    seed: int,
    run: Mapping[str, Any],
) -> SweepPlan:
    """The sweep that patches each site, which refuses what neither can do."""
    if not isinstance(sites, Sites):
        raise SiteError(f"{_WHO}: {sites!r:.80} is no Sites, such as Sites('delta', steps=0)")
    if len(sites.components) != 1 or sites.stream != "video":
        raise SiteError(f"{_WHO} takes one component of the video stream, such as Sites('delta'); got {sites}")
    settings = {name: value for name, value in run.items() if name not in ("batch", "interventions")}
    geometry = model.geometry(pairs[0].original, **settings)
    over, patch, seeds = _grid(sites, geometry), Patch("pair", sites), row_seeds(seed, len(pairs))
    if on == "final":
        last = geometry.steps - 1
        over |= {"steps": {step: sorted({step, last}) for step in over["steps"]}}
        patch = _AtFirstStep("pair", sites)
    return plan_sweep(model, task, patch, over, metric, instances=pairs, seed=seeds, **run)


class _AtFirstStep(Patch):
    """A patch at the first of its steps, that meets the later ones so that a sweep measures them."""

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        first = min(indices(self.sites.steps, at.geometry.steps, "step"))
        return super().__call__(activation, at) if at.site.step == first else activation.clone()


def _grid(sites: Sites, geometry: Geometry) -> dict[str, Any]:
    """Steps, layers and heads one by one, those of them that the sites have."""
    found = sites.resolve(geometry)
    if any(site.branch is None for site in found):
        raise SiteError(f"{_WHO}: {sites.component} is around the denoiser; take model_input, or velocity")
    columns = {"steps": "step", "layers": "layer", "heads": "head"}
    numbers = {axis: {getattr(site, column) for site in found} - {None} for axis, column in columns.items()}
    return {axis: sorted(chosen) for axis, chosen in numbers.items() if chosen}


def _places(plan: SweepPlan) -> list[Place]:
    """Where each swept cell patches."""
    first = [plan.sites(cell)[0] for cell in plan.cells if cell.kind == "swept"]
    return [(site.step, site.layer, site.head) for site in first]


def _named(place: Place, sites: Sites) -> Site:
    """A place as a site of the selection; several branches that are patched together are none."""
    branches = [sites.branches] if isinstance(sites.branches, str) else sites.branches
    branch = branches[0] if len(branches) == 1 and branches[0] != "all" else None
    step, layer, head = place
    return Site(step, branch, layer, sites.components[0], head=head)


def _effects(plan: SweepPlan, true: Sweep, pairs: int) -> Floats:
    """By how much every cell changed the metric, in both directions: (K, P, 2)."""
    if true.errors:
        raise EvidenceError(f"{_WHO}: {next(iter(true.errors.values()))}")
    read = list(zip(plan.cells, true.values[:, 0], strict=True))
    still = {cell.step: values for cell, values in read if cell.kind == "baseline"}
    changes = [values - still[cell.step] for cell, values in read if cell.kind == "swept"]
    return np.stack(changes).reshape(-1, pairs, 2)
