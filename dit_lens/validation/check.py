"""Checking a model, or the tiny pipeline of a family."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from dit_lens.families.registry import architecture_of
from dit_lens.families.tiny.samples import two_pictures, two_prompts
from dit_lens.model import VideoDiT
from dit_lens.validation.comparing import Failed
from dit_lens.validation.family_checks import CHECKS
from dit_lens.validation.report import CheckReport, CheckResult
from dit_lens.validation.witness import Subject

__all__ = ["check", "check_family", "list_families"]


def check(model: VideoDiT, name: str = "", **settings: Any) -> CheckReport:
    """Check that a model does what its family's file says, on two rows of a small size, in seconds.

    Layer count and order, token grid, guidance branches, the sum rule, heads, identity patches, full swaps of the
    residual and of the sampler's state, the depth lens at the last layer, sigma and x0hat against the scheduler's own
    step, rows against single runs, resuming, what blocks and head are told besides, and that the residual streams and
    this are all that they know of the inputs. Real weights or random ones. The size is the smallest whose token grid
    has three different numbers.

    Parameters
    ----------
    model : VideoDiT
    name : str
        For the report.
    **settings
        Arguments of the pipeline, such as ``height`` or ``guidance_scale``.

    Returns
    -------
    CheckReport
        Prints as a table; ``require()`` raises for the first check that does not hold.
    """
    settings = _smallest(model, settings)
    takes_image = "image" in _parameters(model)
    inputs = two_pictures(settings) if takes_image else two_prompts()
    return _check(name or type(model.pipeline).__name__, Subject(model, inputs, settings))


def check_family(name: str) -> CheckReport:
    """Check the tiny random pipeline of that name in ``dit_lens.families.tiny.pipelines.TINY``."""
    from dit_lens.families.tiny.pipelines import TINY  # imports the pipeline classes of every family

    tiny = TINY[name]
    return _check(tiny.name, Subject(VideoDiT(tiny.build()), tiny.inputs(), dict(tiny.settings)))


def list_families() -> dict[str, dict[str, str]]:
    """Name of every supported model, with its family and the classes of diffusers that make it."""
    from dit_lens.families.tiny.pipelines import TINY

    built = {name: tiny.build() for name, tiny in TINY.items()}
    return {
        name: {
            "family": architecture_of(pipeline).family,
            "transformer": type(pipeline.transformer).__name__,
            "pipeline": type(pipeline).__name__,
        }
        for name, pipeline in built.items()
    }


@torch.no_grad()
def _check(name: str, subject: Subject) -> CheckReport:
    started, results = time.perf_counter(), {}
    for label, function in CHECKS.items():
        try:
            results[label] = CheckResult(True, function(subject))
        except Failed as failure:
            results[label] = CheckResult(False, str(failure))
        except Exception as error:  # whatever a wrong file makes the model do is a finding
            results[label] = CheckResult(False, f"{type(error).__name__}: {error}")
    geometry = subject.model.geometry(subject.inputs[0], **subject.settings)
    kinds = Counter(kind.kind for kind in geometry.kinds)
    return CheckReport(
        name=name,
        family=subject.architecture.family,
        pipeline=type(subject.model.pipeline).__name__,
        layers=" + ".join(f"{count} {kind}" for kind, count in kinds.items()) + " blocks",
        grid=geometry.grid,
        branches=geometry.branches,
        checks=results,
        seconds=time.perf_counter() - started,
    )


def _smallest(model: VideoDiT, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a small run: three steps, guidance on, a grid of three different numbers."""
    tall, wide, long = model.architecture.multiples(model.pipeline)
    chosen: dict[str, Any] = {"num_inference_steps": 3, "height": 3 * tall, "width": 4 * wide, "num_frames": 1 + long}
    if "guidance_scale" in _parameters(model):
        chosen["guidance_scale"] = 3.0
    chosen |= settings
    while "num_frames" not in settings:
        grid = model.geometry(**chosen).grid
        if len(set(grid)) == 3:
            break
        chosen["num_frames"] += long
    return chosen


def _parameters(model: VideoDiT) -> set[str]:
    return set(inspect.signature(type(model.pipeline).__call__).parameters)
