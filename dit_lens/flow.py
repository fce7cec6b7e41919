"""The clean estimate of a flow-matching sampler."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dit_lens.errors import UnsupportedModel


def clean_estimate(scheduler: Any, state: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """x0hat = x_s - sigma_s v of a state and a velocity, both (B, C, F, H, W).

    Raises
    ------
    UnsupportedModel
        The scheduler is not a flow-matching one: its predictions mean something else.
    """
    config = scheduler.config
    flow = (
        type(scheduler).__name__.startswith("FlowMatch") or getattr(config, "prediction_type", "") == "flow_prediction"
    )
    if not flow or getattr(config, "invert_sigmas", False):
        raise UnsupportedModel(f"{type(scheduler).__name__}: x0hat is defined here for flow-matching schedulers only")
    return state - sigma * velocity
