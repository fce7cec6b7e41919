"""What is compared: pairs of ways to generate the same video, and what must be equal in a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dit_lens as dl
from tests.benchmarks.models import Bench


@dataclass
class Outcome:
    """What one generation leaves: final latents (B, C, F, H, W), kept activations in order, and the ledger."""

    latents: Tensor
    kept: list[Tensor] = field(default_factory=list)
    ledger: dl.Ledger | None = None


Side = Callable[[], Outcome]

_STRANGER = "the same pipeline that never met dit_lens"


@dataclass(frozen=True)
class Case:
    """Two ways to the same video.

    Attributes
    ----------
    name : str
    measured, against : str
        The two sides in words; the ratio is measured / against.
    sides : (Side, Side)
    limit : float or None
        What the ratio may be.
    facts : callable (Outcome, Outcome) -> dict
        What does not depend on the clock.
    weighed : dict from name to Side
        What the measured side's peak memory is compared with; not measured where empty.
    """

    name: str
    measured: str
    against: str
    sides: tuple[Side, Side]
    limit: float | None
    facts: Callable[[Outcome, Outcome], dict[str, Any]]
    weighed: Mapping[str, Side] = field(default_factory=dict)


def cases(bench: Bench) -> list[Case]:
    """All pairs at one size."""
    stranger, hooked, model = partial(_stranger, bench), partial(_hooked, bench), _STRANGER
    called_back = {"callback_on_step_end": lambda pipeline, step, timestep, kwargs: kwargs}
    weighed = {"plain": stranger, "plain with a step callback": partial(_stranger, bench, **called_back)}
    weighed_hooks = {"hooks": hooked, "hooks with a step callback": partial(_hooked, bench, **called_back)}
    everything, resume = dl.Sites("resid"), dl.Resume(bench.record, bench.steps // 2)
    pooled, full = dl.Capture(everything, reduce="token_mean"), dl.Capture(everything)
    return [
        Case(
            "unwrapped", "the pipeline called by hand after dit_lens has run it", model,
            (partial(_by_hand, bench), stranger), 1.01, _equal,
        ),
        Case(
            "nothing", "run() with no interventions", model, (partial(_run, bench), stranger), 1.01, _equal, weighed,
        ),
        Case(
            "pooled", "mean over tokens after every block, all layers, steps and branches", model,
            (partial(_run, bench, interventions=[pooled]), stranger), bench.size.pooled_limit,
            partial(_captured, _pooled_bytes(bench)), weighed,
        ),
        Case(
            "full", "every block's whole output, all layers, steps and branches",
            "torch forward hooks that clone, on the pipeline that never met dit_lens",
            (partial(_run, bench, interventions=[full]), hooked), 1.0,
            partial(_captured, _pooled_bytes(bench) * bench.facts()["tokens"]), weighed_hooks,
        ),
        Case(
            "resumed", f"run() resumed at step {resume.step} of {bench.steps}", "run() from the start",
            (partial(_run, bench, resume=resume), partial(_run, bench)), None, partial(_resumed, resume, bench.steps),
        ),
    ]  # fmt: skip


def _by_hand(bench: Bench) -> Outcome:
    return Outcome(bench.plain(bench.model.pipeline))


def _stranger(bench: Bench, **more: Any) -> Outcome:
    return Outcome(bench.plain(bench.stranger, **more))


def _run(bench: Bench, **more: Any) -> Outcome:
    run = bench.run(**more)
    return Outcome(run.latents, list(run.captures.get("", {}).values()), run.ledger)


def _hooked(bench: Bench, **more: Any) -> Outcome:
    """What one would write without a library: a hook on every block, and a list."""
    kept: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Tensor) -> None:
        kept.append(output.clone())

    with ExitStack() as stack:
        for block in bench.stranger.transformer.blocks:
            stack.callback(block.register_forward_hook(keep).remove)
        return Outcome(bench.plain(bench.stranger, **more), kept)


def _equal(measured: Outcome, against: Outcome) -> dict[str, Any]:
    return {"same latents": torch.equal(measured.latents, against.latents)}


def _pooled_bytes(bench: Bench) -> int:
    """Bytes of one vector of width D for every layer, step and branch, computed without a run."""
    found = bench.facts()
    sites = found["layers"] * found["steps"] * len(found["branches"])
    return int(sites * found["width"] * bench.transformer.dtype.itemsize)


def _captured(expected: int, measured: Outcome, against: Outcome) -> dict[str, Any]:
    assert measured.ledger is not None
    held = sum(t.untyped_storage().nbytes() for t in measured.kept)
    facts = {"expected bytes": expected, "ledger bytes": measured.ledger.captured_bytes, "held bytes": held}
    if against.kept:
        same = [torch.equal(a.flatten(), b.flatten()) for a, b in zip(measured.kept, against.kept, strict=True)]
        facts["same captures"] = all(same)
    return {**_equal(measured, against), **facts}


def _resumed(resume: dl.Resume, steps: int, measured: Outcome, against: Outcome) -> dict[str, Any]:
    assert measured.ledger is not None
    assert against.ledger is not None
    share = measured.ledger.denoiser_forwards / against.ledger.denoiser_forwards
    forwards = {"forwards": measured.ledger.denoiser_forwards, "whole forwards": against.ledger.denoiser_forwards}
    return {**_equal(measured, against), **forwards, "share": share, "expected share": (steps - resume.step) / steps}
