"""What the attention lens found, as tensors, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from dit_lens.errors import InputError, SiteError
from dit_lens.results.intervals import mean_over_instances
from dit_lens.results.plots import heatmap
from dit_lens.runs.inputs import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Measures of `Attention.frame` and the axes that they have besides layer, row, head and query frame.
MEASURES = {
    "frames": "key_frame",
    "uniform": "key_frame",
    "text": "position",
    "image": "position",
    "region": None,
    "entropy": None,
    "entropy_share": None,
}


@dataclass(frozen=True)
class Attention:
    """What the chosen queries of one branch at one step attend to.

    All masses are shares of a softmax, averaged over the chosen queries of each latent frame; a frame of which no query
    was chosen is NaN. F stands for frames of the token grid (in CogVideoX 1.5 each holds two latent frames).

    Attributes
    ----------
    step : int
    sigma : float
    expert : str or None
    branch : str
    kind : "self", "cross" or "image"
    layers, heads : tuple of int
    rows : tuple of Row, B of them
    grid : (F, H, W), the token grid
    queries : Tensor of shape (queries,)
        The chosen tokens, as numbers 0..F H W - 1.
    counts : Tensor of shape (F,)
        How many of them lie in each frame.
    entropy, entropy_share : Tensor of shape (layers, B, heads, F)
        In nats, and over the log of the number of keys that the mask leaves open: 1 is attention to all alike.
    frames : Tensor of shape (layers, B, heads, F, F), or None
        Of a self-attention: from the frame of the query to the frame of the key. With the mass on text it sums to 1.
    uniform : Tensor of shape (layers, B, heads, F, F), or None
        The same if every open key had equal mass: what a head that tells nothing apart would show.
    text : Tensor of shape (layers, B, heads, F, positions), or None
        Mass on each position of the text; in joint attention it shares the softmax with the video.
    image : Tensor of shape (layers, B, heads, F, positions), or None
        Mass on each token of an image encoder, of a softmax of their own.
    region : Tensor of shape (layers, B, heads, F), or None
    maps : Tensor of shape (layers, B, heads, queries, keys), or None
        Keys are the tokens of the video and then the positions of the text; in the other kinds the positions alone.
    """

    step: int
    sigma: float
    expert: str | None
    branch: str
    kind: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    rows: tuple[Row, ...]
    grid: tuple[int, int, int]
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
        """A measure averaged over all chosen queries: (layers, B, heads), with its last axis if it has one besides."""
        values = self._values(measure).double()
        weights = (self.counts / self.counts.sum()).double()
        values = values.nan_to_num() if MEASURES[measure] is None else values.nan_to_num().movedim(3, -1)
        return (values @ weights).float()

    def on_grid(self) -> Tensor:
        """Maps of a self-attention over the video's keys: (layers, B, heads, queries, F, H, W)."""
        if self.maps is None or self.kind != "self":
            raise InputError("no maps of the video; call attention(..., kind='self', keep_maps=True)")
        tokens = self.grid[0] * self.grid[1] * self.grid[2]
        maps: Tensor = self.maps[..., :tokens].unflatten(-1, self.grid)
        return maps

    def frame(self, measure: str | None = None) -> pd.DataFrame:
        """One measure as a tidy table.

        Parameters
        ----------
        measure : str, optional
            "frames", "uniform", "text", "image", "region", "entropy" or "entropy_share"; by default "frames" of a
            self-attention, else the mass on the positions.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, kind, layer, instance, seed, head, query_frame, of some
        measures key_frame or position, and the measure. Frames without a chosen query are left out.
        """
        measure = {"self": "frames", "cross": "text", "image": "image"}[self.kind] if measure is None else measure
        values = self._values(measure)
        axes: list[tuple[str, Sequence[int]]] = [
            ("layer", self.layers),
            ("row", range(len(self.rows))),
            ("head", self.heads),
            ("query_frame", range(self.grid[0])),
        ]
        if (last := MEASURES[measure]) is not None:
            axes.append((last, range(values.shape[-1])))
        index = pd.MultiIndex.from_product([a for _, a in axes], names=[n for n, _ in axes])
        table = pd.DataFrame({measure: values.flatten().numpy()}, index=index).reset_index()
        table = table[self.counts.numpy()[table["query_frame"]] > 0].reset_index(drop=True)
        rows = table.pop("row")
        table.insert(1, "instance", [self.rows[r].instance for r in rows])
        table.insert(2, "seed", [self.rows[r].seed for r in rows])
        return self._dressed(table)

    def between_frames(self) -> pd.DataFrame:
        """Which layers and heads move information between frames, the most first.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, kind, layer, head and

        - ``between``: mass on frames other than the query's own, mean over the chosen queries and over instances (seeds
          of one instance averaged first), with ``low`` and ``high``, its 95 % bootstrap interval over ``n`` instances
          (NaN for one instance);
        - ``uniform``: the same if every open key had equal mass;
        - ``distance``: how many frames away that mass lies on average (NaN where there is none).

        Raises
        ------
        InputError
            This is no self-attention.
        """
        between, even, far = (self._between(*of) for of in (("frames", 0), ("uniform", 0), ("frames", 1)))
        rows = []
        instances = [row.instance for row in self.rows]
        for i, layer in enumerate(self.layers):
            for j, head in enumerate(self.heads):
                (value, low, high), count = mean_over_instances(between[i, :, j].numpy(), instances)
                mass = float(between[i, :, j].sum())
                distance = float(far[i, :, j].sum()) / mass if mass > 0 else float("nan")
                rows.append((layer, head, value, low, high, float(even[i, :, j].mean()), distance, count))
        names = ["layer", "head", "between", "low", "high", "uniform", "distance", "n"]
        table = self._dressed(pd.DataFrame(rows, columns=names))
        return table.sort_values("between", ascending=False, kind="stable").reset_index(drop=True)

    def plot(self, axis: Axes | None = None) -> Axes:
        """Layers by heads: the mass on other frames of a self-attention, else the entropy as a share of the largest."""
        if self.kind == "self":
            axis = heatmap(self.between_frames(), "layer", "head", "between", axis, vmin=0)
        else:
            table = self._dressed(self.frame("entropy_share"))
            axis = heatmap(table, "layer", "head", "entropy_share", axis, vmin=0, vmax=1)
        axis.set_title(f"{self.kind}-attention, {self._where()}", fontsize=9)
        return axis

    def plot_frames(self, layer: int, head: int | None = None, axis: Axes | None = None) -> Axes:
        """Frames of the queries by frames of the keys in one layer, the mean over rows and heads, or of one head."""
        table = self.frame("frames")
        if layer not in self.layers or (head is not None and head not in self.heads):
            raise SiteError(f"no layer {layer}, head {head} here; there are layers {self.layers}, heads {self.heads}")
        table = table[(table["layer"] == layer) & (True if head is None else table["head"] == head)]
        axis = heatmap(table, "query_frame", "key_frame", "frames", axis, vmin=0, cbar_kws={"label": "mass"})
        of = "mean over heads" if head is None else f"head {head}"
        axis.set_title(f"layer {layer}, {of}, {self._where()}", fontsize=9)
        return axis

    def _where(self) -> str:
        return f"step {self.step}, sigma {self.sigma:.2f}, {self.branch}"

    def _values(self, measure: str) -> Tensor:
        if measure not in MEASURES:
            raise InputError(f"unknown measure {measure!r}; one of {', '.join(MEASURES)}")
        values: Tensor | None = getattr(self, measure)
        if values is None:
            there = ", ".join(m for m in MEASURES if getattr(self, m) is not None)
            raise InputError(f"this {self.kind}-attention was read without {measure}; there are {there}")
        return values

    def _dressed(self, table: pd.DataFrame) -> pd.DataFrame:
        """With what all rows share in front."""
        shared = {n: getattr(self, n) for n in ("step", "sigma", "expert", "branch", "kind")}
        return pd.DataFrame({n: [v] * len(table) for n, v in shared.items()} | dict(table.items()))

    def _between(self, measure: str, power: int) -> Tensor:
        """Mass on other frames, each times its distance to a power: (layers, B, heads) in double precision."""
        frames = torch.arange(self.grid[0])
        apart = (frames[:, None] - frames).abs()
        weights = (apart > 0) * apart.double() ** power
        masses = (self._values(measure).double() * weights).sum(-1).nan_to_num()
        return masses @ (self.counts / self.counts.sum()).double()
