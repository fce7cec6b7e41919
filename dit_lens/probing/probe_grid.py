"""What a grid of probes found: every skill beside its controls, as tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dit_lens.errors import EvidenceError
from dit_lens.probing.fit.scores import GroupedScores
from dit_lens.probing.rows.data import STILL, Place
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import bootstrap_weights, percentile_interval
from dit_lens.results.result import SITE_COLUMNS, VALUE_COLUMNS, Result
from dit_lens.sites.site import Site, some

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a probe is compared with, besides the majority, whose skill is 0 by definition.
CONTROLS = ("shuffled", "input", "position", "random")
#: Columns of tables of probes, between those of the site and the values.
LABEL_COLUMNS = ("label", "role", "kind_of_label", "control", "source", "level")
#: Measure, value and the ends of its interval.
Measured = tuple[str, float, float, float]
#: Bootstrap replicates of the tables.
REPLICATES = 300


class Probe(NamedTuple):
    """One probe of a grid.

    Attributes
    ----------
    site : str
        Canonical string.
    label : str
    control : "none", "shuffled", "input", "position" or "random"
    """

    site: str
    label: str
    control: str = "none"


@dataclass(frozen=True, repr=False)
class ProbeGrid(Result):
    """Scores of all probes and of their controls.

    Attributes
    ----------
    groups : int
        Task instances.
    labels : dict from label name to role
    scores : dict from Probe to GroupedScores
    kinds : dict from label name to "binary", "classes" or "regression"
    classes : dict from label name to the names of its classes
    source, level : as in ProbeData
    sigmas, experts : dicts from step to its sigma and expert, None where they were not said
    """

    groups: int
    labels: dict[str, str]
    scores: dict[Probe, GroupedScores] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = "sample"
    level: str = "cell"
    sigmas: dict[int, float | None] = field(default_factory=dict)
    experts: dict[int, str | None] = field(default_factory=dict)

    def __repr__(self) -> str:
        steps = ", ".join(map(str, self.steps))
        return f"ProbeGrid({', '.join(self.labels)}; {len(self.sites)} sites, steps {steps}; n={self.groups})"

    def __str__(self) -> str:
        shown = self.wide().drop(columns=["role", "kind", "source", "level", "n", "missing"]).round(3)
        lines = [
            shown.to_string(index=False),
            "",
            f"{self.groups} task instances, states from {self.source}, one row per {self.level}; skill is 0 for the "
            "majority class and 1 for perfection; 95 % bootstrap intervals over instances",
            f"controls missing: {', '.join(self.missing)}" if self.missing else "no control is missing",
        ]
        return "\n".join(lines)

    @property
    def sites(self) -> list[str]:
        """All that was probed, in order."""
        return [site for sites in self._by_step.values() for site in sites]

    @property
    def steps(self) -> list[int]:
        return list(self._by_step)

    @cached_property
    def _by_step(self) -> dict[int, list[str]]:
        """The sites of each step, in order."""
        found: dict[int, list[str]] = {}
        for site in dict.fromkeys(probe.site for probe in self.scores if probe.control == "none"):
            found.setdefault(Site.parse(site).step, []).append(site)
        return found

    def at(self, step: int) -> list[str]:
        """The sites of one step, in order.

        Raises
        ------
        EvidenceError
            A step that was not probed.
        """
        self.require(step=step)
        return list(self._by_step[step])

    @property
    def missing(self) -> tuple[str, ...]:
        """Controls that the data did not hold."""
        there = {probe.control for probe in self.scores}
        return tuple(control for control in CONTROLS if control not in there)

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

    def skill(self, site: str, label: str, weights: Floats, control: str = "none") -> Floats:
        """Skill of a probe, or of one of its controls, under weights of the instances (R, G): shape (R,).

        Raises
        ------
        EvidenceError
            No such probe, or a control that the data did not hold.
        """
        if (probe := Probe(site, label, control)) not in self.scores:
            of = "" if control == "none" else f", control {control}"
            raise EvidenceError(
                f"no probe of {label!r} at {site}{of}; there are sites {some(map(Site.parse, self.sites))}, labels "
                f"{', '.join(self.labels)}, and missing are {', '.join(self.missing) or 'no controls'}"
            )
        return self.scores[probe].skill(weights)

    def scores_of(self, site: str, label: str) -> dict[str, GroupedScores]:
        """Scores of a probe, "none", and of each of its controls that the data holds; the majority needs none."""
        probes = {control: Probe(site, label, control) for control in ("none", *CONTROLS)}
        return {control: self.scores[probe] for control, probe in probes.items() if probe in self.scores}

    def controls(self, site: str, label: str, weights: Floats) -> dict[str, Floats]:
        """Skill of every control of a probe that the data holds, (R,) each; that of the majority is 0."""
        found = self.scores_of(site, label)
        skills = {name: found[name].skill(weights) for name in CONTROLS if name in found}
        return skills | {"majority": np.zeros(len(weights))}

    def excess(self, sites: Sequence[str], label: str, weights: Floats, above: Sequence[str] = CONTROLS) -> Floats:
        """Skill above the best control at each site: shape (R, sites).

        Parameters
        ----------
        above : list of str
            The controls that count; the majority, whose skill is 0, always does.
        """
        columns = []
        for site in sites:
            controls = self.controls(site, label, weights)
            best = np.maximum.reduce([skill for name, skill in controls.items() if name in (*above, "majority")])
            columns.append(self.skill(site, label, weights) - best)
        return np.stack(columns, axis=1)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each site, label, control and measure.

        Columns: those of the site that apply, label, role, kind_of_label, control, source, level, measure, value, low,
        high, n (task instances). Of every control there is the measure "skill"; of the probes themselves, whose control
        is "none", also "selectivity" (skill minus that of shuffled labels, with negative control skill counted as 0),
        "excess" (skill minus that of the best control), "accuracy" and "majority_accuracy" (that of always giving the
        most frequent answer). A control that the data does not hold has no row.
        """
        weights = bootstrap_weights(self.groups, REPLICATES, 0)
        rows = [
            (*self._coordinates(probe), *measured, self.groups)
            for site, label in self._asked()
            for probe, measured in self._measured(site, label, weights)
        ]
        return tidy(rows)

    def wide(self, step: int | None = None) -> pd.DataFrame:
        """For people: one row for each site and label, all controls side by side.

        ``skill`` with its interval; the skills of the controls ``shuffled``, ``input``, ``position``, ``random`` and
        ``majority`` (0 by definition), NaN where the data does not hold one, in which case ``missing`` names it;
        ``selectivity`` and ``excess`` with their intervals; ``best``, the best control; ``accuracy`` beside
        ``majority_accuracy``; ``rows`` of each class.

        Parameters
        ----------
        step : int, optional
            All steps by default.

        Raises
        ------
        EvidenceError
            A step that was not probed.
        """
        self.require(step=step)
        weights = bootstrap_weights(self.groups, REPLICATES, 0)
        rows = [self._row(*asked, weights) for asked in self._asked() if step in (None, Site.parse(asked[0]).step)]
        table = pd.DataFrame(rows)
        return table.drop(columns="expert") if table["expert"].isna().all() else table

    def plot(self, axis: Axes | None = None, *, label: str | None = None, **options: Any) -> Axes:
        """Skill of one label: steps from top to bottom, sites from left to right, then the controls.

        Of the controls that each site has of its own, "shuffled" and "random", the best site is shown. A control that
        the data does not hold is an empty column.

        Parameters
        ----------
        label : str, optional
            By default the first.
        **options
            Passed to ``seaborn.heatmap``.
        """
        import seaborn as sns

        from dit_lens.results.plots import axes

        label = next(iter(self.labels)) if label is None else label
        self.require(label)
        # Not `plots.heatmap`: it leaves out columns without a value, and a missing control is to be seen.
        table, axis = self._picture(label), axes(axis)
        places = list(dict.fromkeys(map(short_name, self.sites)))
        grid = table.pivot(index="step", columns="place", values="skill")[[*places, *CONTROLS, "majority"]]
        looks = {"vmin": 0, "vmax": 1, "cmap": "viridis", "annot": True, "fmt": ".2f", "annot_kws": {"size": 6}}
        sns.heatmap(grid, ax=axis, **{**looks, "cbar_kws": {"label": "skill"}, **options})
        axis.axvline(len(places), color="white", linewidth=4)
        missing = f"; missing: {', '.join(self.missing)}" if self.missing else ""
        axis.set(title=f"{label}: skill on unseen instances, controls to the right{missing}", xlabel="")
        axis.title.set_fontsize(9)
        axis.set_ylabel("step" if all(sigma is None for sigma in self.sigmas.values()) else "step (σ)")
        return axis

    # -- how it is done

    def _asked(self) -> list[tuple[str, str]]:
        """Sites and labels of all probes, step by step and label by label."""
        return [
            (site, label)
            for step in self.steps
            for label in self.labels
            for site in self.at(step)
            if Probe(site, label) in self.scores
        ]

    def _coordinates(self, probe: Probe) -> tuple[Any, ...]:
        """Where a row of the table belongs."""
        step, kind = Site.parse(probe.site).step, self.kinds.get(probe.label)
        place = site_values(probe.site, self.sigmas.get(step), self.experts.get(step))
        return (*place, probe.label, self.labels[probe.label], kind, probe.control, self.source, self.level)

    def _measured(self, site: str, label: str, weights: Floats) -> list[tuple[Probe, Measured]]:
        """What was measured of a probe, then the skills of its controls."""
        own, scores = Probe(site, label), self.scores[Probe(site, label)]
        controls = self.controls(site, label, weights)
        found = [(own, (name, *of)) for name, of in self._intervals(scores.skill(weights), controls).items()]
        if not scores.is_regression:
            found += [(own, (name, value, np.nan, np.nan)) for name, value in _plain(scores).items()]
        for control, skills in controls.items():
            found.append((Probe(site, label, control), ("skill", *percentile_interval(skills))))
        return found

    def _intervals(self, skills: Floats, controls: dict[str, Floats]) -> dict[str, tuple[float, float, float]]:
        """Skill, and skill minus that of shuffled labels and minus that of the best control, with their intervals."""
        found = {"skill": percentile_interval(skills)}
        if "shuffled" in controls:
            # A probe with too many weights reads shuffled labels worse than their mean: that is no merit.
            found["selectivity"] = percentile_interval(skills - np.maximum(controls["shuffled"], 0))
        found["excess"] = percentile_interval(skills - np.maximum.reduce(list(controls.values())))
        return {name: (value, low, high) for name, (value, low, high) in found.items()}

    def _row(self, site: str, label: str, weights: Floats) -> dict[str, Any]:
        scores, controls = self.scores[Probe(site, label)], self.controls(site, label, weights)
        names = (*SITE_COLUMNS[:3], *(["label", "role", "kind"]))
        place = self._coordinates(Probe(site, label))
        intervals = self._intervals(scores.skill(weights), controls)
        nothing = (np.nan, np.nan, np.nan)
        row = dict(zip(names, (*place[:3], *place[len(SITE_COLUMNS) :][:3]), strict=True)) | {"site": site}
        row |= dict(zip(("skill", "low", "high"), intervals["skill"], strict=True))
        row |= {name: float(controls[name][0]) if name in controls else np.nan for name in (*CONTROLS, "majority")}
        for name in ("selectivity", "excess"):
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), intervals.get(name, nothing), strict=True))
        return row | {
            "best": max(controls, key=lambda name: float(controls[name][0])),
            **_plain(scores),
            "rows": self._balance(label, scores),
            "n": self.groups,
            "missing": ", ".join(name for name in CONTROLS if name not in controls),
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
        """Skills of one label by step and place, the controls as further places, NaN for those that are missing."""
        one, rows = np.ones((1, self.groups)), []
        for step in self.steps:
            sigma = self.sigmas.get(step)
            name = str(step) if sigma is None else f"{step} ({sigma:.2f})"
            best: dict[str, float] = {}
            for site in (site for site in self.at(step) if Probe(site, label) in self.scores):
                rows.append((name, short_name(site), float(self.skill(site, label, one)[0])))
                for control, value in self.controls(site, label, one).items():
                    best[control] = max(best.get(control, -np.inf), float(value[0]))
            rows += [(name, control, best.get(control, np.nan)) for control in (*CONTROLS, "majority")]
        table = pd.DataFrame(rows, columns=["step", "place", "skill"])
        table["step"] = pd.Categorical(table["step"], list(dict.fromkeys(table["step"])))
        return table


def tidy(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """The table of probes: `SITE_COLUMNS`, `LABEL_COLUMNS` and `VALUE_COLUMNS`, without those that do not apply."""
    table = pd.DataFrame(rows, columns=[*SITE_COLUMNS, *LABEL_COLUMNS, *VALUE_COLUMNS])
    table["layer"] = pd.Series([row[SITE_COLUMNS.index("layer")] for row in rows], dtype=object)
    return table.drop(columns=[name for name in ("expert", "kind", "head") if table[name].isna().all()])


def site_values(site: str, sigma: float | None, expert: str | None) -> tuple[Any, ...]:
    """The values of `SITE_COLUMNS` of a site; the kind of its block is not known here."""
    at = Site.parse(site)
    return at.step, sigma, expert, at.branch, at.layer, None, at.component, at.stream, at.head


def probes_of(place: Place, label: str, control: str, sites: Sequence[str]) -> list[Probe]:
    """The probes that features with a label under "none" or "shuffled" labels stand for.

    Those of a site are one. A control that is the same for all sites of the step stands beside each of them.
    """
    if place.control in STILL:
        return [Probe(site, label, place.control) for site in sites] if control == "none" else []
    if place.control == "random":
        return [Probe(place.site, label, "random")] if control == "none" else []
    return [Probe(place.site, label, control)]


def short_name(site: str) -> str:
    """A site without step, branch and stream, for pictures: "embed", "L03" of the residual stream, "L03 attn"."""
    _, _, layer, component, _ = site.split("/")
    if layer == "-":
        return component
    return layer if component == "resid" else f"{layer} {component}"


def _plain(scores: GroupedScores) -> dict[str, float]:
    """Accuracy as it is, and that of the majority."""
    one = np.ones((1, len(scores.sums)))
    return {"accuracy": float(scores.accuracy(one)[0]), "majority_accuracy": float(scores.majority(one)[0])}
