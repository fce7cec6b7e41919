"""What changed a run besides its inputs and settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

#: Places that are named.
_SHOWN = 3


@dataclass(frozen=True)
class Edit:
    """An intervention that does not only read, or a body.

    Attributes
    ----------
    where : str
        The selection of the intervention, or "body".
    steps : tuple of int
        At which it acted.
    within : bool
        Whether it acted within denoiser calls, which know nothing of it when they are made again without it. What acts
        between calls is in the states of the record.
    """

    where: str
    steps: tuple[int, ...]
    within: bool


def taken_over(edits: Iterable[Edit], step: int, layer: int) -> tuple[Edit, ...]:
    """The edits of a record in a run that resumes from it at a step and layer.

    The state before the step, and the blocks before the layer in it, are the record's.
    """
    kept = [
        replace(edit, steps=tuple(s for s in edit.steps if s < step + bool(layer or not edit.within))) for edit in edits
    ]
    return tuple(edit for edit in kept if edit.steps)


def named(edits: Iterable[Edit]) -> str:
    """Where edits acted, the first few of them."""
    places = list(dict.fromkeys(edit.where for edit in edits))
    return "; ".join(places[:_SHOWN]) + (f"; ... {len(places)} in all" if len(places) > _SHOWN else "")
