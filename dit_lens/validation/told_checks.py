"""Checks of what blocks and the output head are told besides their residual streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dit_lens.engine.layout import per_row
from dit_lens.interventions.base import FromFunction
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.patch import Patch
from dit_lens.runs.run import Run
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import CARRIED, TOLD_COMPONENTS, Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
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
    block. Given them at half of the video's tokens alone, it gives what the other row gives that is given all else; and
    after the last block, its own prediction at the other half.
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
    depths = range(-1, geometry.layers)
    worst = max((_swapped(subject, twins, after, told), after) for after in depths)
    halves = max((_halved(subject, twins, after, told), after) for after in depths)
    return (
        f"after the embedding and every block, worst {worst[0]:.1f} units from the other row, after {_name(worst[1])}; "
        f"half of the tokens and all else, worst {halves[0]:.1f} units apart, after {_name(halves[1])}"
    )


def _swapped(subject: Subject, twins: Run, after: int, told: tuple[str, ...]) -> float:
    """How far a row that is given all that the other knows after a block is from the other's prediction."""
    sites = [_after(after).at(stream="all"), *_behind(twins.geometry, after, told)]
    return _apart(
        _given(subject, twins, sites), _own(twins), f"all streams after {_name(after)}, and what is told behind"
    )


def _halved(subject: Subject, twins: Run, after: int, told: tuple[str, ...]) -> float:
    """How far half of the tokens given to one row are from all else given to the other."""
    geometry = twins.geometry
    half = torch.zeros(geometry.grid, dtype=torch.bool)
    half.view(-1)[: half.numel() // 2] = True
    one, rest = _after(after).at(tokens=Tokens(mask=half)), _after(after).at(tokens=Tokens(mask=~half))
    texts = [_after(after).at(stream=stream) for stream in geometry.streams if stream != "video"]
    given = _given(subject, twins, [one])
    if after == geometry.layers - 1:
        _require_local(given, twins, half)
    all_else = _given(subject, twins, [rest, *texts, *_behind(geometry, after, told)])
    return _apart(all_else, given, f"half of the tokens after {_name(after)}, and all else")


def _require_local(given: Mapping[str, Tensor], twins: Run, half: Tensor) -> None:
    """After the last block a token decides its own cells alone."""
    geometry = twins.geometry
    for axis, (cells, tokens) in enumerate(zip(geometry.latent_grid, geometry.grid, strict=True)):
        half = half.repeat_interleave(cells // tokens, dim=axis)
    for branch, velocity in given.items():
        own = _own(twins)[branch]
        same = torch.equal(velocity[:, :, ~half], own[:, :, ~half])
        ensure(same, f"s00/{branch}: tokens after the last block moved the prediction at others")


def _own(twins: Run) -> dict[str, Tensor]:
    return {site.branch or "": x for site, x in twins.captures[""].items() if site.component == "velocity"}


def _after(after: int) -> Sites:
    return Sites("embed", steps=0) if after < 0 else Sites("resid", steps=0, layers=after)


def _behind(geometry: Geometry, after: int, told: tuple[str, ...]) -> list[Sites]:
    """What the head and the blocks behind one are told; of a stream that they carry on, what the first of them is."""
    behind = list(range(after + 1, geometry.layers))
    found = [Sites("head_modulation", steps=0)]
    for component, stream in ((c, s) for c in told for s in geometry.streams_of(c)):
        chosen = behind[:1] if component == "context" and stream in CARRIED else behind
        found += [Sites(component, steps=0, layers=chosen, stream=stream)] if chosen else []
    return found


def _given(subject: Subject, twins: Run, sites: Sequence[Sites]) -> dict[str, Tensor]:
    """Predictions by branch where each row is given the other's activations."""
    return subject.model.replay(twins, 0, [_of_the_other(twins, chosen) for chosen in sites]).velocities


def _apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str) -> float:
    """The largest distance of one row's prediction from the other row's, in units in the last place."""
    worst = 0.0
    for branch, velocity in one.items():
        error = ulps(velocity, other[branch][[1, 0]], other[branch])
        ensure(error <= 64, f"s00/{branch}: {what}, are {error:.1f} units apart")
        worst = max(worst, error)
    return worst


def _of_the_other(twins: Run, sites: Sites) -> FromFunction:
    """Not a `Patch`, which refuses a text of another length where its mask does not come with it."""
    return FromFunction(sites, lambda x, at: sites.tokens.take(twins[at.site][[1, 0]], at.site.component))


def _name(after: int) -> str:
    return "the embedding" if after < 0 else f"L{after:02d}"
