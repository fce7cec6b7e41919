"""The picture of a flow: the frames of a pair with its tokens marked, above the curves over depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from dit_lens.analysis.flow.cells import EMBED
from dit_lens.analysis.flow.in_words import in_lines, sentences, title
from dit_lens.results.arrays import Bools
from dit_lens.results.plots import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from dit_lens.analysis.flow.result import InformationFlow, Shown


class Look(NamedTuple):
    """How one set of tokens is drawn, in the frames and as a curve."""

    name: str
    colour: str
    line: str
    marker: str


#: In colours that no board of the tasks has.
LOOKS = {
    "A": Look("where the inputs differ", "#00899b", "-", "o"),
    "B": Look("where the answers differ", "#7a28c9", "-", "s"),
    "M": Look("all other tokens", "#8a8a8a", "--", "D"),
    "all": Look("all tokens", "#1a1a1a", ":", "o"),
}
#: What each block changes, in the colour of the curve that it changes.
CHANGES = {
    "departure": ("A", "leaves the source"),
    "arrival": ("B", "reaches the target"),
    "reading": ("all", "is read through a door"),
}
#: A curve of all tokens that is nowhere further from 1 says nothing.
WHOLE = 1e-3
LEGEND = "taken from the other run:"
#: A deep model has no more ticks than this.
TICKS = 14
#: Frames of a strip.
WIDEST = 9
#: Of the figure and of a line of text, in inches; letters of a line.
WIDTH, LINE, LETTERS = 9.0, 0.17, 125


def draw(flow: InformationFlow, axis: Axes | None = None) -> Axes:
    """The curves into given Axes; without, a whole figure. Gives the Axes of the curves."""
    return draw_figure(flow) if axis is None else draw_curves(flow, axis)


def draw_figure(flow: InformationFlow) -> Axes:
    """Frames of a pair, curves, what each block changes, and the gates in words."""
    if not flow.n:
        return _draw_nothing(flow)
    text = in_lines(sentences(flow), LETTERS)
    heights = [] if flow.shown is None else [strip_height(flow.shown)]
    heights += [4.3, 0.2 + LINE * (text.count("\n") + 1)]
    figure = plt.figure(figsize=(WIDTH, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(title(flow), fontsize=12, fontweight="bold", x=0.01, ha="left")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if flow.shown is not None:
        draw_frames(parts[0], flow.shown)
    parts[-1].text(0.012, 1, text, fontsize=9, va="top")
    above, below = parts[-2].subplots(2, 1, sharex=True, height_ratios=(3, 1))
    draw_changes(flow, below)
    axis = draw_curves(flow, above)
    axis.set(xlabel="")
    legend_above(axis)
    return axis


def _draw_nothing(flow: InformationFlow) -> Axes:
    """A flow without pairs: its title and why."""
    height = 0.6 + LINE * (in_lines(sentences(flow), LETTERS).count("\n") + 2)
    figure = plt.figure(figsize=(WIDTH, height))
    figure.suptitle(title(flow), fontsize=12, fontweight="bold", x=0.01, y=1 - 0.1 / height, ha="left")
    return draw_curves(flow, figure.add_axes((0.012, 0, 0.98, 1 - 0.45 / height)))


def strip_height(shown: Shown) -> float:
    """Of two rows of frames that fill the width, within limits."""
    high, wide = shown.frames.shape[2:4]
    return float(min(2 * (WIDTH - 0.8) / len(strip_of(shown)) * high / wide, 3.0)) + 0.3


def draw_curves(flow: InformationFlow, axis: Axes | None = None) -> Axes:
    """Source, target, all others and, where it is not 1 everywhere, all tokens over depth, with their intervals."""
    axis = axes(axis)
    if not flow.n:
        axis.axis("off")
        text = in_lines(sentences(flow), max(20, int(LETTERS * width_of(axis) / WIDTH)))
        axis.text(0, 1, text, va="top", fontsize=9, transform=axis.transAxes).set_in_layout(False)
        return axis
    for name, look in LOOKS.items():
        if _says_something(flow, name):
            _draw_curve(flow, name, look, axis)
    axis.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    axis.axhline(1, color="#cccccc", linewidth=0.8, zorder=0)
    axis.set(xlabel="after block", ylabel="share of the answer\nthat follows", ylim=_limits(flow))
    _tick(axis, flow.layers)
    axis.legend(title=LEGEND, fontsize=8, title_fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def width_of(axis: Axes) -> float:
    """In inches, before the layout is made."""
    return float(axis.get_window_extent().width / axis.figure.dpi)


def legend_above(axis: Axes) -> None:
    """The legend of curves in one line above them."""
    found = axis.legend(title=LEGEND, fontsize=8, title_fontsize=8, ncol=len(LOOKS), frameon=False, loc="lower center")
    found.set_bbox_to_anchor((0.5, 1.0))


def _says_something(flow: InformationFlow, name: str) -> bool:
    values = flow.effects[name]
    return bool(np.isfinite(values).any() and (name != "all" or abs(values - 1).max() > WHOLE))


def _draw_curve(flow: InformationFlow, name: str, look: Look, axis: Axes) -> None:
    found = np.array([tuple(interval) for interval in flow.curve(name).values()])
    width, size = (1.5, 3) if name in ("M", "all") else (2.2, 5)
    axis.plot(
        flow.layers,
        found[:, 0],
        look.line,
        color=look.colour,
        marker=look.marker,
        linewidth=width,
        markersize=size,
        label=look.name,
    )
    axis.fill_between(flow.layers, found[:, 1], found[:, 2], color=look.colour, alpha=0.15, linewidth=0)


def _limits(flow: InformationFlow) -> tuple[float, float]:
    """Room for every mean; wide intervals of few pairs are cut off."""
    means = [flow.effects[name].mean(axis=1) for name in LOOKS if _says_something(flow, name)]
    return min(-0.08, float(np.min(means)) - 0.05), max(1.08, float(np.max(means)) + 0.05)


def _tick(axis: Axes, layers: tuple[int, ...]) -> None:
    """Ticks at blocks, the embedding by name."""
    every = -(-(layers[-1] + 1) // TICKS)
    ticks = [EMBED, *range(0 if every == 1 else every, layers[-1] + 1, every)]
    axis.set_xticks(ticks, ["embed" if tick == EMBED else str(tick) for tick in ticks])
    axis.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)


def draw_changes(flow: InformationFlow, axis: Axes) -> Axes:
    """Bars: what leaves the source, reaches the target and is read in each block, or window of blocks."""
    measured = np.array(flow.layers)
    centres, widths = (measured[:-1] + 1 + measured[1:]) / 2, np.diff(measured)
    drawn = [name for name, (curve, _) in CHANGES.items() if _says_something(flow, curve)]
    for i, name in enumerate(drawn):
        curve, label = CHANGES[name]
        width = 0.8 * widths / len(drawn)
        places = centres + width * (i - (len(drawn) - 1) / 2)
        axis.bar(places, flow.changes[name].mean(axis=1), width, color=LOOKS[curve].colour, alpha=0.75, label=label)
    axis.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    where = "block" if (widths == 1).all() else "window"
    axis.set(xlabel="block", ylabel=f"change\nin the {where}")
    _tick(axis, flow.layers)
    axis.legend(fontsize=8, ncol=3, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.95), borderpad=0)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def draw_frames(part: FigureBase, shown: Shown) -> list[list[Axes]]:
    """One picture for each latent frame of both sides, with the tokens of source and target marked."""
    grid = empty_frames(part, shown)
    for axis, latent in ((axis, latent) for row in grid for axis, latent in zip(row, strip_of(shown), strict=True)):
        for name, mask in (("A", shown.source[latent]), ("B", shown.target[latent])):
            mark(axis, mask, LOOKS[name].colour)
    return grid


def strip_of(shown: Shown) -> list[int]:
    """The latent frames of a strip: all, or of a long video the first, the last and some between."""
    frames = len(shown.source)
    return sorted({round(f) for f in np.linspace(0, frames - 1, min(frames, WIDEST))})


def empty_frames(part: FigureBase, shown: Shown) -> list[list[Axes]]:
    """Frames without marks: originals above counterfactuals, the last pixel frame of each latent frame."""
    latents = strip_of(shown)
    grid = part.subplots(2, len(latents), squeeze=False)
    for row, side in enumerate(("original", "counterfactual")):
        for axis, latent in zip(grid[row], latents, strict=True):
            at = np.flatnonzero(np.asarray(shown.latent_of) == latent)
            high, wide = shown.source.shape[1:]
            axis.imshow(
                shown.frames[row, at[-1]], interpolation="nearest", extent=(0, wide, high, 0), aspect=_aspect(shown)
            )
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(f"frame {at[0]}" if len(at) == 1 else f"frames {at[0]}-{at[-1]}", fontsize=8)
        grid[row, 0].set_ylabel(side, fontsize=9)
    return [list(row) for row in grid]


def _aspect(shown: Shown) -> float:
    """Height of a token by its width, in pixels."""
    high, wide = shown.source.shape[1:]
    return float(shown.frames.shape[2] / high * wide / shown.frames.shape[3])


def mark(axis: Axes, mask: Bools, colour: str) -> None:
    """Tint and outline tokens (H, W) of a frame whose extent counts tokens."""
    if not mask.any():
        return
    tinted(axis, mask, colour, 0.16)
    for width, around in ((3.2, "white"), (1.8, colour)):
        axis.add_collection(LineCollection(edges(mask), colors=around, linewidths=width, capstyle="projecting"))


def tinted(axis: Axes, mask: Bools, colour: str, cover: float) -> None:
    """Lay a colour over tokens (H, W) of a frame, which it covers by a share."""
    tint = np.zeros((*mask.shape, 4))
    tint[mask] = to_rgba(colour, cover)
    axis.imshow(tint, interpolation="nearest", extent=axis.images[0].get_extent(), aspect=axis.get_aspect())


def edges(mask: Bools) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The borders of a set of tokens (H, W), as segments between corners (x, y)."""
    padded = np.pad(mask, 1)
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    return [((int(x), int(y)), (int(x) + 1, int(y))) for y, x in across] + [
        ((int(x), int(y)), (int(x), int(y) + 1)) for y, x in down
    ]
