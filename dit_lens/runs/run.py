"""What a generation leaves behind: frames, latents, captures, recorded calls and a ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.display.short import short
from dit_lens.errors import InputError
from dit_lens.families.base import Fixed
from dit_lens.files import saved
from dit_lens.files.video import FPS, Video, write_video
from dit_lens.runs.call import Call, Context, Prepared
from dit_lens.runs.donor import Donor
from dit_lens.runs.edits import Edit, named
from dit_lens.runs.inputs import plain_inputs
from dit_lens.runs.ledger import Ledger
from dit_lens.runs.nest import moved
from dit_lens.runs.rows import row_numbers, selected
from dit_lens.runs.schedule import Schedule

#: Of the files of a saved run; it grows when the fields of a run change.
_SCHEMA = 2


@dataclass(eq=False, kw_only=True)
class Run(Donor):
    """A finished generation of B rows: plain data, which can be pickled, copied and saved.

    Attributes
    ----------
    id : str
        Hash of the model, its setup, the inputs, the settings, the interventions and the versions.
    model_id : str
        Hash of the transformers alone.
    setup : dict from part of the pipeline ("scheduler", "text_encoder", "pipeline" ...) to its hash
        Without the parts that only decode: what the latents depend on besides the transformers' weights.
    inputs : tuple, B of them
        What each row was given: a task instance, a prompt or a copy of a mapping.
    rows : tuple of Row, B of them
    content : tuple of str, B of them
        Hash of the prompt and picture of each row.
    frames : uint8 array of shape (B, T, height, width, 3), or None where the run was not decoded
    latents : Tensor of shape (B, C, F, H, W)
        The sampler's state where the run ended.
    family : str
    schedule : Schedule
        alpha and sigma of every step, and x0hat from a state and a prediction.
    geometry : Geometry
    settings : dict
        All arguments of the pipeline; tensors and lists are copies.
    captures : dict from capture name to dict from Site to Tensor
    calls : tuple of Call
        With arguments and output where the run was made with ``record=True``.
    states : tuple of Tensor of shape (B, C, F, H, W)
        The sampler's state before each step, where the run was made with ``record=True``, else empty. A run that was
        stopped after a step has the state before the next one too.
    prepared : Prepared or None
        What the pipeline made of pictures and seeds, where the run was made with ``record=True``: a run that resumes
        from this one does not make it again.
    ledger : Ledger
    fixed : Fixed or None
        What the pipeline puts into its final latents.
    edited : tuple of Edit
        What changed the run besides its inputs and settings: interventions that do not only read, and a body.
    ended : bool
        Whether the sampler made its last step, so ``latents`` are clean; not where ``stop_after`` left the loop before.
    text_valid : dict from branch to bool Tensor of shape (B, N)
        Where a text stream was met of which attention reads only some positions: which.
    """

    setup: Mapping[str, str]
    inputs: tuple[Any, ...]
    content: tuple[str, ...]
    frames: Video | None
    latents: Tensor
    family: str
    schedule: Schedule
    settings: Mapping[str, Any]
    calls: tuple[Call, ...]
    states: tuple[Tensor, ...]
    ledger: Ledger
    fixed: Fixed | None = None
    edited: tuple[Edit, ...] = ()
    prepared: Prepared | None = None
    ended: bool = True

    def __post_init__(self) -> None:
        self.calls = tuple(replace(c, context=self._context) if c.context is None else c for c in self.calls)

    @cached_property
    def _context(self) -> Context:
        return Context(self.family, self.geometry, self.rows, self.schedule, self.fixed)

    def __repr__(self) -> str:
        recorded = f", {len(self.states)} states recorded" if self.states else ""
        captures = {name: len(sites) for name, sites in self.captures.items()}
        edited = f"\n    made under interventions at {named(self.edited)}" if self.edited else ""
        frames = "not decoded" if self.frames is None else f"frames {self.frames.shape}"
        return (
            f"Run({self.id}: {len(self.rows)} rows, {self.geometry.steps} steps of {self.family} {self.model_id}\n"
            f"    {frames}, rows {short(tuple((row.instance, row.seed) for row in self.rows))}\n"
            f"    captures by name {short(captures)}{recorded}{edited})"
        )

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the steps; S + 1 of them where the scheduler names a last one."""
        return self.schedule.sigmas

    @property
    def experts(self) -> dict[int, str | None]:
        """The expert that each step called, None in models of one."""
        return {call.step: call.expert for call in self.calls}

    @property
    def decoded(self) -> Video:
        """The frames, uint8 (B, T, height, width, 3).

        Raises
        ------
        InputError
            The run was not decoded.
        """
        if self.frames is None:
            raise InputError("this run was not decoded; run with decode=True and without stop_after")
        return self.frames

    def clean(self, step: int, state: Tensor, prediction: Tensor) -> Tensor:
        """x0hat of a state and a prediction at a step, as the pipeline would finish it: (B, C, F, H, W).

        Parameters
        ----------
        step : int
        state, prediction : Tensor of shape (B, C, F, H, W)
            The sampler's state before the step, and the combined prediction or one branch's.
        """
        return self._context.clean(step, state, prediction)

    def recorded(self, step: int) -> list[Call]:
        """The calls of a step with what they were given.

        Raises
        ------
        InputError
            The run was not made with ``record=True``, or has no such step.
        """
        calls = [c for c in self.calls if c.step == step]
        if not calls or calls[0].output is None:
            raise InputError(f"step {step} was not recorded; run with record=True, steps 0..{self.geometry.steps - 1}")
        return calls

    def save(self, folder: str | Path) -> Path:
        """Write everything of the run into a folder of its own: JSON and safetensors, whole or not at all.

        A task instance is written as its id, prompt and picture; the rest comes back as it is.

        Raises
        ------
        StoreError
            The folder holds something else or cannot be written, or a setting or an argument of a recorded call is no
            plain data; names the field.
        """
        return saved.save(replace(self, inputs=plain_inputs(self.inputs)), folder, kind="run", schema=_SCHEMA)

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read what `save` wrote, onto the CPU; nothing in the files is executed.

        Raises
        ------
        StoreError
            No such folder, or files that are damaged, changed or of another kind or schema; names the file and field.
        """
        return saved.load(cls, folder, kind="run", schema=_SCHEMA)

    def to(self, device: torch.device | str) -> Run:
        """The same run with every tensor on a device."""
        calls = [
            replace(c, args=moved(c.args, device), kwargs=moved(c.kwargs, device), output=moved(c.output, device))
            for c in self.calls
        ]
        fixed = self.fixed and Fixed(self.fixed.mask.to(device), self.fixed.value.to(device))
        return replace(
            self,
            latents=self.latents.to(device),
            captures=moved(self.captures, device),
            calls=tuple(replace(call, context=None) for call in calls),
            states=moved(self.states, device),
            prepared=self.prepared and replace(self.prepared, rest=moved(self.prepared.rest, device)),
            fixed=fixed,
            text_valid=moved(self.text_valid, device),
        )

    def select(self, rows: Sequence[int]) -> Run:
        """The run of some rows alone, in the order given: to look at, to take from, or to go on with.

        It resumes with the inputs and seeds of these rows. Its id is made of this run's and the rows; the ledger stays
        that of the whole run.

        Raises
        ------
        InputError
            Rows that the run does not have, one of them twice, or a capture that does not have a row for each.

        Examples
        --------
        ``best = run.select([2, 5])`` and then ``model.run(best.inputs, [row.seed for row in best.rows],
        resume=Resume(best, step))``.
        """
        return selected(self, row_numbers(rows, len(self.rows)))

    def write_video(self, path: str | Path, fps: float = FPS, crf: int | None = 17) -> Path:
        """Write the frames as one mp4, the videos of several rows side by side from left to right.

        Parameters
        ----------
        crf : int or None
            As in `dit_lens.files.video.write_video`: None is lossless, and few players show it.

        Raises
        ------
        InputError
            The run was not decoded.
        TaskError
            PyAV is missing, or the rate is not above 0.
        """
        return write_video(path, np.concatenate(list(self.decoded), axis=2), fps, crf)
