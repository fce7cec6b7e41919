"""The card of a probe set: what probes are of, how well they read, and what a file may say of that."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import product
from typing import Any, Literal, TypedDict

from dit_lens.errors import InputError, SiteError
from dit_lens.files import strict
from dit_lens.files.strict import Malformed
from dit_lens.probing.fit.questions import Asked
from dit_lens.probing.probe_grid import Probe
from dit_lens.probing.rows.data import Source
from dit_lens.sites.select import indices
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites, selection
from dit_lens.sites.tokens import Tokens
from dit_lens.tasks import TASKS, declares, require
from dit_lens.tasks.base import Level, Task

SCHEMA = 2
#: No video has so many latent frames, and no text so many words.
_MOST = 2**20

_Control = Literal["input", "position", "random"]


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
    """Instances, and the seed from which `row_seeds` makes those of their runs."""

    instances: int
    ids: list[str]
    seed: int


class _Score(TypedDict):
    """A row of `ProbeGrid.table`; null where there is no number, or no interval."""

    site: str
    label: str
    control: Literal["none", "shuffled", "input", "position", "random", "majority"]
    measure: Literal["skill", "selectivity", "excess", "accuracy", "majority_accuracy"]
    value: float | None
    low: float | None
    high: float | None


class _Card(TypedDict):
    schema: Literal[2]
    model_id: str
    family: str
    task: _Task
    level: Level
    branch: str
    sites: list[str]
    tokens: dict[str, Any]
    pool: str
    source: Source
    controls: list[_Control]
    random_seed: int
    settings: dict[str, str]
    interventions: list[str]
    estimator: _Estimator
    asked: list[_Asked]
    sigmas: dict[str, float]
    experts: dict[str, str | None]
    seed: int
    train: _Side
    test: _Side
    versions: dict[str, str]
    date: str
    scores: list[_Score]


def card_of_task(task: Task) -> dict[str, Any]:
    """Name and settings of a task, as JSON types.

    Raises
    ------
    InputError
        A task that is no dataclass and declares no settings: they could not be written down. A task that is not
        shipped but has the name of one that is.
    """
    if declares(task, "settings"):
        if task.name in TASKS:
            raise InputError(f"a shipped task is named {task.name!r}: give yours another name to save probes of it")
        options = dict(require(task, "settings", who="a saved probe").settings)
    elif is_dataclass(task) and not isinstance(task, type):
        options = asdict(task)
    else:
        raise InputError(
            f"{task!r} is no dataclass and declares no settings: probes are saved with the settings of their task"
        )
    return {"name": task.name, "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}}


def read_card(data: Any) -> Mapping[str, Any]:
    """The card of a file of probes.

    Raises
    ------
    Malformed
        A field that is missing, unknown or of another type, or questions, instances or a task that cannot be.
    """
    card: Mapping[str, Any] = strict.typed(data, _Card, "card")
    tokens_of(card)
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


def tokens_of(card: Mapping[str, Any]) -> Tokens:
    """The tokens that are read.

    Raises
    ------
    Malformed
        They are not what `Tokens.to_json` writes.
    """
    try:
        tokens = Tokens.from_json(card["tokens"])
        for select, what in ((tokens.frames, "latent frame"), (tokens.positions, "position")):
            indices(select, _MOST, what)
        if json.dumps(tokens.to_json(), sort_keys=True) == json.dumps(card["tokens"], sort_keys=True):
            return tokens
    except (KeyError, TypeError, ValueError, AttributeError, SiteError) as error:
        raise Malformed(f"field 'card.tokens' is {card['tokens']!s:.60}: {error}") from error
    raise Malformed(f"field 'card.tokens' is {card['tokens']!s:.60}, which selects no tokens")


def sites_of(names: Sequence[str], tokens: Tokens) -> Sites:
    """The selection of some sites of one branch and stream, given by their canonical strings."""
    return selection([Site.parse(name) for name in names], tokens)


def options_of(written: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from JSON, which knows no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()}


def check_places(card: Mapping[str, Any], sites: Sequence[str]) -> None:
    """Refuse a card that is not of probes of these sites.

    Raises
    ------
    Malformed
    """
    if card["sites"] != list(sites):
        raise Malformed(f"field 'card.sites' is {card['sites']!s:.80}; the probes are of {', '.join(sites):.80}")
    steps = {str(Site.parse(site).step) for site in sites}
    if set(card["sigmas"]) != steps or set(card["experts"]) != steps:
        raise Malformed(f"fields 'card.sigmas' and 'card.experts' are not those of steps {', '.join(sorted(steps))}")
    if min(card["sigmas"].values()) < 0:
        raise Malformed(f"field 'card.sigmas' has a negative noise level: {card['sigmas']}")
    if {(Site.parse(site).branch, Site.parse(site).stream) for site in sites} != {
        (card["branch"], Site.parse(sites[0]).stream)
    }:
        raise Malformed(f"field 'card.branch' is {card['branch']!r}; the sites are not all of it, and of one stream")
    _check_scores(card, sites)


def _check_scores(card: Mapping[str, Any], sites: Collection[str]) -> None:
    """Refuse a table that does not tell all of every probe and of its controls, once."""
    told = [(Probe(row["site"], row["label"], row["control"]), row["measure"]) for row in card["scores"]]
    own = ("skill", "selectivity", "excess")
    expected = []
    for site, asked in product(sites, (a for a in card["asked"] if a["control"] == "none")):
        measures = own if asked["kind"] == "regression" else (*own, "accuracy", "majority_accuracy")
        expected += [(Probe(site, asked["name"]), measure) for measure in measures]
        controls = ("shuffled", "majority", *card["controls"])
        expected += [(Probe(site, asked["name"], control), "skill") for control in controls]
    if sorted(told) != sorted(expected):
        raise Malformed("field 'card.scores' has not one row for every site, label, control and measure")


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
