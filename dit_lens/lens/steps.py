"""The step lens: what the model believes the clean video to be, at every denoising step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.interventions import Capture
from dit_lens.model import VideoDiT
from dit_lens.run import Run
from dit_lens.sites import Sites

_NAME = "step_lens"


@dataclass(frozen=True)
class StepLens:
    """x0hat of every step of a run.

    Attributes
    ----------
    x0hat : Tensor of shape (S, B, C, F, H, W)
        Clean estimates from the guided velocity, in the sampler's normalised latents.
    sigmas : tuple of float, S of them
    run : Run
    """

    x0hat: Tensor
    sigmas: tuple[float, ...]
    run: Run

    def frames(self, model: VideoDiT, steps: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Decoded estimates of the given steps (default: all): uint8 (steps, B, T, height, width, 3)."""
        chosen = range(len(self.x0hat)) if steps is None else steps
        return np.stack([model.decode(self.x0hat[s]) for s in chosen])


def step_lens(model: VideoDiT, inputs: Any, seed: int | Sequence[int] = 0, **run_arguments: Any) -> StepLens:
    """Run and keep x0hat at every step, from the guidance-combined prediction (x_s - sigma_s v in flow matching).

    Parameters
    ----------
    inputs, seed, **run_arguments
        As in `VideoDiT.run`.

    Notes
    -----
    The Chain-of-Steps viewer of "Demystifying Video Reasoning" (arXiv 2603.16870), experiment E1.
    """
    keep = Capture(Sites(("latents", "guided")), name=_NAME)
    others = list(run_arguments.pop("interventions", ()))
    run = model.run(inputs, seed, interventions=[*others, keep], **run_arguments)
    states = {s.step: t for s, t in run.captured(_NAME).items() if s.component == "latents"}
    guided = {s.step: t for s, t in run.captured(_NAME).items() if s.component == "guided"}
    x0hat = [run.clean(s, states[s], guided[s]) for s in sorted(guided)]
    return StepLens(torch.stack(x0hat), run.sigmas[: len(x0hat)], run)
