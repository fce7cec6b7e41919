"""Where a model perceives, where it reasons, where it consolidates: the main analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dit_lens.analysis.localization.bands import Curves, Thresholds, find_bands
from dit_lens.analysis.localization.lens_curves import LensCurves, lens_curves
from dit_lens.analysis.localization.result import Localization, LocalizeConfig
from dit_lens.analysis.patching import PatchingSweep, patching_sweep
from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.probing.cross_validate import probe_grid
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.probing.rows.collect import collect
from dit_lens.probing.rows.data import ProbeData
from dit_lens.probing.rows.readout import Readout
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import bootstrap_weights, weighted_means
from dit_lens.runs.seeds import derive
from dit_lens.sites.select import Select, indices
from dit_lens.sites.sites import Sites
from dit_lens.tasks.base import Task
from dit_lens.tasks.evidence import labels_by_role, labels_of, require

#: Controls of the excess. Random weights are in the tables, and the null of the whole analysis is `random:maze`.
EXCESS_ABOVE = ("shuffled", "input", "position")
_WHO = "localize"
_ROLES = ("perception", "reasoning")


def localize(
    model: VideoDiT,
    task: Task,
    config: LocalizeConfig | None = None,
    *,
    thresholds: Thresholds | None = None,
    interventions: Iterable[Intervention] = (),
) -> Localization:
    """Probe, patch and lens a model on a task, and say which layers perceive, reason and consolidate, if any.

    The verdict never reads the task score: only pairs are selected by it, and where no pair is solved all are used.

    Parameters
    ----------
    config : LocalizeConfig, optional
        How much to look at; it is saved beside the result.
    thresholds : Thresholds, optional
        The numbers of the definitions; saved beside the result too.
    interventions : iterable of Intervention
        Applied in every run.

    Raises
    ------
    EvidenceError
        The task does not declare what the bands are read from, or has no labels of a role.
    """
    config, limits, others = config or LocalizeConfig(), thresholds or Thresholds(), listed(interventions)
    roles = _labels_by_role(model, task, config)
    probes = _probe(model, task, config, others)
    roles = {role: _probed(role, names, probes) for role, names in roles.items()}
    patching = patching_sweep(
        model,
        task,
        config.pairs,
        sites=Sites("delta", steps=config.step),
        seed=derive(config.seed, "pairs"),
        interventions=others,
        flip_pairs=config.flip_pairs,
    )
    patching = patching.permuted() if config.permute else patching
    lens = lens_curves(
        model,
        task,
        config.lens_instances,
        step=config.step,
        seed=derive(config.seed, "lens"),
        interventions=others,
        permute=config.permute,
    )
    curves = _curves(roles, probes, patching, lens, config)
    name = f"{type(model.pipeline).__name__}/{model.id}"
    verdict = find_bands(curves, limits)
    return Localization(name, task.title, roles, config, limits, verdict, curves, probes, patching, lens)


def _labels_by_role(model: VideoDiT, task: Task, config: LocalizeConfig) -> dict[str, tuple[str, ...]]:
    """The labels that the bands are read from, by role and of the answer; refused before anything runs."""
    known = require(task, "labels", "answer_label", "answer_mask", "read_answer", "judge_answer", who=_WHO)
    one = task.sample(1, seed=config.seed)
    every = labels_of(task, one, model.geometry(one[0]).grid[0], who=_WHO)
    labels = {name: label for name, label in every.items() if label.level == "cell"}
    roles = {role: labels_by_role(task, labels, role) for role in _ROLES}
    for role, names in roles.items():
        if not names:
            raise EvidenceError(f"{_WHO} needs {role} labels of cells; task {task.name!r} has {', '.join(labels)}")
    if known.answer_label not in labels:
        raise EvidenceError(
            f"task {task.name!r} declares {known.answer_label!r} as the label of its answer; it has {', '.join(labels)}"
        )
    return roles | {"answer": (known.answer_label,)}


def _probe(model: VideoDiT, task: Task, config: LocalizeConfig, interventions: Sequence[Intervention]) -> ProbeGrid:
    instances = task.sample(config.probe_instances, seed=config.seed)
    steps: Select = sorted({config.step, *indices(config.probe_steps, model.geometry(instances[0]).steps, "step")})
    data = collect(
        model, task, instances, Readout.of(steps=steps), seed=config.seed, interventions=interventions, decode=True
    )
    if config.permute:
        data = {step: _permuted(part) for step, part in data.items()}
    return probe_grid(data, folds=config.folds, seed=config.seed)


def _probed(role: str, names: Sequence[str], probes: ProbeGrid) -> tuple[str, ...]:
    """The labels that have probes: one that is the same in every cell of the last latent frame has none."""
    if not (found := tuple(name for name in names if name in probes.labels)):
        raise EvidenceError(
            f"{_WHO}: {role} label {', '.join(names)} never varies in the last latent frame; no probe reads it"
        )
    return found


def _permuted(data: ProbeData) -> ProbeData:
    """Probe data in which every instance carries the labels of another one."""
    labels = {n: replace(label, values=np.roll(label.values, 1, axis=0)) for n, label in data.labels.items()}
    return replace(data, labels=labels)


def _curves(
    roles: Mapping[str, Sequence[str]],
    probes: ProbeGrid,
    patching: PatchingSweep,
    lens: LensCurves,
    config: LocalizeConfig,
) -> Curves:
    """All curves with their bootstrap replicates; each evidence is resampled over its own instances."""
    of_probes, of_pairs, of_lens = (
        bootstrap_weights(count, config.replicates, derive(config.seed, evidence))
        for evidence, count in (
            ("probes", probes.groups),
            ("pairs", patching.share.shape[1]),
            ("lens", lens.legality.shape[1]),
        )
    )

    def excess(role: str) -> Floats:
        above = [probes.excess(probes.at(config.step), name, of_probes, EXCESS_ABOVE) for name in roles[role]]
        return np.asarray(np.mean(above, axis=0))

    return Curves(
        perception=excess("perception"),
        reasoning=excess("reasoning"),
        path=excess("answer"),
        share=weighted_means(patching.share, of_pairs),
        unrelated=weighted_means(patching.unrelated, of_pairs),
        legality=weighted_means(lens.legality, of_lens),
    )
