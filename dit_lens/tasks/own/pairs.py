"""Pairs of inputs of a user's own as a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.results.arrays import Bools
from dit_lens.tasks.base import Pair, Split
from dit_lens.tasks.own.arrays import board_size, read_labels, read_masks, read_split, read_videos, values_of_cells
from dit_lens.tasks.own.inputs import picture_size, read_inputs
from dit_lens.tasks.own.task import Own, Scorer


class Pairs(Own):
    """Pairs of inputs of a user's own, to be used wherever a task is.

    Parameters
    ----------
    pairs : iterable of P (original, counterfactual)
        Each a prompt, a mapping with "prompt" and "image", or an object with such attributes.
    name : str
        For tables and errors.
    truth : uint8 array of shape (P, 2, T, height, width, 3), optional
        The true videos of both sides.
    masks : bool array of shape (P, height, width), optional
        The pixels in which the right answers of a pair differ and nothing that was given does. With ``cell`` it is
        (P, n, n), of cells.
    labels : mapping from name to values, or to `Label`, optional
        As of `Labelled`, with (P, 2) in front instead of (B,).
    scorer : callable, optional
        Given videos (B, T, height, width, 3) and their inputs it returns B scores, 0 to 1 or booleans.
    cell : int, optional
        Pixels a side of a cell; the n x n cells lie in the upper left of the picture.
    split : sequence of P of "train", "val" and "test", optional
        By default all are "test".

    Raises
    ------
    TaskError
        Sides that are the same or of different kinds, or truth, masks, labels or splits that do not fit them.

    Examples
    --------
    >>> from dit_lens.tasks import Pairs, declared
    >>> task = Pairs([("a red ball", "a blue ball"), ("a red cube", "a blue cube")])
    >>> original, counterfactual = task.pair(seed=0)
    >>> original.prompt, counterfactual.prompt
    ('a red ball', 'a blue ball')
    >>> task.pair(seed=0).variable, declared(task)
    ('prompt', ('pairs', 'settings'))
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Any, Any]],
        *,
        name: str = "pairs",
        truth: Any = None,
        masks: Any = None,
        labels: Mapping[str, Any] | None = None,
        scorer: Scorer | None = None,
        cell: int | None = None,
        split: Sequence[str] | None = None,
    ) -> None:
        self.name, self.scorer, self.cell = name, scorer, cell
        self.inputs = read_inputs(_sides(pairs, name), name)
        lead = (len(self.inputs) // 2, 2)
        self.split_of_pairs = read_split(split, lead[0], name)
        self.split = self.split_of_pairs.repeat(2)
        self.truth = read_videos(truth, lead, picture_size(self.inputs), name)
        self.given = read_labels(labels or {}, lead, cell, name)
        self.masks = read_masks(masks, lead[0], self.picture, cell, name)
        boards = values_of_cells(self.given) | ({} if self.masks is None else {"masks": self.masks})
        self.size = board_size(cell, boards, self.picture, name)
        self._check_differ()

    @property
    def kinds(self) -> dict[str, str]:
        """The one kind of pairs, and what differs in them: prompt, image, or both."""
        found = {self._pair(number).variable for number in range(len(self.split_of_pairs))}
        return {"given": ", ".join(sorted({name for one in found for name in one.split(", ")}))}

    def pair(self, seed: int = 0, kind: str | None = None, split: Split = "test") -> Pair:
        """One pair, as `pairs` draws it."""
        return self.pairs(1, seed, kind, split)[0]

    def pairs(self, count: int, seed: int = 0, kind: str | None = None, split: Split = "test") -> list[Pair]:
        """Pairs in the random order of a seed, none of them twice.

        Raises
        ------
        TaskError
            More pairs than the split has, or another kind than "given".
        """
        if kind not in (None, "given"):
            raise TaskError(f"{self.name}: unknown kind of pair {kind!r}; there is 'given'")
        return [self._pair(number) for number in self.drawn(self.split_of_pairs, count, seed, split)]

    @property
    def answer_mask(self) -> Callable[[Pair], Bools] | None:
        """Where the right answers of a pair differ, if masks were given."""
        return None if self.masks is None else self._mask

    def _mask(self, pair: Pair) -> Bools:
        assert self.masks is not None
        one, other = self.rows(pair)
        if one // 2 != other // 2:
            raise TaskError(f"{self.name}: {pair.original!r} and {pair.counterfactual!r} are not a pair of this task")
        return np.asarray(self.masks[one // 2])

    def _pair(self, number: int) -> Pair:
        return Pair(self.inputs[2 * number], self.inputs[2 * number + 1])

    def _check_differ(self) -> None:
        for number in range(len(self.split_of_pairs)):
            if not self._pair(number).variable:
                raise TaskError(f"{self.name}: both sides of pair {number} are the same; give another prompt or image")


def _sides(pairs: Iterable[tuple[Any, Any]], name: str) -> list[Any]:
    """Original and counterfactual, one pair after the other.

    Raises
    ------
    TaskError
        What is no pair.
    """
    if not isinstance(pairs, Iterable):
        raise TaskError(f"{name}: need a list of pairs, got {pairs!r:.80}")
    sides: list[Any] = []
    for number, pair in enumerate(pairs):
        if isinstance(pair, str | Mapping) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TaskError(f"{name}: pair {number} must be (original, counterfactual), got {pair!r:.80}")
        sides += pair
    return sides
