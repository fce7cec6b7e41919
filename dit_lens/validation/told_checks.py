"""Checks of what blocks and the output head are told besides their residual streams."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dit_lens.engine.layout import per_row
from dit_lens.interventions.base import FromFunction
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.patch import Patch
from dit_lens.runs.run import Run
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import TOLD_COMPONENTS, Site
from dit_lens.sites.sites import Sites
from dit_lens.validation.comparing import ensure, ulps
from dit_lens.validation.witness import Observed, Subject


def check_told(subject: Subject) -> str:
    """What is read is what each block's forward and the head were given; put back in its place it changes no bit."""
    components = (*_told(subject.base.geometry), "head_modulation")
    sites = Sites(components, stream="all")
    run = subject.run([Capture(sites)])
    ensure(torch.equal(run.latents, subject.base.latents), f"reading {', '.join(components)} moved the final latents")
    seen = 0
    for site, given in _seen(subject, subject.plain):
        ensure(site in run.captures[""], f"{site} was given and is not read")
        ensure(torch.equal(run[site], given), f"{site}: what is read is not what was given")
        seen += 1
    missing = len(run.captures[""]) - seen
    ensure(not missing, f"{missing} sites were read of which the witness saw nothing")
    patched = subject.run([Patch(run, sites)])
    ensure(torch.equal(patched.latents, run.latents), "patching what is told with its own moved the final latents")
    return f"{', '.join(components)}: {seen} as given; put back: the same bits"


def _told(geometry: Geometry) -> tuple[str, ...]:
    return tuple(component for component in TOLD_COMPONENTS if geometry.streams_of(component))


def _seen(subject: Subject, plain: Observed) -> Iterator[tuple[Site, Tensor]]:
    """Every site at which something is told, with what torch's hooks saw there in a plain call of the pipeline."""
    rows = len(subject.inputs)
    for call, blocks, head in zip(subject.base.calls, plain.calls, plain.head_told, strict=True):
        for branch in call.branches:
            own, batch = call.rows(branch), rows * len(call.branches)
            yield Site(call.step, branch, None, "head_modulation"), per_row(head, batch)[own]
            for layer, block in enumerate(blocks):
                for told in (t for t in block.block.told if t.has(block.met.module)):
                    given = told.take(block.met)
                    if given is not None:
                        yield Site(call.step, branch, layer, told.component, told.stream), per_row(given, batch)[own]


def check_flow(subject: Subject) -> str:
    """The residual streams after a block and what the blocks behind it and the head are told are all that they know.

    Two rows start from the same noise with different inputs. Given the other row's streams after block k and all that
    it tells the blocks behind k and the head, a row gives the other row's prediction, for k the embedding and every
    block.
    """
    geometry = subject.base.geometry
    told = _told(geometry)
    keep = [Capture(Sites(("embed", "resid", *told, "head_modulation"), steps=0, stream="all"))]
    twins = subject.run(
        [*keep, Capture(Sites("velocity", steps=0))],
        inputs=subject.own_inputs,
        seed=[11, 11],
        record=True,
        stop_after=0,
    )
    own = twins[Site(0, "cond", None, "velocity")]
    ensure(not torch.equal(own[0], own[1]), "the two inputs give one prediction, which tells nothing")
    worst = max((_swapped(subject, twins, after, told), after) for after in range(-1, geometry.layers))
    return (
        f"after the embedding and every block, worst {worst[0]:.1f} units from the other row, after {_name(worst[1])}"
    )


def _swapped(subject: Subject, twins: Run, after: int, told: tuple[str, ...]) -> float:
    """How far a row that is given all that the other knows after a block is from the other's prediction."""
    geometry = twins.geometry
    streams = (
        Sites("embed", steps=0, stream="all") if after < 0 else Sites("resid", steps=0, layers=after, stream="all")
    )
    chosen = [streams, Sites("head_modulation", steps=0)]
    if behind := list(range(after + 1, geometry.layers)):
        chosen.append(Sites(told, steps=0, layers=behind, stream="all"))
    replay = subject.model.replay(twins, 0, [_of_the_other(twins, sites) for sites in chosen])
    worst = 0.0
    for branch, velocity in replay.velocities.items():
        own = twins[Site(0, branch, None, "velocity")]
        error = ulps(velocity, own[[1, 0]], own)
        where = f"s00/{branch}: all streams after {_name(after)} and what is told behind it"
        ensure(error <= 64, f"{where}, of the other row: {error:.1f} units from its prediction")
        worst = max(worst, error)
    return worst


def _of_the_other(twins: Run, sites: Sites) -> FromFunction:
    """Not a `Patch`, which refuses a text of another length where its mask does not come with it."""
    return FromFunction(sites, lambda x, at: twins[at.site][[1, 0]])


def _name(after: int) -> str:
    return "the embedding" if after < 0 else f"L{after:02d}"
