"""Perception before action: the steps from which on start and goal are decodable, against those of the path.

The definitions. Two kinds of evidence, never mixed.

**Probes** read every cell of the last latent frame, where the path will be drawn, at every step and layer: *perception*
is ``start`` and the goals that the picture shows, *action* is ``on_path``, the cells on a shortest path. The excess is
the skill (0 chance, 1 perfection) above the best of the controls: shuffled labels, the full model input at the same
token, position, the same architecture with random weights, majority. A label's layer is the one whose excess, averaged
over the steps, is largest on one half of the instances; everything is reported on the other half. Two onsets:

- *decodable*: the first step at which the excess reaches the threshold;
- *half*: the first step at which the skill has reached half of its value at the last step, where that value reaches the
  threshold. It takes the skill and not the excess: late inputs show the drawn path themselves, and the excess over them
  vanishes.

**The step lens** reads what x0hat draws in the last frame: each end (start, goal) is *drawn* where its ring is read
right; the path where the trail is, cell for cell, the one that this run's last step shows. The onset *drawn* is the
first step at which half of the instances draw it.

An onset's interval runs from the first step at which the upper end of the value's own interval (the bootstrap over
instances) passes to the first at which its lower end does. The first step at which a noisy value passes is early in
most replicates, so that percentiles of the replicates' onsets need not hold the estimate.

*Perception before action* is shown by a measure where every end has its onset before the path, and the path has one, in
the estimate and in at least 97.5 % of the bootstrap replicates, each of which asks its own values what the estimate
asks. Where the path has no onset in the estimate there is no action to come before: a third outcome, told apart.

Three of these rules were changed after figures had been looked at, because they were wrong on data made up for the
purpose: a path that is never there counted as later than the ends; *half* was reached where nothing was decodable; the
estimate asked the lower end of an interval, and its replicates their value.

What the model is given: an image-to-video model gets the first frame, start and goal in it, in every call. It need not
discover them, and it can draw them at step 0. That their onset is early says that the input reaches the last frame's
tokens and the output, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.analysis.behaviours.chain import Chain, chain_of, distinct, measured, printed, step_table
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.analysis.behaviours.probe_rows import place_of, probe_rows, split_weights
from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.probing.probe_grid import ProbeGrid, short_name
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.readout import Readout
from dit_lens.results.arrays import Bools, Floats
from dit_lens.results.intervals import Interval, bootstrap_weights, percentile_interval, weighted_means
from dit_lens.results.plots import curves
from dit_lens.results.result import Result
from dit_lens.tasks.base import Task
from dit_lens.tasks.evidence import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WHO = "perception_before_action"
#: Readout of the step lens.
X0HAT = "x0hat"
MEASURES = ("decodable", "half", "drawn")
#: What is said where the path has no onset.
NEVER = {
    "decodable": "path never decodable",
    "half": "path not decodable at the last step",
    "drawn": "path never drawn",
}
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


@dataclass(frozen=True, repr=False)
class PerceptionOrder(Result):
    """Onsets of ends and path, and the curves that they come from.

    Attributes
    ----------
    sigmas, experts : dicts from every step of the chain, probed or not, to its sigma and expert
    onsets : tuple of Onset
        Those of probes at the layer that was chosen, and those of the step lens.
    layers : tuple of Onset
        Of "decodable", at every layer.
    curves : DataFrame with columns label, role, readout, step, sigma, expert, value, low, high, n
        Excess of the probes at the chosen layers, and shares that the step lens draws ("x0hat").
    instances : int
        How many different ones the task gave to the probes, of ``config.order_instances`` that were asked for.
    """

    task: str
    config: BehaviourConfig
    sigmas: dict[int, float]
    experts: dict[int, str | None]
    onsets: tuple[Onset, ...]
    layers: tuple[Onset, ...]
    curves: pd.DataFrame
    instances: int

    def before(self, measure: str) -> float:
        """Share of bootstrap replicates in which every end has its onset at an earlier step than the path has one."""
        return float(self._held(measure)[1:].mean())

    def shown(self, measure: str) -> bool:
        """Whether perception before action is shown by a measure, by the definition above."""
        return bool(self._held(measure)[0]) and self.before(measure) >= SURE

    def verdict(self, measure: str) -> str:
        """Either "shown", "not shown", or where the path has no onset in the estimate what `NEVER` says of that."""
        if not np.isfinite(self._onsets(measure, "action")[0, 0]):
            return NEVER[measure]
        return "shown" if self.shown(measure) else "not shown"

    def _held(self, measure: str) -> Bools:
        """Whether the order holds, in the estimate and in every replicate: shape (R + 1,)."""
        ends, path = self._onsets(measure, "perception").max(axis=0), self._onsets(measure, "action")[0]
        return np.asarray((ends < path) & np.isfinite(path))

    def _onsets(self, measure: str, role: str) -> Floats:
        return np.stack([o.replicates for o in self.onsets if (o.measure, o.role) == (measure, role)])

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns step, sigma, expert, layer, component, task, label, role, measure, value, low, high, n (instances).

        Measures by step: "excess" of the probes at the chosen layers, and "drawn", the share of instances in which
        x0hat draws a thing. Measures without a step: "onset of decodable" at every layer, and "onset of half" and
        "onset of drawn". Their values are numbers of steps, infinite where a thing is never there.
        """
        rows = list[dict[str, Any]]()
        for at in self.curves.to_dict(orient="records"):
            place = {"step": at["step"], "label": at["label"], "role": at["role"], **place_of(at["readout"])}
            numbers = Interval(at["value"], at["low"], at["high"])
            rows.append(place | measured("drawn" if at["readout"] == X0HAT else "excess", numbers, at["n"]))
        for o in (*self.layers, *(o for o in self.onsets if o.measure != "decodable")):
            place = {"step": None, "label": o.label, "role": o.role, **place_of(o.readout)}
            rows.append(place | measured(f"onset of {o.measure}", o.step, o.n))
        steps = range(1 + max(self.sigmas))
        sigmas, experts = [self.sigmas[s] for s in steps], [self.experts[s] for s in steps]
        return step_table(rows, sigmas, experts, task=self.task)

    def plot(self, axis: Axes | None = None, *, evidence: str = "probe") -> Axes:
        """Excess of the probes ("probe") or share that is drawn ("x0hat") at every step."""
        table = self.curves[(self.curves["readout"] == X0HAT) == (evidence == X0HAT)]
        axis = curves(table, "step", "value", hue="label", axis=axis)
        name = "share of instances that draw it" if evidence == X0HAT else "skill above the best control"
        axis.set(ylabel=name, title=self.task)
        return axis

    def onset(self, label: str, measure: str) -> Onset:
        """The onset of a thing by a measure; that of a probe is at the chosen layer."""
        return next(o for o in self.onsets if (o.label, o.measure) == (label, measure))

    def __str__(self) -> str:
        rows = [
            (self.task, o.label, o.role, o.measure, o.readout, *o.step, self._sigma(o.step.value), o.n)
            for o in self.onsets
        ]
        table = pd.DataFrame(
            rows, columns=["task", "label", "role", "measure", "at", "step", "low", "high", "sigma", "n"]
        )
        told = [
            f"{m}: {self.verdict(m)} (in order in {self.before(m):.3f} of replicates)"
            for m in dict.fromkeys(o.measure for o in self.onsets)
        ]
        return "\n".join(["perception before action", printed(table), *told])

    def _sigma(self, step: float) -> float:
        return self.sigmas[int(step)] if np.isfinite(step) else float("nan")


def perception_before_action(
    model: VideoDiT,
    task: Task,
    config: BehaviourConfig | None = None,
    *,
    chain: Chain | None = None,
    interventions: Iterable[Intervention] = (),
) -> PerceptionOrder:
    """When ends and path are decodable and drawn; see the module's docstring for the definitions.

    Parameters
    ----------
    config : BehaviourConfig, optional
        Where one step alone is probed the probes can show no order.
    chain, interventions
        As in `self_correction`.

    Raises
    ------
    EvidenceError
        The task does not say what is given and where the answer is, or has too few instances.
    """
    config = config or BehaviourConfig()
    known = require(task, "labels", "answer_label", "read_given", "read_answer", who=_WHO)
    instances = distinct(task, config.order_instances, config.seed, by="picture")
    path, ends = known.answer_label, given_labels(task, instances, model.geometry(instances[0]).grid[0])
    if len(instances) < 4 * config.folds:
        raise EvidenceError(f"{task.name}: {len(instances)} instances are too few; need at least {4 * config.folds}")
    others = listed(interventions)
    chain = chain_of(model, task, config, chain, others)
    data = collect(
        model,
        task,
        instances,
        Readout.of(steps=config.probe_steps),
        labels=[*ends, path],
        seed=config.seed,
        batch=config.batch,
        interventions=others,
    )
    asked = next(iter(data.values())).labels
    runs, rows = np.arange(len(instances)), np.arange(asked[path].values.shape[1])
    every = np.broadcast_to(rows, (len(runs), len(rows)))
    grid = probe_rows(data, asked, runs, every, config.folds, config.seed)
    onsets, layers, probe_curves = _of_probes(grid, path, config)
    drawn, drawn_curves = _of_lens(chain, ends, config)
    both = pd.concat([probe_curves, drawn_curves], ignore_index=True)
    sigmas, experts = dict(enumerate(chain.sigmas)), dict(enumerate(chain.experts))
    return PerceptionOrder(task.title, config, sigmas, experts, (*onsets, *drawn), tuple(layers), both, len(instances))


def given_labels(task: Task, instances: Sequence[Any], latent_frames: int) -> list[str]:
    """The perception labels of cells that the task reads back from a picture: what the first frame shows.

    Raises
    ------
    EvidenceError
        There are fewer than two.
    """
    known = require(task, "labels", "read_given", who=_WHO)
    one = instances[:1]
    labels = known.labels(one, latent_frames)
    shown = known.read_given(np.stack([np.asarray(instance.image.convert("RGB")) for instance in one]), one)
    names = [name for name in shown if name in labels and labels[name].role == "perception"]
    if len(names) < 2:
        raise EvidenceError(
            f"{_WHO} needs two things that the picture shows; task {task.name!r} reads {', '.join(names) or 'none'}"
        )
    return names


def _of_probes(grid: ProbeGrid, path: str, config: BehaviourConfig) -> tuple[list[Onset], list[Onset], pd.DataFrame]:
    """Onsets at the chosen layer, those at every layer, and the curves of the excess."""
    choose, report = split_weights(grid.groups, config.replicates, config.seed)
    onsets, layers, rows, n = list[Onset](), list[Onset](), [], int((report[0] > 0).sum())
    steps = tuple(grid.steps)
    places = [short_name(site) for site in grid.at(steps[0])]
    for name in grid.labels:
        chosen = np.mean([grid.excess(grid.at(s), name, choose)[0] for s in steps], axis=0)
        excess = np.stack([grid.excess(grid.at(s), name, report) for s in steps])
        for k, readout in enumerate(places):
            layers.append(
                _onset(name, _role(name, path), "decodable", readout, excess[..., k] - config.threshold, steps, n)
            )
        k = int(chosen.argmax())
        best = places[k]
        skill = np.stack([grid.skill(grid.at(s)[k], name, report) for s in steps])
        half = np.minimum(skill - skill[-1] / 2, skill[-1] - config.threshold)
        onsets += [layers[k - len(places)], _onset(name, _role(name, path), "half", best, half, steps, n)]
        for s, e in zip(steps, excess[..., k], strict=True):
            at = (s, grid.sigmas[s], grid.experts[s])
            rows.append((name, _role(name, path), best, *at, *percentile_interval(e), n))
    return onsets, layers, _table(rows)


def _of_lens(chain: Chain, ends: Sequence[str], config: BehaviourConfig) -> tuple[list[Onset], pd.DataFrame]:
    """Onsets and shares of what x0hat draws."""
    instances, last = list(chain.instances), chain.frames[:, :, -1]
    task = require(chain.task, "read_given", "read_answer", "answer_label", who=_WHO)
    path = task.answer_label
    given = [task.read_given(images, instances) for images in last]
    drawn = {name: np.stack([at[name] for at in given]) for name in ends}
    trails = np.stack([task.read_answer(images, instances).marks for images in last])
    finished = (trails[-1] > 0).sum(axis=(1, 2)) >= 2
    shown = {name: drawn[name] for name in ends} | {path: (trails == trails[-1]).all(axis=(2, 3)) & finished}
    weights = bootstrap_weights(chain.count, config.replicates, config.seed)
    onsets, rows, steps = [], [], tuple(range(chain.steps))
    for name, values in shown.items():
        shares = weighted_means(values.astype(np.float64), weights).T
        onsets.append(_onset(name, _role(name, path), "drawn", X0HAT, shares - 0.5, steps, chain.count))
        for s, share in enumerate(shares):
            at = (s, chain.sigmas[s], chain.experts[s])
            rows.append((name, _role(name, path), X0HAT, *at, *percentile_interval(share), chain.count))
    return onsets, _table(rows)


def _role(label: str, path: str) -> str:
    return "action" if label == path else "perception"


def _table(rows: list[Any]) -> pd.DataFrame:
    columns = ["label", "role", "readout", "step", "sigma", "expert", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def _onset(label: str, role: str, measure: str, readout: str, above: Floats, steps: tuple[int, ...], n: int) -> Onset:
    """The first step at which ``above`` (S, R + 1), by how much a value has passed, is not negative."""
    value, low, high = np.array([percentile_interval(of_step) for of_step in above]).T
    # An excess over the best of several controls can lie outside of its own percentiles.
    early, late = _first(np.stack([np.fmax(value, high), np.fmin(value, low)], axis=1), steps)
    first = _first(above, steps)
    return Onset(label, role, measure, readout, Interval(float(first[0]), float(early), float(late)), first, n)


def _first(above: Floats, steps: tuple[int, ...]) -> Floats:
    """The first of S steps at which a column of (S, K) is not negative: shape (K,), infinite where none is."""
    passed = above >= 0
    return np.where(passed.any(axis=0), np.array(steps, dtype=np.float64)[passed.argmax(axis=0)], np.inf)
