"""What the pictures of the package share: seaborn on tidy tables, drawn into one Axes.

seaborn takes a second to import: a picture imports it when it is drawn.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes


def axes(axis: Axes | None = None) -> Axes:
    """The given Axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if axis is None else axis


def heatmap(
    table: pd.DataFrame, rows: str, columns: str, values: str, axis: Axes | None = None, **options: Any
) -> Axes:
    """One column of a tidy table as colours, the mean where several rows of it fall on one cell.

    Parameters
    ----------
    rows, columns, values : names of columns of ``table``
    axis : Axes, optional
        By default those of a new figure.
    **options
        Passed to ``seaborn.heatmap``.
    """
    import seaborn as sns

    axis = axes(axis)
    grid = table.pivot_table(index=rows, columns=columns, values=values, sort=True)
    sns.heatmap(grid, ax=axis, **{"cmap": "viridis", "cbar_kws": {"label": values}, **options})
    axis.set(xlabel=columns, ylabel=rows)
    return axis


def curves(table: pd.DataFrame, x: str, y: str, hue: str | None = None, axis: Axes | None = None) -> Axes:
    """One line for each value of ``hue``; where the table has columns ``low`` and ``high``, with the band between them.

    Parameters
    ----------
    x, y, hue : names of columns of ``table``
    axis : Axes, optional
        By default those of a new figure.
    """
    import seaborn as sns

    axis = axes(axis)
    groups = [("", table)] if hue is None else [(str(name), part) for name, part in table.groupby(hue, sort=False)]
    for name, part in groups:
        part = part.infer_objects().sort_values(x)
        sns.lineplot(x=part[x], y=part[y], ax=axis, marker="o", label=name or None, errorbar=None)
        if {"low", "high"} <= set(part.columns):
            colour = axis.lines[-1].get_color()
            axis.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.2, linewidth=0)
    if hue is not None:
        axis.legend(title=hue, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.set(xlabel=x, ylabel=y)
    return axis


def plot_success(table: pd.DataFrame, x: str, y: str = "value", axis: Axes | None = None) -> Axes:
    """Values with their intervals (columns ``low`` and ``high``), one point for each row of ``table``."""
    axis = plt.gca() if axis is None else axis
    errors = np.abs(table[["low", "high"]].to_numpy().T - table[y].to_numpy())
    axis.errorbar(range(len(table)), table[y], yerr=errors, fmt="o", color="#333333", capsize=4)
    axis.set_xticks(range(len(table)), [str(value) for value in table[x]])
    axis.set(xlabel=x, ylabel=y, ylim=(0, max(1.0, 1.05 * float(table["high"].max()))))
    axis.margins(x=0.15)
    return axis
