"""What a run intends: interventions with the sites that they resolved to, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import InputError, SiteError
from dit_lens.interventions.base import At, Intervention, check
from dit_lens.runs.call import Call
from dit_lens.runs.edits import Edit, taken_over
from dit_lens.runs.inputs import Row
from dit_lens.runs.replay import Resume
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import READ_ONLY, STEP_COMPONENTS, Site
from dit_lens.sites.sites import Sites


@dataclass
class Planned:
    """An intervention, the sites it resolved to, and how many of them it has met."""

    intervention: Intervention
    sites: tuple[Site, ...]
    visited: int = 0
    _by_call: dict[tuple[int, str | None], list[Site]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for site in self.sites:
            self._by_call.setdefault((site.step, site.branch), []).append(site)

    @property
    def reads_only(self) -> bool:
        return bool(getattr(self.intervention, "reads_only", False))

    @property
    def skips(self) -> bool:
        return bool(getattr(self.intervention, "skips", False))

    def at_call(self, step: int, branch: str) -> list[Site]:
        return self._by_call.get((step, branch), [])

    def at_step(self, step: int, component: str) -> list[Site]:
        return [s for s in self._by_call.get((step, None), []) if s.component == component]


def listed(interventions: Iterable[Intervention]) -> tuple[Intervention, ...]:
    """Interventions that can be gone through more than once.

    Raises
    ------
    InputError
        One that stands alone.
    """
    if isinstance(interventions, Iterable):
        return tuple(interventions)
    raise InputError(f"interventions={interventions!r:.80}: need a list of interventions, if only of one")


def is_within(site: Site, steps: Sequence[int]) -> bool:
    """Whether a site lies within a denoiser call of some steps, not around it."""
    return site.step in steps and site.branch is not None


@dataclass(frozen=True)
class _Within:
    """The part of an intervention that acts within denoiser calls, of all steps or of one."""

    whole: Intervention
    step: int | None = None

    @property
    def sites(self) -> Sites:
        sites = self.whole.sites
        within = sites.at(component=tuple(c for c in sites.components if c not in STEP_COMPONENTS))
        return within if self.step is None else within.at(steps=self.step)

    @property
    def reads_only(self) -> bool:
        return bool(getattr(self.whole, "reads_only", False))

    def __call__(self, activation: Tensor, at: At) -> Tensor | None:
        return self.whole(activation, at)

    def check(self, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
        check(self.whole, sites, geometry, rows)


def acting(interventions: Iterable[Intervention], geometry: Geometry, *steps: int) -> list[Intervention]:
    """What a replay of some steps meets of interventions; what acts around their calls is in the record already."""
    met = [i for i in interventions if any(is_within(site, steps) for site in i.sites.resolve(geometry))]
    return [_Within(i) if set(i.sites.components) & set(STEP_COMPONENTS) else i for i in met]


def acting_at(interventions: Iterable[Intervention], geometry: Geometry, step: int) -> list[Intervention]:
    """What a run that goes on at a step meets of interventions in that step: the same, of this step alone."""
    return [
        _Within(i, step) for i in interventions if any(is_within(site, [step]) for site in i.sites.resolve(geometry))
    ]


def require_within(plan: Iterable[Planned], steps: Sequence[int]) -> None:
    """Refuse sites between denoiser calls at steps that are done again from a record.

    Raises
    ------
    SiteError
    """
    for site in (site for planned in plan for site in planned.sites):
        if site.step in steps and site.branch is None:
            raise SiteError(
                f"{site} lies between denoiser calls, of which a record has the state as it was: choose components "
                f"within them, or make the run under this intervention"
            )


def edits_of(
    plan: Iterable[Planned], body: object | None, resume: Resume | None, geometry: Geometry
) -> tuple[Edit, ...]:
    """What changes a run: interventions that do not only read, a body, and what changed the record it resumes from."""
    first = 0 if resume is None else resume.step
    before = () if resume is None else taken_over(resume.run.edited, resume.step, resume.layer)
    own = [
        Edit(str(p.intervention.sites), tuple(sorted({s.step for s in p.sites})), any(s.branch for s in p.sites))
        for p in plan
        if not p.reads_only
    ]
    written = [] if body is None else [Edit("body", tuple(range(first, geometry.steps)), True)]
    return (*before, *own, *written)


def make_plan(interventions: Sequence[Intervention], geometry: Geometry, rows: tuple[Row, ...]) -> list[Planned]:
    """Resolve every intervention's sites and let it refuse what cannot work.

    Raises
    ------
    SiteError, DonorError, InputError
        Naming the site and the valid values.
    """
    plan = []
    for intervention in interventions:
        if not isinstance(getattr(intervention, "sites", None), Sites) or not callable(intervention):
            raise InputError(f"{intervention!r} is no intervention: it needs `sites` and a call (activation, at)")
        sites = intervention.sites.resolve(geometry)
        _check_rows(intervention, rows)
        edited = [s for s in sites if s.component in READ_ONLY]
        if not getattr(intervention, "reads_only", False):
            if edited:
                raise SiteError(f"{edited[0].component} is read only; edit velocity, or latents of the next step")
            _check_fixed(intervention.sites, sites, geometry)
        check(intervention, sites, geometry, rows)
        plan.append(Planned(intervention, sites))
    return plan


def _check_rows(intervention: Intervention, rows: tuple[Row, ...]) -> None:
    """Refuse tokens of each row for another number of rows."""
    named = intervention.sites.tokens.rows_named
    if named not in (None, len(rows)):
        raise SiteError(
            f"{type(intervention).__name__} at [{intervention.sites}]: tokens of {named} rows, and this run has "
            f"{len(rows)}; `runs` takes a function (inputs, seeds) that makes the interventions of each batch"
        )


def _check_fixed(selection: Sites, sites: Sequence[Site], geometry: Geometry) -> None:
    """Refuse an edit of frames of the state that the pipeline overwrites before the denoiser sees them."""
    site = next((s for s in sites if s.component == "latents"), None)
    if site is None or not geometry.fixed_frames:
        return
    frames, *_ = geometry.latent_grid
    cells = selection.tokens.of_any_row.resolve(geometry, component="latents").take(_frame_numbers(geometry), "latents")
    if overwritten := sorted(set(cells.flatten().tolist()) & set(geometry.fixed_frames)):
        free = [f for f in range(frames) if f not in geometry.fixed_frames]
        raise SiteError(
            f"{site}: the pipeline overwrites latent frames {overwritten} of the state at every step; choose among "
            f"tokens=Tokens(frames={free}), or edit model_input"
        )


def _frame_numbers(geometry: Geometry) -> Tensor:
    """The number of its frame in every cell of the latent grid: (1, 1, F, H, W)."""
    frames, rows, columns = geometry.latent_grid
    return torch.arange(frames).reshape(1, 1, frames, 1, 1).expand(1, 1, frames, rows, columns)


def check_stop(stop_after: int | str | None, geometry: Geometry, plan: Sequence[Planned]) -> None:
    if stop_after is None:
        return
    if stop_after == "last site":
        if not plan:
            raise InputError("stop_after='last site': this run has no interventions, so it has no last site")
    elif not isinstance(stop_after, int) or isinstance(stop_after, bool) or not 0 <= stop_after < geometry.steps:
        raise InputError(
            f"stop_after={stop_after!r}: 'last site', or a step; this run has steps 0..{geometry.steps - 1}"
        )


def check_reached(resume: Resume, plan: Sequence[Planned], first: int = 0) -> None:
    """Refuse sites from step ``first`` on that a resumed run does not compute."""
    for planned in plan:
        for site in planned.sites:
            skipped = (site.layer is not None and site.layer < resume.layer) or site.component == "embed"
            if first <= site.step < resume.step or (resume.layer and site.step == resume.step and skipped):
                raise SiteError(
                    f"{site} lies before step {resume.step}, layer {resume.layer}, from where this run resumes"
                )


def dressed(sites: Sequence[Site], call: Call) -> list[Site]:
    """Sites with what rides along: the call's noise level and expert."""
    along = {"sigma": call.sigma, "alpha": call.alpha, "expert": call.expert}
    return [_copy(site, along) for site in sites]


def _copy(site: Site, changes: Mapping[str, Any]) -> Site:
    """As `dataclasses.replace`, a fifth of its time: in every call of a run there is one for each site."""
    copy = object.__new__(Site)
    copy.__dict__.update(site.__dict__, **changes)
    return copy


def bypass_in(planned: Sequence[Planned]) -> int | None:
    """The first of a list that bypasses every token and behind which nothing but bypasses edits; None without one."""
    for place, p in enumerate(planned):
        if p.skips and p.intervention.sites.tokens.is_all and all(q.skips or q.reads_only for q in planned[place:]):
            return place
    return None
