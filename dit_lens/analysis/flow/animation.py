"""The film of a flow: the frames of a pair after one block after the other, tinted where the answer is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from dit_lens.analysis.flow.cells import EMBED
from dit_lens.analysis.flow.figure import WIDTH, draw_curves, empty_frames, legend_above, strip_height, strip_of, tinted
from dit_lens.analysis.flow.in_words import title
from dit_lens.errors import EvidenceError
from dit_lens.files.atomic import write_atomic
from dit_lens.files.video import Video, write_video

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dit_lens.analysis.flow.result import InformationFlow, Shown

SUFFIXES = (".gif", ".mp4")
#: Scenes a second, at least and at most: what a GIF can hold.
SLOWEST, FASTEST = 0.01, 50
#: Dots an inch; colours of a GIF; x264's rate factor of an mp4.
DPI, COLOURS, CRF = 80, 128, 17
#: The tint of the answer's place, which no board of the tasks has, and how much it covers at most.
TINT, COVER = "#ff2fa0", 0.75
#: Shares from here on are written into the frames.
WRITTEN = 0.05
CAPTION = "pink: share of the answer that follows when this part of the frames alone is taken from the other run"
_HALO = [withStroke(linewidth=2.5, foreground="white")]


def require_animation(path: str | Path, fps: float = 1.0) -> Path:
    """A path that an animation can be written to.

    Raises
    ------
    EvidenceError
        Another suffix, a folder that does not exist, or an ``fps`` that is out of bounds.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise EvidenceError(f"{path}: an animation ends in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise EvidenceError(f"{path}: there is no folder {path.parent}")
    if not SLOWEST <= fps <= FASTEST:
        raise EvidenceError(f"fps={fps}: give a number of scenes a second between {SLOWEST} and {FASTEST}")
    return path


def write_animation(flow: InformationFlow, path: str | Path, fps: float) -> Path:
    """Write one scene for each layer of a flow; see `InformationFlow.animate`."""
    path = require_animation(path, fps)
    if flow.shown is None:
        why = "no pair is left" if not flow.n else "measure it with 'groups' among its parts"
        raise EvidenceError(f"{path}: this flow shows no pair; {why}")
    scenes = scenes_of(flow, flow.shown)
    if path.suffix.lower() == ".mp4":
        return write_video(path, scenes, fps, CRF)
    return write_atomic(path, gif_bytes(scenes, fps))


def scenes_of(flow: InformationFlow, shown: Shown) -> Video:
    """Every scene as a picture: uint8 (K, height, width, 3), of even height and width."""
    most = max(float(np.nan_to_num(shown.shares).max()), WRITTEN)
    return np.stack([_scene(flow, shown, number, most) for number in range(len(flow.layers))])


def _scene(flow: InformationFlow, shown: Shown, number: int, most: float) -> Any:
    layer, strip = flow.layers[number], strip_height(shown)
    figure = Figure(figsize=(WIDTH, strip + 3.1), dpi=DPI, layout="constrained")
    when = "at the embedding" if layer == EMBED else f"after block {layer}"
    figure.suptitle(f"{title(flow)}\nOne pair, {when}", fontsize=12, fontweight="bold", x=0.01, ha="left")
    parts: Any = figure.subfigures(2, 1, height_ratios=(strip, 2.5))
    above, below = parts
    above.supxlabel(CAPTION, fontsize=9)
    for row in empty_frames(above, shown):
        for axis, latent in zip(row, strip_of(shown), strict=True):
            _tint(axis, shown, number, latent, most)
    curves = draw_curves(flow, below.subplots())
    legend_above(curves)
    curves.axvline(layer, color=TINT, linewidth=2.5, alpha=0.7)
    return _pixels(figure)


def _tint(axis: Axes, shown: Shown, number: int, latent: int, most: float) -> None:
    """Tint each group of a latent frame by its share, and write down what can be seen."""
    for group, share in zip(shown.groups[:, latent], shown.shares[number], strict=True):
        # A group belongs to one latent frame; of the others it has no token.
        if not group.any() or not share > 0:
            continue
        tinted(axis, group, TINT, COVER * float(np.sqrt(share / most)))
        if share >= WRITTEN:
            y, x = np.argwhere(group).mean(axis=0) + 0.5
            axis.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=8, path_effects=_HALO)


def _pixels(figure: Figure) -> Any:
    """A figure as a picture of even height and width, which is what players of mp4 want."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    return np.ascontiguousarray(picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2])


def gif_bytes(scenes: Video, fps: float) -> bytes:
    """Pictures (K, height, width, 3) as a GIF that begins again when it has ended."""
    pictures = [Image.fromarray(scene).quantize(COLOURS, dither=Image.Dither.NONE) for scene in scenes]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=1000 / fps, loop=0)
    return buffer.getvalue()
