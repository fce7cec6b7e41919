"""The scheduler for the time of a run: it forgets what an edit contradicts, and each row has noise of its own.

A multistep sampler (UniPC, DPM-Solver++) makes the next state from earlier predictions, and UniPC's corrector from the
last state too. Where an intervention edits the state, that memory is of another path: left alone it undoes the edit. So
the rows that were edited go on as if they had just begun at their state, with a step of first order; the other rows
keep their memory.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from dit_lens.errors import UnsupportedModel

#: Schedulers that remember earlier steps, and the attributes in which they do. CogVideoX's DPM scheduler is given its
#: memory by the pipeline, as an argument.
MEMORY: dict[str, tuple[str, ...]] = {
    "UniPCMultistepScheduler": ("model_outputs", "timestep_list", "lower_order_nums", "last_sample"),
    "DPMSolverMultistepScheduler": ("model_outputs", "lower_order_nums"),
    "CogVideoXDPMScheduler": (),
}
#: Schedulers whose step draws noise.
DRAWING = ("EulerAncestralDiscreteScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "CogVideoXDPMScheduler")
#: Arguments of a step that have one entry for each row.
_BY_ROW = ("model_output", "sample", "old_pred_original_sample", "variance_noise")


@dataclass
class _Part:
    """Rows that share their memory.

    Attributes
    ----------
    scheduler : the pipeline's own while all rows share it, else a copy
    begins : whether the next step is the first that these rows remember
    """

    rows: list[int]
    scheduler: Any
    begins: bool = False


class Sampler:
    """What a run asks of the pipeline's scheduler besides its stock step.

    Parameters
    ----------
    scheduler : the pipeline's
    generators : list of torch.Generator, one for each row
        Noise is drawn from these where the pipeline gives the step no generator.

    Raises
    ------
    UnsupportedModel
        The scheduler draws noise from torch's global generator.
    """

    def __init__(self, scheduler: Any, generators: Sequence[torch.Generator]) -> None:
        if scheduler.config.get("stochastic_sampling"):
            raise UnsupportedModel(
                f"{type(scheduler).__name__} with stochastic_sampling=True draws noise that no seed fixes; make it "
                "with stochastic_sampling=False"
            )
        self.scheduler, self.generators = scheduler, list(generators)
        self._kind = type(scheduler)
        self._parts = [_Part(list(range(len(self.generators))), scheduler)]

    def active(self) -> ExitStack:
        """Steps through this object where the scheduler remembers or draws, until the stack is closed.

        By a subclass, not by an attribute: LTX-2 copies its scheduler for the audio, and an attribute of the copy would
        go on calling the original.
        """
        kind, sampler, stack = self._kind, self, ExitStack()
        if kind.__name__ not in (*MEMORY, *DRAWING):
            return stack

        @functools.wraps(kind.step)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs = sampler._seeded(kwargs)
            return sampler._step(args, kwargs) if self is sampler.scheduler else kind.step(self, *args, **kwargs)

        stack.callback(setattr, self.scheduler, "__class__", kind)
        self.scheduler.__class__ = type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__})
        return stack

    def restart(self, edited: Sequence[int]) -> None:
        """Let these rows forget the steps before; the others go on as they were."""
        if self._kind.__name__ not in MEMORY:
            return
        parts = []
        for part in self._parts:
            gone = [row for row in part.rows if row in edited]
            if not gone:
                parts.append(part)
            elif len(gone) == len(part.rows):
                parts.append(self._forgetting(part))
            else:
                kept = [row for row in part.rows if row not in edited]
                parts += [self._some(part, kept), self._forgetting(self._some(part, gone))]
        self._parts = parts

    def _forgetting(self, part: _Part) -> _Part:
        fresh: dict[str, Any] = {"lower_order_nums": 0, "last_sample": None}
        for name in MEMORY[self._kind.__name__]:
            value = fresh[name] if name in fresh else [None] * len(getattr(part.scheduler, name))
            setattr(part.scheduler, name, value)
        return _Part(part.rows, part.scheduler, begins=True)

    def _some(self, part: _Part, rows: list[int]) -> _Part:
        """Some rows of a part, with a scheduler of their own."""
        places = [part.rows.index(row) for row in rows]
        scheduler = copy.copy(part.scheduler)
        for name in MEMORY[self._kind.__name__]:
            setattr(scheduler, name, _rows_of(getattr(part.scheduler, name), places))
        return _Part(rows, scheduler, part.begins)

    def _seeded(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a step that draws noise, with a generator for each row where it was given none."""
        draws = self._kind.__name__ in DRAWING and kwargs.get("generator") is None
        return kwargs | {"generator": self.generators} if draws else kwargs

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(self._parts) == 1 and not self._parts[0].begins:
            return self._kind.step(self.scheduler, *args, **kwargs)
        given = inspect.signature(self._kind.step).bind(self.scheduler, *args, **kwargs).arguments
        results = [self._step_of(part, given) for part in self._parts]
        if len(results) == 1:
            return results[0]
        order = torch.tensor([row for part in self._parts for row in part.rows]).argsort()
        if hasattr(self.scheduler, "_step_index"):
            self.scheduler._step_index = self._parts[0].scheduler._step_index
        return tuple(torch.cat(of_parts)[order.to(of_parts[0].device)] for of_parts in zip(*results, strict=True))

    def _step_of(self, part: _Part, given: dict[str, Any]) -> Any:
        own = {name: _rows_of(value, part.rows) if name in _BY_ROW else value for name, value in given.items()}
        if isinstance(own.get("generator"), list):
            own["generator"] = [own["generator"][row] for row in part.rows]
        if part.begins and own.get("old_pred_original_sample") is not None:
            _draw_as_if_looking_back(part.scheduler, own)
            own["old_pred_original_sample"] = None
        part.begins = False
        return self._kind.step(**own | {"self": part.scheduler})


def _draw_as_if_looking_back(scheduler: Any, given: dict[str, Any]) -> None:
    """Draw what CogVideoX's DPM step would: it draws twice and uses the second where it looks back, but at the end."""
    sample = given["sample"]
    if given["timestep"] >= scheduler.config.num_train_timesteps // scheduler.num_inference_steps:
        randn_tensor(sample.shape, generator=given["generator"], device=sample.device, dtype=sample.dtype)


def _rows_of(value: Any, rows: list[int]) -> Any:
    """Some rows of a tensor, or of the tensors in a list; anything else as it is."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim else value
    return [_rows_of(entry, rows) for entry in value] if isinstance(value, list) else value
