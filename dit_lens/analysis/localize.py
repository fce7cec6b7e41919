"""Where a model perceives, where it reasons, where it consolidates: the main analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dit_lens.analysis.bands import Curves, Thresholds, Verdict, find_bands
from dit_lens.analysis.lensing import LensCurves, lens_curves
from dit_lens.analysis.patching import PatchingSweep, patching_sweep
from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.probing import ProbeGrid, collect, probe_grid
from dit_lens.results.intervals import bootstrap_weights, weighted_means
from dit_lens.sites.select import Select, indices

Floats = NDArray[np.float64]

#: Labels that the bands are read from; a task's further labels are probed and reported too.
PERCEPTION = ("wall_right", "wall_down", "wall_left", "wall_up", "start", "goal", "goal_red", "goal_purple")
REASONING = ("on_path", "distance")
ANSWER = "on_path"
#: Controls of the excess. Random weights are in the tables, and the null of the whole analysis is `random:maze`.
EXCESS_ABOVE = ("shuffled", "input", "position")


@dataclass(frozen=True)
class LocalizeConfig:
    """How much to look at.

    Attributes
    ----------
    probe_instances, pairs, lens_instances : int
        Task instances for probes, counterfactual pairs to try, instances for the depth lens.
    flip_pairs : int
        Right pairs that are also patched at all steps.
    probe_steps : Select
        Denoising steps at which probes are fitted; ``step`` is always among them.
    step : int
        The step from which the bands are read. At step 0 the noisy latents know nothing of the answer.
    replicates : int
        Bootstrap replicates.
    permute : bool
        The null: probe labels, donors' answers and the lens's yardstick all come from other instances.
    """

    probe_instances: int = 192
    pairs: int = 48
    lens_instances: int = 64
    flip_pairs: int = 16
    probe_steps: Any = "all"
    step: int = 0
    folds: int = 3
    replicates: int = 500
    seed: int = 0
    permute: bool = False

    @classmethod
    def quick(cls, **changes: Any) -> LocalizeConfig:
        """A smaller run of the same work, for checks."""
        small = cls(probe_instances=48, pairs=12, lens_instances=16, flip_pairs=4, probe_steps=[0, 5], replicates=200)
        return replace(small, **changes)


@dataclass(frozen=True)
class Localization:
    """The evidence and the verdict drawn from it.

    Attributes
    ----------
    verdict : Verdict
    curves : Curves
    probes : ProbeGrid
    patching : PatchingSweep
    lens : LensCurves
    """

    model: str
    task: str
    config: LocalizeConfig
    thresholds: Thresholds
    verdict: Verdict
    curves: Curves
    probes: ProbeGrid
    patching: PatchingSweep
    lens: LensCurves

    @property
    def bands(self) -> dict[str, Any]:
        return dict(self.verdict.bands)

    def frame(self) -> pd.DataFrame:
        """Every number with its interval: one tidy table over probes, patching and lens."""
        probes = self.probes.frame().rename(columns={"readout": "place", "skill": "value"})
        probes.insert(0, "evidence", "probe")
        parts = [probes.assign(step=probes["step"].astype(str))]
        for name, table in (("patching", self.patching.frame()), ("lens", self.lens.frame())):
            table = table.rename(columns={"measure": "label"})
            table["place"] = [f"L{layer:02d}" for layer in table.pop("layer")]
            parts.append(table.assign(evidence=name))
        columns = ["evidence", "step", "place", "component", "label", "role", "control", "value", "low", "high", "n"]
        return pd.concat(parts, ignore_index=True).reindex(columns=columns)

    def to_json(self) -> dict[str, Any]:
        """Verdict, bands and the curves that they come from, as JSON types."""
        return {
            "model": self.model,
            "task": self.task,
            "verdict": str(self.verdict),
            "bands": [band.to_json() for band in self.verdict.bands.values()],
            "reasons": dict(self.verdict.reasons),
            "evidence": {
                "curves": {name: values[0].tolist() for name, values in vars(self.curves).items()},
                "flip_rate": self.patching.flips.mean(axis=1).tolist() if self.patching.flips.size else [],
                "pairs": {"tried": self.patching.tried, "both_right": self.patching.right},
                "instances": {"probes": self.probes.groups, "lens": self.lens.agreement.shape[1]},
            },
            "config": {k: v if isinstance(v, int | str | list) else str(v) for k, v in asdict(self.config).items()},
            "thresholds": asdict(self.thresholds),
        }

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file, and beside it ``.csv`` with every number."""
        from dit_lens.report.html import write_report

        return write_report(self, Path(path))


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
        model, task, task.pairs(config.pairs, seed=config.seed + 1), step=config.step,
        flip_pairs=config.flip_pairs, seed=config.seed + 10_000, permute=config.permute,
    )  # fmt: skip
    instances = task.sample(config.lens_instances, seed=config.seed + 2)
    judged_on = _derange(instances) if config.permute else instances
    lens = lens_curves(model, task, instances, step=config.step, seed=config.seed + 20_000, judged_on=judged_on)
    curves = _curves(model.layers, probes, patching, lens, config)
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
    data = collect(model, task, instances, steps=steps, seed=config.seed, decode=True)
    if config.permute:
        data = {step: _permuted(part) for step, part in data.items()}
    return probe_grid(data, folds=config.folds, seed=config.seed)


def _permuted(data: Any) -> Any:
    """Probe data in which every instance carries the labels of another one."""
    labels = {n: replace(label, values=np.roll(label.values, 1, axis=0)) for n, label in data.labels.items()}
    return replace(data, labels=labels)


def _derange(instances: Sequence[Any]) -> list[Any]:
    return [*instances[1:], instances[0]]


def _curves(
    layers: int, probes: ProbeGrid, patching: PatchingSweep, lens: LensCurves, config: LocalizeConfig
) -> Curves:
    """All curves with their bootstrap replicates; each evidence is resampled over its own instances."""
    readouts = ["embed", *(f"L{k:02d}" for k in range(layers))]
    of_probes, of_pairs, of_lens = (
        bootstrap_weights(count, config.replicates, config.seed + i)
        for i, count in enumerate((probes.groups, patching.share.shape[1], lens.legality.shape[1]))
    )

    def excess(role: str, names: Sequence[str]) -> Floats:
        known = [name for name in names if probes.labels.get(name) == role]
        above = [probes.excess(config.step, readouts, name, of_probes, EXCESS_ABOVE) for name in known]
        return np.asarray(np.mean(above, axis=0))

    return Curves(
        perception=excess("perception", PERCEPTION), reasoning=excess("reasoning", REASONING),
        path=excess("reasoning", (ANSWER,)),
        share=weighted_means(patching.share, of_pairs), unrelated=weighted_means(patching.unrelated, of_pairs),
        legality=weighted_means(lens.legality, of_lens),
    )  # fmt: skip
