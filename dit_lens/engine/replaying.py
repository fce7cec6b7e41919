"""The denoiser calls of one recorded step, made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dit_lens.engine.dispatcher import Dispatcher, velocities
from dit_lens.engine.head_inputs import keeping_outputs, rows_of
from dit_lens.runs.call import Call
from dit_lens.runs.nest import moved


def make_again(
    dispatcher: Dispatcher, calls: Iterable[Call], experts: Mapping[str | None, Any], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Velocities by branch, and by branch what the model's head was given besides the residual stream.

    Of a branch whose "head_modulation" was edited behind the blocks that is not known, and empty.

    Parameters
    ----------
    calls : the recorded calls of one step
    device : torch.device
        Where the model computes; a record may lie elsewhere.
    """
    predicted: dict[str, Tensor] = {}
    conditioning: dict[str, dict[str, Any]] = {}
    for call in calls:
        module, outputs = experts[call.expert], dict[str, Any]()
        call = replace(call, args=moved(call.args, device), kwargs=moved(call.kwargs, device))
        with keeping_outputs(module, dispatcher.architecture.conditioning, outputs):
            output = dispatcher.run_call(call, module.forward, call.args, call.kwargs)
        predicted |= velocities(call, output)
        conditioning |= {b: rows_of(outputs, call.rows(b), call) for b in call.branches}
    # Behind the blocks an edit does not reach what the head's own embedder made: `read_out` refuses what is empty.
    conditioning |= {branch: {} for branch in _edited_behind(dispatcher)}
    return predicted, conditioning


def _edited_behind(dispatcher: Dispatcher) -> set[str]:
    """The branches in which the arguments of the head's own norm are edited."""
    if dispatcher.architecture.head_told.end == "output":
        return set()
    edits = (site for planned in dispatcher.plan if not planned.reads_only for site in planned.sites)
    return {site.branch for site in edits if site.branch is not None and site.component == "head_modulation"}
