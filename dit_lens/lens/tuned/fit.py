"""Fitting a tuned lens: runs are made one batch after the other, and nothing of them is kept but sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.engine.gradients import frozen
from dit_lens.errors import EvidenceError, InputError
from dit_lens.lens.source import at_branch, replayed_arguments_of, require_sites, reusable
from dit_lens.lens.tuned.bands import NoiseBand, band_of, make_bands
from dit_lens.lens.tuned.recipe import TunedLensRecipe
from dit_lens.lens.tuned.runs import Runs, Seeded, StepReading
from dit_lens.lens.tuned.sums import ResidualSums
from dit_lens.lens.tuned.tuned_lens import Errors, Record, TunedLens
from dit_lens.model import VideoDiT
from dit_lens.runs.describe import describe
from dit_lens.runs.identity import versions
from dit_lens.runs.inputs import gather
from dit_lens.sites.select import indices, is_all
from dit_lens.sites.sites import Sites
from dit_lens.tasks.base import Task
from dit_lens.tasks.draw import listed_tasks

#: (band, layer).
BandLayer = tuple[int, int]
#: W (D, D) and b (D,) of x -> x + x W + b.
Affine = tuple[Tensor, Tensor]


def train_tuned_lens(
    model: VideoDiT,
    task: Task | Sequence[Task],
    *,
    runs: int = 256,
    validation: int = 64,
    sites: Sites = Sites(),  # noqa: B008 - it is frozen
    recipe: TunedLensRecipe = TunedLensRecipe(),  # noqa: B008 - it is frozen
    branch: str = "cond",
    seed: int = 0,
    **run_arguments: Any,
) -> TunedLens:
    """Train a tuned lens on runs of one or several tasks.

    Parameters
    ----------
    task : Task or list of Task
        Training instances are drawn from their split "train", validation instances from "val".
    runs, validation : int
        Runs of each kind, divided among the tasks.
    seed : int
        Of the instances and of the runs; see `fit_tuned_lens`.
    sites, recipe, branch, **run_arguments
        As in `fit_tuned_lens`.

    Raises
    ------
    EvidenceError
        What is no task, too few runs, or instances that are in both splits.
    """
    tasks = listed_tasks(task, who="train_tuned_lens")
    if min(runs, validation) < 2 * len(tasks):
        raise EvidenceError(
            f"runs={runs}, validation={validation}: too few; need 2 of each for each of {len(tasks)} tasks"
        )
    train = [i for t in tasks for i in t.sample(runs // len(tasks), seed, "train")]
    held_out = [i for t in tasks for i in t.sample(validation // len(tasks), seed, "val")]
    return fit_tuned_lens(model, train, held_out, sites=sites, recipe=recipe, branch=branch, seed=seed, **run_arguments)


def fit_tuned_lens(
    model: VideoDiT,
    train: Sequence[Any],
    validation: Sequence[Any],
    *,
    sites: Sites = Sites(),  # noqa: B008 - it is frozen
    recipe: TunedLensRecipe = TunedLensRecipe(),  # noqa: B008 - it is frozen
    branch: str = "cond",
    seed: int = 0,
    **run_arguments: Any,
) -> TunedLens:
    """Fit a tuned lens to runs of given instances.

    Parameters
    ----------
    train, validation : lists of what `VideoDiT.run` takes
        They must share no instance.
    sites : Sites
        Layers to translate, of the component "resid" at all steps.
    recipe : TunedLensRecipe
        How; the lens keeps it.
    branch : str
        The guidance branch that is read.
    seed : int
        Training and validation runs each derive seeds of their own from it, and share no noise.
    **run_arguments
        Of the runs, such as ``num_inference_steps`` or ``interventions``.

    Notes
    -----
    Every run is made once and each of its steps replayed once, for each pass over it. What is kept are sums: of each
    band and layer 16 D^2 bytes. A translator is used where it lowers the squared error of the velocity on the
    validation runs, whatever it was trained to; elsewhere the identity is.

    Runs of several tasks come in random order, and tasks whose pictures have one size share batches.

    The errors "train" of the velocity are of every k-th training run of the first pass, k = runs // validation runs.
    Those of the residual are of all.

    Raises
    ------
    EvidenceError
        Too few runs, or instances that are in both lists.
    SiteError
        Layers or a branch that the model does not have, or other sites than those of the residual stream at all steps.
    InputError
        Bands that are none.
    """
    _check(train, validation, sites, branch, run_arguments)
    runs = Runs(model, branch, recipe.batch, reusable(run_arguments))
    passes = [list(zip(train, seeds, strict=True)) for seeds in recipe.train_seeds(seed, len(train))]
    held_out = list(zip(validation, recipe.validation_seeds(seed, len(validation)), strict=True))
    bands = make_bands(runs.levels(train[0]), recipe.bands)
    layers = [k for k in indices(sites.layers, model.layers, "layer") if k < model.layers - 1]
    if not layers:
        raise InputError(f"no layer to translate before the last, {model.layers - 1}; got layers {sites.layers!r}")
    parts = {"train": passes[0], "validation": held_out}
    moments = {what: _moments(runs, part, bands, layers, what) for what, part in parts.items()}
    penalty, maps = _solved(runs, passes, bands, recipe, moments)
    parts["train"] = passes[0][:: max(1, len(train) // len(validation))]
    shown = {what: _velocity_errors(runs, part, bands, maps, f"errors, {what}") for what, part in parts.items()}
    errors = [_entry(place, bands[place[0]], penalty[place], maps[place], moments, shown) for place in maps]
    record = Record(
        model_id=model.id,
        family=model.architecture.family,
        layers=model.layers,
        width=model.architecture.width(model.pipeline.transformer),
        bands=bands,
        recipe=recipe,
        tasks=_tasks(train),
        train=_ids(train),
        validation=_ids(validation),
        seed=seed,
        settings=_plain(run_arguments),
        errors=tuple(errors),
        versions=versions(),
        branch=branch,
    )
    return _of(record, maps)


def _solved(
    runs: Runs,
    passes: Sequence[Seeded],
    bands: Sequence[NoiseBand],
    recipe: TunedLensRecipe,
    moments: Mapping[str, Mapping[BandLayer, ResidualSums]],
) -> tuple[dict[BandLayer, Any], dict[BandLayer, Affine]]:
    """The penalty (None after gradient steps) and the translator of each place."""
    _check_enough(moments["train"], bands)
    penalty, maps = _ridge(moments["train"], moments["validation"], recipe.penalties)
    if recipe.objective == "residual":
        return penalty, maps
    zeros = {place: (torch.zeros_like(w), torch.zeros_like(b)) for place, (w, b) in maps.items()}
    begin = maps if recipe.start == "residual" else zeros
    return dict.fromkeys(maps), _descend(runs, passes, bands, begin, recipe.rate)


def _of(record: Record, maps: Mapping[BandLayer, Affine]) -> TunedLens:
    """The lens of a record: the translators that are used."""
    used = [(e["band"], e["layer"]) for e in record.errors if e["used"]]
    matrices, biases = ({place: maps[place][i].float().contiguous() for place in used} for i in (0, 1))
    return TunedLens(record, matrices, biases)


def _check(
    train: Sequence[Any], validation: Sequence[Any], sites: Sites, branch: str, run_arguments: Mapping[str, Any]
) -> None:
    """Before anything runs."""
    require_sites("a tuned lens", at_branch(sites, branch), ["resid"])
    if not is_all(sites.steps):
        raise InputError(f"a tuned lens is fitted at all steps, got steps={sites.steps!r}; its recipe has bands")
    replayed_arguments_of(run_arguments)
    if min(len(train), len(validation)) < 2:
        raise EvidenceError(
            f"{len(train)} training and {len(validation)} validation instances; need at least 2 of each"
        )
    if shared := sorted(set(_ids(train)) & set(_ids(validation))):
        raise EvidenceError(f"{len(shared)} instances are in both training and validation: {', '.join(shared[:3])}")


def _check_enough(moments: Mapping[BandLayer, ResidualSums], bands: Sequence[NoiseBand]) -> None:
    for (band, _), sums in moments.items():
        if sums.n <= len(sums.x):
            raise EvidenceError(
                f"{sums.n} tokens in the band {bands[band]} for translators of {len(sums.x)} channels; make more runs"
            )


def _moments(
    runs: Runs, rows: Seeded, bands: Sequence[NoiseBand], layers: Sequence[int], what: str
) -> dict[BandLayer, ResidualSums]:
    """Sufficient statistics of every band and layer."""
    width = runs.model.architecture.width(runs.model.pipeline.transformer)
    sums = {(band, layer): ResidualSums(width) for band in range(len(bands)) for layer in layers}
    last = runs.model.layers - 1
    for reading in runs.readings(rows, what, [*layers, last]):
        band = band_of(bands, reading.call.sigma, reading.call.expert)
        for layer in layers:
            sums[band, layer].add(reading.residuals[layer], reading.residuals[last])
    return sums


def _ridge(
    learned: Mapping[BandLayer, ResidualSums], judged: Mapping[BandLayer, ResidualSums], penalties: Sequence[float]
) -> tuple[dict[BandLayer, Any], dict[BandLayer, Affine]]:
    """For each place the penalty whose solution errs least on the validation runs, and that solution."""
    penalty, maps = {}, {}
    for place, sums in learned.items():
        best = min(sums.solutions(penalties), key=lambda found: judged[place].error(*found[1:]))
        penalty[place], maps[place] = best[0], best[1:]
    return penalty, maps


def _descend(
    runs: Runs, passes: Sequence[Seeded], bands: Sequence[NoiseBand], maps: Mapping[BandLayer, Any], rate: float
) -> dict[BandLayer, Affine]:
    """Gradient steps on the squared error of the velocity, one for every step of every batch of runs."""
    free = {place: [x.float().clone().requires_grad_() for x in of_place] for place, of_place in maps.items()}
    optimizer = torch.optim.Adam([x for of_place in free.values() for x in of_place], lr=rate)
    # A batch of runs makes as many gradient steps as it has denoising steps.
    total = len(runs.levels(passes[0][0][0])) * sum(len(runs.turns(rows)) for rows in passes)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: max(0.0, 1 - k / total))
    layers = sorted({layer for _, layer in maps})
    for i, rows in enumerate(passes, start=1):
        for reading in runs.readings(rows, f"pass {i} of {len(passes)}", layers):
            band = band_of(bands, reading.call.sigma, reading.call.expert)
            with torch.enable_grad(), frozen(runs.model.experts.values()):
                loss = torch.stack([_loss(runs.model, reading, k, free[band, k]) for k in layers]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    return {place: (matrix.detach(), bias.detach()) for place, (matrix, bias) in free.items()}


def _loss(model: VideoDiT, reading: StepReading, layer: int, parameters: Sequence[Tensor]) -> Tensor:
    """Squared error of the velocity that a translated residual shows, relative to the model's own."""
    shown = model.read_out(reading.call, _translated(reading.residuals[layer], parameters), reading.conditioning)
    own = reading.velocity.float()
    return (shown.float() - own).square().mean() / own.square().mean()


def _translated(residual: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    matrix, bias = (x.to(residual.device, torch.float32) for x in parameters)
    wide = residual.float()
    return (wide + wide @ matrix + bias).to(residual.dtype)


@torch.no_grad()
def _velocity_errors(
    runs: Runs, rows: Seeded, bands: Sequence[NoiseBand], maps: Mapping[BandLayer, Affine], what: str
) -> dict[BandLayer, tuple[float, float]]:
    """Relative squared error of the velocity, plain and tuned, of every band and layer."""
    sums = {place: np.zeros(3) for place in maps}
    layers = sorted({layer for _, layer in maps})
    for reading in runs.readings(rows, what, layers):
        band = band_of(bands, reading.call.sigma, reading.call.expert)
        own = reading.velocity.double()
        for layer in layers:
            plain = reading.residuals[layer]
            lenses = (plain, _translated(plain, maps[band, layer]))
            shown = [runs.model.read_out(reading.call, x, reading.conditioning).double() for x in lenses]
            sums[band, layer] += [*(float((v - own).square().sum()) for v in shown), float(own.square().sum())]
    return {place: (plain / power, tuned / power) for place, (plain, tuned, power) in sums.items()}


def _entry(
    place: BandLayer,
    band: NoiseBand,
    penalty: Any,
    affine: Affine,
    moments: Mapping[str, Mapping[BandLayer, ResidualSums]],
    velocity: Mapping[str, Mapping[BandLayer, tuple[float, float]]],
) -> Errors:
    """One row of the record."""
    row: Any = {
        "band": place[0],
        "sigma_low": band.low,
        "sigma_high": band.to_json()["high"],
        "expert": band.expert,
        "layer": place[1],
        "used": bool(velocity["validation"][place][1] < velocity["validation"][place][0]),
        "penalty": penalty,
    }
    for part, of_part in moments.items():
        sums, (plain, tuned) = of_part[place], velocity[part][place]
        row |= {f"residual_{part}_plain": sums.error(), f"residual_{part}_tuned": sums.error(*affine)}
        row |= {f"velocity_{part}_plain": plain, f"velocity_{part}_tuned": tuned}
    found: Errors = row
    return found


def _ids(instances: Sequence[Any]) -> tuple[str, ...]:
    return tuple(row.instance for row in gather(list(instances), 0).rows)


def _tasks(instances: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(i.task) for i in instances if hasattr(i, "task")))


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the runs as JSON types, what is none by a short text."""
    return {k: v if isinstance(v, str | int | float | None) else describe(v) for k, v in arguments.items()}
