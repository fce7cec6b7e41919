"""Runs of a task in batches, whose activations are handed on as rows of design matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from tqdm.auto import tqdm

from dit_lens.errors import EvidenceError
from dit_lens.interventions.base import At, Intervention
from dit_lens.model import VideoDiT
from dit_lens.probing.rows.data import Source
from dit_lens.probing.rows.random_weights import random_twin
from dit_lens.probing.rows.rows import Rows
from dit_lens.probing.rows.sources import state_writers
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites

#: Given step, name of the readout and features (B, N, D) on the model's device.
Sink = Callable[[int, str, Tensor], None]

#: The controls that are features of their own; shuffled labels and the majority need none.
CONTROLS = ("input", "position", "random")


def require_controls(controls: Sequence[str]) -> None:
    """Refuse controls that there are not.

    Raises
    ------
    EvidenceError
    """
    if unknown := [c for c in controls if c not in CONTROLS]:
        raise EvidenceError(f"unknown controls {', '.join(map(repr, unknown))}; there are {', '.join(CONTROLS)}")


@dataclass(frozen=True)
class Visit:
    """What is read in the runs of a task.

    Attributes
    ----------
    steps : list of int
    rows : Rows
    layers : Select
    controls : tuple of str
        Of `CONTROLS`; "random" replays every call on a twin with random weights.
    source : "sample", "forward-noise" or "invert"
    seed : int
        Instance i runs with ``seed + i``.
    batch : int
    branch : str
    random_seed : int
        Of the twin's weights.
    """

    steps: list[int]
    rows: Rows
    layers: Select = "all"
    controls: tuple[str, ...] = CONTROLS
    source: Source = "sample"
    seed: int = 0
    batch: int = 32
    branch: str = "cond"
    random_seed: int = 0
    _twins: dict[str, VideoDiT] = field(default_factory=dict, repr=False, compare=False)

    def runs(
        self,
        model: VideoDiT,
        task: Any,
        instances: Sequence[Any],
        sink: Callable[[slice], Sink],
        *,
        decode: bool = False,
        title: str = "runs for probes",
    ) -> Iterator[Run]:
        """Run the instances; ``sink(rows)`` takes the features of those instances. Yields every batch's run."""
        twin = self._twin(model) if "random" in self.controls else None
        for start in tqdm(range(0, len(instances), self.batch), desc=title, unit="batch"):
            part = instances[start : start + self.batch]
            here = slice(start, start + len(part))
            seeds = [self.seed + i for i in range(here.start, here.stop)]
            yield self._run(model, twin, task, part, seeds, sink(here), decode)

    def _twin(self, model: VideoDiT) -> VideoDiT:
        """One for all passes over a model, this visit's and those `replace` makes of it: its weights are the memory."""
        if model.id not in self._twins:
            self._twins[model.id] = random_twin(model, self.random_seed)
        return self._twins[model.id]

    def _run(
        self,
        model: VideoDiT,
        twin: VideoDiT | None,
        task: Any,
        part: Sequence[Any],
        seeds: list[int],
        sink: Sink,
        decode: bool,
    ) -> Run:
        writers = state_writers(model, task, part, seeds, self.source)
        run = model.run(
            list(part),
            seeds,
            interventions=[*writers, *self._readers(self.steps, sink)],
            decode=decode,
            record=twin is not None,
            stop_after=None if decode else max(self.steps),
        )
        for step in self.steps if twin is not None else ():
            assert twin is not None
            twin.replay(run, step, self._readers([step], lambda s, name, x: sink(s, f"random/{name}", x), given=False))
        return run

    def _readers(self, steps: list[int], sink: Sink, given: bool = True) -> list[Intervention]:
        chosen: dict[str, Any] = {"steps": steps, "branches": self.branch}
        readers: list[Intervention] = [
            Read(Sites("embed", **chosen), self.rows, sink),
            Read(Sites("resid", layers=self.layers, **chosen), self.rows, sink),
        ]
        if given and "input" in self.controls:
            readers.append(Read(Sites("model_input", **chosen), self.rows, sink))
        return readers


@dataclass(frozen=True, eq=False)
class Read:
    """Hand activations on as rows of features; changes nothing."""

    sites: Sites
    rows: Rows
    sink: Sink
    reads_only: ClassVar[bool] = True

    def __call__(self, activation: Tensor, at: At) -> None:
        make = self.rows.inputs if at.site.component == "model_input" else self.rows.features
        self.sink(at.site.step, readout_name(at.site), make(activation.detach()))


def readout_name(site: Site) -> str:
    """What a site is called in tables: "embed", "input" or "L00" ...."""
    return {"embed": "embed", "model_input": "input"}.get(site.component, layer_name(site.layer or 0))


def layer_name(layer: int) -> str:
    """The readout after a block."""
    return f"L{layer:02d}"


def site_of(step: int, readout: str, branch: str = "cond") -> Site:
    """The site of a readout of the model itself; inverse of `readout_name`."""
    if readout in ("embed", "input"):
        return Site(step, branch, None, "embed" if readout == "embed" else "model_input")
    return Site(step, branch, int(readout.removeprefix("L")), "resid")
