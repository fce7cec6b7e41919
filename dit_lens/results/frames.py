"""The picture of the depth lens: what every layer would answer, at every step."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def plot_layers_by_steps(
    frames: NDArray[np.uint8], layers: Sequence[int], steps: Sequence[int], sigmas: Sequence[float], title: str = ""
) -> Figure:
    """One video frame as each layer would answer it at each step: layers from top to bottom, steps from left to right.

    Parameters
    ----------
    frames : uint8 array of shape (layers, steps, height, width, 3)
    layers, steps : what the first two axes are
    sigmas : sigma of each of ``steps``
    """
    high, wide = frames.shape[:2]
    figure, axes = plt.subplots(high, wide, figsize=(0.95 * wide + 0.7, 0.95 * high + 0.8), squeeze=False)
    for row, layer in enumerate(layers):
        for column in range(wide):
            axes[row, column].imshow(frames[row, column], interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(f"L{layer:02d}", rotation=0, ha="right", va="center", fontsize=9)
    for column, (step, sigma) in enumerate(zip(steps, sigmas, strict=True)):
        axes[-1, column].set_xlabel(f"step {step}\nσ = {sigma:.2f}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(pad=0.6, h_pad=0.15, w_pad=0.15, rect=(0, 0, 1, 0.985))
    return figure


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
