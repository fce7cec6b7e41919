"""From what can be read to what is used: steering along a probe's direction, against random directions.

A probe that reads a label shows that it is there, not that the model uses it. If it does, moving the residual stream
along the probe's direction moves the answer more than moving it as far along a random direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from dit_lens.errors import EvidenceError
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.steer import Steer
from dit_lens.model import VideoDiT
from dit_lens.probing.probe_set import ProbeSet, site_of_readout
from dit_lens.results.intervals import bootstrap_weights, percentile_interval
from dit_lens.results.plots import curves
from dit_lens.runs.replay import Resume
from dit_lens.runs.run import Run
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is measured of every steered run, beside the unsteered one of the same instance and seed.
MEASURES = ("score", "strict", "lens_score", "lens_cosine")
_PAIRED = "probe - random"


@dataclass(frozen=True)
class CausalCheck:
    """How score and depth lens move with the dose.

    Attributes
    ----------
    label : str
    answer : the class towards which was steered, None for a boolean or a number
    step, layer : int, str
        Where, "embed" or "L00" ...
    lens_layer : int
        Where the depth lens reads.
    source : str
        Of the states that the probes were trained on; steered are always sampled ones.
    rows : DataFrame
        One row for each instance, dose and direction: instance, seed, step, sigma, expert, layer, dose, direction
        ("probe" or "random"), draw, and `MEASURES`: the score of the final video and whether it is fully right, the
        score of the depth lens's decoded estimate in the steered step, and that estimate's cosine to the unsteered one.
    """

    label: str
    answer: Any
    step: int
    layer: str
    lens_layer: int
    source: str
    rows: pd.DataFrame

    def frame(self, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Mean changes from the unsteered runs, with 95 % bootstrap intervals over instances and random directions.

        A random direction and its opposite are as random as one another: where both doses were measured, both count at
        either of them.

        Returns
        -------
        DataFrame with columns step, sigma, expert, layer, label, source, measure, direction, dose, value, low, high, n,
        p
            "random" is the mean over its draws; "probe - random" their difference, paired by instance. Runs of one
            instance count as one, n of them. Intervals of these two are of other instances and other draws, so that a
            few directions that happen to move much, or little, do not pass for all. ``p`` stands beside the difference:
            the share of all directions, the probe's among them, whose mean change is as large as the probe's or larger
            (a permutation test of whether the probe's direction is one of the random ones; no smaller than
            1 / (1 + directions)).
        """
        first, found = self.rows.iloc[0], []
        for measure in MEASURES:
            for dose in self.rows["dose"].unique():
                probe, random = self._changes(measure, dose)
                instances = bootstrap_weights(len(probe), replicates, seed)
                draws = bootstrap_weights(len(random), replicates, seed + 1)
                of_random = (draws / len(random)) @ random.mean(axis=1)
                shares = instances / len(probe)
                means = {"probe": shares @ probe, "random": (of_random * shares).sum(axis=1)}
                means[_PAIRED] = means["probe"] - means["random"]
                beyond = np.abs(random.mean(axis=-1)) >= abs(probe.mean())
                p = {_PAIRED: (1 + beyond.sum()) / (1 + beyond.size)} if dose else {}
                for way, of_way in means.items():
                    value, low, high = percentile_interval(of_way)
                    ends = (low, high) if len(probe) > 1 else (np.nan, np.nan)
                    found.append((measure, way, dose, value, *ends, len(probe), p.get(way, np.nan)))
        table = pd.DataFrame(found, columns=["measure", "direction", "dose", "value", "low", "high", "n", "p"])
        for name in ("layer", "expert", "sigma", "step"):
            table.insert(0, name, first[name])
        table.insert(4, "label", self.label)
        table.insert(5, "source", self.source)
        return table

    def _changes(self, measure: str, dose: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Changes of each instance along the probe's direction, (G,), and along random ones, (draws, signs, G)."""
        means = {
            way: part.pivot_table(measure, ["draw", "dose"], "instance", sort=False)
            for way, part in self.rows.groupby("direction")
        }
        start = means["probe"].xs((0, 0.0))
        probe, random = np.asarray(means["probe"].xs((0, dose)) - start, np.float64), means["random"] - start
        random = random[np.abs(random.index.get_level_values("dose")) == abs(dose)].sort_index()
        draws = random.index.get_level_values("draw").nunique()
        return probe, random.to_numpy().reshape(draws, -1, len(probe))

    def plot(self, axis: Axes | None = None, measure: str = "score") -> Axes:
        """Change of one measure over the dose, along the probe's direction and along random ones."""
        if measure not in MEASURES:
            raise EvidenceError(f"unknown measure {measure!r}; one of {', '.join(MEASURES)}")
        table = self.frame()
        table = table[(table["measure"] == measure) & (table["direction"] != _PAIRED)]
        axis = curves(table, "dose", "value", "direction", axis)
        axis.axhline(0, color="0.6", linewidth=0.8)
        towards = self.label if self.answer is None else f"{self.label} = {self.answer}"
        axis.set_title(
            f"steering {towards}, step {self.step}, layer {self.layer}, n = {table['n'].iloc[0]}", fontsize=9
        )
        axis.set(ylabel=f"change of {measure}", xlabel="dose (share of each token's norm)")
        return axis


@torch.no_grad()
def causal_check(
    model: VideoDiT,
    task: Any,
    probes: ProbeSet,
    label: str,
    layer: int | str,
    *,
    step: int | None = None,
    doses: Sequence[float] = (-0.5, 0.5),
    answer: Any = None,
    instances: int | Sequence[Any] = 24,
    draws: int = 8,
    lens_layer: int = -1,
    tokens: Tokens | None = None,
    seed: int = 0,
    batch: int = 24,
) -> CausalCheck:
    """Steer along a probe's direction, and along random ones of the same norm, and see what moves.

    Every steered run starts from the record of the unsteered run of the same instance and seed, so that all of them are
    the same up to ``step``.

    Parameters
    ----------
    probes : ProbeSet
    label, layer, answer
        As in `ProbeSet.direction`.
    step : int, optional
        By default the first of the probes' steps.
    doses : sequence of float
        Lengths of the steps along a direction, as shares of the norm of each token's own activation.
    instances : int or sequence of instances
        A number draws so many of the task's test split. Instance i runs with ``seed + i``.
    draws : int
        Random directions, at least two: their spread is in the intervals.
    lens_layer : int
        Layer that the depth lens reads in the steered step; the last is what the model itself predicts.
    tokens : Tokens, optional
        Where to steer; by default everywhere.

    Raises
    ------
    MadeForAnother
        Probes of another model or noise level, or that were not trained there.
    EvidenceError
        No doses, fewer than two draws, or a lens that reads before the steered layer, where nothing can have moved.
    """
    probes.require(model)
    if not len(doses) or 0 in doses or len(set(doses)) < len(doses) or draws < 2:
        raise EvidenceError(
            f"a causal check needs doses, each once and none of them 0, and two random draws, got "
            f"doses={tuple(doses)}, draws={draws}"
        )
    step = probes.steps[0] if step is None else step
    steered, reads = probes.readout(layer), range(model.layers)[lens_layer]
    if steered != "embed" and reads < int(steered[1:]):
        raise EvidenceError(f"lens_layer {reads} is before layer {int(steered[1:])}, which is steered")
    chosen = task.sample(int(instances), seed=seed) if isinstance(instances, int | np.integer) else list(instances)
    own = probes.direction(label, step, layer, answer)
    ways = [("probe", 0, own)]
    generator = torch.Generator().manual_seed(seed)
    for draw in range(draws):
        random = torch.randn(own.shape, generator=generator)
        ways.append(("random", draw, random / torch.linalg.vector_norm(random)))
    place = _SteeredLayer(model, task, probes, step, steered, reads, tokens or Tokens())
    parts = []
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        seeds = [seed + start + i for i in range(len(part))]
        parts += place.measured(part, seeds, ways, doses)
    return CausalCheck(label, answer, step, steered, reads, probes.source, pd.concat(parts, ignore_index=True))


@dataclass(frozen=True)
class _SteeredLayer:
    """Where is steered and read."""

    model: VideoDiT
    task: Any
    probes: ProbeSet
    step: int
    layer: str
    lens_layer: int
    tokens: Tokens

    def measured(
        self, part: Sequence[Any], seeds: list[int], ways: Sequence[tuple[str, int, Tensor]], doses: Sequence[float]
    ) -> list[pd.DataFrame]:
        """One table for each dose and direction, the unsteered runs first, once for the probe and once for random."""
        run = self.model.run(list(part), seeds, record=True)
        self.probes.require_run(run)
        still = self._lens(run, None)
        found = [self._table(run, run, part, still, still, 0.0, way, 0) for way in ("probe", "random")]
        for dose in tqdm(doses, desc="doses", unit="dose"):
            for way, draw, direction in ways:
                sites = site_of_readout(self.step, self.layer).at(tokens=self.tokens)
                steer = Steer(sites, direction, dose, unit="norm")
                resume = Resume(run, self.step)
                steered = self.model.run(list(part), seeds, interventions=[steer], resume=resume)
                found.append(self._table(run, steered, part, self._lens(run, steer), still, dose, way, draw))
        return found

    def _lens(self, run: Run, steer: Steer | None) -> Tensor:
        """x0hat of the depth lens in the steered step: (B, C, F, H, W)."""
        keep = Capture(Sites("resid", steps=self.step, layers=self.lens_layer, branches="cond"))
        replay = self.model.replay(run, self.step, [*([] if steer is None else [steer]), keep])
        call = next(c for c in run.recorded(self.step) if "cond" in c.branches)
        residual = next(iter(replay.captures[""].values()))
        velocity = self.model.read_out(call, residual, replay.conditioning["cond"])
        return run.clean(self.step, run.states[self.step], velocity)

    def _table(
        self, run: Run, steered: Run, part: Sequence[Any], lens: Tensor, still: Tensor, dose: float, way: str, draw: int
    ) -> pd.DataFrame:
        scores = self.task.score(steered.frames, part)
        of_lens = self.task.score(self.model.decode(lens), part)
        cosine = torch.nn.functional.cosine_similarity(lens.flatten(1).double(), still.flatten(1).double())
        call = next(c for c in run.calls if c.step == self.step)
        return pd.DataFrame(
            {
                "instance": [row.instance for row in run.rows],
                "seed": [row.seed for row in run.rows],
                "step": self.step,
                "sigma": call.sigma,
                "expert": call.expert,
                "layer": self.layer,
                "dose": float(dose),
                "direction": way,
                "draw": draw,
                "score": scores.total,
                "strict": scores.strict.astype(np.float64),
                "lens_score": of_lens.total,
                "lens_cosine": cosine.cpu().numpy(),
            }
        )
