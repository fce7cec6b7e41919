"""Reading one component of a run at many steps and layers: what the energy, PCA and CKA lenses begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import InputError, SiteError
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.reduce import Reduce
from dit_lens.lens.reading import Reading, reading_of
from dit_lens.lens.source import at_branch, captured, require_selection, require_sites
from dit_lens.model import VideoDiT
from dit_lens.runs.run import Run
from dit_lens.sites.site import TERM_COMPONENTS, Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens

#: Components of which every layer has one activation. A head's has several, and the others belong to no layer.
READABLE = ("resid", "delta", *TERM_COMPONENTS)


def require_readable(lens: str, sites: Sites, branch: str) -> Sites:
    """The sites of one component, stream and branch: what the lenses of this room compare with each other.

    Of a text stream they are the positions that hold a word in every row.

    Raises
    ------
    SiteError, InputError
        Sites of several, or of what no layer has one activation of.
    """
    require_selection(lens, sites)
    for what, given in (("component", sites.component), ("stream", sites.stream)):
        if not isinstance(given, str) or given == "all":
            raise InputError(f"{what}={given!r}: name one, for several are not compared with each other here")
    require_sites(lens, sites, READABLE, streams=None)
    sites = at_branch(sites, branch)
    return sites if sites.stream == "video" else sites.at(tokens=Tokens(text="shared"))


def read(
    model: VideoDiT,
    source: Any,
    sites: Sites,
    reduces: Mapping[str, Reduce | str | None],
    run_arguments: Mapping[str, Any],
) -> tuple[Reading, dict[str, Tensor]]:
    """One component reduced in one or several ways: under each name (steps, layers, B, ...).

    Layers that do not have the component are left out where the sites are of all layers.

    Parameters
    ----------
    sites : Sites
        From `require_readable`.
    reduces : mapping from a name to what `Capture` takes as ``reduce``
    """
    captures = [Capture(sites, reduce=reduce, name=f"lens.{name}") for name, reduce in reduces.items()]
    run, found = captured(model, source, captures, run_arguments)
    reading = _reading(run, list(found[captures[0].name]))
    return reading, {name: _stacked(reading, found[f"lens.{name}"]) for name in reduces}


def _reading(run: Run, sites: Sequence[Site]) -> Reading:
    levels = {site.step: (site.sigma, site.expert) for site in sorted(sites) if site.sigma is not None}
    layers = sorted({site.layer for site in sites if site.layer is not None})
    first = sites[0]
    assert first.branch is not None
    return reading_of(run, levels, layers, first.component, first.stream, first.branch)


def _stacked(reading: Reading, found: Mapping[Site, Tensor]) -> Tensor:
    """Captures as (steps, layers, B, ...)."""
    shapes = {tuple(t.shape) for t in found.values()}
    if len(shapes) > 1:
        where = f"{reading.component} of stream {reading.stream}"
        raise SiteError(f"{where} differs in shape between layers or steps: {sorted(shapes)}; read them one by one")
    by_place = {(site.step, site.layer): tensor for site, tensor in found.items()}
    return torch.stack([torch.stack([by_place[step, layer] for layer in reading.layers]) for step in reading.steps])
