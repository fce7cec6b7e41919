"""A flow before it runs: which pairs, which step, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dit_lens.analysis.flow.cells import Cells
from dit_lens.analysis.flow.gates import UNDECIDED
from dit_lens.analysis.flow.looks import Pairs, doors_of
from dit_lens.analysis.flow.measure import levels_of, plan_of, total
from dit_lens.analysis.flow.measuring import Measuring, blank, once
from dit_lens.analysis.flow.pairs import WHO, Prepared, prepared
from dit_lens.analysis.flow.result import InformationFlow
from dit_lens.analysis.flow.sets import (
    TokenSets,
    named,
    positions_in,
    require_difference,
    require_one_road,
    require_some_alike,
    smallest_source,
    words_of_both_sides,
)
from dit_lens.analysis.flow.steps import Seen, seen_at
from dit_lens.analysis.flow.ways import Ways
from dit_lens.analysis.flow.words import positions_of_words
from dit_lens.display.short import short_repr
from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.tokens import Tokens
from dit_lens.sweeps.plan import Forecast
from dit_lens.tasks.base import Task

#: What is measured besides the curves: each block's direct and indirect effect, and groups of tokens of one pair.
PARTS = ("blocks", "groups")

#: Tokens, or words of the prompt.
Named = Tokens | str | Sequence[str]


@dataclass(frozen=True, eq=False)
class FlowPlan:
    """A flow that has not run yet; made by `plan_flow`.

    Attributes
    ----------
    model, task
    kind : str
    pairs : Pairs
    step : int or None
        None is the first step of each expert at which the answer is decided.
    source, target : what the user names, or None
    branches : "cond" or "all"
    parts : tuple of str
        What is measured besides the curves; see `PARTS`.
    geometry : Geometry
    folder : Path or None
    """

    model: VideoDiT
    task: Task
    kind: str
    pairs: Pairs
    step: int | None
    source: Named | None
    target: Tokens | None
    branches: str
    parts: tuple[str, ...]
    geometry: Geometry
    folder: Path | None

    __repr__ = short_repr

    @property
    def branch(self) -> str | None:
        """Whose estimate is read."""
        return None if self.branches == "all" else self.branches

    def forecast(self) -> Forecast:
        """What it costs at most, beside a loop that generates every cell from noise up to its step.

        Of models with two experts one flow is counted. Doors count as if every one differed, and tokens as if source
        and target held all of them: what a flow finds before it knows.
        """
        step = 0 if self.step is None else self.step
        cells = Cells(self.geometry, step, self.branches, self._everything, tuple(doors_of(self.geometry)))
        every = [cells.curves(levels_of(self.geometry.layers)), once(cells, self.parts)]
        no_way = Ways(torch.zeros(2 * len(self.pairs.pairs), 1, 1, 1, 1))
        plans = [plan_of(self.task, self.pairs, no_way, cells, made) for made in every]
        cost = total([plan.forecast(timed=False) for plan in plans])
        rows, branches = 2 * len(self.pairs.pairs), len(self.geometry.branches)
        before = rows * branches * (self.geometry.steps + step + 2)
        return replace(cost, forwards=cost.forwards + before, naive_forwards=cost.naive_forwards + before)

    @property
    def _everything(self) -> TokenSets:
        """Sets that hold every second token each."""
        half = np.zeros((len(self.pairs.pairs), *self.geometry.grid), dtype=bool)
        half.reshape(len(half), -1)[:, ::2] = True
        return TokenSets(half, ~half, ((),) * len(half))

    def run(self) -> InformationFlow:
        """Measure it.

        Raises
        ------
        EvidenceError
            As of `information_flow`.
        """
        started = time.perf_counter()
        target = None if self.target is None else named(self.target, "target", self.geometry)
        source = named(self.source, "source", self.geometry) if isinstance(self.source, Tokens) else None
        of = prepared(self.task, self.pairs, target, source)
        flows = [self._at(of, seen, expert) for expert, seen in self._steps(of).items()]
        first = next((flow for flow in flows if flow.gate.decides), flows[0])
        others = {str(flow.expert): flow for flow in flows if flow is not first}
        return replace(first, experts=others, seconds=time.perf_counter() - started)

    def _steps(self, of: Prepared) -> dict[str | None, Seen]:
        """By expert the step that was asked for, or the first at which the answer is decided."""
        if self.step is not None:
            return {of.experts[self.step]: seen_at(of, [self.step], self.branch)[self.step]}
        found: dict[str | None, Seen] = {}
        for expert in dict.fromkeys(of.experts):
            steps = [step for step, own in enumerate(of.experts) if own == expert]
            found[expert] = self._first_decided(of, steps)
        return found

    def _first_decided(self, of: Prepared, steps: list[int]) -> Seen:
        first = seen_at(of, steps[:1], self.branch)[steps[0]]
        if first.gate(of).decides or len(steps) == 1:
            return first
        later = seen_at(of, steps[1:], self.branch).values()
        return next((seen for seen in later if seen.gate(of).decides), first)

    def _at(self, of: Prepared, seen: Seen, expert: str | None) -> InformationFlow:
        """The flow at one step."""
        gate, sets = seen.gate(of), self._sets(of, seen)
        # Where nothing that is embedded differs, there is no source by definition; where it does, one is needed.
        enters = sets.have_source | (bool(seen.doors) & (~seen.enters | (self.source is not None)))
        decided = gate.moved >= UNDECIDED
        kept = np.flatnonzero(of.right & decided & enters).tolist()
        if not enters.any():
            raise EvidenceError(
                f"{WHO}: the pairs do not differ to the model: no embedding does, and nothing that blocks are told; "
                "give inputs that differ, or name a source"
            )
        dropped = of.dropped | {
            "that move too little to be shared out": int((of.right & ~decided).sum()),
            "without a source": int((of.right & decided & ~enters).sum()),
        }
        require_one_road(sets.have_source[kept])
        nothing = blank(self.model.id, self.task.title, self.kind, self.branches, of, seen, expert, dropped)
        if not kept:
            return nothing
        measuring = Measuring(
            task=self.task,
            of=of,
            seen=seen,
            sets=sets,
            kept=kept,
            branches=self.branches,
            parts=self.parts,
            words=self._words_of_context(of, sets),
            folder=self.folder,
        )
        return measuring.fill(nothing)

    def _sets(self, of: Prepared, seen: Seen) -> TokenSets:
        """Source and target of each pair."""
        none = ((),) * len(of.target)
        readable = () if seen.readable is None else positions_in(seen.readable)
        if self.source is None:
            differ = none if seen.words is None else positions_in(seen.words)
            found = TokenSets(smallest_source(seen.embedded) & ~of.target, of.target, differ, readable)
            require_some_alike(found)
            return found
        if isinstance(self.source, Tokens):
            source = np.repeat(named(self.source, "source", self.geometry)[None], len(of.target), axis=0)
            require_difference(source, seen.embedded)
            return TokenSets(source, of.target, none, readable)
        words = positions_of_words(self.model, of.pairs.pairs, self.source) if readable else none
        return TokenSets(np.zeros_like(of.target), of.target, words, readable)

    def _words_of_context(self, of: Prepared, sets: TokenSets) -> Tokens | None:
        """Named words where the text is no stream: positions of what cross-attention reads, of every row."""
        if self.source is None or isinstance(self.source, Tokens) or sets.readable:
            return None
        return words_of_both_sides(positions_of_words(self.model, of.pairs.pairs, self.source))
