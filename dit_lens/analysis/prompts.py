"""Whether a model reads its prompt: pairs that differ in nothing else, with their prompts exchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dit_lens.engine.plan import listed
from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Bools
from dit_lens.results.intervals import share
from dit_lens.results.plots import axes, plot_success
from dit_lens.results.result import VALUE_COLUMNS, Result
from dit_lens.runs.inputs import seen_bytes
from dit_lens.runs.seeds import row_seeds
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.draw import draw_pairs
from dit_lens.tasks.evidence import require, scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class PromptExchange(Result):
    """What happens when only the prompt is exchanged for its counterfactual.

    Attributes
    ----------
    task : str
    kind : str
        Of the n pairs.
    original, swapped : bool array of shape (n,)
        Which videos are strictly right for the original problem, with its own prompt and with the other one.
    followed : bool array of shape (n,)
        Which videos with the other prompt are strictly right for the other problem.
    """

    task: str
    kind: str
    original: Bools
    swapped: Bools
    followed: Bools

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns task, kind_of_pair, prompt, judged_by, measure ("strict"), value, low, high, n."""
        cases = (
            ("original", "original", self.original),
            ("other", "original", self.swapped),
            ("other", "other", self.followed),
        )
        rows = [(self.task, self.kind, *by, "strict", *share(right), len(right)) for *by, right in cases]
        return pd.DataFrame(rows, columns=["task", "kind_of_pair", "prompt", "judged_by", *VALUE_COLUMNS])

    def plot(self, axis: Axes | None = None) -> Axes:
        """Strict success with the own and the other prompt, with its interval."""
        table = self.table.assign(case=[f"{r.prompt} prompt,\n{r.judged_by} answer" for r in self.table.itertuples()])
        axis = plot_success(table, "case", axis=axes(axis))
        axis.set(xlabel="", ylabel="strict success", title=f"{self.task}, {self.kind}")
        return axis

    def __str__(self) -> str:
        return (
            f"{self.task}, prompt exchanged ({self.kind}): the original answer {share(self.original)} -> "
            f"{share(self.swapped)}, the other answer {share(self.followed)}, n={len(self.original)}"
        )


def exchange_prompts(
    model: VideoDiT,
    task: Task,
    pairs: int | Sequence[Pair] = 300,
    *,
    kind: str | None = None,
    seed: int = 0,
    interventions: Iterable[Intervention] = (),
    batch: int = 20,
) -> PromptExchange:
    """Run pairs that differ in the prompt alone: the picture and the noise of the original, the words of the other.

    Parameters
    ----------
    pairs : int, or list of pairs of the task
    kind : str, optional
        Kind of the pairs that are drawn, by default the first of `prompt_kinds`.
    seed, interventions, batch
        As in `evaluate`; both sides of a pair share their noise.

    Raises
    ------
    EvidenceError
        A task that scores no videos or makes no pairs, or pairs whose pictures differ.
    """
    who, others = "exchange_prompts", listed(interventions)
    require(task, "score", "pairs", who=who)
    kind = kind or next(iter(prompt_kinds(task)), None)
    given = draw_pairs(task, pairs, seed, kind, who=who)
    for pair in given:
        if not _same_picture(pair):
            kinds = ", ".join(prompt_kinds(task)) or "none"
            raise EvidenceError(
                f"{who} needs pairs that differ in the prompt alone; in {pair.original.id!r} the pictures differ. "
                f"Kinds of {task.name!r} that do: {kinds}"
            )
    originals, swapped = ([pair[side] for pair in given] for side in (0, 1))
    seeds = row_seeds(seed, len(given))
    judged: list[list[Bools]] = [[], [], []]
    clean, other = (
        model.runs(side, seeds, batch=batch, progress=task.title, interventions=others) for side in (originals, swapped)
    )
    for one, two in zip(clean, other, strict=True):
        cases = ((one, one.inputs), (two, one.inputs), (two, two.inputs))
        for found, (run, by) in zip(judged, cases, strict=True):
            found.append(scores_of(task, run.decoded, by, who=who).strict)
    return PromptExchange(task.title, kind or given[0].variable, *(np.concatenate(found) for found in judged))


def prompt_kinds(task: Task) -> list[str]:
    """The kinds of pairs whose two pictures are the same: only the prompt tells them apart."""
    known = require(task, "pairs", who="exchange_prompts")
    return [kind for kind in known.kinds if _same_picture(known.pair(0, kind))]


def _same_picture(pair: Pair) -> bool:
    one, other = (side.image for side in pair)
    return one is other or (one is not None and other is not None and seen_bytes(one) == seen_bytes(other))
