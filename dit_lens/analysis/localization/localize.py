"""Where a model perceives, where it reasons, where it consolidates: the main analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dit_lens.analysis.localization.bands import Curves, Thresholds, find_bands
from dit_lens.analysis.localization.lens_curves import LensCurves, lens_curves
from dit_lens.analysis.localization.result import Localization, LocalizeConfig
from dit_lens.analysis.patching import PatchingSweep, patching_sweep
from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.probing.cross_validate import probe_grid
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.readout import Readout
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import bootstrap_weights, weighted_means
from dit_lens.sites.select import Select, indices

#: Labels that the bands are read from; a task's further labels are probed and reported too.
PERCEPTION = ("wall_right", "wall_down", "wall_left", "wall_up", "start", "goal", "goal_red", "goal_purple")
REASONING = ("on_path", "distance")
ANSWER = "on_path"
#: Controls of the excess. Random weights are in the tables, and the null of the whole analysis is `random:maze`.
EXCESS_ABOVE = ("shuffled", "input", "position")


def localize(
    model: VideoDiT,
    task: Any,
    config: LocalizeConfig | None = None,
    thresholds: Thresholds | None = None,
    **changes: Any,
) -> Localization:
    """Probe, patch and lens a model on a task, and say which layers perceive, reason and consolidate, if any.

    The verdict never reads the task score: only pairs are selected by it, and where no pair is solved all are used.

    Parameters
    ----------
    config : LocalizeConfig, optional
    **changes
        Fields of the configuration to change.

    Raises
    ------
    EvidenceError
        The task gives none of the labels that the bands are read from.
    """
    config = replace(config or LocalizeConfig(), **changes)
    limits = thresholds or Thresholds()
    _check_labels(task)
    probes = _probe(model, task, config)
    patching = patching_sweep(
        model,
        task,
        task.pairs(config.pairs, seed=config.seed + 1),
        step=config.step,
        flip_pairs=config.flip_pairs,
        seed=config.seed + 10_000,
        permute=config.permute,
    )
    instances = task.sample(config.lens_instances, seed=config.seed + 2)
    judged_on = _derange(instances) if config.permute else instances
    lens = lens_curves(model, task, instances, step=config.step, seed=config.seed + 20_000, judged_on=judged_on)
    curves = _curves(probes, patching, lens, config)
    name = f"{type(model.pipeline).__name__}/{model.id}"
    return Localization(name, task.name, config, limits, find_bands(curves, limits), curves, probes, patching, lens)


def _check_labels(task: Any) -> None:
    """Refuse a task whose labels the bands cannot be read from, before anything runs."""
    roles = task.describe()["labels"]
    for role, names in (("perception", PERCEPTION), ("reasoning", REASONING)):
        if not any(roles.get(name) == role for name in names):
            raise EvidenceError(f"task {task.name!r} has none of the {role} labels {', '.join(names)}")


def _probe(model: VideoDiT, task: Any, config: LocalizeConfig) -> ProbeGrid:
    instances = task.sample(config.probe_instances, seed=config.seed)
    steps: Select = sorted({config.step, *indices(config.probe_steps, model.geometry(instances[0]).steps, "step")})
    data = collect(model, task, instances, Readout.of(steps=steps), seed=config.seed, decode=True)
    if config.permute:
        data = {step: _permuted(part) for step, part in data.items()}
    return probe_grid(data, folds=config.folds, seed=config.seed)


def _permuted(data: Any) -> Any:
    """Probe data in which every instance carries the labels of another one."""
    labels = {n: replace(label, values=np.roll(label.values, 1, axis=0)) for n, label in data.labels.items()}
    return replace(data, labels=labels)


def _derange(instances: Sequence[Any]) -> list[Any]:
    return [*instances[1:], instances[0]]


def _curves(probes: ProbeGrid, patching: PatchingSweep, lens: LensCurves, config: LocalizeConfig) -> Curves:
    """All curves with their bootstrap replicates; each evidence is resampled over its own instances."""
    of_probes, of_pairs, of_lens = (
        bootstrap_weights(count, config.replicates, config.seed + i)
        for i, count in enumerate((probes.groups, patching.share.shape[1], lens.legality.shape[1]))
    )

    def excess(role: str, names: Sequence[str]) -> Floats:
        known = [name for name in names if probes.labels.get(name) == role]
        above = [probes.excess(probes.at(config.step), name, of_probes, EXCESS_ABOVE) for name in known]
        return np.asarray(np.mean(above, axis=0))

    return Curves(
        perception=excess("perception", PERCEPTION),
        reasoning=excess("reasoning", REASONING),
        path=excess("reasoning", (ANSWER,)),
        share=weighted_means(patching.share, of_pairs),
        unrelated=weighted_means(patching.unrelated, of_pairs),
        legality=weighted_means(lens.legality, of_lens),
    )
