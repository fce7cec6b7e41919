"""Runs of a task whose activations are handed on as rows of design matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dit_lens.engine.plan import listed
from dit_lens.errors import InputError
from dit_lens.interventions.base import At, Intervention
from dit_lens.interventions.capture import Capture
from dit_lens.lens.source import Recorded
from dit_lens.model import VideoDiT
from dit_lens.probing.rows.data import Place
from dit_lens.probing.rows.random_weights import RandomTwin
from dit_lens.probing.rows.readout import Readout
from dit_lens.probing.rows.rows import Rows
from dit_lens.probing.rows.sources import require_source, state_writers
from dit_lens.probing.rows.words import Words
from dit_lens.runs.run import Run
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
from dit_lens.tasks.base import Task

#: Given which instances they are of, where they come from, and features (B, N, D) on the model's device.
Sink = Callable[[slice, Place, Tensor], None]

#: The same, of the instances at hand.
Take = Callable[[Place, Tensor], None]

#: What a visit itself says of every run.
_OWN = ("decode", "record", "stop_after", "resume", "body")
#: Arguments of `VideoDiT.runs` that are none of the pipeline's.
_OF_RUNS = ("batch", "progress")


class Visit:
    """A readout in the runs of a model on a task, checked before anything runs.

    The twin with random weights is made once and serves all passes.

    Parameters
    ----------
    model, task, readout
    example : task instance
        One of those that will be run.
    interventions : iterable of Intervention
        In every run. Of the twin only those at ``model_input``: it is given the same inputs.
    run_arguments : mapping
        As in `VideoDiT.runs`.

    Attributes
    ----------
    rows : Rows or Words
    sites : tuple of Site
        All that is read, in execution order.
    steps : list of int
    settings : dict
        The run's arguments that are the pipeline's.

    Raises
    ------
    EvidenceError, SiteError, InputError, UnsupportedModel
        What cannot be read, or labelled, or given to this model.
    """

    def __init__(
        self,
        model: VideoDiT,
        task: Task,
        readout: Readout,
        example: Any,
        interventions: Iterable[Intervention] = (),
        run_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.task, self.readout = model, task, readout
        self.interventions, self.arguments = listed(interventions), dict(run_arguments or {})
        if wrong := [name for name in _OWN if name in self.arguments]:
            raise InputError(
                f"{wrong[0]}={self.arguments[wrong[0]]!r:.40}: probes choose that themselves; leave it out"
            )
        settings = {name: value for name, value in self.arguments.items() if name not in _OF_RUNS}
        geometry = model.geometry(example, **settings)
        require_source(model, readout.source, geometry)
        self.sites: tuple[Site, ...] = readout.selection.resolve(geometry)
        self.steps = sorted({site.step for site in self.sites})
        self.settings = settings
        self.rows = self._rows_of(geometry, example)

    @property
    def controls(self) -> tuple[str, ...]:
        """Those that can be read: the full model input of a row there is only where rows are of the video."""
        return tuple(c for c in self.readout.controls if c != "input" or isinstance(self.rows, Rows))

    @property
    def tokens(self) -> Tokens:
        """The tokens that are read, latent frames by their numbers."""
        return Tokens(frames=self.rows.frames) if isinstance(self.rows, Rows) else self.readout.selection.tokens

    @cached_property
    def twin(self) -> RandomTwin:
        """The control of random weights."""
        return RandomTwin(self.model, self.readout.random_seed)

    def runs(
        self,
        instances: Sequence[Any],
        seed: int | Sequence[int],
        sink: Sink,
        *,
        decode: bool = False,
        title: str = "runs for probes",
    ) -> Iterator[Run]:
        """Run the instances and hand on what is read of them; yields the run of every batch."""
        if isinstance(seed, Sequence) and len(seed) != len(instances):
            raise InputError(f"{len(seed)} seeds for {len(instances)} instances; give one seed, or one per instance")
        start, record = 0, "random" in self.controls

        def take(place: Place, features: Tensor) -> None:
            sink(slice(start, start + len(features)), place, features)

        runs = self.model.runs(
            list(instances),
            seed,
            interventions=partial(self._interventions, take),
            decode=decode,
            record=record,
            stop_after=None if decode else max(self.steps),
            **{"progress": title, **self.arguments},
        )
        for run in runs:
            self._add_controls(run, take)
            yield run
            start += len(run.rows)

    def _interventions(self, take: Take, instances: list[Any], seeds: list[int]) -> list[Intervention]:
        """What makes the states, what changes the model, and what reads it."""
        changes = {"interventions": self.interventions} if self.readout.source == "invert" else {}
        writers = state_writers(
            self.model, self.task, instances, seeds, self.readout.source, **changes, **self.settings
        )
        readers = [Read(self._selection, self.rows, take)]
        if "input" in self.controls:
            given = Sites("model_input", steps=self.steps, branches=self.readout.branch)
            readers.append(Read(given, self.rows, take, "input"))
        return [*writers, *self.interventions, *readers]

    def _add_controls(self, run: Run, take: Take) -> None:
        """The twin's features of a run, and the positions of its rows, which no run has."""
        for step in self.steps:
            if "random" in self.controls:
                read = Read(self._selection.at(steps=step), self.rows, take, "random")
                Recorded(run, (*self._at_inputs, read)).replay(self.twin, step)
            if "position" in self.controls:
                positions = torch.from_numpy(self.rows.positions()).expand(len(run.rows), -1, -1)
                take(Place(step, "", "position"), positions)

    @property
    def _at_inputs(self) -> tuple[Intervention, ...]:
        return tuple(i for i in self.interventions if i.sites.components == ("model_input",))

    @property
    def _selection(self) -> Sites:
        """What is read, whole where rows choose their frames themselves."""
        selection = self.readout.selection
        return selection.at(tokens=Tokens()) if isinstance(self.rows, Rows) else selection

    def _rows_of(self, geometry: Geometry, example: Any) -> Rows | Words:
        selection, level, pool = self.readout.selection, self.readout.level, self.readout.pooled
        rows = Rows.of(geometry, self.task, "clip" if self.readout.stream != "video" else level)
        if self.readout.stream == "video":
            return Rows.of(geometry, self.task, level, selection.tokens, pool)
        count = 1 if level != "token" else self._positions(selection, example)
        return Words(level, count, rows.latent_frames, pool)

    def _positions(self, selection: Sites, example: Any) -> int:
        """How many positions of a text are read, from the first site of a run of one row."""
        first = Capture(selection.at(steps=self.steps[0]))
        run = self.model.run([example], 0, interventions=[first], stop_after="last site", **self.settings)
        return int(next(iter(run.captured().values())).shape[1])


@dataclass(frozen=True, eq=False)
class Read:
    """Hand activations on as rows of features; changes nothing.

    Parameters
    ----------
    control : "none", "input" or "random"
        What is read: the model, its input, or its twin.
    """

    sites: Sites
    rows: Rows | Words
    take: Take
    control: str = "none"
    reads_only: ClassVar[bool] = True

    def __call__(self, activation: Tensor, at: At) -> None:
        site = "" if self.control == "input" else str(at.site)
        self.take(Place(at.site.step, site, self.control), self.rows.read(activation.detach(), at))
