"""One component of a run at many steps and layers: what the energy, PCA and CKA lenses read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dit_lens.errors import InputError, SiteError
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.reduce import Reduce
from dit_lens.model import VideoDiT
from dit_lens.runs.inputs import Row
from dit_lens.runs.run import Run
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import Select
from dit_lens.sites.site import TERM_COMPONENTS, Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens

#: Components of which every layer has one activation. A head's has several, and the others belong to no layer.
READABLE = ("resid", "delta", *TERM_COMPONENTS)
#: Columns of `Reading.table`.
PLACE = ("step", "sigma", "expert", "branch", "stream", "component", "layer", "kind")


@dataclass(frozen=True)
class Reading:
    """Where something was read: steps x layers of one model, component, stream and branch, for B rows.

    Of a text stream whose padding attention does not read, the N positions are those that hold a word in every row.

    Attributes
    ----------
    model_id : str
    component, stream, branch : str
    steps, sigmas, experts : tuples, one entry per step
    layers, kinds : tuples, one entry per layer
    rows : tuple of Row, B of them
    grid : (F, H, W), the token grid; also of a run whose text stream was read
    """

    model_id: str
    component: str
    stream: str
    branch: str
    steps: tuple[int, ...]
    sigmas: tuple[float | None, ...]
    experts: tuple[str | None, ...]
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    rows: tuple[Row, ...]
    grid: tuple[int, int, int]

    @property
    def instances(self) -> list[str]:
        """Names of the task instances, each once, in the order of the rows."""
        return list(dict.fromkeys(row.instance for row in self.rows))

    def table(self) -> pd.DataFrame:
        """One row per step and layer, layers the faster: columns `PLACE`."""
        rows = [
            (step, sigma, expert, self.branch, self.stream, self.component, layer, kind)
            for step, sigma, expert in zip(self.steps, self.sigmas, self.experts, strict=True)
            for layer, kind in zip(self.layers, self.kinds, strict=True)
        ]
        return pd.DataFrame(rows, columns=list(PLACE))

    def index_of(self, what: str, number: int) -> int:
        """Place of a step or layer among those that were read.

        Raises
        ------
        SiteError
            It was not read.
        """
        numbers = self.steps if what == "step" else self.layers
        if number not in numbers:
            raise SiteError(f"{what} {number} was not read; there are {what}s {', '.join(map(str, numbers))}")
        return numbers.index(number)

    def row_index(self, row: int) -> int:
        """A row's number, from the end where negative; the same error as for a step or layer."""
        if not -len(self.rows) <= row < len(self.rows):
            raise SiteError(f"row {row} was not read; there are rows 0..{len(self.rows) - 1}")
        return row % len(self.rows)


def read(
    model: VideoDiT,
    inputs: Any,
    seed: int | Sequence[int],
    reduces: Mapping[str, Reduce | str | None],
    *,
    steps: Select,
    layers: Select,
    component: str,
    branch: str,
    stream: str,
    **run_arguments: Any,
) -> tuple[Reading, dict[str, Tensor]]:
    """Run, and keep one component reduced in one or several ways: under each name (steps, layers, B, ...).

    The run ends with the last site that is read; nothing is decoded. Layers that do not have the component are left out
    where ``layers`` is "all".

    Parameters
    ----------
    reduces : mapping from a name to what `Capture` takes as ``reduce``
    **run_arguments
        Of `VideoDiT.run`; further interventions apply before the reading.
    """
    _require_one("component", component, READABLE)
    _require_one("branch", branch)
    _require_one("stream", stream)
    tokens = Tokens() if stream == "video" else Tokens(text="shared")
    sites = Sites(component, steps=steps, layers=layers, branches=branch, stream=stream, tokens=tokens)
    captures = [Capture(sites, reduce=reduce, name=f"reading.{name}") for name, reduce in reduces.items()]
    others = list(run_arguments.pop("interventions", ()))
    settings = {"decode": False, "stop_after": "last site", **run_arguments}
    run = model.run(inputs, seed, interventions=[*others, *captures], **settings)
    found = {name: run.captured(f"reading.{name}") for name in reduces}
    reading = _reading(run, list(next(iter(found.values()))))
    return reading, {name: _stacked(reading, of_name) for name, of_name in found.items()}


#: Arguments of `VideoDiT.run` that are none of the pipeline's.
_OF_THE_RUN = ("interventions", "body", "decode", "record", "stop_after", "resume")


def geometry_of(model: VideoDiT, inputs: Any, run_arguments: Mapping[str, Any]) -> Geometry:
    """What a run with these arguments would offer, without running."""
    return model.geometry(inputs, **{k: v for k, v in run_arguments.items() if k not in _OF_THE_RUN})


def _reading(run: Run, sites: Sequence[Site]) -> Reading:
    first = sites[0]
    of_steps = {s.step: s for s in sites}
    steps, layers = sorted(of_steps), sorted({s.layer for s in sites if s.layer is not None})
    assert first.branch is not None
    return Reading(
        model_id=run.model_id,
        component=first.component,
        stream=first.stream,
        branch=first.branch,
        steps=tuple(steps),
        sigmas=tuple(of_steps[s].sigma for s in steps),
        experts=tuple(of_steps[s].expert for s in steps),
        layers=tuple(layers),
        kinds=tuple(run.geometry.layer(k).kind for k in layers),
        rows=run.rows,
        grid=run.geometry.grid,
    )


def _stacked(reading: Reading, found: Mapping[Site, Tensor]) -> Tensor:
    """Captures as (steps, layers, B, ...)."""
    shapes = {tuple(t.shape) for t in found.values()}
    if len(shapes) > 1:
        where = f"{reading.component} of stream {reading.stream}"
        raise SiteError(f"{where} differs in shape between layers or steps: {sorted(shapes)}; read them one by one")
    by_place = {(site.step, site.layer): tensor for site, tensor in found.items()}
    return torch.stack([torch.stack([by_place[step, layer] for layer in reading.layers]) for step in reading.steps])


def _require_one(what: str, given: Any, choices: Sequence[str] = ()) -> None:
    if not isinstance(given, str) or given == "all":
        raise InputError(f"{what}={given!r}: name one, for they are not compared with each other here")
    if choices and given not in choices:
        raise SiteError(f"component {given!r} is not one activation per layer; one of {', '.join(choices)}")
