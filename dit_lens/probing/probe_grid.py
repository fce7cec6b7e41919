"""What a grid of probes found: every skill beside its controls, as tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.errors import EvidenceError
from dit_lens.probing.fit.scores import GroupedScores
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import bootstrap_weights, percentile_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: Controls that are readouts of their own, the same for every layer.
STILL = ("input", "position")
CONTROLS = ("shuffled", *STILL, "random")
RANDOM = "random/"


@dataclass
class ProbeGrid:
    """Scores of all probes.

    Attributes
    ----------
    groups : int
        Task instances.
    labels : dict from label name to role
    scores : dict from (step, readout, label, control) to GroupedScores
        ``control`` is "none" or "shuffled"; "input", "position" and "random/..." are readouts.
    kinds : dict from label name to "binary", "classes" or "regression"
    classes : dict from label name to the names of its classes
    source, level : as in ProbeData
    sigmas, experts : dicts from step to its sigma and expert, None where they were not said
    """

    groups: int
    labels: dict[str, str]
    scores: dict[tuple[int, str, str, str], GroupedScores] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = "sample"
    level: str = "cell"
    sigmas: dict[int, float | None] = field(default_factory=dict)
    experts: dict[int, str | None] = field(default_factory=dict)

    @property
    def steps(self) -> list[int]:
        return list(dict.fromkeys(step for step, *_ in self.scores))

    @property
    def readouts(self) -> list[str]:
        """Readouts of the model itself, in order: the embedding, then the layers."""
        return [name for name in self._all_readouts() if name not in STILL and not name.startswith(RANDOM)]

    @property
    def missing(self) -> tuple[str, ...]:
        """Controls that the data did not hold."""
        there = {*self._all_readouts(), *(control for *_, control in self.scores)}
        random = any(name.startswith(RANDOM) for name in there)
        return tuple(c for c in CONTROLS if not (random if c == "random" else c in there))

    def require(self, label: str | None = None, step: int | None = None) -> None:
        """Refuse a label or a step that was not probed.

        Raises
        ------
        EvidenceError
        """
        if label is not None and label not in self.labels:
            raise EvidenceError(f"no probes of {label!r}; there are {', '.join(self.labels)}")
        if step is not None and step not in self.steps:
            raise EvidenceError(f"no probes of step {step}; there are {', '.join(map(str, self.steps))}")

    def skill(self, step: int, readout: str, label: str, control: str, weights: Floats) -> Floats:
        """Skill under group weights (R, G): shape (R,)."""
        return self.scores[step, readout, label, control].skill(weights)

    def scores_of(self, step: int, readout: str, label: str) -> dict[str, GroupedScores]:
        """Scores of a probe, "none", and of each of its controls that the data holds; the majority needs none."""
        places = {"none": (readout, "none"), "shuffled": (readout, "shuffled"), "random": (RANDOM + readout, "none")}
        places |= {name: (name, "none") for name in STILL}
        keys = {name: (step, places[name][0], label, places[name][1]) for name in ("none", *CONTROLS)}
        return {name: self.scores[key] for name, key in keys.items() if key in self.scores}

    def controls(self, step: int, readout: str, label: str, weights: Floats) -> dict[str, Floats]:
        """Skill of every control of a probe that the data holds, (R,) each; that of the majority is 0."""
        found = self.scores_of(step, readout, label)
        return {name: found[name].skill(weights) for name in CONTROLS if name in found} | {
            "majority": np.zeros(len(weights))
        }

    def excess(
        self, step: int, readouts: Sequence[str], label: str, weights: Floats, above: Sequence[str] = CONTROLS
    ) -> Floats:
        """Skill above the best control at each readout: shape (R, readouts).

        Parameters
        ----------
        above : list of str
            The controls that count; the majority, whose skill is 0, always does.
        """
        columns = []
        for readout in readouts:
            controls = self.controls(step, readout, label, weights)
            best = np.maximum.reduce([skill for name, skill in controls.items() if name in (*above, "majority")])
            columns.append(self.skill(step, readout, label, "none", weights) - best)
        return np.stack(columns, axis=1)

    def frame(self, replicates: int = 300, seed: int = 0) -> pd.DataFrame:
        """Tidy table, one row for each step, readout, label and control.

        Columns: step, sigma, expert (where there are several), readout, label, role, kind, control, skill with the ends
        of its interval low and high, accuracy, majority_accuracy (that of always giving the most frequent answer), n
        (task instances), source, level.
        """
        weights = bootstrap_weights(self.groups, replicates, seed)
        rows = []
        for (step, readout, label, control), scores in self.scores.items():
            value, low, high = percentile_interval(scores.skill(weights))
            rows.append(
                {
                    **self._step(step),
                    "readout": readout,
                    "label": label,
                    "role": self.labels[label],
                    "kind": self.kinds.get(label),
                    "control": control,
                    "skill": value,
                    "low": low,
                    "high": high,
                    **_plain(scores),
                    "n": self.groups,
                    "source": self.source,
                    "level": self.level,
                }
            )
        return pd.DataFrame(rows)

    def table(self, step: int | None = None, replicates: int = 300, seed: int = 0) -> pd.DataFrame:
        """One row for each step, label and layer, all controls side by side.

        ``skill`` with its interval; the skills of the controls ``shuffled``, ``input``, ``position``, ``random`` and
        ``majority`` (0 by definition), NaN where the data does not hold one, in which case ``missing`` names it;
        ``selectivity``, skill less that of shuffled labels, or less 0 where that is worse than nothing, with an
        interval; ``best``, the best control, and ``excess``, skill less its, with an interval; ``accuracy`` beside
        ``majority_accuracy``; ``rows`` of each class.

        Parameters
        ----------
        step : int, optional
            All steps by default.
        """
        self.require(step=step)
        weights = bootstrap_weights(self.groups, replicates, seed)
        steps = self.steps if step is None else [step]
        return pd.DataFrame(
            [
                self._row(s, label, readout, weights)
                for s in steps
                for label in self.labels
                for readout in self.readouts
                if (s, readout, label, "none") in self.scores
            ]
        )

    def summary(self, step: int | None = None, replicates: int = 300) -> str:
        """The table in text, and what it stands on."""
        table = self.table(step, replicates)
        shown = table.drop(columns=["role", "kind", "source", "level", "n", "missing"]).round(3)
        lines = [
            shown.to_string(index=False),
            "",
            f"{self.groups} task instances, states from {self.source}, one row per {self.level}; skill is 0 for the "
            "majority class and 1 for perfection; 95 % bootstrap intervals over instances",
            f"controls missing: {', '.join(self.missing)}" if self.missing else "no control is missing",
        ]
        return "\n".join(lines)

    def plot(self, label: str, axis: Axes | None = None, **options: Any) -> Axes:
        """Skill of one label: steps from top to bottom, layers from left to right, then the controls.

        Of "shuffled" and "random", which each layer has its own of, the best layer is shown. A control that the data
        does not hold is an empty column.

        Parameters
        ----------
        **options
            Passed to ``seaborn.heatmap``.
        """
        import seaborn as sns

        from dit_lens.results.plots import axes

        self.require(label)
        # Not `plotting.heatmap`: it leaves out columns without a value, and a missing control is to be seen.
        table, axis = self._picture(label), axes(axis)
        columns = [*self.readouts, *CONTROLS, "majority"]
        grid = table.pivot(index="step", columns="readout", values="skill")[columns]
        looks = {"vmin": 0, "vmax": 1, "cmap": "viridis", "annot": True, "fmt": ".2f", "annot_kws": {"size": 6}}
        sns.heatmap(grid, ax=axis, **{**looks, "cbar_kws": {"label": "skill"}, **options})
        axis.axvline(len(self.readouts), color="white", linewidth=4)
        missing = f"; missing: {', '.join(self.missing)}" if self.missing else ""
        axis.set(title=f"{label}: skill on unseen instances, controls to the right{missing}", xlabel="")
        axis.title.set_fontsize(9)
        axis.set_ylabel("step" if self._sigma_unknown else "step (σ)")
        return axis

    # -- how it is done

    @property
    def _sigma_unknown(self) -> bool:
        return all(sigma is None for sigma in self.sigmas.values())

    def _all_readouts(self) -> list[str]:
        return list(dict.fromkeys(readout for _, readout, *_ in self.scores))

    def _step(self, step: int) -> dict[str, Any]:
        place = {"step": step, "sigma": self.sigmas.get(step)}
        several = any(expert is not None for expert in self.experts.values())
        return place | ({"expert": self.experts.get(step)} if several else {})

    def _row(self, step: int, label: str, readout: str, weights: Floats) -> dict[str, Any]:
        scores = self.scores[step, readout, label, "none"]
        controls, skills = self.controls(step, readout, label, weights), scores.skill(weights)
        skill = percentile_interval(skills)
        excess = percentile_interval(skills - np.maximum.reduce(list(controls.values())))
        shown = {name: float(controls[name][0]) if name in controls else np.nan for name in (*CONTROLS, "majority")}
        # Shuffled labels that are read worse than from nothing, as by a probe with too many weights, are no merit.
        floor = np.maximum(controls["shuffled"], 0) if "shuffled" in controls else np.full(len(weights), np.nan)
        selectivity = percentile_interval(skills - floor)
        absent = [name for name in CONTROLS if name not in controls]
        best = max(controls, key=lambda name: float(controls[name][0]))
        return {
            **self._step(step),
            "label": label,
            "role": self.labels[label],
            "kind": self.kinds.get(label),
            "readout": readout,
            "skill": skill.value,
            "low": skill.low,
            "high": skill.high,
            **shown,
            "selectivity": selectivity.value,
            "selectivity_low": selectivity.low,
            "selectivity_high": selectivity.high,
            "best": best,
            "excess": excess.value,
            "excess_low": excess.low,
            "excess_high": excess.high,
            **_plain(scores),
            "rows": self._balance(label, scores),
            "n": self.groups,
            "missing": ", ".join(absent),
            "source": self.source,
            "level": self.level,
        }

    def _balance(self, label: str, scores: GroupedScores) -> str:
        """How many rows each class has, such as "False 600, True 200"."""
        if scores.is_regression:
            return str(int(scores.rows[0]))
        names = self.classes.get(label) or tuple(map(str, range(len(scores.rows))))
        return ", ".join(f"{name} {count}" for name, count in zip(names, scores.rows, strict=True))

    def _picture(self, label: str) -> pd.DataFrame:
        """Tidy skills of one label with its controls as further readouts, NaN for those that are missing."""
        one, rows = np.ones((1, self.groups)), []
        for step in self.steps:
            sigma = self.sigmas.get(step)
            name = str(step) if sigma is None else f"{step} ({sigma:.2f})"
            best: dict[str, float] = {}
            for readout in self.readouts:
                if (step, readout, label, "none") not in self.scores:
                    continue
                rows.append((name, readout, float(self.skill(step, readout, label, "none", one)[0])))
                for control, value in self.controls(step, readout, label, one).items():
                    best[control] = max(best.get(control, -np.inf), float(value[0]))
            rows += [(name, control, best.get(control, np.nan)) for control in (*CONTROLS, "majority")]
        table = pd.DataFrame(rows, columns=["step", "readout", "skill"])
        table["step"] = pd.Categorical(table["step"], list(dict.fromkeys(table["step"])))
        return table


def _plain(scores: GroupedScores) -> dict[str, float]:
    """Accuracy as it is, and that of the majority."""
    one = np.ones((1, len(scores.sums)))
    return {"accuracy": float(scores.accuracy(one)[0]), "majority_accuracy": float(scores.majority(one)[0])}
