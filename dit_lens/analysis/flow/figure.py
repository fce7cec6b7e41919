"""The picture of a flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_lens.analysis.flow.cells import EMBED
from dit_lens.results.plots import axes, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dit_lens.analysis.flow.result import InformationFlow


def draw_curves(flow: InformationFlow, axis: Axes | None = None) -> Axes:
    """Source, target, all others and all tokens over depth, with their intervals."""
    table = flow.table[flow.table["measure"].isin(["A", "B", "M", "all"]) & flow.table["value"].notna()]
    if not len(table):
        axis = axes(axis)
        axis.set(title=str(flow.gate))
        return axis
    axis = curves(table, "layer", "value", hue="measure", axis=axis)
    names = ["embed" if layer == EMBED else str(layer) for layer in flow.layers]
    axis.set_xticks(flow.layers, names)
    axis.set(xlabel="after block", ylabel="effect", ylim=(-0.1, 1.1))
    return axis
