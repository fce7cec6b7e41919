"""Tiny random pipelines of every family: the real classes of diffusers with a few channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_lens.families.notices import without_notices


@dataclass(frozen=True)
class Tiny:
    """How to build one, and with what to run it.

    Attributes
    ----------
    name : str
        Such as "wan2.1-t2v".
    make : callable () -> pipeline
        Real patch sizes, the published scheduler, at least four blocks.
    inputs : callable () -> two different inputs of one size, mappings with "prompt" and, where it takes one, "image"
    settings : mapping
        Arguments of the pipeline: guidance on, latent frames, rows and columns of three different numbers.
    ready : callable (pipeline)
        What its user has to do once it is made or loaded.
    """

    name: str
    make: Callable[[], Any]
    inputs: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    ready: Callable[[Any], Any] = lambda pipeline: None

    def build(self, seed: int = 0) -> Any:
        """The pipeline, with the same random weights for the same seed."""
        with torch.random.fork_rng(devices=[]), without_notices():
            torch.manual_seed(seed)
            pipeline = self.make()
        self.ready(pipeline)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
