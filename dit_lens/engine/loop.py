"""The one loop over runs: many rows, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from tqdm.auto import tqdm

from dit_lens.engine.plan import listed
from dit_lens.errors import InputError
from dit_lens.interventions.base import Intervention
from dit_lens.runs.run import Run

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


def for_batch(interventions: Iterable[Intervention] | ForBatch) -> ForBatch:
    """What makes the interventions of a batch: what is given, or the same interventions for every batch.

    Raises
    ------
    InputError
        An intervention that stands alone.
    """
    if callable(interventions) and not hasattr(interventions, "sites"):  # what has sites is an intervention itself
        return interventions
    same = listed(cast(Iterable[Intervention], interventions))
    return lambda _inputs, _seeds: same


def in_batches(
    run: Callable[..., Run], rows: Sequence[tuple[Any, int]], batch: int, progress: str | None, make: ForBatch
) -> Iterator[Run]:
    """One run after the other, ``batch`` rows at a time.

    Parameters
    ----------
    run : callable (inputs, seeds, interventions=...) -> Run
    rows : list of (input, seed)
    progress : str or None
        Title of the progress bar, None for none.
    """
    with tqdm(total=len(rows), desc=progress, unit="run", disable=progress is None) as bar:
        for start in range(0, len(rows), batch):
            given, seeds = (list(part) for part in zip(*rows[start : start + batch], strict=True))
            yield run(given, seeds, interventions=make(given, seeds))
            bar.update(len(seeds))
