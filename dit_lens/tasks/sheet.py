"""The contact sheet of the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dit_lens.tasks.evidence import BoardTask

#: Inches: a frame of a video, the white between two, the margin at the left, and the text above each video and task.
FRAME, BETWEEN, MARGIN, LINE, HEADING = 0.8, 0.06, 0.15, 0.28, 0.5
_SMALL, _LARGE, _GREY = 9, 12, "#555555"


def plot_tasks(tasks: Mapping[str, BoardTask], seed: int = 0) -> Figure:
    """For every task a true video, all frames from left to right, and below it that of its counterfactual.

    The pair is of the task's default kind. Above each video stands its prompt.

    Parameters
    ----------
    tasks : mapping from the name that is shown to the task
    """
    longest = max(task.frames for task in tasks.values())
    block = HEADING + 2 * (FRAME + LINE)
    size = (2 * MARGIN + longest * (FRAME + BETWEEN) - BETWEEN, len(tasks) * block + LINE)
    figure = plt.figure(figsize=size)
    for number, (name, task) in enumerate(tasks.items()):
        _draw_task(figure, name, task, seed, top=size[1] - number * block)
    for t in range(longest):
        x = MARGIN + t * (FRAME + BETWEEN) + FRAME / 2
        _write(figure, x, LINE / 2, f"frame {t}", fontsize=_SMALL, color=_GREY, ha="center", va="center")
    return figure


def _draw_task(figure: Figure, name: str, task: BoardTask, seed: int, top: float) -> None:
    kind, pair = next(iter(task.kinds)), task.pair(seed)
    _write(figure, MARGIN, top - 0.34, name, fontsize=_LARGE, fontweight="bold", va="center")
    right = figure.get_figwidth() - MARGIN
    told = f"pair of kind {kind!r}: only the variable {pair.variable!r} differs"
    _write(figure, right, top - 0.34, told, fontsize=_SMALL, color=_GREY, ha="right", va="center")
    for row, instance in enumerate(pair):
        y = top - HEADING - row * (FRAME + LINE)
        side = "" if row == 0 else "counterfactual: "
        _write(figure, MARGIN, y - 0.6 * LINE, side + instance.prompt, fontsize=_SMALL, va="center")
        _draw_video(figure, instance.video, y - LINE - FRAME)


def _draw_video(figure: Figure, video: NDArray[np.uint8], bottom: float) -> None:
    for t, frame in enumerate(video):
        box = (MARGIN + t * (FRAME + BETWEEN), bottom, FRAME, FRAME)
        axis = figure.add_axes(tuple(np.array(box) / np.tile(figure.get_size_inches(), 2)))
        axis.imshow(frame, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="#bbbbbb", linewidth=0.6)


def _write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Text at a place in inches from the lower left corner."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, **style)
