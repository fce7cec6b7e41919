"""What the two sides of pairs are to the model at one step: embeddings, clean estimates, and what blocks are told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.interventions.base import Intervention
from dit_lens.interventions.capture import Capture
from dit_lens.model import VideoDiT
from dit_lens.runs.run import Run
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import TOLD_COMPONENTS, Site
from dit_lens.sites.sites import Sites
from dit_lens.sweeps.local import under_partners
from dit_lens.tasks.base import Pair

#: A door by its component and stream; `HEAD` is what the output head is told.
Door = tuple[str, str]
HEAD: Door = ("head_modulation", "video")


@dataclass(frozen=True)
class Pairs:
    """P pairs with the noise of each, and how they are run.

    Attributes
    ----------
    pairs : tuple of P Pair
    seeds : tuple of P int
    rows_at_once : int
    interventions : tuple
        Applied in every run.
    arguments : dict
        Of `VideoDiT.run`.
    """

    model: VideoDiT
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    rows_at_once: int
    interventions: tuple[Intervention, ...]
    arguments: Mapping[str, Any]

    @property
    def batches(self) -> list[range]:
        """Pairs that are run at once, both sides of each."""
        size = max(1, self.rows_at_once // 2)
        return [range(first, min(first + size, len(self.pairs))) for first in range(0, len(self.pairs), size)]

    def rows(self, pairs: range) -> tuple[list[Any], list[int]]:
        """Both sides of some pairs, one after the other, from the same noise."""
        sides = [side for number in pairs for side in self.pairs[number]]
        return sides, [self.seeds[number] for number in pairs for _ in range(2)]

    def only(self, numbers: Sequence[int]) -> Pairs:
        """Some of the pairs, with their noise."""
        chosen = tuple(self.pairs[i] for i in numbers), tuple(self.seeds[i] for i in numbers)
        return Pairs(self.model, *chosen, self.rows_at_once, self.interventions, self.arguments)

    def looks(self, steps: Sequence[int], branch: str | None) -> Iterator[Look]:
        """Looks of each batch at every one of some steps; partners are run from the rows' own states."""
        for pairs in self.batches:
            sides, seeds = self.rows(pairs)
            geometry = self.model.geometry(sides[0], **self.arguments)
            kept = {step: _kept(geometry, step, branch) for step in steps}
            run = self.model.run(
                sides,
                seeds,
                interventions=[*_until(self.interventions, max(steps), geometry), *itertools.chain(*kept.values())],
                record=True,
                stop_after=max(steps),
                decode=False,
                **self.arguments,
            )
            for step in steps:
                other = under_partners(self.model, run, step, self.interventions, kept[step], self.arguments)
                yield Look(run, other, step, branch)


def _until(interventions: Sequence[Intervention], step: int, geometry: Geometry) -> list[Intervention]:
    return [i for i in interventions if any(site.step <= step for site in i.sites.resolve(geometry))]


def _kept(geometry: Geometry, step: int, branch: str | None) -> list[Intervention]:
    """Captures of what a look compares; blocks are told much the same, so the first speaks for all."""
    branches = "all" if branch is None else branch
    found = [Capture(Sites("embed", steps=step, branches=branches, stream="all"), name="look")]
    estimate = [Sites("latents", steps=step)]
    estimate += [Sites("guided", steps=step)] if branch is None else [Sites("velocity", steps=step, branches=branch)]
    found += [Capture(sites, name="look") for sites in estimate]
    for component, stream in doors_of(geometry):
        layers = 0 if component in TOLD_COMPONENTS else "all"
        sites = Sites(component, steps=step, layers=layers, branches=branches, stream=stream)
        found.append(Capture(sites, name="look"))
    return list(found)


def doors_of(geometry: Geometry) -> list[Door]:
    """Everything that blocks and the head are told besides the residual streams, by component and stream."""
    told = [(component, stream) for component in TOLD_COMPONENTS for stream in geometry.streams_of(component)]
    return [*told, HEAD]


@dataclass(frozen=True)
class Look:
    """Some pairs at one step: each row under its own condition, and its state under its partner's.

    Attributes
    ----------
    run, other : Run
        Of 2 P' rows.
    step : int
    branch : str or None
        Whose estimate is read; None is that of all branches combined.
    """

    run: Run
    other: Run
    step: int
    branch: str | None

    def _both(self, component: str, stream: str = "video", branch: str | None = None) -> tuple[Tensor, Tensor] | None:
        """What the two runs kept of a component, in the branch that is read or, of all, the conditional one."""
        layer = 0 if component in TOLD_COMPONENTS else None
        site = Site(self.step, branch, layer, component, stream)
        own, other = (run.captures["look"].get(site) for run in (self.run, self.other))
        return None if own is None or other is None else (own, other)

    @property
    def _of(self) -> str:
        return self.branch or "cond"

    @property
    def estimates(self) -> tuple[Tensor, Tensor]:
        """Clean estimates of the rows' own condition and of their partner's: (R, C, F, H, W) each."""
        states = self._both("latents")
        around = self._both("guided") if self.branch is None else self._both("velocity", branch=self.branch)
        assert states is not None
        assert around is not None
        own, other = (
            run.clean(self.step, x, v) for run, x, v in zip((self.run, self.other), states, around, strict=True)
        )
        return own, other

    def embedded(self, stream: str = "video") -> np.ndarray[Any, Any]:
        """Squared difference of the embeddings of each pair's two sides at every token: (P', F, H, W) or (P', N)."""
        both = self._both("embed", stream, self._of)
        assert both is not None
        return _of_pairs((both[0].double() - both[1].double()).square().sum(dim=-1))

    def read_by_attention(self) -> np.ndarray[Any, Any] | None:
        """Positions of the text that blocks may attend to on either side: bool (P', N); None where they may to all."""
        valid = self.run.text_valid.get(self._of)
        other = self.other.text_valid.get(self._of)
        return None if valid is None or other is None else _of_pairs(valid | other)

    def differs(self, door: Door) -> bool:
        """Whether some row is told anything else there than its partner."""
        both = self._both(*door, branch=self._of)
        return both is not None and not torch.equal(*both)


def _of_pairs(rows: Tensor) -> np.ndarray[Any, Any]:
    """The first row of each pair, whose second has the same."""
    return np.asarray(rows[::2].cpu())
