"""From what can be read to what is used: steering along a probe's direction, against random directions.

A probe that reads a label shows that it is there, not that the model uses it. If the model does, moving the activation
along the probe's direction moves the answer more than moving it as far along a random direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.steer import Steer
from dit_lens.lens.source import Recorded
from dit_lens.model import VideoDiT
from dit_lens.probing.probe_card import sites_of
from dit_lens.probing.probe_grid import site_values
from dit_lens.probing.probe_set import ProbeSet
from dit_lens.results.intervals import bootstrap_weights, percentile_interval
from dit_lens.results.plots import curves
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result
from dit_lens.runs.replay import Resume
from dit_lens.runs.run import Run
from dit_lens.runs.seeds import derive
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
from dit_lens.tasks.base import Task
from dit_lens.tasks.draw import draw_instances
from dit_lens.tasks.evidence import Evidence, require, scores_of

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
        As in `VideoDiT.runs`. With interventions every steered run is made from its beginning.

    Raises
    ------
    MadeForAnother
        Probes of another model or noise level, or that were not trained there.
    EvidenceError
        A lens that reads before the steered layer, where nothing can have moved, or a site that is not of the branch
        "cond" and the video.
    """
    probes.require(model)
    scorer = require(task, "score", who=_WHO)
    site, reads = Site.parse(steering.site), range(model.layers)[steering.lens_layer]
    if (site.branch, site.stream) != ("cond", "video"):
        raise EvidenceError(f"{site}: the depth lens reads the branch 'cond' of the video; steer there")
    if site.layer is not None and reads < site.layer:
        raise EvidenceError(f"lens_layer {reads} is before layer {site.layer}, which is steered")
    own = probes.direction(steering.label, site, steering.answer)
    problems = draw_instances(task, instances, seed, who=_WHO)
    work = _Steered(model, scorer, steering, tokens or Tokens(), reads, listed(interventions), run_arguments)
    parts, last = [], None
    for run in model.runs(problems, seed, record=True, interventions=work.interventions, **run_arguments):
        probes.require_run(run)
        parts.append(work.measured(run, [("probe", 0, own), *_random_directions(own, steering.draws, seed)]))
        last = run
    assert last is not None
    call = next(c for c in last.calls if c.step == site.step)
    samples = pd.concat(parts, ignore_index=True)
    return CausalCheck(steering, reads, probes.source, call.sigma, call.expert, samples)


#: "probe" or "random", number of the draw, and the direction (D,).
_Way = tuple[str, int, Tensor]


def _random_directions(like: Tensor, draws: int, seed: int) -> list[_Way]:
    generator = torch.Generator().manual_seed(derive(seed, "directions"))
    drawn = [torch.randn(like.shape, generator=generator) for _ in range(draws)]
    return [("random", draw, x / torch.linalg.vector_norm(x)) for draw, x in enumerate(drawn)]


@dataclass(frozen=True)
class _Steered:
    """How the runs of a batch are steered and read."""

    model: VideoDiT
    task: Evidence
    steering: Steering
    tokens: Tokens
    lens_layer: int
    interventions: tuple[Intervention, ...]
    run_arguments: dict[str, Any]

    @property
    def step(self) -> int:
        return Site.parse(self.steering.site).step

    def measured(self, run: Run, ways: Sequence[_Way]) -> pd.DataFrame:
        """Samples of every dose and direction, the unsteered runs first, once for the probe and once for random."""
        still = self._lens(run, [])
        found = [self._samples(run, run, still, still, 0.0, way, 0) for way in ("probe", "random")]
        for dose in tqdm(self.steering.doses, desc="doses", unit="dose"):
            for way, draw, direction in ways:
                steer = Steer(sites_of([self.steering.site], self.tokens), direction, dose, unit="norm")
                found.append(
                    self._samples(run, self._run(run, steer), self._lens(run, [steer]), still, dose, way, draw)
                )
        return pd.concat(found, ignore_index=True)

    def _run(self, run: Run, steer: Steer) -> Run:
        """The run again, steered."""
        resume = None if self.interventions else Resume(run, self.step)
        settings = {n: value for n, value in self.run_arguments.items() if n not in ("batch", "progress")}
        seeds = [row.seed for row in run.rows]
        changes = [*self.interventions, steer]
        return self.model.run(list(run.inputs), seeds, interventions=changes, resume=resume, **settings)

    def _lens(self, run: Run, steer: Sequence[Steer]) -> Tensor:
        """x0hat of the depth lens in the steered step: (B, C, F, H, W)."""
        keep = Capture(Sites("resid", steps=self.step, layers=self.lens_layer, branches="cond"))
        recorded = Recorded(run, (*self.interventions, *steer))
        replay = recorded.replay(self.model, self.step, [keep])
        residual = next(iter(replay.captures[""].values()))
        velocity = self.model.read_out(recorded.call(self.step, "cond"), residual, replay.conditioning["cond"])
        return recorded.clean(self.step, velocity)

    def _samples(
        self, run: Run, steered: Run, lens: Tensor, still: Tensor, dose: float, way: str, draw: int
    ) -> pd.DataFrame:
        problems = list(run.inputs)
        scores = scores_of(self.task, steered.decoded, problems, who=_WHO)
        of_lens = scores_of(self.task, self.model.decode(lens), problems, who=_WHO)
        cosine = torch.nn.functional.cosine_similarity(lens.flatten(1).double(), still.flatten(1).double())
        values = (scores.total, scores.strict.astype(np.float64), of_lens.total, cosine.cpu().numpy())
        return pd.DataFrame(
            {
                "direction": way,
                "draw": draw,
                "dose": float(dose),
                "instance": [row.instance for row in run.rows] * len(MEASURES),
                "seed": [row.seed for row in run.rows] * len(MEASURES),
                "measure": np.repeat(MEASURES, len(run.rows)),
                "value": np.concatenate(values),
            }
        )
