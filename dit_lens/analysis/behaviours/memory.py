"""Working memory: what can be read of a hidden object from the frames in which it is not seen.

The definitions, fixed before any figure was looked at and not changed since. A latent frame is *hidden* for an instance
where the named object is behind the wall in all of its pixel frames. In every hidden frame, two things are probed at
every step and layer, over the instances for which the frame is hidden:

- *position*: in which of the cells where the object could be hidden it is. One probe reads each such cell, of every
  instance; true where the object is.
- *colour*: the object's colour, one of five, read at the first cell, row by row, where it is hidden in that frame.

*Skill* is 0 at chance and 1 at perfection: (b - 1/k) / (1 - 1/k) of the balanced accuracy b of k classes. Controls, all
on the same rows: *shuffled* labels of other instances, *input*, the full model input at the same token, *position*
(which cell it is), *random*, the same readout in the same architecture with random weights, and *majority*, whose skill
is 0. The *excess* is the skill above the best of them. Memory is *shown* in a frame where, at the place (step, layer)
that is best on one half of the instances, the excess on the other half has an interval whose lower end is above the
threshold.

What the input knows. At a hidden frame the model is given the sampler's own noisy state there, the frame mask, and the
condition latents of that frame. The picture enters as the condition of the first frame; with an autoencoder that mixes
no frames (the shipped puzzles) the condition of later frames says nothing of it, and with one that does the control
*input* has whatever leaks. The state of a hidden frame shows a wall. The picture and the prompt come back with every
call, so that what is found in a hidden frame has been brought there anew by attention within the call; that it was
carried from step to step is not shown by this, nor that anything reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.analysis.behaviours.chain import distinct, measured, printed, step_table
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.analysis.behaviours.probe_rows import dealt, place_of, probe_rows, split_weights
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.probing.probe_grid import ProbeGrid, short_name
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.data import ProbeData
from dit_lens.probing.rows.readout import Readout
from dit_lens.results.arrays import Bools, Ints
from dit_lens.results.intervals import Interval, bootstrap_weights, percentile_interval
from dit_lens.results.plots import heatmap
from dit_lens.results.result import Result
from dit_lens.sites.site import Site
from dit_lens.sites.tokens import Tokens
from dit_lens.tasks.base import Label, Task
from dit_lens.tasks.evidence import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGETS = ("position", "colour")


@dataclass(frozen=True)
class Peak:
    """The place that is best on one half of the instances, and what it shows on the other.

    Attributes
    ----------
    frame : int
        Latent frame.
    target : "position" or "colour"
    site : str
        The place, as a canonical string.
    skill, excess : Interval
        On the other half of the instances, n of them.
    accuracy : float
        Balanced accuracy there.
    controls : dict from each control to its skill there
    """

    frame: int
    target: str
    site: str
    skill: Interval
    excess: Interval
    accuracy: float
    controls: dict[str, float]
    n: int

    @property
    def step(self) -> int:
        return Site.parse(self.site).step


@dataclass(frozen=True, repr=False)
class WorkingMemory(Result):
    """Probes of hidden frames.

    Attributes
    ----------
    task : str
    config : BehaviourConfig
    grids : dict from (latent frame, target) to ProbeGrid
        Over all instances for which the frame is hidden; its one label is the target.
    peaks : tuple of Peak, one for each of them
    instances : int
        How many different ones the task gave, of ``config.memory_instances`` that were asked for.
    """

    task: str
    config: BehaviourConfig
    grids: dict[tuple[int, str], ProbeGrid]
    peaks: tuple[Peak, ...]
    instances: int

    @property
    def frames(self) -> list[int]:
        """The hidden latent frames, the one that is hidden for most instances first."""
        counts = {frame: grid.groups for (frame, _), grid in self.grids.items()}
        return sorted(counts, key=lambda frame: -counts[frame])

    def shown(self, frame: int, target: str) -> bool:
        """Whether there is memory of a target in a hidden frame, by the definition above."""
        peak = next(p for p in self.peaks if (p.frame, p.target) == (frame, target))
        return peak.excess.low > self.config.threshold

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns step, sigma, expert, branch, layer, component, task, target, latent_frame, of, control, measure,
        value, low, high, n (instances).

        ``control`` is "none" for the probe itself, else what it is compared with. Measures: "skill"; "excess", the
        skill above the best control; "accuracy", balanced, without an interval. ``of`` is "all" instances, or the
        "half" on which the best place of the other half is reported (`peaks`).
        """
        rows = [row for (frame, target), grid in self.grids.items() for row in self._rows(frame, target, grid)]
        rows += [row for peak in self.peaks for row in self._peak_rows(peak)]
        grid = next(iter(self.grids.values()))
        steps = range(1 + max(grid.steps))
        sigmas = [float("nan") if grid.sigmas.get(s) is None else float(grid.sigmas[s] or 0) for s in steps]
        return step_table(rows, sigmas, [grid.experts.get(s) for s in steps], branch="cond", task=self.task)

    def _rows(self, frame: int, target: str, grid: ProbeGrid) -> Iterator[dict[str, Any]]:
        weights, n = bootstrap_weights(grid.groups, self.config.replicates, self.config.seed), grid.groups
        for site in grid.sites:
            at = self._at(site, target, frame, "all")
            scores = grid.scores_of(site, target)
            for control, of_control in scores.items():
                accuracy = Interval.unknown(float(of_control.balanced_accuracy(weights)[0]))
                yield at | {"control": control} | measured("skill", percentile_interval(of_control.skill(weights)), n)
                yield at | {"control": control} | measured("accuracy", accuracy, n)
            chance = Interval.unknown(1 / np.count_nonzero(scores["none"].rows))
            yield at | {"control": "majority"} | measured("skill", Interval(0.0, 0.0, 0.0), n)
            yield at | {"control": "majority"} | measured("accuracy", chance, n)
            excess = percentile_interval(grid.excess([site], target, weights)[:, 0])
            yield at | {"control": "none"} | measured("excess", excess, n)

    def _peak_rows(self, peak: Peak) -> Iterator[dict[str, Any]]:
        at = self._at(peak.site, peak.target, peak.frame, "half")
        yield at | {"control": "none"} | measured("skill", peak.skill, peak.n)
        yield at | {"control": "none"} | measured("excess", peak.excess, peak.n)
        known = Interval.unknown(peak.accuracy)
        yield at | {"control": "none"} | measured("accuracy", known, peak.n)
        for control, skill in peak.controls.items():
            of_control = Interval.unknown(skill)
            yield at | {"control": control} | measured("skill", of_control, peak.n)

    def _at(self, site: str, target: str, frame: int, of: str) -> dict[str, Any]:
        return {
            "step": Site.parse(site).step,
            **place_of(short_name(site)),
            "target": target,
            "latent_frame": frame,
            "of": of,
        }

    def plot(self, axis: Axes | None = None, *, target: str = "colour", frame: int | None = None) -> Axes:
        """Skill above the best control, layers by steps, of one hidden frame (by default the one hidden most often)."""
        chosen, name = self.frames[0] if frame is None else frame, "skill above the best control"
        grid = self.grids[chosen, target]
        excess = grid.excess(grid.sites, target, np.ones((1, grid.groups)))[0]
        rows = [(Site.parse(s).step, short_name(s), float(x)) for s, x in zip(grid.sites, excess, strict=True)]
        table = pd.DataFrame(rows, columns=["step", "place", name])
        # In order of depth: as words, "embed" would come last.
        table["place"] = pd.Categorical(table["place"], list(dict.fromkeys(table["place"])))
        axis = heatmap(table, "place", "step", name, axis, vmin=0, vmax=1)
        axis.tick_params(axis="y", rotation=0)
        axis.set(ylabel="", title=f"{self.task}: {target} of the hidden object, latent frame {chosen}")
        return axis

    def __str__(self) -> str:
        rows = []
        for p in self.peaks:
            at = {
                "task": self.task,
                "latent frame": p.frame,
                "target": p.target,
                "step": p.step,
                "place": short_name(p.site),
            }
            found = {"accuracy": p.accuracy, "skill": p.skill.value, **p.controls, "excess": str(p.excess)}
            rows.append(at | found | {"n": p.n, "shown": self.shown(p.frame, p.target)})
        return "working memory\n" + printed(pd.DataFrame(rows))


def working_memory(
    model: VideoDiT,
    task: Task,
    config: BehaviourConfig | None = None,
    *,
    interventions: Iterable[Intervention] = (),
) -> WorkingMemory:
    """Probe the frames in which an object is hidden; see the module's docstring for the definitions.

    Parameters
    ----------
    config : BehaviourConfig, optional
    interventions : iterable of Intervention
        Applied in every run.

    Raises
    ------
    EvidenceError
        The task has no labels ``mover``, ``hidden`` and ``hidden_`` with colours, or too few instances hide anything.
    """
    config = config or BehaviourConfig()
    known = require(task, "labels", who="working_memory")
    instances = distinct(task, config.memory_instances, config.seed, by="picture")
    labels = known.labels(instances, model.geometry(instances[0]).grid[0])
    colours = sorted(name for name in labels if name.startswith("hidden_"))
    if missing := [name for name in ("mover", "hidden") if name not in labels] + ([] if colours else ["hidden_*"]):
        raise EvidenceError(
            f"working_memory needs labels of a hidden object; task {task.name!r} has no labels {', '.join(missing)}"
        )
    hidden = hidden_frames(labels)
    frames = [int(f) for f in np.flatnonzero(hidden.sum(axis=0) >= 4 * config.folds)]
    if not frames:
        raise EvidenceError(
            f"{task.name}: in no latent frame do {4 * config.folds} of {len(instances)} instances hide an object"
        )
    data = collect(
        model,
        task,
        instances,
        Readout.of(steps=config.probe_steps, tokens=Tokens(frames=frames)),
        labels=["hidden"],
        seed=config.seed,
        batch=config.batch,
        interventions=interventions,
    )
    grids, peaks = {}, []
    for place, frame in enumerate(frames):
        runs = np.flatnonzero(hidden[:, frame])
        here = {name: labels[name].values[runs, frame].reshape(len(runs), -1) for name in ("hidden", *colours)}
        for target in TARGETS:
            label, cells = _asked(target, here, colours)
            grids[frame, target] = _grid(data, label, runs, cells + place * here["hidden"].shape[1], config)
            peaks.append(_peak(grids[frame, target], frame, target, config))
    return WorkingMemory(task.title, config, grids, tuple(peaks), len(instances))


def hidden_frames(labels: dict[str, Label]) -> Bools:
    """In which latent frames the object is seen in none of the pixel frames: bool (G, F)."""
    mover, hidden = (labels[name].values.reshape(*labels[name].values.shape[:2], -1) for name in ("mover", "hidden"))
    return np.asarray(hidden.any(axis=2) & (mover == hidden).all(axis=2))


def _asked(target: str, here: dict[str, Bools], colours: list[str]) -> tuple[Label, Ints]:
    """The label and the cells at which it is read, both (r, k); ``here`` holds labels (r, n n) of one latent frame."""
    hidden = here["hidden"]
    if target == "position":
        cells = np.flatnonzero(hidden.any(axis=0))
        return Label(target, "reasoning", hidden[:, cells]), np.broadcast_to(cells, (len(hidden), len(cells)))
    of_colour = np.stack([here[name].any(axis=1) for name in colours], axis=1)
    values = of_colour.argmax(axis=1)
    # A colour of one object alone could not be in the training of every fold.
    values = np.where(of_colour.sum(axis=0)[values] > 1, values, -1)
    names = tuple(name.removeprefix("hidden_") for name in colours)
    return Label(target, "reasoning", values[:, None], names=names), hidden.argmax(axis=1)[:, None]


def _grid(data: dict[int, ProbeData], label: Label, runs: Ints, rows: Ints, config: BehaviourConfig) -> ProbeGrid:
    folds = dealt(label.values.max(axis=1), config.folds)
    return probe_rows(data, {label.name: label}, runs, rows, folds, config.seed)


def _peak(grid: ProbeGrid, frame: int, target: str, config: BehaviourConfig) -> Peak:
    choose, report = split_weights(grid.groups, config.replicates, config.seed)
    best = {site: float(grid.excess([site], target, choose)[0, 0]) for site in grid.sites}
    site = max(grid.sites, key=lambda site: best[site])
    skill = percentile_interval(grid.skill(site, target, report))
    excess = percentile_interval(grid.excess([site], target, report)[:, 0])
    accuracy = float(grid.scores_of(site, target)["none"].balanced_accuracy(report[:1])[0])
    controls = {name: float(values[0]) for name, values in grid.controls(site, target, report[:1]).items()}
    return Peak(frame, target, site, skill, excess, accuracy, controls, int((report[0] > 0).sum()))
