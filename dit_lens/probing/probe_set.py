"""Trained probes: their weights under a card; saved, loaded by name, refused elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
from dit_lens.probing.probe_card import asked_of, check_places, is_own, options_of, read_card
from dit_lens.probing.rows.readers import layer_name, site_of
from dit_lens.runs.run import Run
from dit_lens.sites.sites import Sites
from dit_lens.tasks import TASKS


@dataclass(frozen=True)
class ProbeSet:
    """Linear probes of one task at many steps and layers, their controls included.

    Attributes
    ----------
    card : dict of JSON types
        ``model_id``, ``task``, ``level``, ``frames``, ``pool``, ``source``, ``estimator``, ``asked`` (labels, true and
        shuffled, with the outputs that answer them), ``sites``, ``sigmas``, ``experts``, ``train`` and ``test`` (their
        instances), ``scores`` (the table, with all controls), ``versions``, ``date``.
    coef, intercept : dicts from (step, readout) to tensors of shape (K, D) and (K,)
        Readouts as in `dit_lens.collect`. Files keep them in single precision.
    """

    card: Mapping[str, Any]
    coef: Mapping[tuple[int, str], Tensor]
    intercept: Mapping[tuple[int, str], Tensor]

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
        return sorted({step for step, _ in self.coef})

    @property
    def readouts(self) -> list[str]:
        """Readouts, those of the controls included: the embedding, the layers, then the controls."""
        return sorted({readout for _, readout in self.coef}, key=lambda name: (not is_own(name), name[:1] != "e", name))

    @property
    def source(self) -> str:
        return str(self.card["source"])

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
            raise InputError(f"these probes are of the task {name!r}, which dit_lens does not have: give task=")
        return TASKS[name](**options_of(self.card["task"]["options"]))

    def frame(self) -> pd.DataFrame:
        """The scores that were measured when the probes were trained, with all controls."""
        return pd.DataFrame(self.card["scores"])

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

    def readout(self, layer: int | str) -> str:
        """The readout of a layer, "L02" of 2 or of "L02"; a negative one counts from the last that was probed.

        Raises
        ------
        SiteError
        """
        if isinstance(layer, str):
            if not is_own(layer):
                raise SiteError(f"layer {layer!r}: a number, 'embed', or a name such as 'L02'")
            return layer
        layers: list[int] = self.card["layers"]
        if layer < 0 and -layer > len(layers):
            raise SiteError(f"layer {layer}: {len(layers)} layers were probed")
        return layer_name(layers[layer] if layer < 0 else layer)

    def scores(self, step: int, readout: str, features: Tensor) -> Tensor:
        """Outputs (..., K) of features (..., D).

        Raises
        ------
        MadeForAnother
            A step, readout or width that these probes were not trained on.
        """
        coef = self._at(step, readout)
        if features.shape[-1] != coef.shape[-1]:
            raise MadeForAnother(
                f"the probes of step {step}, {readout} read width {coef.shape[-1]}, these features have "
                f"{features.shape[-1]}"
            )
        wide = features.to(torch.float64)
        return wide @ coef.to(wide).mT + self.intercept[step, readout].to(wide)

    def predict(self, step: int, readout: str, features: Tensor) -> dict[str, NDArray[Any]]:
        """Answers (...) to every label of features (..., D): values of a regression, else classes."""
        outputs, found = self.scores(step, readout, features), {}
        for asked in (a for a in self.asked if a.control == "none"):
            answers = asked.answers(outputs).cpu().numpy()
            found[asked.name] = answers if asked.kind == "regression" else np.array(asked.classes)[answers]
        return found

    def direction(self, label: str, step: int, layer: int | str, answer: Any = None) -> Tensor:
        """The direction in the residual stream along which a probe's score of a label rises: unit, of shape (D,).

        Parameters
        ----------
        layer : int or str
            See `readout`.
        answer : optional
            The class towards which, by its name or value; of two classes by default the second (True).

        Raises
        ------
        InputError
            No such label, or an answer that it does not have.
        """
        asked = next((a for a in self.asked if a.name == label and a.control == "none"), None)
        if asked is None:
            raise InputError(f"no probe of {label!r}; there are {', '.join(self.labels)}")
        weights = self._at(step, self.readout(layer))[asked.start : asked.stop].double()
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

    def steer(
        self, label: str, step: int, layer: int | str, scale: float, *, answer: Any = None, **options: Any
    ) -> Steer:
        """Steer the residual stream of the conditional branch along a probe's direction, at its own step and layer.

        Parameters
        ----------
        scale : float
            In units of the norm of each token's own activation (``unit="norm"``), unless ``unit`` says otherwise.
        **options
            ``tokens`` selects tokens; others are those of `Steer`.
        """
        sites = site_of_readout(step, self.readout(layer))
        if "tokens" in options:
            sites = sites.at(tokens=options.pop("tokens"))
        return Steer(sites, self.direction(label, step, layer, answer), scale, **{"unit": "norm", **options})

    def save(self, path: str | Path) -> Path:
        """Write the probes and their card to ``path`` (safetensors), whole or not at all."""
        path = Path(path).with_suffix(".safetensors")
        parts = {"coef": self.coef, "intercept": self.intercept}
        tensors = {
            f"s{s:02d}/{r}/{what}": x.float().contiguous() for what, of in parts.items() for (s, r), x in of.items()
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
            check_places(found.card, found.steps, found.readouts)
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

    def _at(self, step: int, readout: str) -> Tensor:
        if (step, readout) not in self.coef:
            steps, readouts = ", ".join(map(str, self.steps)), ", ".join(self.readouts)
            raise MadeForAnother(
                f"no probes of step {step}, {readout}; there are steps {steps} and readouts {readouts}"
            )
        return self.coef[step, readout]


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


def _part(tensors: Mapping[str, Tensor], what: str) -> dict[tuple[int, str], Tensor]:
    found = {}
    for name, tensor in tensors.items():
        parts = re.fullmatch(r"s(\d{2,})/(.+)/(coef|intercept)", name)
        if parts is None:
            raise Malformed(f"{name!r} is no name of a probe's weights")
        if parts[3] == what:
            found[int(parts[1]), parts[2]] = tensor
    return found


def _named(sigma: float | None, expert: str | None) -> str:
    return ("none" if sigma is None else f"{sigma:.4f}") + (f" of the expert {expert}" if expert else "")


def site_of_readout(step: int, readout: str, branch: str = "cond") -> Sites:
    """The selection of one readout's site."""
    site = site_of(step, readout, branch)
    return Sites(site.component, steps=step, layers="all" if site.layer is None else site.layer, branches=branch)
