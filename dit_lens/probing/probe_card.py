"""The card of a probe set: what probes are of, how well they read, and what a file may say of that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from math import isclose
from typing import Any, Literal, TypedDict

from dit_lens.errors import InputError
from dit_lens.files import strict
from dit_lens.files.strict import Malformed
from dit_lens.probing.fit.questions import Asked
from dit_lens.probing.rows.readers import layer_name, site_of
from dit_lens.tasks import TASKS

SCHEMA = 1


class _Task(TypedDict):
    name: str
    options: dict[str, Any]


class _Estimator(TypedDict):
    kind: str
    alpha: float


class _Asked(TypedDict):
    name: str
    role: str
    control: Literal["none", "shuffled"]
    kind: Literal["binary", "classes", "regression"]
    classes: list[Any]
    names: list[str]
    start: int
    stop: int


class _Side(TypedDict):
    instances: int
    ids: list[str]


class _Score(TypedDict):
    """A row of `ProbeGrid.table`; null where a control is missing, or a measure is not one of its kind of label."""

    step: int
    sigma: float
    label: str
    role: str
    kind: str
    readout: str
    skill: float | None
    low: float | None
    high: float | None
    shuffled: float | None
    input: float | None
    position: float | None
    random: float | None
    majority: float | None
    selectivity: float | None
    selectivity_low: float | None
    selectivity_high: float | None
    best: str | None
    excess: float | None
    excess_low: float | None
    excess_high: float | None
    accuracy: float | None
    majority_accuracy: float | None
    rows: str
    n: int
    missing: str | Literal[""]
    source: str
    level: str


class _Card(TypedDict):
    schema: Literal[1]
    model_id: str
    family: str
    task: _Task
    level: str
    frames: list[int]
    pool: str
    source: str
    controls: list[str]
    random_seed: int
    layers: list[int]
    estimator: _Estimator
    asked: list[_Asked]
    sites: list[str]
    sigmas: dict[str, float]
    experts: dict[str, str | None]
    seed: int
    train: _Side
    test: _Side
    versions: dict[str, str]
    date: str
    scores: list[_Score]


def card_of_task(task: Any) -> dict[str, Any]:
    """Name and settings of a task, as JSON types.

    Raises
    ------
    InputError
        A task that is no dataclass: its settings could not be written down.
    """
    name = task.name
    if not is_dataclass(task) or isinstance(task, type):
        raise InputError(f"{task!r} is no dataclass: probes are saved with the settings of their task")
    options = asdict(task)
    return {"name": name, "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}}


def read_card(data: Any) -> Mapping[str, Any]:
    """The card of a file of probes.

    Raises
    ------
    Malformed
        A field that is missing, unknown or of another type, or questions, instances or a task that cannot be.
    """
    card: Mapping[str, Any] = strict.typed(data, _Card, "card")
    _check_questions(asked_of(card))
    for side in ("train", "test"):
        if len(card[side]["ids"]) != card[side]["instances"]:
            raise Malformed(f"field 'card.{side}' names {len(card[side]['ids'])} of its instances")
    if (known := TASKS.get(card["task"]["name"])) is not None:
        strict.typed(card["task"]["options"], known, "card.task.options")
    return card


def asked_of(card: Mapping[str, Any]) -> list[Asked]:
    """All questions, true labels first."""
    given: list[dict[str, Any]] = [options_of(a) for a in card["asked"]]
    return [Asked(**a) for a in given]


def options_of(written: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from JSON, which knows no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()}


def is_own(readout: str) -> bool:
    """Whether a readout is of the model itself, and no control."""
    return re.fullmatch(r"embed|L\d{2,}", readout) is not None


def check_places(card: Mapping[str, Any], steps: Sequence[int], readouts: Sequence[str]) -> None:
    """Refuse a card that is not of probes of these steps and readouts.

    Raises
    ------
    Malformed
    """
    named, own = [str(step) for step in steps], ["embed", *map(layer_name, card["layers"])]
    if sorted(card["sigmas"]) != sorted(named) or sorted(card["experts"]) != sorted(named):
        raise Malformed(f"fields 'card.sigmas' and 'card.experts' are not those of steps {', '.join(named)}")
    if min(card["sigmas"].values()) < 0:
        raise Malformed(f"field 'card.sigmas' has a negative noise level: {card['sigmas']}")
    if {r for r in readouts if is_own(r)} != set(own):
        raise Malformed(f"field 'card.layers' is {card['layers']}; the probes are of {', '.join(readouts)}")
    expected = [(step, readout) for step in steps for readout in own]
    if card["sites"] != [str(site_of(*place)) for place in expected]:
        raise Malformed(f"field 'card.sites' is not that of steps {', '.join(named)} and their readouts")
    told = [(row["label"], row["step"], row["readout"]) for row in card["scores"]]
    labels = [a["name"] for a in card["asked"] if a["control"] == "none"]
    if sorted(told) != sorted((label, *place) for label in labels for place in expected):
        raise Malformed("field 'card.scores' has not one row for every label, step and readout")
    if not all(isclose(row["sigma"], card["sigmas"][str(row["step"])], abs_tol=1e-3) for row in card["scores"]):
        raise Malformed("field 'card.scores' has other noise levels than 'card.sigmas'")


def _check_questions(asked: Sequence[Asked]) -> None:
    ends = [0, *(a.stop for a in asked)]
    wide = [len(a.classes) if a.kind == "classes" else 1 for a in asked]
    if not asked or [a.start for a in asked] != ends[:-1] or [a.stop - a.start for a in asked] != wide:
        raise Malformed("field 'card.asked' does not divide the outputs among its questions")
    for a in asked:
        right = {"binary": len(a.classes) == 2, "regression": not a.classes}.get(a.kind, len(a.classes) > 2)
        if not right or not _are_classes(a.classes) or len(a.names) != len(a.classes):
            raise Malformed(f"field 'card.asked' gives {a.name!r}, which is {a.kind}, the classes {a.classes}")


def _are_classes(values: Sequence[Any]) -> bool:
    """Whether these are different values of one kind that a label can have."""
    kinds = {type(value) for value in values}
    return kinds <= {bool, int, float, str} and len(kinds) < 2 and len(set(values)) == len(values)
