"""What the attention lens found, as tensors, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dit_lens.errors import InputError, SiteError
from dit_lens.lens.reading import Reading, tidy
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import over_instances
from dit_lens.results.plots import heatmap
from dit_lens.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is known of every frame of queries, and the axis that it has besides step, layer, row, head and query frame.
BY_FRAME = {
    "frames": "key_frame",
    "uniform": "key_frame",
    "text": "position",
    "image": "position",
    "region": None,
    "entropy": None,
    "entropy_share": None,
}


@dataclass(frozen=True, repr=False)
class Attention(Result):
    """What the chosen queries of one branch attend to.

    All masses are shares of a softmax, averaged over the chosen queries of each latent frame; a frame of which no query
    was chosen is NaN. F stands for frames of the token grid (in CogVideoX 1.5 each holds two latent frames).

    Attributes
    ----------
    reading : Reading
        Steps S, layers L and rows B.
    kind : "self", "cross" or "image"
    heads : tuple of int
    queries : Tensor of shape (queries,)
        The chosen tokens, as numbers 0..F H W - 1.
    counts : Tensor of shape (F,)
        How many of them lie in each frame.
    entropy, entropy_share : Tensor of shape (S, L, B, heads, F)
        In nats, and over the log of the number of keys that the mask leaves open: 1 is attention to all alike.
    frames : Tensor of shape (S, L, B, heads, F, F), or None
        Of a self-attention: from the frame of the query to the frame of the key. With the mass on text it sums to 1.
    uniform : Tensor of shape (S, L, B, heads, F, F), or None
        The same if every open key had equal mass: what a head that tells nothing apart would show.
    text : Tensor of shape (S, L, B, heads, F, positions), or None
        Mass on each position of the text; in joint attention it shares the softmax with the video.
    image : Tensor of shape (S, L, B, heads, F, positions), or None
        Mass on each token of an image encoder, of a softmax of their own.
    region : Tensor of shape (S, L, B, heads, F), or None
    maps : Tensor of shape (S, L, B, heads, queries, keys), or None
        Keys are the tokens of the video and then the positions of the text; in the other kinds the positions alone.
    """

    reading: Reading
    kind: str
    heads: tuple[int, ...]
    queries: Tensor
    counts: Tensor
    entropy: Tensor
    entropy_share: Tensor
    frames: Tensor | None = None
    uniform: Tensor | None = None
    text: Tensor | None = None
    image: Tensor | None = None
    region: Tensor | None = None
    maps: Tensor | None = None

    def over_queries(self, measure: str) -> Tensor:
        """A measure averaged over all chosen queries: (S, L, B, heads), with its last axis if it has one besides."""
        values = self._values(measure).double()
        weights = (self.counts / self.counts.sum()).double()
        values = values.nan_to_num() if BY_FRAME[measure] is None else values.nan_to_num().movedim(4, -1)
        return (values @ weights).float()

    def on_grid(self) -> Tensor:
        """Maps of a self-attention over the video's keys: (S, L, B, heads, queries, F, H, W)."""
        if self.maps is None or self.kind != "self":
            raise InputError("no maps of the video; call attention(..., kind='self', keep_maps=True)")
        grid = self.reading.grid
        maps: Tensor = self.maps[..., : grid[0] * grid[1] * grid[2]].unflatten(-1, grid)
        return maps

    def by_frame(self, measure: str) -> pd.DataFrame:
        """One measure of every frame of queries in every row.

        Parameters
        ----------
        measure : str
            "frames", "uniform", "text", "image", "region", "entropy" or "entropy_share".

        Returns
        -------
        DataFrame with the columns of `samples`, and before instance query_frame and, of some measures, key_frame or
        position. Frames without a chosen query are left out.
        """
        values = self._values(measure)
        own: dict[str, Sequence[int]] = {"query_frame": range(self.reading.grid[0])}
        if (last := BY_FRAME[measure]) is not None:
            own[last] = range(values.shape[-1])
        table = self._tidy({measure: values}, own)
        return table[self.counts.numpy()[table["query_frame"]] > 0].reset_index(drop=True)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """What each head attends to in every row, the mean over the chosen queries.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, layer, kind, component, stream, head, attention, instance,
        seed, measure, value; measures are, where they were read,
            between : mass on frames other than the query's own
            uniform : the same if every open key had equal mass
            distance : how many frames away the mass of ``between`` lies on average, NaN where there is none
            text, image, region : mass on all positions of the text, all tokens of the image, the region
            entropy, entropy_share : see the attributes
        """
        found: dict[str, Tensor] = {}
        if self.frames is not None:
            between = self._between("frames", 0)
            found |= {"between": between, "uniform": self._between("uniform", 0)}
            found["distance"] = self._between("frames", 1) / between  # 0 / 0 where there is none
        for name in ("text", "image"):
            if getattr(self, name) is not None:
                found[name] = self.over_queries(name).sum(-1)
        for name in ("region", "entropy", "entropy_share"):
            if getattr(self, name) is not None:
                found[name] = self.over_queries(name)
        return self._tidy(found, {})

    @cached_property
    def table(self) -> pd.DataFrame:
        """`samples`, the mean over instances with its 95 % bootstrap interval."""
        return over_instances(self.samples)

    def plot(self, axis: Axes | None = None, *, step: int | None = None) -> Axes:
        """Layers by heads: the mass on other frames of a self-attention, else the entropy as a share of the largest.

        Parameters
        ----------
        step : int, optional
            By default the mean over the steps that were read.
        """
        measure, options = ("between", {}) if self.kind == "self" else ("entropy_share", {"vmax": 1})
        table = self.table[self.table["measure"] == measure]
        if step is not None:
            self.reading.index_of("step", step)
            table = table[table["step"] == step]
        axis = heatmap(table, "layer", "head", "value", axis, vmin=0, cbar_kws={"label": measure}, **options)
        where = self.reading.title if step is None else f"step {step}, {self.reading.branch}"
        axis.set_title(f"{self.kind}-attention, {where}", fontsize=9)
        return axis

    def plot_frames(self, layer: int, head: int | None = None, axis: Axes | None = None) -> Axes:
        """Frames of the queries by frames of the keys in one layer, the mean over steps, rows and heads, or a head."""
        table, layers = self.by_frame("frames"), self.reading.layers
        if layer not in layers or (head is not None and head not in self.heads):
            raise SiteError(f"no layer {layer}, head {head} here; there are layers {layers}, heads {self.heads}")
        table = table[(table["layer"] == layer) & (True if head is None else table["head"] == head)]
        axis = heatmap(table, "query_frame", "key_frame", "value", axis, vmin=0, cbar_kws={"label": "mass"})
        of = "mean over heads" if head is None else f"head {head}"
        axis.set_title(f"layer {layer}, {of}, {self.reading.title}", fontsize=9)
        return axis

    def _values(self, measure: str) -> Tensor:
        if measure not in BY_FRAME:
            raise InputError(f"unknown measure {measure!r}; one of {', '.join(BY_FRAME)}")
        values: Tensor | None = getattr(self, measure)
        if values is None:
            there = ", ".join(m for m in BY_FRAME if getattr(self, m) is not None)
            raise InputError(f"this {self.kind}-attention was read without {measure}; there are {there}")
        return values

    def _tidy(self, measures: Mapping[str, Tensor], own: Mapping[str, Sequence[int]]) -> pd.DataFrame:
        """A tidy table of tensors (S, L, B, heads, *own)."""
        places = self.reading.table.merge(pd.DataFrame({"head": self.heads}), how="cross")
        values = {name: _by_head(tensor) for name, tensor in measures.items()}
        return tidy(places.assign(attention=self.kind), self.reading.rows, values, own)

    def _between(self, measure: str, power: int) -> Tensor:
        """Mass on other frames, each times its distance to a power: (S, L, B, heads) in double precision."""
        frames = torch.arange(self.reading.grid[0])
        apart = (frames[:, None] - frames).abs()
        weights = (apart > 0) * apart.double() ** power
        masses = (self._values(measure).double() * weights).sum(-1).nan_to_num()
        return masses @ (self.counts / self.counts.sum()).double()


def _by_head(values: Tensor) -> Floats:
    """(S, L, B, heads, ...) as (S L heads, B, ...)."""
    return np.asarray(values.movedim(3, 2).flatten(0, 2).double().numpy(), dtype=np.float64)
