"""What `localize` was asked and what it returns."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dit_lens.analysis.localization.bands import Band, Curves, Thresholds, Verdict
from dit_lens.analysis.localization.figures import (
    EVIDENCE,
    plot_evidence,
    plot_lens,
    plot_patching,
    plot_probe_heatmap,
    plot_probes,
)
from dit_lens.analysis.localization.lens_curves import LensCurves
from dit_lens.analysis.localization.tables import band_lines, layer_table
from dit_lens.analysis.patching import PatchingSweep
from dit_lens.errors import EvidenceError
from dit_lens.files.atomic import write_atomic
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.results.page import write_page
from dit_lens.results.plots import axes
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ABOUT = (
    "Which layers perceive, reason and consolidate. Skill is 0 at chance and 1 at perfection, here above the best of "
    "the controls (shuffled labels, full model input, position). Share is how far patching one layer's update at one "
    "step moves the clean estimate towards the other side of a counterfactual pair."
)


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


@dataclass(frozen=True, repr=False)
class Localization(Result):
    """The evidence and the verdict drawn from it.

    Attributes
    ----------
    model, task : str
    labels : dict from "perception", "reasoning" and "answer" to the labels that stand for it
    config : LocalizeConfig
    thresholds : Thresholds
    verdict : Verdict
    curves : Curves
    probes : ProbeGrid
    patching : PatchingSweep
    lens : LensCurves
    """

    model: str
    task: str
    labels: dict[str, tuple[str, ...]]
    config: LocalizeConfig
    thresholds: Thresholds
    verdict: Verdict
    curves: Curves
    probes: ProbeGrid
    patching: PatchingSweep
    lens: LensCurves

    @property
    def bands(self) -> dict[str, Band]:
        return dict(self.verdict.bands)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Every number with its interval: the tables of probes, patching and lens, one below the other.

        Columns: those of `SITE_COLUMNS` that apply, evidence ("probe", "patching", "lens"), label, role, control,
        measure, value, low, high, n.
        """
        parts = {"probe": self.probes.table, "patching": self.patching.table, "lens": self.lens.table}
        named = [part.astype(object).assign(evidence=name) for name, part in parts.items()]
        table = pd.concat(named, ignore_index=True)
        own = ["evidence", "label", "role", "control"]
        known = [name for name in SITE_COLUMNS if name in table]
        numbers = dict.fromkeys(("sigma", "value", "low", "high"), float)
        return table[[*known, *own, *VALUE_COLUMNS]].astype(numbers)

    def plot(self, axis: Axes | None = None, *, evidence: str = "probes") -> Axes:
        """One kind of evidence over depth, with the bands behind it; `figures` has all three.

        Parameters
        ----------
        evidence : "probes", "patching" or "lens"
        """
        axis = axes(axis)
        if evidence == "probes":
            plot_probes(self.curves, self.verdict, axis)
        elif evidence == "patching":
            plot_patching(self.curves, self.verdict, self.patching, axis)
        elif evidence == "lens":
            plot_lens(self.curves, self.verdict, self.lens, axis)
        else:
            raise EvidenceError(f"evidence={evidence!r}: there are {', '.join(EVIDENCE)}")
        return axis

    def to_json(self) -> dict[str, Any]:
        """Verdict, bands and the curves that they come from, as JSON types, and the table."""
        return super().to_json() | {
            "model": self.model,
            "task": self.task,
            "verdict": str(self.verdict),
            "bands": [band.to_json() for band in self.verdict.bands.values()],
            "reasons": dict(self.verdict.reasons),
            "evidence": {
                "curves": {name: values[0].tolist() for name, values in vars(self.curves).items()},
                "flip_rate": self.patching.flip_rate.tolist(),
                "pairs": {"tried": self.patching.tried, "both_right": self.patching.right},
                "instances": {"probes": self.probes.groups, "lens": self.lens.agreement.shape[1]},
            },
            "config": {k: v if isinstance(v, int | str | list) else str(v) for k, v in asdict(self.config).items()},
            "thresholds": asdict(self.thresholds),
        }

    def __str__(self) -> str:
        """A table over layers, the bands with their intervals, the reasons for those that are missing, the verdict."""
        patching = self.patching
        lines = [
            f"{self.task} on {self.model}, step {self.config.step}, 95 % bootstrap intervals over instances",
            f"n: {self.probes.groups} instances probed, {patching.share.shape[1]} pairs patched "
            f"({patching.right} of {patching.tried} pairs right on both sides"
            f"{'' if patching.selected else '; none, so all are used'}), "
            f"{patching.flips.shape[1]} at all steps, {self.lens.legality.shape[1]} instances under the depth lens",
            "",
            layer_table(self.curves, self.verdict, patching, self.lens).to_string(),
            "",
            *band_lines(self.verdict),
        ]
        return "\n".join([*lines, "", f"verdict: {self.verdict}"])

    def figures(self) -> dict[str, Figure]:
        """All pictures, by file name: the evidence, and where several steps were probed the labels it rests on."""
        made = {"evidence": plot_evidence(self.curves, self.verdict, self.patching, self.lens)}
        if len(self.probes.steps) > 1:
            made |= {f"probes-{label}": plot_probe_heatmap(self.probes, label) for label in self._every_label}
        return made

    @property
    def _every_label(self) -> list[str]:
        return list(dict.fromkeys(label for names in self.labels.values() for label in names))

    def report(self, path: str | Path) -> Path:
        """Write ``path`` (HTML), ``.csv`` with every number, and the figures as PNG, all beside each other."""
        path, data = Path(path), self.to_json()
        settings = json.dumps({"config": data["config"], "thresholds": data["thresholds"]}, indent=1)
        tables = {"Layers": str(self), "Settings": settings}
        write_atomic(path.with_suffix(".csv"), self.table.to_csv(index=False).encode())
        return write_page(path, f"Verdict: {self.verdict}", _ABOUT, self.figures(), tables)
