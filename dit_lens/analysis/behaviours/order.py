"""Perception before action: the steps from which on start and goal are decodable, against those of the path.

The definitions, fixed before any figure was looked at. Two kinds of evidence, never mixed.

**Probes** read every cell of the last latent frame, where the path will be drawn, at every step and layer: *perception*
is ``start`` and the goals that the picture shows, *action* is ``on_path``, the cells on a shortest path. The excess is
the skill (0 chance, 1 perfection) above the best of the controls: shuffled labels, the full model input at the same
token, position, the same architecture with random weights, majority. A label's layer is the one whose excess, averaged
over the steps, is largest on one half of the instances; everything is reported on the other half. Two onsets:

- *decodable*: the first step at which the lower end of the interval of the excess is above the threshold;
- *half*: the first step at which the skill has reached half of its value at the last step. It takes the skill and not
  the excess: late inputs show the drawn path themselves, and the excess over them vanishes.

The interval of an onset comes from the bootstrap over instances, where each replicate's onset is the first step at
which the replicate's own value passes.

**The step lens** reads what x0hat draws in the last frame: each end (start, goal) is *drawn* where its ring is read
right; the path where the trail is, cell for cell, the one that this run's last step shows. The onset *drawn* is the
first step at which half of the instances draw it, with its bootstrap interval.

*Perception before action* is shown by a measure where in at least 97.5 % of the replicates every end has its onset
before the path.

What the model is given: an image-to-video model gets the first frame, start and goal in it, in every call. It need not
discover them, and it can draw them at step 0. That their onset is early says that the input reaches the last frame's
tokens and the output, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dit_lens.analysis.behaviours.chain import Chain, decoded_chain, distinct
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.analysis.behaviours.features import probe_rows, split_weights
from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.organisms.evaluate import title
from dit_lens.plotting import curves
from dit_lens.probing import ProbeGrid, collect
from dit_lens.statistics import Interval, bootstrap_weights, percentile_interval, weighted_means
from dit_lens.tasks.reading import read_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

#: What the picture shows, and what has to be worked out.
ENDS, PATH = ("start", "goal", "goal_red", "goal_purple"), "on_path"
MEASURES = ("decodable", "half", "drawn")
#: Share of the replicates in which the order must hold.
SURE = 0.975


@dataclass(frozen=True)
class Onset:
    """The step from which on a thing is there.

    Attributes
    ----------
    label, role : str
    measure : "decodable", "half" or "drawn"
    readout : str
        Layer of a probe, "x0hat" of the step lens.
    step : Interval
        Numbers of steps; infinite where it never is.
    replicates : float array of shape (R + 1,)
        The estimate and its bootstrap replicates.
    """

    label: str
    role: str
    measure: str
    readout: str
    step: Interval
    replicates: Floats
    n: int


@dataclass(frozen=True)
class PerceptionOrder:
    """Onsets of ends and path, and the curves that they come from.

    Attributes
    ----------
    steps, sigmas, experts : of the probed steps
    onsets : list of Onset
        Those of probes at the layer that was chosen, and those of the step lens.
    layers : list of Onset
        Of "decodable", at every layer.
    curves : DataFrame with columns label, role, readout, step, sigma, expert, value, low, high, n
        Excess of the probes at the chosen layers, and shares that the step lens draws ("x0hat").
    """

    task: str
    config: BehaviourConfig
    sigmas: dict[int, float]
    onsets: list[Onset]
    layers: list[Onset]
    curves: pd.DataFrame

    def before(self, measure: str) -> float:
        """Share of bootstrap replicates in which every end has its onset at an earlier step than the path."""
        found = [o for o in self.onsets if o.measure == measure]
        ends = np.max([o.replicates[1:] for o in found if o.role == "perception"], axis=0)
        path = next(o.replicates[1:] for o in found if o.role == "action")
        return float((ends < path).mean())

    def shown(self, measure: str) -> bool:
        """Whether perception before action is shown by a measure, by the definition above."""
        return self.before(measure) >= SURE

    def frame(self, every_layer: bool = False) -> pd.DataFrame:
        """Tidy table: task, label, role, measure, readout, step, low, high, sigma, n.

        Steps are infinite, and sigma missing, where a thing is never there.
        """
        rows = [
            (self.task, o.label, o.role, o.measure, o.readout, *o.step, self.sigmas.get(_whole(o.step.value)), o.n)
            for o in (self.layers if every_layer else self.onsets)
        ]
        columns = ["task", "label", "role", "measure", "readout", "step", "low", "high", "sigma", "n"]
        return pd.DataFrame(rows, columns=columns).astype({"sigma": float})

    def plot(self, axis: Axes | None = None, evidence: str = "probe") -> Axes:
        """Excess of the probes ("probe") or share that is drawn ("x0hat") at every step."""
        table = self.curves[(self.curves["readout"] == "x0hat") == (evidence == "x0hat")]
        axis = curves(table, "step", "value", hue="label", axis=axis)
        name = "share of instances that draw it" if evidence == "x0hat" else "skill above the best control"
        axis.set(ylabel=name, title=self.task)
        return axis


def _whole(step: float) -> int:
    return int(step) if np.isfinite(step) else -1


def perception_before_action(
    model: VideoDiT,
    task: Any,
    config: BehaviourConfig | None = None,
    *,
    chain: Chain | None = None,
    **changes: Any,
) -> PerceptionOrder:
    """When ends and path are decodable and drawn; see the module's docstring for the definitions.

    Parameters
    ----------
    chain : Chain, optional
        Decoded chain of steps of this model and task; made where it is not given.
    config, **changes
        As in `BehaviourConfig`.

    Raises
    ------
    EvidenceError
        The task has no labels of start, goal and path, or too few instances.
    """
    config = replace(config or BehaviourConfig(), **changes)
    instances = distinct(task, config.order_instances, config.seed, by="picture")
    labels = task.labels(instances, model.geometry(instances[0]).grid[0])
    ends = [name for name in ENDS if name in labels and labels[name].role == "perception"]
    if "start" not in ends or len(ends) < 2 or PATH not in labels:
        raise EvidenceError(f"task {task.name!r} lacks the labels 'start', a goal that the picture shows, or {PATH!r}")
    if len(instances) < 4 * config.folds:
        raise EvidenceError(f"{task.name}: {len(instances)} instances are too few; need at least {4 * config.folds}")
    if chain is None:
        some = distinct(task, config.chain_instances, config.seed + 1)
        chain = decoded_chain(model, task, some, seed=config.seed + 10_000, batch=config.batch)
    if chain.task != task:
        raise EvidenceError(f"the chain of steps is of {chain.task}, not of {task}")
    data = collect(
        model, task, instances, steps=config.probe_steps, labels=[*ends, PATH], seed=config.seed, batch=config.batch
    )
    asked = next(iter(data.values())).labels
    runs, rows = np.arange(len(instances)), np.arange(asked[PATH].values.shape[1])
    every = np.broadcast_to(rows, (len(runs), len(rows)))
    grid = probe_rows(data, asked, runs, every, config.folds, config.seed)
    onsets, layers, probe_curves = _of_probes(grid, config)
    drawn, drawn_curves = _of_lens(chain, ends, config)
    sigmas = dict(enumerate(chain.sigmas))
    return PerceptionOrder(
        title(task),
        config,
        sigmas,
        [*onsets, *drawn],
        layers,
        pd.concat([probe_curves, drawn_curves], ignore_index=True),
    )


def _role(label: str) -> str:
    return "action" if label == PATH else "perception"


def _of_probes(grid: ProbeGrid, config: BehaviourConfig) -> tuple[list[Onset], list[Onset], pd.DataFrame]:
    """Onsets at the chosen layer, those at every layer, and the curves of the excess."""
    choose, report = split_weights(grid.groups, config.replicates, config.seed)
    onsets, layers, rows, n = list[Onset](), list[Onset](), [], int((report[0] > 0).sum())
    steps = tuple(grid.steps)
    for name in grid.labels:
        chosen = np.mean([grid.excess(s, grid.readouts, name, choose)[0] for s in steps], axis=0)
        best = grid.readouts[int(chosen.argmax())]
        excess = np.stack([grid.excess(s, grid.readouts, name, report) for s in steps])
        for k, readout in enumerate(grid.readouts):
            above = excess[..., k] > config.threshold
            # The estimate asks the interval; a replicate has none and asks its own value.
            above[:, 0] = [percentile_interval(e).low > config.threshold for e in excess[..., k]]
            layers.append(_onset(name, "decodable", readout, above, steps, n))
        k = grid.readouts.index(best)
        skill = np.stack([grid.skill(s, best, name, "none", report) for s in steps])
        onsets += [layers[k - len(grid.readouts)], _onset(name, "half", best, skill >= skill[-1] / 2, steps, n)]
        for s, e in zip(steps, excess[..., k], strict=True):
            at = (s, grid.sigmas[s], grid.experts[s])
            rows.append((name, _role(name), best, *at, *percentile_interval(e), n))
    return onsets, layers, _table(rows)


def _of_lens(chain: Chain, ends: Sequence[str], config: BehaviourConfig) -> tuple[list[Onset], pd.DataFrame]:
    """Onsets and shares of what x0hat draws."""
    instances, last = list(chain.instances), chain.frames[:, :, -1]
    drawn = read_ends(chain.task, last, instances)
    trails = chain.task.read_answer(last)
    finished = trails[-1].sum(axis=(1, 2)) >= 2
    shown = {name: drawn[name] for name in ends} | {PATH: (trails == trails[-1]).all(axis=(2, 3)) & finished}
    weights = bootstrap_weights(chain.count, config.replicates, config.seed)
    onsets, rows, steps = [], [], tuple(range(chain.steps))
    for name, values in shown.items():
        shares = weighted_means(values.astype(np.float64), weights).T
        onsets.append(_onset(name, "drawn", "x0hat", shares >= 0.5, steps, chain.count))
        for s, share in enumerate(shares):
            at = (s, chain.sigmas[s], chain.experts[s])
            rows.append((name, _role(name), "x0hat", *at, *percentile_interval(share), chain.count))
    return onsets, _table(rows)


def _table(rows: list[Any]) -> pd.DataFrame:
    columns = ["label", "role", "readout", "step", "sigma", "expert", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def _onset(label: str, measure: str, readout: str, above: NDArray[np.bool_], steps: tuple[int, ...], n: int) -> Onset:
    """The first step at which ``above`` (S, R + 1) holds, in the estimate and in every replicate."""
    first = np.where(above.any(axis=0), np.array(steps, dtype=np.float64)[above.argmax(axis=0)], np.inf)
    # An observed step at each end: never is no number to interpolate with.
    low, high = np.quantile(first[1:], [0.025, 0.975], method="inverted_cdf")
    return Onset(label, _role(label), measure, readout, Interval(float(first[0]), float(low), float(high)), first, n)
