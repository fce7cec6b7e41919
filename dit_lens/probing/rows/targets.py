"""What probes may be asked: a task's labels of cells, latent frames and whole clips, as values of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dit_lens.errors import EvidenceError
from dit_lens.files.video import Video
from dit_lens.probing.rows.rows import Rows
from dit_lens.probing.rows.words import Words
from dit_lens.tasks.base import Label, Task
from dit_lens.tasks.evidence import labels_of


def targets_of(
    task: Task,
    instances: Sequence[Any],
    rows: Rows | Words,
    names: Sequence[str] | None = None,
    frames: Video | None = None,
) -> dict[str, Label]:
    """Labels as values of rows, (B, N).

    Parameters
    ----------
    rows : Rows or Words
    names : sequence of str, optional
        Labels to ask for; by default all of the rows' own level that have more than one value.
    frames : uint8 array of shape (B, T, height, width, 3), optional

    Raises
    ------
    EvidenceError
        Labels that the task does not have, that are finer than the rows, or that are NaN.
    """
    known = labels_of(task, instances, rows.latent_frames, frames)
    if names is None:
        wanted = "cell" if rows.level == "token" and isinstance(rows, Rows) else rows.level
        chosen = [name for name, label in known.items() if label.level in (wanted, rows.level)]
    else:
        chosen = list(names)
        if unknown := [name for name in chosen if name not in known]:
            raise EvidenceError(f"task {task.name!r} has no label {', '.join(unknown)}; it has {', '.join(known)}")
    found = {}
    for name in chosen:
        label = known[name]
        values = rows.targets(label)
        if label.is_regression and np.isnan(values).any():
            raise EvidenceError(f"label {name!r} of {task.name} is NaN in {int(np.isnan(values).sum())} rows")
        if names is not None or _varies(values):
            found[name] = replace(label, values=values, level=rows.level)
    if not found:
        levels = sorted({str(label.level) for label in known.values()})
        raise EvidenceError(
            f"task {task.name!r} has no labels of each {rows.level}; it has some of {', '.join(levels)}"
        )
    return found


def _varies(values: Any) -> bool:
    return bool((values != values.flat[0]).any())
