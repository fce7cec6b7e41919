"""A flow in plain words, as its pictures have them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dit_lens.analysis.flow.gates import Gate
from dit_lens.results.intervals import Interval, t_interval

if TYPE_CHECKING:
    from dit_lens.analysis.flow.result import InformationFlow

#: Doors by what comes through them.
DOORS = {
    "context of text": "the prompt, read by cross-attention",
    "context of image": "the picture, read by cross-attention",
    "modulation": "what scales and shifts each block",
    "head_modulation": "what scales and shifts the head",
    "named words": "the named words",
    "all doors": "all of these together",
}


def title(flow: InformationFlow) -> str:
    """What the flow is of."""
    kind = "given pairs" if flow.kind == "given" else f"pairs of kind {flow.kind!r}"
    at = f"step {flow.step} (sigma {flow.sigma:.2g})" + ("" if flow.expert is None else f", {flow.expert}")
    return f"{flow.task}, {kind}, {at}: {flow.n} {'pair' if flow.n == 1 else 'pairs'}"


def sentences(flow: InformationFlow) -> list[str]:
    """The gates, the doors, and what else must be known before the curves are read."""
    found = [_of_gate(flow.gate)]
    if flow.n and not flow.gate.open:
        found.append("The curves say where something moves, not how anything is solved.")
    if not flow.n:
        found.append("No pair is left that could be measured, so there are no curves.")
    if flow.n and not flow.truth:
        found.append("There are no true videos: this shows what moves, not what is right.")
    if flow.doors:
        found.append(_of_doors(flow))
    if flow.n and np.isnan(flow.effects["A"]).all():
        found.append("No token of the video differs between the inputs: there is no source in the frames.")
    if left := ", ".join(f"{count} {why}" for why, count in flow.dropped.items() if count):
        found.append(f"Pairs left out: {left}.")
    if not flow.ends_exact:
        found.append("AN IDENTITY DOES NOT HOLD: do not believe these numbers.")
    return found


def in_lines(found: Sequence[str], letters: int) -> str:
    """Sentences below each other, long ones broken."""
    return "\n".join(textwrap.fill(sentence, letters) for sentence in found)


def _of_gate(gate: Gate) -> str:
    state = "Gates open" if gate.open else f"Gate shut, because {gate.why}"
    return f"{state}. {_of_success(gate)} {_of_movement(gate)}"


def _of_success(gate: Gate) -> str:
    if gate.solves is None:
        return "Nothing scores the videos."
    without = "" if np.isnan(gate.floor) else f"; videos that cannot have solved it score {gate.floor:.0%}"
    return f"The model solves {gate.solved:.0%}{without}."


def _of_movement(gate: Gate) -> str:
    found = f"With all of the other input, the answer moves {_told(gate.value)} of the way to the other answer"
    if len(gate.unrelated):
        found += f" ({_number(gate.unrelated.mean())} towards answers of other pairs)"
    return found + (f". A still video goes {_number(gate.frozen.mean())} of the way." if len(gate.frozen) else ".")


def _of_doors(flow: InformationFlow) -> str:
    told = {name: t_interval(values) for name, values in flow.doors.items()}
    if len(told) == 2:  # one door is all of them
        told.pop("all doors", None)
    parts = [f"{DOORS.get(name, name)} {_told(value)}" for name, value in told.items()]
    return f"Enters by doors, not in the tokens of the video: {', '.join(parts)}."


def _told(found: Interval) -> str:
    value, low, high = map(_number, found)
    return value if np.isnan(found.low) else f"{value} [{low}, {high}]"


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")
