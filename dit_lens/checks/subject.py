"""What the checks look at: a model, two rows, and the runs that several checks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dit_lens.checks.observe import Observed, observed
from dit_lens.families import Architecture
from dit_lens.interventions import Capture
from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.runs.run import Run
from dit_lens.sites.site import TERM_COMPONENTS
from dit_lens.sites.sites import Sites


@dataclass(frozen=True)
class Subject:
    """A model and how to run it for a check.

    Attributes
    ----------
    model : VideoDiT
    own_inputs : two mappings with "prompt" (and "image")
    settings : mapping
        Arguments of the pipeline.
    """

    model: VideoDiT
    own_inputs: tuple[Mapping[str, Any], Mapping[str, Any]]
    settings: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Of one picture where the stock pipeline has an image encoder: by hand it takes no two in a batch."""
        one, other = self.own_inputs
        return (one, {**other, "image": one["image"]}) if self.sees_one_picture else self.own_inputs

    @property
    def sees_one_picture(self) -> bool:
        return "image" in self.own_inputs[0] and getattr(self.model.pipeline, "image_encoder", None) is not None

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    def run(self, interventions: Sequence[Intervention] = (), **more: Any) -> Run:
        """Two rows, not decoded."""
        inputs = more.pop("inputs", self.inputs)
        seeds = more.pop("seed", [11, 12][: len(inputs)])
        settings = {**self.settings, **more}
        return self.model.run(list(inputs), seeds, interventions=interventions, decode=False, **settings)

    @cached_property
    def plain(self) -> Observed:
        """The same generation by the pipeline called by hand, watched by torch hooks alone."""
        return observed(self)

    @cached_property
    def base(self) -> Run:
        """A recorded run with every component of every stream captured."""
        geometry = self.model.geometry(self.inputs[0], **self.settings)
        own = {c for kind in geometry.kinds for s in kind.components.values() for c in s}
        parts = tuple(c for c in TERM_COMPONENTS if c in own)
        everywhere = Capture(Sites(("embed", *parts, "delta", "resid"), stream="all"))
        around = Capture(Sites(("latents", "model_input", "velocity", "guided")))
        heads = [Capture(Sites("head", stream="all"))] if any(k.heads for k in geometry.kinds) else []
        return self.run([everywhere, around, *heads], record=True)
