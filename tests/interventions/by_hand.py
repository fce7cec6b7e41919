"""An `At`, a `Geometry` and a `Run` without a model, to call interventions as plain functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import dit_lens as dl
from dit_lens.sites.geometry import Layer

GRID = (3, 2, 4)
WIDTH = 6
LATENT = (5, 3, 4, 8)
STEPS = 4
#: Noise levels of a flow-matching run.
SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)

PARTS = ("attn", "cross_attn", "ffn", "delta", "resid")


def make_geometry(**changes: Any) -> dl.Geometry:
    """Two blocks, each with a video and a text stream."""
    shapes = dict.fromkeys(("embed", "head", *PARTS), (*GRID, WIDTH))
    shapes |= dict.fromkeys(("latents", "velocity", "guided"), LATENT)
    shapes |= {"model_input": (9, *LATENT[1:])}
    kind = Layer("dual", {"video": PARTS, "text": PARTS}, {"video": 2, "text": 2})
    geometry = dl.Geometry(STEPS, 2, ("cond", "uncond"), GRID, ("video", "text"), shapes, (kind, kind))
    return replace(geometry, **changes)


GEOMETRY = make_geometry()


def make_rows(count: int) -> tuple[dl.Row, ...]:
    return tuple(dl.Row("one", seed) for seed in range(count))


def make_at(site: str, rows: int = 2, **more: Any) -> dl.At:
    """Where an activation is met, with the levels of a flow-matching run."""
    address = dl.Site.parse(site)
    sigma = more.pop("sigma", SIGMAS[address.step])
    address = replace(address, sigma=sigma, alpha=more.pop("alpha", 1 - sigma))
    kept = more.pop("kept", {})
    return dl.At(address, make_rows(rows), kept.__setitem__, GEOMETRY, **more)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_run(captures: Mapping[str, Tensor], sigmas: tuple[float, ...] = SIGMAS, **changes: Any) -> dl.Run:
    """A run that left nothing but captures."""
    found = {}
    for text, tensor in captures.items():
        site = dl.Site.parse(text)
        found[replace(site, sigma=sigmas[site.step])] = tensor
    rows = make_rows(len(next(iter(captures.values()))))
    steps = len(sigmas) - 1
    schedule = dl.Schedule("flow", tuple(1 - s for s in sigmas), sigmas, (1.0,) * steps,
                           tuple(-s for s in sigmas[:-1]), (1.0,) * steps)  # fmt: skip
    given = {
        "inputs": tuple(row.instance for row in rows),
        "rows": rows,
        "geometry": make_geometry(steps=steps),
        **changes,
    }
    return dl.Run(id="by-hand", model_id="none", family="wan", setup={}, content=("",) * len(rows), frames=None,
                  latents=torch.zeros(()), schedule=schedule, settings={}, captures={"": found}, calls=(), states=(),
                  ledger=dl.Ledger(), **given)  # fmt: skip


def check(intervention: Any, rows: int = 2, geometry: dl.Geometry = GEOMETRY) -> None:
    """The intervention's own check, as a run makes it."""
    intervention.check(intervention.sites.resolve(geometry), geometry, make_rows(rows))
