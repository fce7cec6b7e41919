"""Trained probes: their weights under a card; saved, loaded by name, refused elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import InputError, MadeForAnother, SiteError, StoreError
from dit_lens.files.shipped import ORGANISMS
from dit_lens.files.strict import Malformed
from dit_lens.files.weights import read_weights, write_weights
from dit_lens.interventions.steer import Steer
from dit_lens.model import VideoDiT
from dit_lens.probing.fit.questions import Asked
from dit_lens.probing.probe_card import asked_of, check_places, options_of, read_card, sites_of, tokens_of
from dit_lens.probing.probe_grid import site_values, tidy
from dit_lens.probing.rows.data import STILL, Place
from dit_lens.probing.rows.readout import Readout
from dit_lens.probing.rows.rows import Pool
from dit_lens.runs.run import Run
from dit_lens.sites.site import COMPONENTS, Site, some
from dit_lens.sites.tokens import Tokens
from dit_lens.tasks import TASKS


@dataclass(frozen=True)
class ProbeSet:
    """Linear probes of one task at many sites, their controls included.

    Attributes
    ----------
    card : dict of JSON types
        ``model_id``, ``task``, ``level``, ``sites``, ``tokens``, ``pool``, ``source``, ``estimator``, ``asked``
        (labels, true and shuffled, with the outputs that answer them), ``sigmas``, ``experts``, ``train`` and ``test``
        (their instances, and the seeds of their runs), ``scores`` (the table, with all controls), ``versions``,
        ``date``.
    coef, intercept : dicts from Place to tensors of shape (K, D) and (K,)
        Files keep them in single precision.
    """

    card: Mapping[str, Any]
    coef: Mapping[Place, Tensor]
    intercept: Mapping[Place, Tensor]

    def __repr__(self) -> str:
        task, model = self.card["task"]["name"], self.card["model_id"]
        steps = ", ".join(map(str, self.steps))
        return f"ProbeSet({task}, labels={', '.join(self.labels)}, steps={steps}, source={self.source}, model={model})"

    @property
    def asked(self) -> list[Asked]:
        """All questions, true labels first."""
        return asked_of(self.card)

    @property
    def labels(self) -> list[str]:
        return [a.name for a in self.asked if a.control == "none"]

    @property
    def steps(self) -> list[int]:
        return sorted({place.step for place in self.coef})

    @property
    def sites(self) -> list[str]:
        """Canonical strings of the sites that were probed, by step, layer and component."""
        own = [Site.parse(place.site) for place in self.coef if place.control == "none"]
        return [str(site) for site in sorted(own, key=_in_order)]

    @property
    def source(self) -> str:
        return str(self.card["source"])

    def readout(self, pool: str | Pool | None = None) -> Readout:
        """What was read of every run.

        Parameters
        ----------
        pool : optional
            Needed where the probes were trained with a function, which is not saved.

        Raises
        ------
        EvidenceError
            It is needed and not given.
        """
        names = ("branch", "level", "source", "controls", "random_seed")
        given = self.card["pool"] if pool is None else pool
        return Readout(sites_of(self.sites, tokens_of(self.card)), pool=given, **{n: self.card[n] for n in names})

    @property
    def task(self) -> Any:
        """The task that the probes are of.

        Raises
        ------
        InputError
            A task that dit_lens does not have.
        """
        name = self.card["task"]["name"]
        if name not in TASKS:
            raise InputError(f"these probes are of the task {name!r}, which dit_lens does not have: give yours")
        return TASKS[name](**options_of(self.card["task"]["options"]))

    @cached_property
    def table(self) -> pd.DataFrame:
        """The scores that were measured when the probes were trained, with all controls, as `ProbeGrid.table`."""
        asked = {a.name: a for a in self.asked}
        count = len(set(self.card["test"]["ids"]))
        rows = []
        for row in self.card["scores"]:
            step, label = str(Site.parse(row["site"]).step), asked[row["label"]]
            place = site_values(row["site"], self.card["sigmas"][step], self.card["experts"][step])
            own = (label.name, label.role, label.kind, row["control"], self.source, self.card["level"])
            values = [np.nan if row[name] is None else row[name] for name in ("value", "low", "high")]
            rows.append((*place, *own, row["measure"], *values, count))
        return tidy(rows)

    def require(self, model: VideoDiT) -> None:
        """Refuse a model that the probes were not made for.

        Raises
        ------
        MadeForAnother
        """
        if model.id != self.card["model_id"]:
            raise MadeForAnother(f"these probes are of model {self.card['model_id']}, this is {model.id}")

    def require_run(self, run: Run) -> None:
        """Refuse a run whose steps have other noise levels, or another expert, than those that were probed.

        Raises
        ------
        MadeForAnother
        """
        experts = run.experts
        for step in self.steps:
            was = self.card["sigmas"][str(step)], self.card["experts"][str(step)]
            is_ = (run.schedule.sigma(step), experts[step]) if step in experts else (None, None)
            if is_[0] is None or not isclose(was[0], is_[0], rel_tol=1e-3, abs_tol=1e-6) or was[1] != is_[1]:
                raise MadeForAnother(
                    f"these probes are of step {step} at sigma {_named(*was)}; in this run it is at {_named(*is_)}"
                )

    def scores(self, site: Place | Site | str, features: Tensor) -> Tensor:
        """Outputs (..., K) of features (..., D).

        Raises
        ------
        MadeForAnother
            A site or width that these probes were not trained on.
        """
        place = self._place(site)
        coef = self.coef[place]
        if features.shape[-1] != coef.shape[-1]:
            raise MadeForAnother(
                f"the probes of {place} read width {coef.shape[-1]}, these features have {features.shape[-1]}"
            )
        wide = features.to(torch.float64)
        return wide @ coef.to(wide).mT + self.intercept[place].to(wide)

    def predict(self, site: Site | str, features: Tensor) -> dict[str, NDArray[Any]]:
        """Answers (...) to every label of features (..., D): values of a regression, else classes."""
        outputs, found = self.scores(site, features), {}
        for asked in (a for a in self.asked if a.control == "none"):
            answers = asked.answers(outputs).cpu().numpy()
            found[asked.name] = answers if asked.kind == "regression" else np.array(asked.classes)[answers]
        return found

    def direction(self, label: str, site: Site | str, answer: Any = None) -> Tensor:
        """The direction of an activation along which a probe's score of a label rises: unit, of shape (D,).

        Parameters
        ----------
        site : Site or str
            Such as "s00/cond/L04/resid"; the stream defaults to the video.
        answer : optional
            The class towards which, by its name or value; of two classes by default the second (True).

        Raises
        ------
        InputError
            No such label, or an answer that it does not have.
        MadeForAnother
            A site that was not probed.
        """
        asked = next((a for a in self.asked if a.name == label and a.control == "none"), None)
        if asked is None:
            raise InputError(f"no probe of {label!r}; there are {', '.join(self.labels)}")
        weights = self.coef[self._place(site)][asked.start : asked.stop].double()
        if asked.kind == "regression":
            if answer is not None:
                raise InputError(f"{label!r} is a number: its direction has no answer={answer!r}")
            towards = weights[0]
        elif asked.kind == "binary":
            towards = weights[0] if answer is None or asked.number(answer) == 1 else -weights[0]
        else:
            # Away from all other classes: what the largest score must be larger than.
            towards = weights[asked.number(answer)] - weights.mean(0)
        unit: Tensor = towards / torch.linalg.vector_norm(towards)
        return unit.float()

    def steer(self, label: str, site: Site | str, scale: float, *, answer: Any = None, **options: Any) -> Steer:
        """Steer a site's activation along a probe's direction.

        Parameters
        ----------
        scale : float
            In units of the norm of each token's own activation (``unit="norm"``), unless ``unit`` says otherwise.
        **options
            ``tokens`` selects tokens; others are those of `Steer`.
        """
        direction = self.direction(label, site, answer)
        sites = sites_of([self._place(site).site], options.pop("tokens", Tokens()))
        return Steer(sites, direction, scale, **{"unit": "norm", **options})

    def save(self, path: str | Path) -> Path:
        """Write the probes and their card to ``path`` (safetensors), whole or not at all."""
        path = Path(path).with_suffix(".safetensors")
        parts = {"coef": self.coef, "intercept": self.intercept}
        tensors = {
            f"{_file_name(place)}/{what}": x.float().contiguous()
            for what, of in parts.items()
            for place, x in of.items()
        }
        return write_weights(path, tensors, self.card)

    @classmethod
    def load(cls, path: str | Path) -> ProbeSet:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            No such file.
        StoreError
            A file that is damaged, or whose card and weights are not those of probes.
        """
        path = Path(path).with_suffix(".safetensors")
        if not path.exists():
            raise InputError(f"no probes at {path}")
        tensors, card = read_weights(path)
        try:
            found = cls(read_card(card), _part(tensors, "coef"), _part(tensors, "intercept"))
            found._check_weights()
            check_places(found.card, found.sites)
        except Malformed as error:
            raise StoreError(f"{path} holds no probes: {error}") from error
        return found

    def _check_weights(self) -> None:
        """Refuse weights that are not of the card's questions."""
        outputs = self.asked[-1].stop
        if self.coef.keys() != self.intercept.keys() or not self.coef:
            raise Malformed("not every probe has a coefficient and an intercept")
        for place, coef in self.coef.items():
            if coef.ndim != 2 or len(coef) != outputs or tuple(self.intercept[place].shape) != (outputs,):
                raise Malformed(f"probes of {place} have shape {tuple(coef.shape)}; the card names {outputs} outputs")
            if not (torch.isfinite(coef).all() and torch.isfinite(self.intercept[place]).all()):
                raise Malformed(f"probes of {place} hold numbers that are not finite")

    def _place(self, site: Place | Site | str) -> Place:
        """The place of a site, or the place of a control."""
        if not isinstance(site, Place):
            parsed = Site.parse(site) if isinstance(site, str) else site
            site = Place(parsed.step, str(parsed))
        if site not in self.coef:
            raise MadeForAnother(f"no probes of {site}; there are {some(map(Site.parse, self.sites))}")
        return site


def _in_order(site: Site) -> tuple[int, int, int, int]:
    """Sites as a model meets them: the embedding before all layers."""
    return site.step, -1 if site.layer is None else site.layer, COMPONENTS.index(site.component), site.head or 0


def load_probes(name: str | Path) -> ProbeSet:
    """The trained probes of a shipped organism, or those in a file.

    Parameters
    ----------
    name : str or Path
        One of `probe_names`, such as "maze", or the path of a file that `ProbeSet.save` wrote.

    Examples
    --------
    >>> load_probes("maze").task.name
    'maze'
    """
    if isinstance(name, str) and name in (names := probe_names()):
        return ProbeSet.load(names[name])
    if Path(name).with_suffix(".safetensors").exists():
        return ProbeSet.load(name)
    raise InputError(f"no probes {str(name)!r}: no such file, and shipped are {', '.join(probe_names())}")


def probe_names() -> dict[str, Path]:
    """Names of the shipped probe sets and their files: the organism's name, and of further sets "organism/set"."""
    found = {}
    for path in sorted(ORGANISMS.rglob("probes*.safetensors")):
        further = path.stem.partition("-")[2]
        place = path.parent.relative_to(ORGANISMS).as_posix()
        found[f"{place}/{further}" if further else place] = path
    return found


def _file_name(place: Place) -> str:
    """What a place is called in a file: "s00/cond/L03/resid/video", "random/s00/cond/L03/resid/video", "input/s00"."""
    where = place.site or f"s{place.step:02d}"
    return where if place.control == "none" else f"{place.control}/{where}"


def _part(tensors: Mapping[str, Tensor], what: str) -> dict[Place, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        parts = re.fullmatch(r"(?:(input|position|random)/)?(s(\d{2,})(?:/.+)?)/(coef|intercept)", name)
        if parts is None or ("/" in parts[2]) == (parts[1] in STILL):
            raise Malformed(f"{name!r} is no name of a probe's weights")
        place = Place(int(parts[3]), parts[2] if "/" in parts[2] else "", parts[1] or "none")
        if place.site and _canonical(place.site) != place.site:
            raise Malformed(f"{name!r} names no site")
        if parts[4] == what:
            found[place] = tensor
    return found


def _canonical(name: str) -> str | None:
    """The canonical string of a site's name, None for what is no site."""
    try:
        return str(Site.parse(name))
    except SiteError:
        return None


def _named(sigma: float | None, expert: str | None) -> str:
    return ("none" if sigma is None else f"{sigma:.4f}") + (f" of the expert {expert}" if expert else "")
