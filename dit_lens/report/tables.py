"""Text tables for the terminal."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dit_lens.analysis.localize import Localization
from dit_lens.results.intervals import percentile_interval


def layer_table(result: Localization) -> pd.DataFrame:
    """One row per layer: the curves that the bands are read from, each with its 95 % interval, and the bands."""
    curves, patching, lens = result.curves, result.patching, result.lens
    columns = {
        "perception": curves.perception[:, 1:],
        "reasoning": curves.reasoning[:, 1:],
        "share": curves.share,
        "legality": curves.legality,
    }
    table = pd.DataFrame(
        {name: [_cell(values[:, k]) for k in range(values.shape[1])] for name, values in columns.items()},
        index=pd.Index([f"L{k:02d}" for k in range(curves.share.shape[1])], name="layer"),
    )
    flips = patching.flips
    table.insert(3, "flip rate", [f"{x:.2f}" for x in flips.mean(axis=1)] if flips.size else "-")
    table.insert(4, "agreement", [f"{x:.2f}" for x in lens.agreement.mean(axis=1)])
    table["band"] = [_bands_of(result, k) for k in range(len(table))]
    return table


def _cell(replicates: np.ndarray) -> str:
    value, low, high = percentile_interval(replicates)
    return f"{value:5.2f} [{low:5.2f},{high:5.2f}]"


def _bands_of(result: Localization, layer: int) -> str:
    return " ".join(name for name, band in result.verdict.bands.items() if layer in band.layers)


def summary(result: Localization) -> str:
    """The table, the bands with their intervals, and the reasons for those that are missing."""
    config, patching = result.config, result.patching
    lines = [
        f"{result.task} on {result.model}, step {config.step}, 95 % bootstrap intervals over instances",
        f"n: {result.probes.groups} instances probed, {patching.share.shape[1]} pairs patched "
        f"({patching.right} of {patching.tried} pairs right on both sides"
        f"{'' if patching.selected else '; none, so all are used'}), "
        f"{patching.flips.shape[1]} at all steps, {result.lens.legality.shape[1]} instances under the depth lens",
        "",
        layer_table(result).to_string(),
        "",
    ]
    for name, band in result.verdict.bands.items():
        onset, end = band.onset, band.end
        lines.append(
            f"{name:13s} layers {band.layers[0]}-{band.layers[-1]}   onset [{onset.low:.0f}, {onset.high:.0f}]   "
            f"end [{end.low:.0f}, {end.high:.0f}]   in {band.presence:.0%} of replicates"
        )
    lines += [f"{name:13s} none: {reason}" for name, reason in result.verdict.reasons.items()]
    return "\n".join([*lines, "", f"verdict: {result.verdict}"])
