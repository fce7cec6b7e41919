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
from dit_lens.sweeps.local import from_one_state
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
    def batch(self) -> int:
        """Rows that are run at once, both sides of some pairs."""
        return 2 * max(1, self.rows_at_once // 2)

    @property
    def rows(self) -> tuple[list[Any], list[int]]:
        """Both sides of every pair, one after the other, from the same noise."""
        return [side for pair in self.pairs for side in pair], [seed for seed in self.seeds for _ in range(2)]

    def only(self, numbers: Sequence[int]) -> Pairs:
        """Some of the pairs, with their noise."""
        chosen = tuple(self.pairs[i] for i in numbers), tuple(self.seeds[i] for i in numbers)
        return Pairs(self.model, *chosen, self.rows_at_once, self.interventions, self.arguments)

    def looks(self, steps: Sequence[int], branch: str | None) -> Iterator[Look]:
        """Looks of each batch at every one of some steps."""
        sides, seeds = self.rows
        geometry = self.model.geometry(sides[0], **self.arguments)
        kept = {step: _kept(geometry, step, branch) for step in steps}
        runs = self.model.runs(
            sides,
            seeds,
            batch=self.batch,
            progress=None,
            interventions=[*_until(self.interventions, max(steps), geometry), *kept.get(0, [])],
            record=True,
            stop_after=max(steps),
            decode=False,
            **self.arguments,
        )
        for run, step in itertools.product(runs, steps):
            options = self.interventions, kept[step], self.arguments
            yield Look(from_one_state(self.model, run, step, *options) if step else run, step, branch)


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
    """Some pairs at one step, both sides of each from one state.

    Attributes
    ----------
    run : Run of 2 P' rows
    step : int
    branch : str or None
        Whose estimate is read; None is that of all branches combined.
    """

    run: Run
    step: int
    branch: str | None

    def _of(self, component: str, stream: str = "video", branch: str | None = None) -> Tensor | None:
        """What was kept of a component: (2 P', ...)."""
        layer = 0 if component in TOLD_COMPONENTS else None
        return self.run.captures["look"].get(Site(self.step, branch, layer, component, stream))

    @property
    def _inside(self) -> str:
        """The branch in which embeddings and doors are compared: the one that is read, or the conditional one."""
        return self.branch or "cond"

    @property
    def estimates(self) -> Tensor:
        """Clean estimates: (2 P', C, F, H, W)."""
        state = self._of("latents")
        predicted = self._of("guided") if self.branch is None else self._of("velocity", branch=self.branch)
        assert state is not None
        assert predicted is not None
        return self.run.clean(self.step, state, predicted)

    def embedded(self, stream: str = "video") -> np.ndarray[Any, Any]:
        """Squared difference of the embeddings of each pair's two sides at every token: (P', F, H, W) or (P', N)."""
        found = self._of("embed", stream, self._inside)
        assert found is not None
        return np.asarray((found[::2].double() - found[1::2].double()).square().sum(dim=-1).cpu())

    def read_by_attention(self) -> np.ndarray[Any, Any] | None:
        """Positions of the text that blocks may attend to on either side: bool (P', N); None where they may to all."""
        valid = self.run.text_valid.get(self._inside)
        return None if valid is None else np.asarray((valid[::2] | valid[1::2]).cpu())

    def differs(self, door: Door) -> bool:
        """Whether some row is told anything else there than its partner."""
        found = self._of(*door, branch=self._inside)
        return found is not None and not torch.equal(found[::2], found[1::2])
