"""An intervention as a function inside a trace of one's own."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from dit_lens.engine.envoys import at, follow, module_of
from dit_lens.engine.plan import Planned, dressed
from dit_lens.engine.recorder import ActiveCall, Recorder, Visitor
from dit_lens.engine.traversal import Walk
from dit_lens.errors import InputError, SiteError
from dit_lens.families.registry import family_named
from dit_lens.interventions.base import Intervention, check
from dit_lens.runs.call import Call
from dit_lens.sites.site import Site


def apply(intervention: Intervention, call: Call, dit: Any, into: dict[Site, Tensor] | None = None) -> None:
    """Apply an intervention inside an nnsight trace of a denoiser call.

    In the body of a run (``body=function(call, dit)``) or in a trace that one opens oneself over a recorded call. It
    reads the modules that it needs in their order of execution: a module that the trace has read before it cannot be
    read again.

    Parameters
    ----------
    intervention : Intervention
        Of its sites those that lie in this call.
    call : Call
        What ``body`` is given, or one of ``Run.calls`` of a run made with ``record=True``.
    dit : nnsight envoy of the transformer
    into : dict, optional
        Where captures go; without it those made in a body go to ``Run.captures``.

    Raises
    ------
    SiteError, DonorError, InputError
        As in `VideoDiT.run`; also for a capture outside of a run that is given nowhere to go.
    """
    context = call.context
    sites = intervention.sites.resolve(context.geometry)
    check(intervention, sites, context.geometry, context.rows)
    if around := [s for s in sites if s.branch is None]:
        raise SiteError(f"apply: {around[0].component} lies around the denoiser's calls; give it to the run as a list")
    here = dressed([s for s in sites if s.step == call.step and s.branch in call.branches], call)
    of_run = call.recorder if isinstance(call, ActiveCall) else None
    recorder = of_run if into is None and of_run is not None and of_run.active else _Into(into, intervention)
    visitor = Visitor(family_named(context.family), context, recorder)
    walk = Walk(call, module_of(dit), [(Planned(intervention, tuple(here)), here)], visitor)
    follow(walk(), partial(at, dit))


class _Into(Recorder):
    """Captures into a dictionary of the user's."""

    def __init__(self, into: dict[Site, Tensor] | None, intervention: Intervention) -> None:
        super().__init__()
        self.into, self.name = into, type(intervention).__name__

    def keep(self, site: Site, name: str, tensor: Tensor) -> None:
        if self.into is None:
            raise InputError(f"{self.name} at {site}: this call is of no active run; give apply(..., into={{}})")
        super().keep(site, name, tensor)
        self.into[site] = tensor
