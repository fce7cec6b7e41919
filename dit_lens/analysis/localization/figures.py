"""The pictures of a localization."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_lens.analysis.localization.bands import Curves, Verdict
from dit_lens.analysis.localization.lens_curves import LensCurves
from dit_lens.analysis.patching import PatchingSweep
from dit_lens.probing.probe_grid import ProbeGrid, short_name
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import percentile_interval

BAND_COLOURS = {"perception": "#4c72b0", "reasoning": "#dd8452", "consolidation": "#55a868"}


EVIDENCE = ("probes", "patching", "lens")


def plot_evidence(curves: Curves, verdict: Verdict, patching: PatchingSweep, lens: LensCurves) -> Figure:
    """Probes, patching and depth lens over depth, with the bands behind them."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4))
    plot_probes(curves, verdict, axes[0])
    plot_patching(curves, verdict, patching, axes[1])
    plot_lens(curves, verdict, lens, axes[2])
    figure.tight_layout()
    return figure


def plot_probes(curves: Curves, verdict: Verdict, axis: Axes) -> None:
    """Skill above the best control over depth."""
    _lines(axis, {"perception labels": curves.perception[:, 1:], "reasoning labels": curves.reasoning[:, 1:]})
    axis.set(title="Probes: skill above the best control", ylabel="skill")
    _finish(axis, verdict)


def plot_patching(curves: Curves, verdict: Verdict, patching: PatchingSweep, axis: Axes) -> None:
    """Share, its null and the flip rate over depth."""
    _lines(axis, {"share of the donor's x0hat": curves.share, "read along an unrelated pair": curves.unrelated})
    if patching.flips.size:
        _dotted(axis, patching.flip_rate, "flip rate, all steps")
    axis.set(title="Patching one layer's update (delta)", ylabel="effect")
    _finish(axis, verdict)


def plot_lens(curves: Curves, verdict: Verdict, lens: LensCurves, axis: Axes) -> None:
    """Legality of the answer after each layer, and how far it agrees with the final one."""
    _lines(axis, {"legality": curves.legality})
    _dotted(axis, lens.agreement.mean(axis=1), "agreement with the end")
    axis.set(title="Depth lens: the answer after each layer", ylabel="score", ylim=(-0.05, 1.05))
    _finish(axis, verdict)


def _finish(axis: Axes, verdict: Verdict) -> None:
    _shade(axis, verdict)
    axis.set_xlabel("layer")
    # Below the axes: inside, it would cover a curve of some model.
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _lines(axis: Axes, curves: Mapping[str, Floats]) -> None:
    for name, replicates in curves.items():
        intervals = [percentile_interval(replicates[:, k]) for k in range(replicates.shape[1])]
        layers = list(range(len(intervals)))
        sns.lineplot(x=layers, y=[i.value for i in intervals], ax=axis, marker="o", label=name)
        axis.fill_between(layers, [i.low for i in intervals], [i.high for i in intervals], alpha=0.2)
    axis.axhline(0, color="gray", linewidth=0.8)


def _dotted(axis: Axes, values: Floats, label: str) -> None:
    """A line without an interval."""
    sns.lineplot(x=np.arange(len(values)), y=values, ax=axis, marker="s", linestyle=":", label=label)


def _shade(axis: Axes, verdict: Verdict) -> None:
    """Each band in a strip of its own along the bottom: overlapping bands stay apart."""
    for i, (name, band) in enumerate(verdict.bands.items()):
        layers = band.layers
        axis.axvspan(
            layers[0] - 0.4,
            layers[-1] + 0.4,
            ymin=0.03 * i,
            ymax=0.03 * i + 0.025,
            color=BAND_COLOURS[name],
            label=name,
            linewidth=0,
        )


def plot_probe_heatmap(probes: ProbeGrid, label: str) -> Figure:
    """Skill of one label's probes, layer by step and beside its controls, then that of shuffled labels by layer."""
    table = probes.table.query("measure == 'skill'")
    places = [short_name(site) for site in probes.at(probes.steps[0])]
    shuffled = table[(table["label"] == label) & (table["control"] == "shuffled")].copy()
    shuffled["place"] = ["embed" if layer is None else f"L{layer:02d}" for layer in shuffled["layer"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 3.6), layout="constrained")
    probes.plot(left, label=label)
    grid = shuffled.pivot_table(index="step", columns="place", values="value")[places]
    sns.heatmap(grid, ax=right, vmin=0, vmax=1, cmap="viridis", annot=True, fmt=".2f", annot_kws={"size": 6})
    right.set(title=f"{label}: shuffled labels, layer by layer", xlabel="", ylabel="step")
    right.title.set_fontsize(9)
    return figure
