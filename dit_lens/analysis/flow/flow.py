"""Where information moves: the instrument.

A pair of inputs differs in one thing. Its two sides are run from the same noise, and the residual stream after each
block is exchanged between them at some tokens only: where the inputs differ (the source), where the right answers do
(the target), and all others. How much of the answer follows says where the difference is, and from one block to the
next, what departs, arrives and is read. Sources: causal tracing (Meng et al. 2022, arXiv 2202.05262), interchange
interventions (Geiger et al. 2021, arXiv 2106.02997).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dit_lens.analysis.flow.looks import Pairs
from dit_lens.analysis.flow.pairs import WHO
from dit_lens.analysis.flow.plan import PARTS, FlowPlan, Named
from dit_lens.analysis.flow.result import InformationFlow
from dit_lens.analysis.flow.sets import named, require_apart
from dit_lens.analysis.flow.words import positions_of_words
from dit_lens.engine.loop import require_batch, rows_named
from dit_lens.engine.plan import listed
from dit_lens.errors import InputError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.runs.seeds import row_seeds
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import indices
from dit_lens.sites.tokens import Tokens
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.draw import draw_pairs


@dataclass(frozen=True)
class _More:
    """Settings of a flow that are seldom changed."""

    branches: str = "cond"
    parts: tuple[str, ...] = PARTS
    folder: str | Path | None = None
    batch: int = 32
    interventions: Iterable[Intervention] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "interventions", listed(self.interventions))
        object.__setattr__(self, "parts", (self.parts,) if isinstance(self.parts, str) else tuple(self.parts))

    def require(self, geometry: Geometry) -> None:
        require_batch(self.batch)
        if own := [i for i in self.interventions if rows_named(i) is not None]:
            raise InputError(
                f"{WHO}(interventions=): {type(own[0]).__name__} has tokens of each row, and a flow makes its own "
                "rows: give the same tokens to all"
            )
        if self.branches != "all" and self.branches not in geometry.branches:
            known = ", ".join(geometry.branches)
            raise InputError(f"{WHO}(branches={self.branches!r}): 'all', or one of {known}")
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise InputError(f"{WHO}(parts={self.parts!r}): of {', '.join(PARTS)}; {unknown[0]!r} is none of them")


def plan_flow(
    model: VideoDiT,
    task: Task,
    pairs: int | Sequence[Pair] = 24,
    *,
    kind: str | None = None,
    step: int | None = None,
    source: Named | None = None,
    target: Tokens | None = None,
    seed: int = 0,
    **more: Any,
) -> FlowPlan:
    """Plan a flow without running it; the arguments are those of `information_flow`."""
    names = {field.name for field in fields(_More)}
    settings = _More(**{name: more.pop(name) for name in names & more.keys()})
    given = draw_pairs(task, pairs, seed, kind, who=WHO)
    geometry = model.geometry(given[0].original, **more)
    settings.require(geometry)
    _require_sets(model, given, source, target, geometry)
    seeds = tuple(row_seeds(seed, len(given)))
    return FlowPlan(
        model=model,
        task=task,
        kind=_kind(task, kind) if isinstance(pairs, int | np.integer) else "given",
        pairs=Pairs(model, tuple(given), seeds, settings.batch, tuple(settings.interventions), more),
        step=None if step is None else indices(step, geometry.steps, "step")[0],
        source=source,
        target=target,
        branches=settings.branches,
        parts=tuple(settings.parts),
        geometry=geometry,
        folder=None if settings.folder is None else Path(settings.folder),
    )


def _require_sets(
    model: VideoDiT, pairs: Sequence[Pair], source: Named | None, target: Tokens | None, geometry: Geometry
) -> None:
    """Refuse named sets that there are not, before anything runs."""
    answers = None if target is None else named(target, "target", geometry)
    if isinstance(source, Tokens):
        given = named(source, "source", geometry)
        if answers is not None:
            require_apart(given, np.repeat(answers[None], len(pairs), axis=0), WHO)
    elif source is not None:
        positions_of_words(model, pairs, source)


def _kind(task: Any, kind: str | None) -> str:
    return next(iter(task.kinds)) if kind is None else kind


def information_flow(
    model: VideoDiT,
    task: Task,
    pairs: int | Sequence[Pair] = 24,
    *,
    kind: str | None = None,
    step: int | None = None,
    source: Named | None = None,
    target: Tokens | None = None,
    seed: int = 0,
    **more: Any,
) -> InformationFlow:
    """Measure where the difference between the two sides of pairs is after each block, and through which doors it came.

    Parameters
    ----------
    task : Task
        Pairs of one's own are a task, `dit_lens.tasks.Pairs`.
    pairs : int, or list of pairs
        Curves are of pairs of which both sides are solved, where the task scores videos.
    kind : str, optional
        Of the pairs that are drawn; the task's first by default.
    step : int, optional
        By default the first step, of each expert, at which the answer is decided. At a later step than 0 the two sides
        have come to two states: both are then run from the original's, so that their conditions alone differ.
    source : Tokens, or word, or list of words, optional
        Where the inputs differ; by default the fewest tokens that hold 99.9 % of the difference of the embeddings,
        without the target. Words are tokens of a text stream, or of what cross-attention reads, and are then reported
        as a door.
    target : Tokens, optional
        Where the answers differ; by default the task's answer mask, else where they differ by a fifth of the most that
        they do, without the first frame.
    seed : int
        Of the pairs that are drawn and of their noise, which the two sides of a pair share.
    **more
        ``branches`` ("cond", or another branch: exchange in it and read its own estimate; "all": in all of them, and
        read their combination), ``parts`` (of "blocks", each block's direct and indirect effect, and "groups", the
        groups of tokens that `InformationFlow.animate` shows), ``batch`` (rows at once), ``interventions`` (in every
        run), ``folder`` (every exchange is written there, and the same call finishes only those that are missing; clean
        videos are made again), and arguments of `VideoDiT.run`.

    Raises
    ------
    EvidenceError, InputError, SiteError
        Before the long work where it can be known: pairs that do not differ to the model or differ everywhere, pictures
        of different sizes, true videos of another size than the model's or equal on both sides, a named source that
        meets the target, words that a prompt does not have, a step or tokens that there are not.

    Examples
    --------
    ``print(dl.information_flow(dl.load_organism("maze"), dl.tasks.Maze(size=4)))``
    """
    plan = plan_flow(model, task, pairs, kind=kind, step=step, source=source, target=target, seed=seed, **more)
    return plan.run()
