"""The attention lens at one step, as the tests that are of one step alone look at it: without the axis of steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import dit_lens as dl

_BY_STEP = ("entropy", "entropy_share", "frames", "uniform", "text", "image", "region", "maps")


class OneStep:
    """What was read at one step: tensors of shape (L, B, heads, ...), and all else as `dl.Attention` has it."""

    def __init__(self, found: dl.Attention) -> None:
        self.all = found
        assert len(found.reading.steps) == 1

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.all if hasattr(self.all, name) else self.all.reading, name)
        return value[0] if name in _BY_STEP and value is not None else value

    def over_queries(self, measure: str) -> Tensor:
        return self.all.over_queries(measure)[0]

    def on_grid(self) -> Tensor:
        return self.all.on_grid()[0]


def attention(
    model: dl.VideoDiT,
    run: dl.Run,
    step: int,
    *,
    layers: Any = "all",
    heads: Any = "all",
    queries: dl.Tokens = dl.Tokens(),  # noqa: B008 - it is frozen
    **options: Any,
) -> OneStep:
    sites = dl.Sites("head", steps=step, layers=layers, heads=heads, tokens=queries)
    return OneStep(dl.attention(model, run, sites=sites, **options))
