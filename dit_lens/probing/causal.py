"""From what can be read to what is used: steering along a probe's direction, against random directions.

A probe that reads a label shows that it is there, not that the model uses it. If the model does, moving the activation
along the probe's direction moves the answer more than moving it as far along a random direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.interventions.steer import Steer
from dit_lens.model import VideoDiT
from dit_lens.probing.probe_card import sites_of
from dit_lens.probing.probe_grid import site_values
from dit_lens.probing.probe_set import ProbeSet
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import bootstrap_weights, percentile_interval
from dit_lens.results.plots import curves
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result
from dit_lens.runs.seeds import derive
from dit_lens.sites.site import Site
from dit_lens.sites.tokens import Tokens
from dit_lens.sweeps.metrics import Metric, Moved
from dit_lens.sweeps.sweep import Sweep, sweep
from dit_lens.tasks.base import Scores, Task
from dit_lens.tasks.draw import draw_instances
from dit_lens.tasks.evidence import require, scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is measured of every steered run, beside the unsteered one of the same instance and seed.
MEASURES = ("score", "strict", "lens_score", "lens_cosine")
_PAIRED = "probe - random"
#: Columns of the tables, between those of the site and the values.
_OWN = ("label", "answer", "source", "direction", "dose")
_REPLICATES = 1000
_WHO = "causal_check"


@dataclass(frozen=True)
class Steering:
    """Along which probe's direction is steered, where and how far, and against what.

    Attributes
    ----------
    label, site, answer
        As in `ProbeSet.direction`.
    doses : tuple of float
        Lengths of the steps along a direction, as shares of the norm of each token's own activation; none of them 0.
    draws : int
        Random directions, at least two: their spread is in the intervals.
    lens_layer : int
        Layer that the depth lens reads in the steered step; the last is what the model itself predicts.

    Raises
    ------
    EvidenceError
        No doses, one twice or 0, or fewer than two draws.
    """

    label: str
    site: str
    answer: str | bool | int | None = None
    doses: tuple[float, ...] = (-0.5, 0.5)
    draws: int = 8
    lens_layer: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", str(Site.parse(str(self.site))))
        object.__setattr__(self, "doses", tuple(map(float, self.doses)))
        if not self.doses or 0 in self.doses or len(set(self.doses)) < len(self.doses) or self.draws < 2:
            raise EvidenceError(
                f"steering needs doses, each once and none of them 0, and two random draws, got doses={self.doses}, "
                f"draws={self.draws}"
            )


@dataclass(frozen=True, repr=False)
class CausalCheck(Result):
    """How score and depth lens move with the dose.

    Attributes
    ----------
    steering : Steering
    lens_layer : int
        Where the depth lens read.
    source : str
        Of the states that the probes were trained on; steered are always sampled ones.
    sigma, expert : of the step
    samples : DataFrame
        One row for each instance, dose, direction and measure: direction ("probe" or "random"), draw, dose, instance,
        seed, measure, value. Dose 0 is the unsteered run. The measures are the score of the final video and whether it
        is fully right ("strict"), the score of the depth lens's decoded estimate in the steered step, and the cosine
        of that estimate to the unsteered one.
    """

    steering: Steering
    lens_layer: int
    source: str
    sigma: float
    expert: str | None
    samples: pd.DataFrame

    @cached_property
    def table(self) -> pd.DataFrame:
        """Mean changes from the unsteered runs, with 95 % bootstrap intervals over instances and random directions.

        Columns: those of the site that apply, label, answer, source, direction, dose, measure, value, low, high, n.
        "random" is the mean over its draws; "probe - random" their difference, paired by instance. Runs of one instance
        count as one, n of them. Intervals of these two are of other instances and other draws: a few directions that
        happen to move much, or little, do not pass for all. A random direction and its opposite are as random as one
        another: where both doses were measured, both count at either of them. The measure "p of score" of the
        difference is the share of all directions, the probe's among them, whose mean change of the score is as large
        as the probe's or larger: a permutation test of whether the probe's direction is one of the random ones, no
        smaller than 1 / (1 + directions). The other measures have theirs.
        """
        place = site_values(self.steering.site, self.sigma, self.expert)
        answer = None if self.steering.answer is None else str(self.steering.answer)
        asked = (self.steering.label, answer, self.source)
        rows = [
            (*place, *asked, *found)
            for measure in MEASURES
            for dose in (0.0, *self.steering.doses)
            for found in self._measured(measure, dose)
        ]
        table = pd.DataFrame(rows, columns=[*SITE_COLUMNS, *_OWN, *VALUE_COLUMNS])
        return table.drop(columns=[n for n in ("expert", "kind", "layer", "head", "answer") if table[n].isna().all()])

    def _measured(self, measure: str, dose: float) -> list[tuple[Any, ...]]:
        """Rows of one measure at one dose: direction, dose, measure, value, low, high, n."""
        probe, random = self._changes(measure, dose)
        count = len(probe)
        shares = bootstrap_weights(count, _REPLICATES, 0) / count
        draws = bootstrap_weights(len(random), _REPLICATES, derive(0, "draws")) / len(random)
        of_random = ((draws @ random.mean(axis=1)) * shares).sum(axis=1)
        means = {"probe": shares @ probe, "random": of_random, _PAIRED: shares @ probe - of_random}
        rows: list[tuple[Any, ...]] = []
        for direction, values in means.items():
            value, low, high = percentile_interval(values)
            ends = (low, high) if count > 1 else (np.nan, np.nan)
            rows.append((direction, dose, measure, value, *ends, count))
        if dose:
            beyond = np.abs(random.mean(axis=-1)) >= abs(probe.mean())
            p = (1 + beyond.sum()) / (1 + beyond.size)
            rows.append((_PAIRED, dose, f"p of {measure}", p, np.nan, np.nan, count))
        return rows

    def _changes(self, measure: str, dose: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Changes of each instance along the probe's direction, (G,), and along random ones, (draws, signs, G)."""
        means = {
            way: part.pivot_table("value", ["draw", "dose"], "instance", sort=False)
            for way, part in self.samples[self.samples["measure"] == measure].groupby("direction")
        }
        start = means["probe"].xs((0, 0.0))
        probe, random = np.asarray(means["probe"].xs((0, dose)) - start, np.float64), means["random"] - start
        random = random[np.abs(random.index.get_level_values("dose")) == abs(dose)].sort_index()
        draws = random.index.get_level_values("draw").nunique()
        return probe, random.to_numpy().reshape(draws, -1, len(probe))

    def plot(self, axis: Axes | None = None, *, measure: str = "score") -> Axes:
        """Change of one measure over the dose, along the probe's direction and along random ones."""
        if measure not in MEASURES:
            raise EvidenceError(f"unknown measure {measure!r}; one of {', '.join(MEASURES)}")
        table = self.table
        table = table[(table["measure"] == measure) & (table["direction"] != _PAIRED)]
        axis = curves(table, "dose", "value", "direction", axis)
        axis.axhline(0, color="0.6", linewidth=0.8)
        given = self.steering
        towards = given.label if given.answer is None else f"{given.label} = {given.answer}"
        axis.set_title(f"steering {towards} at {given.site}, n = {table['n'].iloc[0]}", fontsize=9)
        axis.set(ylabel=f"change of {measure}", xlabel="dose (share of each token's norm)")
        return axis


@torch.no_grad()
def causal_check(
    model: VideoDiT,
    task: Task,
    probes: ProbeSet,
    steering: Steering,
    *,
    instances: int | Sequence[Any] = 24,
    tokens: Tokens | None = None,
    seed: int = 0,
    interventions: Iterable[Intervention] = (),
    **run_arguments: Any,
) -> CausalCheck:
    """Steer along a probe's direction, and along random ones of the same norm, and see what moves.

    Every steered run starts from the record of the unsteered run of the same instance and seed, so all of them are the
    same up to the steered step.

    Parameters
    ----------
    instances : int or sequence of instances
        A number draws so many of the task's test split.
    tokens : Tokens, optional
        Where to steer; by default everywhere.
    seed : int
        Of the runs, as in `VideoDiT.runs`; it also draws the instances and, by seeds derived from it, the random
        directions.
    interventions, **run_arguments
        As in `VideoDiT.runs`.

    Raises
    ------
    MadeForAnother
        Probes of another model or noise level, or that were not trained there.
    EvidenceError
        A lens that reads before the steered layer, where nothing can have moved, or a site that is not of the branch
        "cond" and the video.
    """
    probes.require(model)
    require(task, "score", who=_WHO)
    score = partial(scores_of, task, who=_WHO)
    site, reads = Site.parse(steering.site), range(model.layers)[steering.lens_layer]
    if (site.branch, site.stream) != ("cond", "video"):
        raise EvidenceError(f"{site}: the depth lens reads the branch 'cond' of the video; steer there")
    if site.layer is not None and reads < site.layer:
        raise EvidenceError(f"lens_layer {reads} is before layer {site.layer}, which is steered")
    own = probes.direction(steering.label, site, steering.answer)
    problems = draw_instances(task, instances, seed, who=_WHO)
    others = {name: value for name, value in run_arguments.items() if name not in ("batch", "progress")}
    first = model.run(problems[:1], 0, stop_after=max(probes.steps), decode=False, **others)
    probes.require_run(first)
    found = sweep(
        model,
        task,
        Steer(sites_of([steering.site], tokens or Tokens()), own, unit="norm"),
        {"direction": _ways(own, steering.draws, seed), "scale": steering.doses},
        [
            Metric("score", "frames", lambda frames, given: score(frames, list(given)).total),
            Metric("strict", "frames", lambda frames, given: score(frames, list(given)).strict),
            Metric("lens_score", "x0hat", partial(_lens_score, model, score), layer=reads),
            Metric("lens_cosine", "x0hat", _lens_cosine, layer=reads),
        ],
        instances=problems,
        seed=seed,
        interventions=listed(interventions),
        **run_arguments,
    )
    if found.errors:
        raise EvidenceError(f"{_WHO}: {next(iter(found.errors.values()))}")
    return CausalCheck(
        steering, reads, probes.source, first.sigmas[site.step], first.experts[site.step], _samples(found)
    )


def _ways(own: Tensor, draws: int, seed: int) -> dict[str, Tensor]:
    """The probe's direction and random ones of the same norm, each (D,)."""
    generator = torch.Generator().manual_seed(derive(seed, "directions"))
    drawn = [torch.randn(own.shape, generator=generator) for _ in range(draws)]
    return {"probe 0": own} | {f"random {k}": x / torch.linalg.vector_norm(x) for k, x in enumerate(drawn)}


def _lens_score(model: VideoDiT, score: Callable[..., Scores], moved: Moved) -> Floats:
    """The score of the video that the lens reads: (R,)."""
    return score(model.decode(moved.x0hat), list(moved.instances)).total


def _lens_cosine(moved: Moved) -> Tensor:
    """The cosine of what the lens reads to what it reads of the unsteered run: (R,)."""
    return torch.nn.functional.cosine_similarity(moved.x0hat.flatten(1).double(), moved.clean.flatten(1).double())


def _samples(found: Sweep) -> pd.DataFrame:
    """Every row of every cell; the unsteered runs stand once for the probe and once for the random directions."""
    samples = found.samples[found.samples["cell"].isin(["baseline", "swept"])]
    still = samples["cell"] == "baseline"
    parts = [samples[~still], *(samples[still].assign(direction=f"{way} 0", scale=0.0) for way in ("probe", "random"))]
    every = pd.concat([*parts[1:], parts[0]], ignore_index=True)
    way = every["direction"].astype(str).str.split(" ", expand=True)
    every = every.assign(direction=way[0], draw=way[1].astype(int), dose=every["scale"].astype(float))
    return every[["direction", "draw", "dose", "instance", "seed", "measure", "value"]]
