"""Doing a recorded step again, and starting from a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.display.short import short, short_repr
from dit_lens.errors import InputError
from dit_lens.families.registry import family_named
from dit_lens.runs.call import Context
from dit_lens.runs.donor import Donor
from dit_lens.runs.identity import difference
from dit_lens.runs.ledger import Ledger
from dit_lens.runs.run import Run
from dit_lens.sites.select import whole
from dit_lens.sites.site import Site


@dataclass(eq=False, kw_only=True)
class Replay(Donor):
    """One denoising step of a recorded run, done again with other interventions; a donor as the run is.

    Attributes
    ----------
    id : str
        Hash of the run's id, the step and the interventions.
    model_id : str
        Of the model that replayed the run.
    rows : tuple of Row, B of them
    geometry : Geometry
    step : int
    velocities : dict from branch to Tensor of shape (B, C, F, H, W)
    guided : Tensor of shape (B, C, F, H, W)
        The combined prediction.
    x0hat : Tensor of shape (B, C, F, H, W)
        The clean estimate of the combined prediction.
    conditioning : dict from branch to what the model's head needs besides the residual stream, by module path
    captures : dict from capture name to dict from Site to Tensor
    ledger : Ledger
    text_valid : dict from branch to bool Tensor of shape (B, N)
        Where a text stream was met of which attention reads only some positions: which.
    """

    step: int
    velocities: dict[str, Tensor]
    guided: Tensor
    x0hat: Tensor
    conditioning: dict[str, dict[str, Any]]
    ledger: Ledger

    __repr__ = short_repr


@dataclass(frozen=True)
class Resume:
    """Start a run from the record of an earlier one.

    Denoiser calls before ``step`` are answered with what the earlier run recorded; at ``step`` the blocks before
    ``layer`` are answered with the residual streams that it captured after block ``layer - 1``. Bit-identical to
    computing them again.

    Parameters
    ----------
    run : Run
        Made with ``record=True`` from the same inputs, seeds and settings; for ``layer`` > 0 also with
        ``Capture(Sites("resid", steps=step, layers=layer - 1, stream="all"))``.
    step : int
    layer : int

    Raises
    ------
    InputError
        What is no run, or no whole numbers; the others of `check` at the start of the run.
    """

    run: Run
    step: int
    layer: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.run, Run):
            raise InputError(f"resume needs a Run, got {type(self.run).__name__}")
        for name in ("step", "layer"):
            object.__setattr__(self, name, place(f"resume at {name}", getattr(self, name)))

    def __repr__(self) -> str:
        return f"Resume(run={self.run.id}, step={self.step}, layer={self.layer})"

    def check(
        self,
        model_id: str,
        setup: Mapping[str, str],
        content: Sequence[str],
        context: Context,
        settings: Mapping[str, Any],
    ) -> None:
        """Refuse a record that is not of this run.

        Parameters
        ----------
        model_id, setup, content, context, settings
            Of this run.

        Raises
        ------
        InputError
            Names what differs, or what was not recorded.
        """
        run, geometry = self.run, context.geometry
        if run.model_id != model_id:
            raise InputError(f"resume: the record is of model {run.model_id}, this is {model_id}")
        if part := difference(run.setup, setup):
            raise InputError(f"resume: the record was made with another {part} than the pipeline has now")
        if run.rows != context.rows:
            raise InputError(f"resume: the record has rows {run.rows}, this run {context.rows}")
        if run.content != tuple(content):
            raise InputError("resume: the record is of other prompts or pictures, though its rows have these names")
        if run.geometry.branches != geometry.branches:
            raise InputError(f"resume: the record has branches {run.geometry.branches}, this run {geometry.branches}")
        names = sorted(set(run.settings) | set(settings))
        for name in names:
            if not _same(run.settings.get(name), settings.get(name)):
                theirs, own = short(run.settings.get(name)), short(settings.get(name))
                other = ", of other values" if theirs == own else ""
                raise InputError(f"resume: the record has {name}={theirs}, this {own}{other}")
        if not 0 <= self.step < geometry.steps or not 0 <= self.layer < geometry.layers:
            valid = f"steps 0..{geometry.steps - 1}, layers 0..{geometry.layers - 1}"
            raise InputError(f"resume at step {self.step}, layer {self.layer}: this run has {valid}")
        if self.layer and any(block.carried for _, block in family_named(context.family).stacks):
            raise InputError(
                f"resume at layer {self.layer}: {context.family} carries a stream that is not recorded; use layer=0"
            )
        for step in range(self.step + bool(self.layer)):
            run.recorded(step)
        if len(run.states) <= self.step:
            known = f"of steps 0..{len(run.states) - 1}" if run.states else "of no step; run with record=True"
            raise InputError(f"resume at step {self.step}: the record has states {known}")
        if self.layer:
            for branch in geometry.branches:
                for stream in geometry.streams:
                    self.residual(branch, stream)

    def residual(self, branch: str, stream: str) -> Tensor:
        """The residual stream after block ``layer - 1``: (B, F, H, W, D), or (B, N, D) of a text stream."""
        site = Site(self.step, branch, self.layer - 1, "resid", stream)
        found = self.run.captures.get("", {}).get(site)
        if found is None:
            raise InputError(f"resume at layer {self.layer}: the record has no capture of {site} (whole and unnamed)")
        return found


def place(what: str, given: Any) -> int:
    """A step or a layer by its number.

    Raises
    ------
    InputError
    """
    try:
        return whole(given)
    except TypeError as error:
        raise InputError(f"{what} {given!r:.80}: need a whole number") from error


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return bool(a is b or np.array_equal(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else a == b)
