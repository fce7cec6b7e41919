"""What a localization prints."""

from __future__ import annotations

import pandas as pd

from dit_lens.analysis.localization.bands import Curves, Verdict
from dit_lens.analysis.localization.lens_curves import LensCurves
from dit_lens.analysis.patching import PatchingSweep
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import percentile_interval


def layer_table(curves: Curves, verdict: Verdict, patching: PatchingSweep, lens: LensCurves) -> pd.DataFrame:
    """One row per layer: the curves that the bands are read from, each with its 95 % interval, and the bands."""
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
    flips = patching.flip_rate
    table.insert(3, "flip rate", [f"{x:.2f}" for x in flips] if flips.size else "-")
    table.insert(4, "agreement", [f"{x:.2f}" for x in lens.agreement.mean(axis=1)])
    table["band"] = [_bands_of(verdict, k) for k in range(len(table))]
    return table


def _cell(replicates: Floats) -> str:
    value, low, high = percentile_interval(replicates)
    return f"{value:5.2f} [{low:5.2f},{high:5.2f}]"


def _bands_of(verdict: Verdict, layer: int) -> str:
    return " ".join(name for name, band in verdict.bands.items() if layer in band.layers)


def band_lines(verdict: Verdict) -> list[str]:
    """The bands with their intervals, and the reasons for those that are missing, one line each."""
    lines = []
    for name, band in verdict.bands.items():
        onset, end = band.onset, band.end
        lines.append(
            f"{name:13s} layers {band.layers[0]}-{band.layers[-1]}   onset [{onset.low:.0f}, {onset.high:.0f}]   "
            f"end [{end.low:.0f}, {end.high:.0f}]   in {band.presence:.0%} of replicates"
        )
    return lines + [f"{name:13s} none: {reason}" for name, reason in verdict.reasons.items()]
