"""The runs that a tuned lens is fitted to, in random order, and their steps one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from dit_lens.interventions.capture import Capture
from dit_lens.lens.source import Recorded, arguments_of
from dit_lens.lens.tuned.bands import NoiseLevel
from dit_lens.model import VideoDiT
from dit_lens.runs.call import Call
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select
from dit_lens.sites.sites import Sites

#: Inputs, each with the seed that it runs with.
Seeded = Sequence[tuple[Any, int]]


@dataclass(frozen=True)
class StepReading:
    """One step of B rows in one branch.

    Attributes
    ----------
    residuals : dict from layer to Tensor of shape (B, F, H, W, D)
        The residual stream after the blocks that were asked for.
    velocity : Tensor of shape (B, C, F, H, W)
        The model's own.
    conditioning : dict
        What the head needs besides.
    """

    call: Call
    residuals: dict[int, Tensor]
    velocity: Tensor
    conditioning: Mapping[str, Any]


@dataclass(frozen=True)
class Runs:
    """How to make the runs of a training: the same for every input.

    Attributes
    ----------
    arguments : mapping
        Of `VideoDiT.run`.
    """

    model: VideoDiT
    branch: str = "cond"
    batch: int = 16
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def levels(self, given: Any) -> list[NoiseLevel]:
        """Noise level and expert of every step of a run, of however many calls a step is made."""
        run = self.model.run(given, decode=False, **self.arguments)
        return list({call.step: (call.sigma, call.expert) for call in run.calls}.values())

    def turns(self, rows: Seeded) -> list[int]:
        """The group of each run, in random order: there are as many as batches of all groups."""
        groups = groups_of(rows)
        turns = [i for i, group in enumerate(groups) for _ in range(0, len(group), self.batch)]
        return [turns[i] for i in _order(rows, len(turns))]

    def made(self, rows: Seeded, what: str) -> Iterator[Run]:
        """Recorded runs of all rows in an order that the first seed decides; tasks alternate.

        Rows whose pictures differ in size, or of which one has none, never share a run.
        """
        runs = [
            self.model.runs(
                *map(list, zip(*group, strict=True)),
                batch=self.batch,
                progress=None,
                record=True,
                decode=False,
                **self.arguments,
            )
            for group in groups_of(rows)
        ]
        for turn in tqdm(self.turns(rows), desc=what, unit="batch"):
            yield next(runs[turn])

    def readings(self, rows: Seeded, what: str, layers: Select = "all") -> Iterator[StepReading]:
        """Every step of a run of every row; activations of two steps at most are in memory."""
        _, interventions, _ = arguments_of(self.arguments)
        for run in self.made(rows, what):
            recorded = Recorded(run, interventions)
            for step in range(run.geometry.steps):
                yield self._reading(recorded, step, layers)

    def _reading(self, recorded: Recorded, step: int, layers: Select) -> StepReading:
        capture = Capture(Sites("resid", steps=step, layers=layers, branches=self.branch), name="lens.tuned")
        replay = recorded.replay(self.model, step, [capture])
        residuals = {int(site.layer or 0): x for site, x in replay.captures["lens.tuned"].items()}
        call = recorded.call(step, self.branch)
        return StepReading(call, residuals, replay.velocities[self.branch], replay.conditioning[self.branch])


def groups_of(rows: Seeded) -> list[list[tuple[Any, int]]]:
    """Rows in random order, by the size of their picture."""
    groups: dict[Any, list[tuple[Any, int]]] = {}
    for i in _order(rows, len(rows)):
        groups.setdefault(_picture_size(rows[i][0]), []).append(rows[i])
    return list(groups.values())


def _order(rows: Seeded, count: int) -> list[int]:
    """A permutation that the first row's seed decides."""
    return [int(i) for i in np.random.default_rng(rows[0][1]).permutation(count)]


def _picture_size(given: Any) -> Any:
    image = given.get("image") if isinstance(given, Mapping) else getattr(given, "image", None)
    return None if image is None else image.size
