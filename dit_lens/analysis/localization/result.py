"""What `localize` was asked and what it returns."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dit_lens.analysis.localization.bands import Curves, Thresholds, Verdict
from dit_lens.analysis.localization.figures import plot_evidence, plot_probe_heatmap
from dit_lens.analysis.localization.lens_curves import LensCurves
from dit_lens.analysis.localization.tables import band_lines, layer_table
from dit_lens.analysis.patching import PatchingSweep
from dit_lens.files.atomic import write_atomic
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.results.page import write_page

if TYPE_CHECKING:
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
        probes = self.probes.table.query("measure == 'skill'")
        names = zip(probes["component"], probes["layer"], strict=True)
        probes = probes.assign(place=["embed" if layer is None else f"L{layer:02d}" for _, layer in names])
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
                "flip_rate": self.flip_rate.tolist(),
                "pairs": {"tried": self.patching.tried, "both_right": self.patching.right},
                "instances": {"probes": self.probes.groups, "lens": self.lens.agreement.shape[1]},
            },
            "config": {k: v if isinstance(v, int | str | list) else str(v) for k, v in asdict(self.config).items()},
            "thresholds": asdict(self.thresholds),
        }

    def summary(self) -> str:
        """The table over layers, the bands with their intervals, and the reasons for those that are missing."""
        config, patching = self.config, self.patching
        lines = [
            f"{self.task} on {self.model}, step {config.step}, 95 % bootstrap intervals over instances",
            f"n: {self.probes.groups} instances probed, {patching.share.shape[1]} pairs patched "
            f"({patching.right} of {patching.tried} pairs right on both sides"
            f"{'' if patching.selected else '; none, so all are used'}), "
            f"{patching.flips.shape[1]} at all steps, {self.lens.legality.shape[1]} instances under the depth lens",
            "",
            self.layer_table().to_string(),
            "",
            *band_lines(self.verdict),
        ]
        return "\n".join([*lines, "", f"verdict: {self.verdict}"])

    def layer_table(self) -> pd.DataFrame:
        """One row per layer: the curves that the bands are read from, each with its 95 % interval, and the bands."""
        return layer_table(self.curves, self.verdict, self.flip_rate, self.lens.agreement.mean(axis=1))

    @property
    def flip_rate(self) -> NDArray[np.float64]:
        """Share of the pairs whose answer flips when a layer is patched at all steps: float (L,), or empty."""
        flips = self.patching.flips
        return np.asarray(flips.mean(axis=1)) if flips.size else np.zeros(0)

    def figures(self) -> dict[str, Figure]:
        """All pictures, by file name."""
        agreement = self.lens.agreement.mean(axis=1)
        made = {"evidence": plot_evidence(self.curves, self.verdict, self.flip_rate, agreement)}
        if len(self.probes.steps) > 1:
            for label in ("wall_left", "on_path", "distance"):
                if label in self.probes.labels:
                    made[f"probes-{label}"] = plot_probe_heatmap(self.probes, label)
        return made

    def report(self, path: str | Path) -> Path:
        """Write ``path`` (HTML), ``.csv`` with every number, and the figures as PNG, all beside each other."""
        path, data = Path(path), self.to_json()
        settings = json.dumps({"config": data["config"], "thresholds": data["thresholds"]}, indent=1)
        tables = {"Layers": self.summary(), "Settings": settings}
        write_atomic(path.with_suffix(".csv"), self.frame().to_csv(index=False).encode())
        return write_page(path, f"Verdict: {self.verdict}", _ABOUT, self.figures(), tables)
