"""Training a tuned lens: runs are made one batch after the other, and nothing of them is kept but sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dit_lens.engine.gradients import frozen
from dit_lens.errors import EvidenceError, InputError
from dit_lens.interventions.capture import Capture
from dit_lens.lens.tuned.bands import NoiseBand, NoiseLevel, band_of, make_bands
from dit_lens.lens.tuned.sums import ResidualSums
from dit_lens.lens.tuned.tuned_lens import Errors, Record, TunedLens
from dit_lens.model import VideoDiT
from dit_lens.runs.call import Call
from dit_lens.runs.describe import describe
from dit_lens.runs.identity import versions
from dit_lens.runs.inputs import gather
from dit_lens.sites.select import Select, indices
from dit_lens.sites.sites import Sites

#: Penalties to choose from, relative to the mean variance of a channel.
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
OBJECTIVES = ("residual", "velocity")
#: (band, layer).
BandLayer = tuple[int, int]
#: W (D, D) and b (D,) of x -> x + x W + b.
Affine = tuple[Tensor, Tensor]
#: Instances, each with the seed that it runs with.
Seeded = Sequence[tuple[Any, int]]


@dataclass(frozen=True)
class StepReading:
    """One step of B rows in one branch.

    Attributes
    ----------
    residuals : dict from layer to Tensor of shape (B, F, H, W, D)
        The residual stream after the blocks that were asked for.
    velocity : Tensor of shape (B, C, F, H, W)
        The model's own.
    conditioning : dict
        What the head needs besides.
    """

    call: Call
    residuals: dict[int, Tensor]
    velocity: Tensor
    conditioning: Mapping[str, Any]


@dataclass
class Runs:
    """How to make the runs of a training: the same for every instance."""

    model: VideoDiT
    branch: str = "cond"
    batch: int = 16
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def levels(self, instance: Any) -> list[NoiseLevel]:
        """Noise level and expert of every step of a run, of however many calls a step is made."""
        run = self.model.run(instance, decode=False, **self.arguments)
        return list({call.step: (call.sigma, call.expert) for call in run.calls}.values())

    def readings(self, seeded: Seeded, what: str, layers: Select = "all") -> Iterator[StepReading]:
        """Every step of a run of every instance; activations of two steps at most are in memory."""
        for part, seeds in tqdm(list(batches(seeded, self.batch)), desc=what, unit="batch"):
            run = self.model.run(part, seeds, record=True, decode=False, **self.arguments)
            for step in range(run.geometry.steps):
                sites = Sites("resid", steps=step, layers=layers, branches=self.branch)
                replay = self.model.replay(run, step, [Capture(sites)])
                call = next(c for c in run.recorded(step) if self.branch in c.branches)
                residuals = {int(site.layer or 0): x for site, x in replay.captures[""].items()}
                yield StepReading(call, residuals, replay.velocities[self.branch], replay.conditioning[self.branch])


def seeded_from(instances: Sequence[Any], first: int) -> list[tuple[Any, int]]:
    """Instances with seeds that count up."""
    return [(instance, first + k) for k, instance in enumerate(instances)]


def batches(seeded: Seeded, size: int) -> Iterator[tuple[list[Any], list[int]]]:
    """Instances of one task and their seeds, ``size`` at a time; the first seed decides the order of the batches."""
    groups: dict[Any, list[tuple[Any, int]]] = {}
    for instance, seed in seeded:
        groups.setdefault(getattr(instance, "task", None), []).append((instance, seed))
    parts = [group[k : k + size] for group in groups.values() for k in range(0, len(group), size)]
    for i in np.random.default_rng(seeded[0][1]).permutation(len(parts)):
        yield [instance for instance, _ in parts[i]], [seed for _, seed in parts[i]]


def train_tuned_lens(
    model: VideoDiT, task: Any, runs: int = 256, validation: int = 64, *, seed: int = 0, **options: Any
) -> TunedLens:
    """Train a tuned lens on runs of one or several tasks.

    Parameters
    ----------
    task : Task or list of Task
        Training instances are drawn from their split "train", validation instances from "val".
    runs, validation : int
        Runs of each kind, divided among the tasks.
    seed : int
        Of the instances and of the first run; see `fit_tuned_lens`.
    **options
        Further arguments of `fit_tuned_lens`, and arguments of the runs; ``steps`` is the number of denoising steps.

    Raises
    ------
    EvidenceError
        Too few runs, or instances that are in both splits.
    """
    tasks = list(task) if isinstance(task, Sequence) else [task]
    if min(runs, validation) < 2 * len(tasks):
        raise EvidenceError(
            f"runs={runs}, validation={validation}: too few; need 2 of each for each of {len(tasks)} tasks"
        )
    drawn = [
        [i for t in tasks for i in t.sample(count // len(tasks), seed, split)]
        for count, split in ((runs, "train"), (validation, "val"))
    ]
    return fit_tuned_lens(model, *drawn, seed=seed, **options)


def fit_tuned_lens(
    model: VideoDiT,
    train: Sequence[Any],
    validation: Sequence[Any],
    *,
    objective: str = "residual",
    bands: int | Sequence[float] = 3,
    layers: Select = "all",
    penalties: Sequence[float] = PENALTIES,
    branch: str = "cond",
    batch: int = 16,
    passes: int = 2,
    rate: float = 1e-3,
    start: str = "identity",
    seed: int = 0,
    **arguments: Any,
) -> TunedLens:
    """Fit a tuned lens to runs of given instances.

    Parameters
    ----------
    train, validation : lists of what `VideoDiT.run` takes
        They must share no instance.
    objective : "residual" or "velocity"
        The last residual stream: least squares with a ridge penalty towards the identity, in closed form from sums in
        float64. Or the model's velocity through its own head: gradient steps (Adam).
    bands : int or sequence of float
        So many bands of noise levels for each expert, or the noise levels at which to divide.
    layers : Select
        Layers to translate.
    penalties : sequence of float
        To choose from on the validation runs, relative to the mean variance of a channel.
    branch : str
        The guidance branch that is read.
    passes, rate, start
        Of "velocity": passes over the training instances, each with noise of its own; step size (it falls linearly to
        0); and where to start, at the "identity" or at the closed form of "residual".
    seed : int
        Training run number k has seed ``seed + k``, counted on over all passes; the validation runs have the seeds
        after those, so that they share no noise with the training either.
    **arguments
        Of the runs, such as ``num_inference_steps``.

    Notes
    -----
    Every run is made once and each of its steps replayed once, for each pass over it. What is kept are sums: of each
    band and layer 16 D^2 bytes. A translator is used where it lowers the squared error of the velocity on the
    validation runs, whatever it was trained to; elsewhere the identity is.

    The errors "train" of the velocity are of every k-th training run of the first pass, k = runs // validation runs.
    Those of the residual are of all.

    Raises
    ------
    EvidenceError
        Too few runs, or instances that are in both lists.
    InputError
        Unknown objective, or bands, penalties or passes that are none.
    """
    _check(train, validation, objective, start, penalties, passes)
    runs, count = Runs(model, branch, batch, arguments), len(train) * (passes if objective == "velocity" else 1)
    seen, held_out = seeded_from(train, seed), seeded_from(validation, seed + count)
    found = make_bands(runs.levels(train[0]), bands)
    chosen = [k for k in indices(layers, model.layers, "layer") if k < model.layers - 1]
    learned, judged = (
        _moments(runs, part, found, chosen, what) for part, what in ((seen, "train"), (held_out, "validate"))
    )
    _check_enough(learned, found)
    penalty, maps = _ridge(learned, judged, penalties)
    if objective == "velocity":
        begin = maps if start == "residual" else {place: tuple(map(torch.zeros_like, m)) for place, m in maps.items()}
        maps = _descend(runs, [seeded_from(train, seed + i * len(train)) for i in range(passes)], found, begin, rate)
        penalty = dict.fromkeys(maps)
    some = seen[:: max(1, len(seen) // len(held_out))]
    shown = {
        "train": _velocity_errors(runs, some, found, maps, "errors, train"),
        "validation": _velocity_errors(runs, held_out, found, maps, "errors, validation"),
    }
    errors = [
        _entry(
            place,
            found[place[0]],
            penalty[place],
            maps[place],
            learned[place],
            judged[place],
            {part: of_part[place] for part, of_part in shown.items()},
        )
        for place in maps
    ]
    record = Record(
        model_id=model.id,
        family=model.architecture.family,
        layers=model.layers,
        width=model.architecture.width(model.pipeline.transformer),
        bands=found,
        objective=objective,
        tasks=_tasks(train),
        train=_ids(train),
        validation=_ids(validation),
        train_seeds=(seed, seed + count),
        validation_seeds=(seed + count, seed + count + len(validation)),
        settings=_plain(arguments),
        errors=tuple(errors),
        versions=versions(),
        branch=branch,
    )
    return _of(record, maps)


def _of(record: Record, maps: Mapping[BandLayer, Affine]) -> TunedLens:
    """The lens of a record: the translators that are used."""
    used = [(e["band"], e["layer"]) for e in record.errors if e["used"]]
    matrices, biases = ({place: maps[place][i].float().contiguous() for place in used} for i in (0, 1))
    return TunedLens(record, matrices, biases)


def _check(
    train: Sequence[Any], validation: Sequence[Any], objective: str, start: str, penalties: Sequence[float], passes: int
) -> None:
    if objective not in OBJECTIVES:
        raise InputError(f"unknown objective {objective!r}; one of {', '.join(OBJECTIVES)}")
    if start not in ("residual", "identity"):
        raise InputError(f"unknown start {start!r}; residual or identity")
    if not len(penalties) or not all(np.isfinite(p) and p > 0 for p in penalties):
        raise InputError(f"penalties={penalties!r}: need finite numbers above 0")
    if passes < 1:
        raise InputError(f"passes={passes!r}: need at least one")
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
    runs: Runs, seeded: Seeded, bands: Sequence[NoiseBand], layers: Sequence[int], what: str
) -> dict[BandLayer, ResidualSums]:
    """Sufficient statistics of every band and layer."""
    width = runs.model.architecture.width(runs.model.pipeline.transformer)
    sums = {(band, layer): ResidualSums(width) for band in range(len(bands)) for layer in layers}
    last = runs.model.layers - 1
    for reading in runs.readings(seeded, what, [*layers, last]):
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
    total = len(runs.levels(passes[0][0][0])) * sum(len(list(batches(seeded, runs.batch))) for seeded in passes)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: max(0.0, 1 - k / total))
    layers = sorted({layer for _, layer in maps})
    for i, seeded in enumerate(passes, start=1):
        for reading in runs.readings(seeded, f"pass {i} of {len(passes)}", layers):
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
    runs: Runs, seeded: Seeded, bands: Sequence[NoiseBand], maps: Mapping[BandLayer, Affine], what: str
) -> dict[BandLayer, tuple[float, float]]:
    """Relative squared error of the velocity, plain and tuned, of every band and layer."""
    sums = {place: np.zeros(3) for place in maps}
    layers = sorted({layer for _, layer in maps})
    for reading in runs.readings(seeded, what, layers):
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
    learned: ResidualSums,
    judged: ResidualSums,
    velocity: Mapping[str, tuple[float, float]],
) -> Errors:
    """One row of the record."""
    row: Any = {
        "band": place[0],
        "sigma_low": band.low,
        "sigma_high": band.to_json()["high"],
        "expert": band.expert,
        "layer": place[1],
        "used": bool(velocity["validation"][1] < velocity["validation"][0]),
        "penalty": penalty,
    }
    for part, sums in (("train", learned), ("validation", judged)):
        row |= {f"residual_{part}_plain": sums.error(), f"residual_{part}_tuned": sums.error(*affine)}
        row |= {f"velocity_{part}_plain": velocity[part][0], f"velocity_{part}_tuned": velocity[part][1]}
    found: Errors = row
    return found


def _ids(instances: Sequence[Any]) -> tuple[str, ...]:
    return tuple(row.instance for row in gather(list(instances), 0).rows)


def _tasks(instances: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(i.task) for i in instances if hasattr(i, "task")))


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the runs as JSON types, what is none by a short text."""
    return {k: v if isinstance(v, str | int | float | None) else describe(v) for k, v in arguments.items()}
