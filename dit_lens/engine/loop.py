"""The one loop over runs: many rows, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn, cast

from tqdm.auto import tqdm

from dit_lens.engine.plan import listed
from dit_lens.errors import InputError
from dit_lens.interventions.base import Intervention
from dit_lens.runs.per_row import require_entries, rows_of
from dit_lens.runs.run import Run
from dit_lens.sites.sites import Sites

#: Makes the interventions of one batch from the inputs and the seeds of its rows.
ForBatch = Callable[[list[Any], list[int]], Iterable[Intervention]]


def require_batch(batch: int) -> None:
    """Refuse what is no number of rows.

    Raises
    ------
    InputError
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch={batch!r}: need a whole number of at least 1")


def for_batch(interventions: Iterable[Intervention] | ForBatch, rows: int, batch: int) -> ForBatch:
    """What makes the interventions of a batch: what is given, or the same interventions for every batch.

    Raises
    ------
    InputError
        An intervention that stands alone; or one with tokens of each row where there are several batches, each of which
        would take them for its own.
    """
    if callable(interventions) and not hasattr(interventions, "sites"):  # what has sites is an intervention itself
        return interventions
    same = listed(cast(Iterable[Intervention], interventions))
    for intervention in same if rows > batch else ():
        if (named := rows_named(intervention)) is not None:
            raise InputError(
                f"{type(intervention).__name__} has tokens of {named} rows, and {rows} rows are run {batch} at once: "
                f"give batch={rows}, or a function (inputs, seeds) that makes the interventions of each batch"
            )
    return lambda _inputs, _seeds: same


def rows_named(intervention: Any) -> int | None:
    """Of how many rows an intervention has tokens; None where all have the same, or it is none."""
    sites = getattr(intervention, "sites", None)
    return sites.tokens.rows_named if isinstance(sites, Sites) else None


class Batches(Iterator[Run]):
    """One run after the other, some rows at a time; a run that fails is made when the next one is asked for again.

    Parameters
    ----------
    make : callable (numbers of rows) -> Run
    count : int
        Rows in all.
    batch : int
        Rows that are run at once.
    progress : str or None
        Title of the progress bar, None for none.
    """

    def __init__(self, make: Callable[[range], Run], count: int, batch: int, progress: str | None) -> None:
        self._make, self._count, self._batch, self._progress, self._next = make, count, batch, progress, 0

    def __next__(self) -> Run:
        rows = range(self._next, min(self._next + self._batch, self._count))
        if not rows:
            self._bar.close()
            raise StopIteration
        run = self._make(rows)
        self._bar.update(len(rows))
        self._next = rows.stop
        return run

    @cached_property
    def _bar(self) -> tqdm[NoReturn]:
        return tqdm(total=self._count, desc=self._progress, unit="run", disable=self._progress is None)


def in_batches(
    run: Callable[..., Run],
    rows: Sequence[tuple[Any, int]],
    batch: int,
    progress: str | None,
    make: ForBatch,
    arguments: Mapping[str, Any],
) -> Batches:
    """One run after the other, ``batch`` rows at a time.

    Parameters
    ----------
    run : callable (inputs, seeds, interventions=..., **arguments) -> Run
    rows : list of (input, seed)
    progress : str or None
        Title of the progress bar, None for none.
    arguments : mapping
        Of every run; those with an entry for each row are cut to the rows of each.

    Raises
    ------
    InputError
        An argument with entries for another number of rows.
    """
    require_entries(arguments, len(rows))

    def make_some(numbers: range) -> Run:
        given, seeds = (list(part) for part in zip(*(rows[number] for number in numbers), strict=True))
        return run(given, seeds, interventions=make(given, seeds), **rows_of(arguments, numbers))

    return Batches(make_some, len(rows), batch, progress)
