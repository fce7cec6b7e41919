"""What `information_flow` finds: curves over depth, gates, doors, and what each block does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dit_lens.analysis.flow.cells import EMBED
from dit_lens.analysis.flow.gates import Gate
from dit_lens.display.short import short_repr
from dit_lens.results.arrays import Bools, Floats
from dit_lens.results.intervals import Interval, t_interval
from dit_lens.results.result import VALUE_COLUMNS, Result, json_value
from dit_lens.sweeps.plan import Forecast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The curves, in the order in which they are told.
CURVES = ("A", "B", "M", "all", "shared")


@dataclass(frozen=True, eq=False)
class Shown:
    """A pair to look at.

    Attributes
    ----------
    frames : uint8 array of shape (2, T, height, width, 3)
        The true videos of both sides, or where there are none, those that the model makes.
    source, target : bool array of shape (F, H, W), tokens
    groups : bool array of shape (G, F, H, W)
        Groups of tokens.
    shares : float array of shape (layers, G)
        Effect of each group alone after each layer of the flow, mean over both directions.
    latent_of : int array of shape (T,)
        The latent frame on the token grid that holds each pixel frame.
    """

    frames: Any
    source: Bools
    target: Bools
    groups: Bools
    shares: Floats
    latent_of: Any

    __repr__ = short_repr


@dataclass(frozen=True, repr=False)
class InformationFlow(Result):
    """Where the difference of two inputs is after each block, measured by exchanging the residual stream at sets of
    tokens.

    An effect is the share of the way from a row's own clean estimate to its donor's, along the difference of the two
    right answers at the target. One pair is one unit: both directions are averaged.

    Attributes
    ----------
    model, task, kind : str
        The kind of the pairs; "given" where they were given.
    step, sigma, expert : of the denoising step
    branch : str
        In which activations were exchanged and whose estimate was read; "all" is all of them and their combination.
    layers : tuple of K int
        After which the stream was exchanged; -1 is the embedding.
    gate : Gate
    effects : dict from curve to float array of shape (K, n)
        "A" (the source's tokens alone), "B" (the target's), "M" (all others), "all" (every token; less than 1 where
        something enters by a door), "shared" (all - A - B - M). "A" is NaN where no embedding differs.
    updates : dict from "whole" and "direct" to float array of shape (L, n)
        Effect of exchanging the update of each block in its place, and of adding it to the last residual stream only.
    doors : dict from name to float array of shape (n,)
        Effect of exchanging what blocks and the head are told: every door by itself, and "all doors".
    dropped : dict from reason to int
        Pairs that were left out.
    worst, exact_to : float
        The largest error of an identity that was checked in this run, and how large one may be in the model's dtype.
    truth : bool
        Whether the way is that between right answers. Without, it is that between what the two clean runs end at, and
        shows what moves, not what is right.
    shown : Shown or None
    experts : dict from expert to InformationFlow
        Of the other experts of a model with two.
    planned : Forecast
    forwards : float
        Computed, in the unit of ``planned``.
    seconds : float
    """

    model: str
    task: str
    kind: str
    step: int
    sigma: float
    expert: str | None
    branch: str
    layers: tuple[int, ...]
    gate: Gate
    effects: Mapping[str, Floats]
    updates: Mapping[str, Floats]
    doors: Mapping[str, Floats]
    dropped: Mapping[str, int]
    worst: float
    exact_to: float
    truth: bool
    shown: Shown | None
    experts: Mapping[str, InformationFlow]
    planned: Forecast
    forwards: float
    seconds: float

    @property
    def n(self) -> int:
        """Pairs that the curves are of."""
        return int(self.effects["B"].shape[1])

    @property
    def ends_exact(self) -> bool:
        """Whether every identity holds to rounding."""
        return self.worst <= self.exact_to

    @property
    def coverage(self) -> dict[str, Interval | None]:
        """The effect of source and target at the embedding; None for a source where no embedding differs."""
        found: dict[str, Interval | None] = {}
        for name in ("A", "B"):
            values = self.effects[name][0] if self.n else np.zeros(0)
            found[name] = None if not len(values) or np.isnan(values).any() else t_interval(values)
        return found

    def curve(self, name: str) -> dict[int, Interval]:
        """One curve by layer, with intervals over pairs."""
        return {layer: t_interval(values) for layer, values in zip(self.layers, self.effects[name], strict=True)}

    @cached_property
    def changes(self) -> dict[str, Floats]:
        """What happens from each measured layer to the next, float (K - 1, n).

        "departure" (from the source), "arrival" (at the target), "reading" (by any token, through doors). Each sums
        over the layers to the whole change, whatever their number.
        """
        steps = {name: np.diff(self.effects[name], axis=0) for name in ("A", "B", "all")}
        return {"departure": -steps["A"], "arrival": steps["B"], "reading": steps["all"]}

    @cached_property
    def per_block(self) -> pd.DataFrame:
        """Per block, or per window of blocks where not every layer was measured, the mean of everything that it does.

        Columns: layer (the last of the window), first, departure, arrival, reading, direct, indirect; the last two are
        of single blocks.
        """
        rows = []
        for i, (before, layer) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            row: dict[str, Any] = {"layer": layer, "first": before + 1}
            row |= {name: float(values[i].mean()) for name, values in self.changes.items()}
            single = layer == before + 1 and self.updates
            whole, direct = (self.updates[name][layer].mean() if single else np.nan for name in ("whole", "direct"))
            rows.append(row | {"direct": float(direct), "indirect": float(whole - direct)})
        columns = ["layer", "first", "departure", "arrival", "reading", "direct", "indirect"]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns step, sigma, expert, layer, measure, value, low, high (95 % t intervals over pairs), n.

        Measures: the curves, "departure", "arrival", "reading", "direct" and "indirect" of a layer; "door: ..." and
        "moved", "unrelated", "frozen" of none.
        """
        by_layer = [(layer, name, self.effects[name][i]) for i, layer in enumerate(self.layers) for name in CURVES]
        for name, values in self.changes.items():
            by_layer += [(layer, name, values[i]) for i, layer in enumerate(self.layers[1:])]
        if self.updates:
            whole, direct = self.updates["whole"], self.updates["direct"]
            for name, values in {"direct": direct, "indirect": whole - direct}.items():
                by_layer += [(layer, name, values[layer]) for layer in range(len(values))]
        of_none: list[tuple[Any, str, Floats]] = [(None, f"door: {name}", x) for name, x in self.doors.items()]
        of_none += [(None, name, getattr(self.gate, name)) for name in ("moved", "unrelated", "frozen")]
        at = (self.step, self.sigma, self.expert)
        rows = [(*at, layer, name, *t_interval(x), len(x)) for layer, name, x in [*by_layer, *of_none] if len(x)]
        columns = ["step", "sigma", "expert", "layer", *VALUE_COLUMNS]
        layers = pd.Series([row[3] for row in rows], dtype=object)  # whole numbers, and none
        return pd.DataFrame(rows, columns=columns).assign(layer=layers).astype({"expert": object})

    def __str__(self) -> str:
        what = "" if self.truth else " (no true videos: this shows what moves, not what is right)"
        at = f"step {self.step}, sigma {self.sigma:.3g}" + ("" if self.expert is None else f", {self.expert}")
        at += ", from the originals' states" if self.step else ""
        left = ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count) or "none"
        lines = [
            f"{self.task}, {self.kind}, on {self.model}: {at}, {self.n} pairs; left out: {left}{what}",
            str(self.gate),
        ]
        if self.n:
            lines += [self._curves(), self._doors(), self._ends()]
        return "\n".join([line for line in lines if line] + [str(other) for other in self.experts.values()])

    def _curves(self) -> str:
        names = ["embed" if layer == EMBED else str(layer) for layer in self.layers]
        rows = {name: [f"{x:.2f}" for x in self.effects[name].mean(axis=1)] for name in CURVES}
        return pd.DataFrame(rows, index=names).T.replace("nan", "-").to_string()

    def _doors(self) -> str:
        return "; ".join(f"door {name} {t_interval(values)}" for name, values in self.doors.items())

    def _ends(self) -> str:
        exact = "exact" if self.ends_exact else "NOT EXACT: do not believe these numbers"
        return f"identities {exact}, off by {self.worst:.1g} at most, of {self.exact_to:.1g} that rounding may make"

    def plot(self, axis: Axes | None = None) -> Axes:
        """Source and target over depth with their intervals, gates and doors; above them the frames of a pair.

        Into given Axes only the curves are drawn.

        Returns
        -------
        Axes
            Those of the curves.
        """
        from dit_lens.analysis.flow.figure import draw

        return draw(self, axis)

    def animate(self, path: str | Path, fps: float = 1.5) -> Path:
        """Write a GIF, or an mp4, of the pair that is shown: one scene for each layer of the flow.

        Each scene tints the parts of the frames by the share of the answer that follows when only this part is taken
        from the other run, and marks the layer in the curves.

        Parameters
        ----------
        path : str or Path
            It ends in ".gif", or with the extra "video" in ".mp4"; its folder exists.
        fps : float
            Scenes a second.

        Returns
        -------
        Path
            Of the file, which is written whole or not at all.

        Raises
        ------
        EvidenceError
            No pair is shown, another suffix, a folder that does not exist, or ``fps`` not between 0.01 and 50.
        TaskError
            An mp4 without the extra.
        """
        from dit_lens.analysis.flow.animation import write_animation

        return write_animation(self, path, fps)

    def to_json(self) -> dict[str, Any]:
        """As of every result, with the curves, gates, doors, blocks and experts by name."""
        data = super().to_json() | self._summary()
        return data | {"experts": {name: other.to_json() for name, other in self.experts.items()}}

    def _summary(self) -> dict[str, Any]:
        gate = {
            "solves": self.gate.solves,
            "solved": json_value(self.gate.solved),
            "floor": json_value(self.gate.floor),
            **_interval(self.gate.value),
            "unrelated": json_value(float(self.gate.unrelated.mean())) if len(self.gate.unrelated) else None,
            "frozen": json_value(float(self.gate.frozen.mean())) if len(self.gate.frozen) else None,
            "open": self.gate.open,
        }
        curves = {
            name: [{"layer": layer, **_interval(one)} for layer, one in self.curve(name).items()] if self.n else []
            for name in CURVES
        }
        blocks = [{str(k): json_value(v) for k, v in row.items()} for row in self.per_block.to_dict(orient="records")]
        return {
            "model": self.model,
            "task": self.task,
            "pair_kind": self.kind,
            "step": self.step,
            "sigma": self.sigma,
            "expert": self.expert,
            "gate": gate,
            "coverage": {name: None if x is None else json_value(x.value) for name, x in self.coverage.items()},
            "curves": curves,
            "per_block": blocks,
            "doors": {name: _interval(t_interval(values)) for name, values in self.doors.items()},
            "ends_exact": self.ends_exact,
            "worst": json_value(self.worst),
            "n": self.n,
            "dropped": dict(self.dropped),
            "truth": self.truth,
        }


def _interval(found: Interval) -> dict[str, Any]:
    return {name: json_value(value) for name, value in found._asdict().items()}
