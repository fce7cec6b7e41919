"""Probes of chosen rows of chosen runs, and the halves of instances on which a place is chosen and reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.probing.cross_validate import probe_grid
from dit_lens.probing.probe_grid import ProbeGrid
from dit_lens.probing.rows.data import ProbeData
from dit_lens.results.arrays import Floats, Ints
from dit_lens.results.intervals import bootstrap_weights
from dit_lens.tasks.base import Label


def probe_rows(
    data: Mapping[int, ProbeData],
    labels: Mapping[str, Label],
    runs: Ints,
    rows: Ints,
    folds: int | Sequence[int],
    seed: int,
) -> ProbeGrid:
    """Probes of some rows of some runs, at every site.

    Parameters
    ----------
    data : dict from step to ProbeData of R runs of N rows
    labels : dict from name to Label with values of shape (r, k)
    runs : int array of shape (r,)
    rows : int array of shape (r, k)
        Which of the N rows of each run.
    """
    chosen = {step: part.take(runs, rows, labels) for step, part in data.items()}
    return probe_grid(chosen, folds=folds, seed=seed)


def place_of(name: str) -> dict[str, int | str | None]:
    """Layer and component, as columns, of a place by its short name: "embed", "L03", "L03 attn", "x0hat"."""
    layer, _, component = name.removeprefix("L").partition(" ")
    if layer.isdigit():
        return {"layer": int(layer), "component": component or "resid"}
    return {"layer": None, "component": name}


def dealt(classes: NDArray[Any], folds: int) -> list[int]:
    """Folds of runs (r,) in which every class is dealt out evenly, so that none is missing where probes are fitted."""
    fold = np.zeros(len(classes), dtype=np.int64)
    start = 0
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        fold[members] = (start + np.arange(len(members))) % folds
        start += len(members)
    return fold.tolist()


def split_weights(count: int, replicates: int, seed: int) -> tuple[Floats, Floats]:
    """Weights (1, G) of the half on which a place is chosen, and (R + 1, G) of the half on which it is reported.

    Probes for both are fitted in the same folds, each scored on instances that it was not fitted to; no instance's
    score is in both.
    """
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng([seed, count]).permutation(count)[: count // 2]] = True
    reported = np.zeros((replicates + 1, count))
    reported[:, ~chosen] = bootstrap_weights(int((~chosen).sum()), replicates, seed)
    return chosen[None].astype(np.float64), reported
