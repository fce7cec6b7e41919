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

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.analysis.behaviours.chain import distinct
from dit_lens.analysis.behaviours.config import BehaviourConfig
from dit_lens.analysis.behaviours.probe_rows import dealt, probe_rows, split_weights
from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.probing.probe_grid import ProbeGrid, short_name
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.data import ProbeData
from dit_lens.probing.rows.readout import Readout
from dit_lens.results.arrays import Bools, Ints
from dit_lens.results.intervals import Interval, bootstrap_weights, percentile_interval
from dit_lens.results.plots import heatmap
from dit_lens.sites.site import Site
from dit_lens.sites.tokens import Tokens
from dit_lens.tasks.base import Label

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
    step, readout : the place
    skill, excess : Interval
        On the other half of the instances, n of them.
    accuracy : float
        Balanced accuracy there.
    controls : dict from each control to its skill there
    """

    frame: int
    target: str
    step: int
    readout: str
    skill: Interval
    excess: Interval
    accuracy: float
    controls: dict[str, float]
    n: int


@dataclass(frozen=True)
class WorkingMemory:
    """Probes of hidden frames.

    Attributes
    ----------
    task : str
    config : BehaviourConfig
    grids : dict from (latent frame, target) to ProbeGrid
        Over all instances for which the frame is hidden; its one label is the target.
    peaks : list of Peak, one for each of them
    instances : int
        How many different ones the task gave, of ``config.memory_instances`` that were asked for.
    """

    task: str
    config: BehaviourConfig
    grids: dict[tuple[int, str], ProbeGrid]
    peaks: list[Peak]
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

    def frame(self) -> pd.DataFrame:
        """Tidy table: task, target, latent_frame, step, sigma, expert, branch, readout, control, skill, accuracy, low,
        high, n.

        ``control`` is "none" for the probe itself, else what it is compared with; "excess" is the skill above the best
        control. ``accuracy`` is balanced accuracy, empty for the excess; low and high are the skill's.
        """
        parts = [self._table(*key, grid) for key, grid in self.grids.items()]
        return pd.concat(parts, ignore_index=True)

    def _table(self, frame: int, target: str, grid: ProbeGrid) -> pd.DataFrame:
        weights = bootstrap_weights(grid.groups, self.config.replicates, self.config.seed)
        rows = []
        for step in grid.steps:
            for site in grid.at(step):
                scores = grid.scores_of(site, target)
                found = {control: (s.skill(weights), s.balanced_accuracy(weights)[0]) for control, s in scores.items()}
                found["majority"] = (np.zeros(len(weights)), 1 / np.count_nonzero(scores["none"].rows))
                found["excess"] = (grid.excess([site], target, weights)[:, 0], np.nan)
                at = (self.task, target, frame, step, grid.sigmas[step], grid.experts[step], "cond", short_name(site))
                for control, (values, accuracy) in found.items():
                    skill, low, high = percentile_interval(values)
                    rows.append((*at, control, skill, accuracy, low, high, grid.groups))
        columns = ["task", "target", "latent_frame", "step", "sigma", "expert", "branch", "readout", "control", "skill"]
        return pd.DataFrame(rows, columns=[*columns, "accuracy", "low", "high", "n"])

    def summary(self) -> pd.DataFrame:
        """The peaks: task, latent_frame, target, step, sigma, expert, readout, accuracy (balanced), skill, the skill of
        each control, excess with low and high, n, shown.
        """
        rows = []
        for p in self.peaks:
            grid = self.grids[p.frame, p.target]
            at = {"task": self.task, "latent_frame": p.frame, "target": p.target, "step": p.step}
            at |= {"sigma": grid.sigmas[p.step], "expert": grid.experts[p.step], "readout": p.readout}
            found = {"accuracy": p.accuracy, "skill": p.skill.value, **p.controls}
            excess = dict(zip(("excess", "low", "high"), p.excess, strict=True))
            rows.append({**at, **found, **excess, "n": p.n, "shown": self.shown(p.frame, p.target)})
        return pd.DataFrame(rows)

    def plot(self, axis: Axes | None = None, target: str = "colour", frame: int | None = None) -> Axes:
        """Skill above the best control, layers by steps, of one hidden frame (by default the one hidden most often)."""
        chosen = self.frames[0] if frame is None else frame
        table = self._table(chosen, target, self.grids[chosen, target]).query("control == 'excess'")
        table = table.rename(columns={"skill": "skill above the best control"})
        # In order of depth: as words, "embed" would come last.
        table["readout"] = pd.Categorical(table["readout"], list(dict.fromkeys(table["readout"])))
        axis = heatmap(table, "readout", "step", "skill above the best control", axis, vmin=0, vmax=1)
        axis.tick_params(axis="y", rotation=0)
        axis.set(ylabel="", title=f"{self.task}: {target} of the hidden object, latent frame {chosen}")
        return axis


def working_memory(model: VideoDiT, task: Any, config: BehaviourConfig | None = None, **changes: Any) -> WorkingMemory:
    """Probe the frames in which an object is hidden; see the module's docstring for the definitions.

    Parameters
    ----------
    config, **changes
        As in `BehaviourConfig`.

    Raises
    ------
    EvidenceError
        The task has no labels ``mover``, ``hidden`` and ``hidden_`` with colours, or too few instances hide anything.
    """
    config = replace(config or BehaviourConfig(), **changes)
    instances = distinct(task, config.memory_instances, config.seed, by="picture")
    labels = task.labels(instances, model.geometry(instances[0]).grid[0])
    colours = sorted(name for name in labels if name.startswith("hidden_"))
    if missing := [name for name in ("mover", "hidden") if name not in labels] + ([] if colours else ["hidden_*"]):
        raise EvidenceError(f"task {task.name!r} has no labels {', '.join(missing)}: it hides nothing that it tells of")
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
    )
    grids, peaks = {}, []
    for place, frame in enumerate(frames):
        runs = np.flatnonzero(hidden[:, frame])
        here = {name: labels[name].values[runs, frame].reshape(len(runs), -1) for name in ("hidden", *colours)}
        for target in TARGETS:
            label, cells = _asked(target, here, colours)
            grids[frame, target] = _grid(data, label, runs, cells + place * here["hidden"].shape[1], config)
            peaks.append(_peak(grids[frame, target], frame, target, config))
    return WorkingMemory(task.title, config, grids, peaks, len(instances))


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
    return Peak(
        frame,
        target,
        Site.parse(site).step,
        short_name(site),
        skill,
        excess,
        accuracy,
        controls,
        int((report[0] > 0).sum()),
    )
