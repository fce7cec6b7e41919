"""Pictures."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dit_lens.analysis.localize import Localization
from dit_lens.results.intervals import percentile_interval

BAND_COLOURS = {"perception": "#4c72b0", "reasoning": "#dd8452", "consolidation": "#55a868"}


def plot_chain_of_steps(
    frames: NDArray[np.uint8], sigmas: Sequence[float], titles: Sequence[str] | None = None, frame: int = -1
) -> Figure:
    """x0hat of one video frame, steps from left to right and task instances from top to bottom.

    Parameters
    ----------
    frames : uint8 array of shape (S, B, T, height, width, 3)
    sigmas : S floats
    titles : B row titles, optional
    frame : int
        Which pixel frame is shown.
    """
    steps, rows = frames.shape[:2]
    figure, axes = plt.subplots(rows, steps, figsize=(1.15 * steps + 0.6, 1.2 * rows + 0.7), squeeze=False)
    for row in range(rows):
        for step in range(steps):
            axes[row, step].imshow(frames[step, row, frame], interpolation="nearest")
            axes[row, step].set(xticks=[], yticks=[])
            if row == rows - 1:
                axes[row, step].set_xlabel(f"step {step}\nσ = {sigmas[step]:.2f}", fontsize=8)
        if titles is not None:
            axes[row, 0].set_ylabel(titles[row], fontsize=8)
    figure.suptitle(
        "Chain of steps: the estimate of the clean last frame at every denoising step", fontsize=10, y=0.995
    )
    figure.tight_layout()
    return figure


def plot_evidence(result: Localization) -> Figure:
    """Probes, patching and depth lens over depth, with the bands behind them."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4))
    curves = result.curves
    _lines(axes[0], {"perception labels": curves.perception[:, 1:], "reasoning labels": curves.reasoning[:, 1:]})
    axes[0].set(title="Probes: skill above the best control", ylabel="skill")
    _lines(axes[1], {"share of the donor's x0hat": curves.share, "read along an unrelated pair": curves.unrelated})
    if result.patching.flips.size:
        flips = result.patching.flips.mean(axis=1)
        sns.lineplot(x=range(len(flips)), y=flips, ax=axes[1], marker="s", linestyle=":", label="flip rate, all steps")
    axes[1].set(title="Patching one layer's update (delta)", ylabel="effect")
    agreement = result.lens.agreement.mean(axis=1)
    _lines(axes[2], {"legality": curves.legality})
    sns.lineplot(
        x=range(len(agreement)), y=agreement, ax=axes[2], marker="s", linestyle=":", label="agreement with the end"
    )
    axes[2].set(title="Depth lens: the answer after each layer", ylabel="score", ylim=(-0.05, 1.05))
    for axis in axes:
        _shade(axis, result)
        axis.set_xlabel("layer")
        # Below the axes: inside, it would cover a curve of some model.
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    figure.tight_layout()
    return figure


def _lines(axis: Axes, curves: dict[str, NDArray[np.float64]]) -> None:
    for name, replicates in curves.items():
        intervals = [percentile_interval(replicates[:, k]) for k in range(replicates.shape[1])]
        layers = list(range(len(intervals)))
        sns.lineplot(x=layers, y=[i.value for i in intervals], ax=axis, marker="o", label=name)
        axis.fill_between(layers, [i.low for i in intervals], [i.high for i in intervals], alpha=0.2)
    axis.axhline(0, color="gray", linewidth=0.8)


def _shade(axis: Axes, result: Localization) -> None:
    """Each band in a strip of its own along the bottom, so that overlapping bands stay apart."""
    for i, (name, band) in enumerate(result.verdict.bands.items()):
        layers = band.layers
        axis.axvspan(
            layers[0] - 0.4, layers[-1] + 0.4, ymin=0.03 * i, ymax=0.03 * i + 0.025,
            color=BAND_COLOURS[name], label=name, linewidth=0,
        )  # fmt: skip


def plot_probe_heatmap(result: Localization, label: str) -> Figure:
    """Skill of one label's probes, layer by step and beside its controls, then that of shuffled labels by layer."""
    table = result.probes.frame(replicates=2)
    shuffled = table[(table["label"] == label) & (table["control"] == "shuffled")]
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 3.6), layout="constrained")
    result.probes.plot(label, left)
    grid = shuffled.pivot_table(index="step", columns="readout", values="skill")[result.probes.readouts]
    sns.heatmap(grid, ax=right, vmin=0, vmax=1, cmap="viridis", annot=True, fmt=".2f", annot_kws={"size": 6})
    right.set(title=f"{label}: shuffled labels, layer by layer", xlabel="", ylabel="step")
    right.title.set_fontsize(9)
    return figure


def plot_success(table: pd.DataFrame, x: str, y: str = "strict", axis: Axes | None = None) -> Axes:
    """Values with their intervals (columns ``low`` and ``high``), one point for each row of ``table``."""
    axis = plt.gca() if axis is None else axis
    errors = np.abs(table[["low", "high"]].to_numpy().T - table[y].to_numpy())
    axis.errorbar(range(len(table)), table[y], yerr=errors, fmt="o", color="#333333", capsize=4)
    axis.set_xticks(range(len(table)), [str(value) for value in table[x]])
    axis.set(xlabel=x, ylabel=y, ylim=(0, max(1.0, 1.05 * float(table["high"].max()))))
    axis.margins(x=0.15)
    return axis
