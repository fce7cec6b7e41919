"""What a lens reads: inputs, which it runs first, or a run that was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dit_lens.engine.plan import acting, is_within, listed, make_plan, require_within
from dit_lens.errors import DidNotFire, InputError, SiteError
from dit_lens.interventions.base import Intervention
from dit_lens.interventions.capture import Capture
from dit_lens.model import VideoDiT
from dit_lens.runs.call import Call
from dit_lens.runs.edits import named
from dit_lens.runs.replay import Replay
from dit_lens.runs.run import Run
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import indices, is_all, show
from dit_lens.sites.site import LAYER_COMPONENTS, Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens

#: Arguments of `VideoDiT.run` that are none of the pipeline's.
_OF_THE_RUN = ("seed", "interventions", "body", "decode", "record", "stop_after", "resume")
#: Those that a lens sets itself.
_OF_THE_LENS = ("decode", "record", "stop_after")


def require_sites(
    lens: str,
    sites: Sites,
    components: Sequence[str],
    *,
    streams: Sequence[str] | None = ("video",),
    tokens: bool = False,
    heads: bool = False,
) -> None:
    """Refuse what a lens does not read, before anything runs.

    Parameters
    ----------
    components : list of str
        Those that it reads.
    streams : list of str, optional
        The same of streams, None for one of any name.
    tokens, heads : bool
        Whether it reads some of them.

    Raises
    ------
    SiteError
        Names what was given and what is read.
    """
    require_selection(lens, sites)
    if wrong := [c for c in sites.components if c not in components]:
        raise SiteError(f"{lens} reads {', '.join(components)}; {wrong[0]!r} is none of them")
    if streams is not None and sites.stream not in streams:
        raise SiteError(f"{lens} reads the stream {' or '.join(streams)}, got stream={sites.stream!r}")
    if not (tokens or sites.tokens == Tokens()):
        raise SiteError(f"{lens} reads all tokens, got tokens {sites.tokens}")
    if not (heads or is_all(sites.heads)):
        raise SiteError(f"{lens} does not tell heads apart, got heads {show(sites.heads)}")
    if not (is_all(sites.layers) or set(components) & set(LAYER_COMPONENTS)):
        raise SiteError(f"{lens} reads what belongs to no layer, got layers {show(sites.layers)}")


def require_selection(lens: str, sites: Any) -> None:
    """Refuse what is no `Sites`.

    Raises
    ------
    SiteError
    """
    if not isinstance(sites, Sites):
        raise SiteError(f"{lens} needs sites=Sites(...), got {sites!r:.80}")
    if sites.tokens.rows_named is not None:
        raise SiteError(f"{lens} reads the same tokens of every row, got tokens {sites.tokens}")


def at_branch(sites: Sites, branch: str) -> Sites:
    """The sites of the one branch that a lens reads.

    Raises
    ------
    InputError
        Several branches.
    SiteError
        The sites are none, or name another branch.
    """
    require_selection("a lens", sites)
    if not isinstance(branch, str) or branch == "all":
        raise InputError(f"branch={branch!r}: name one, such as 'cond'; a lens reads one branch at a time")
    if sites.branches not in ("all", branch, (branch,)):
        raise SiteError(f"the sites are of branch {sites.branches!r} and branch={branch!r}: give branch= alone")
    return sites.at(branches=branch)


def geometry_of(model: VideoDiT, inputs: Any, run_arguments: Mapping[str, Any]) -> Geometry:
    """What a run with these arguments would offer, without running."""
    return model.geometry(inputs, **{k: v for k, v in run_arguments.items() if k not in _OF_THE_RUN})


def arguments_of(given: Mapping[str, Any]) -> tuple[Any, tuple[Intervention, ...], dict[str, Any]]:
    """Seed, interventions and all other arguments of the run that a lens makes.

    Raises
    ------
    InputError
        An argument that the lens sets itself.
    """
    if wrong := [name for name in _OF_THE_LENS if name in given]:
        raise InputError(f"{wrong[0]}= is set by the lens, which runs as far as it reads and decodes nothing: omit it")
    others = {name: value for name, value in given.items() if name not in ("seed", "interventions")}
    return given.get("seed", 0), listed(given.get("interventions", ())), others


def replayed_arguments_of(given: Mapping[str, Any]) -> tuple[Any, tuple[Intervention, ...], dict[str, Any]]:
    """The same where the steps of the run are done again.

    Raises
    ------
    InputError
        Plain nnsight code, which is not done again with them.
    """
    if given.get("body") is not None:
        raise InputError("body= is not done again where a step is replayed; give interventions=")
    return arguments_of(given)


def reusable(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for two runs that must be the same: an iterator of seeds or interventions is read once."""
    found = dict(given)
    if isinstance(found.get("seed"), Iterable):
        found["seed"] = list(found["seed"])
    return found | ({"interventions": listed(found["interventions"])} if "interventions" in found else {})


@dataclass(frozen=True)
class Recorded:
    """A recorded run, and the interventions that its steps are read under."""

    run: Run
    interventions: tuple[Intervention, ...] = ()

    @classmethod
    def of(cls, model: VideoDiT, source: Any, sites: Sites, run_arguments: Mapping[str, Any]) -> Recorded:
        """From a recorded run, or from inputs, which are run up to the last step of the sites.

        Parameters
        ----------
        source : Run, or inputs as in `VideoDiT.run`
        sites : Sites
            What will be read.
        run_arguments : mapping
            Of `VideoDiT.run`; beside a run only ``interventions``, under which its steps are done again.

        Raises
        ------
        InputError
            The run was not recorded, it was made under interventions and none are given, or arguments that have no
            meaning beside it.
        MadeForAnother
            The run is of another model.
        SiteError
            Sites that the run does not have, or an intervention between its denoiser calls.
        DidNotFire
            An intervention at none of the steps that are read.
        """
        if isinstance(source, Run):
            return cls._of_run(model, source, sites, run_arguments)
        seed, interventions, others = replayed_arguments_of(run_arguments)
        geometry = geometry_of(model, source, others)
        sites.resolve(geometry)
        last = indices(sites.steps, geometry.steps, "step")[-1]
        made = model.run(
            source, seed, interventions=interventions, record=True, decode=False, stop_after=last, **others
        )
        return cls(made, interventions)

    @classmethod
    def _of_run(cls, model: VideoDiT, run: Run, sites: Sites, run_arguments: Mapping[str, Any]) -> Recorded:
        if wrong := [name for name in run_arguments if name != "interventions"]:
            raise InputError(f"{wrong[0]}= beside a run that is made already: omit it, or give inputs instead of a run")
        model.require_own(run)
        found = cls(run, listed(run_arguments.get("interventions", ())))
        sites.resolve(run.geometry)
        steps = found.steps(sites)
        for step in steps:
            run.recorded(step)
        edits = [edit for edit in run.edited if edit.within and set(edit.steps) & set(steps)]
        if edits and "interventions" not in run_arguments:
            raise InputError(
                f"this run was made under interventions at {named(edits)}: give interventions=, those that act within "
                "denoiser calls again, or [] to read its steps without any"
            )
        plan = make_plan(found.interventions, run.geometry, run.rows)
        for planned in plan:
            if not any(is_within(site, steps) for site in planned.sites):
                name, where = type(planned.intervention).__name__, planned.intervention.sites
                raise DidNotFire(
                    f"{name} at [{where}] is within no denoiser call of the steps that are read, "
                    f"{', '.join(map(str, steps))}; for the state between calls make the run under it"
                )
        require_within(plan, steps)
        return found

    def steps(self, sites: Sites) -> list[int]:
        """The selected steps; "all" are those that were finished where the run was stopped early."""
        chosen = indices(sites.steps, self.run.geometry.steps, "step")
        finished = [step for step in chosen if is_finished(self.run, step)]
        return finished if is_all(sites.steps) and finished else chosen

    def call(self, step: int, branch: str) -> Call:
        """The recorded call that carries a branch."""
        for call in self.run.recorded(step):
            if branch in call.branches:
                return call
        raise SiteError(f"unknown branch {branch!r}; this run has {', '.join(self.run.geometry.branches)}")

    def replay(self, model: VideoDiT, step: int, captures: Iterable[Capture] = ()) -> Replay:
        """A step done again under the interventions at it, with captures after them.

        The record holds what the interventions did between calls.
        """
        return model.replay(self.run, step, [*acting(self.interventions, self.run.geometry, step), *captures])

    def clean(self, step: int, prediction: Tensor) -> Tensor:
        """x0hat of a prediction at a step: (B, C, F, H, W)."""
        return self.run.clean(step, self.run.states[step], prediction)


def is_finished(run: Run, step: int) -> bool:
    """Whether a step was recorded with all of its branches: a run may have been stopped within its last step."""
    calls = [call for call in run.calls if call.step == step and call.output is not None]
    return {branch for call in calls for branch in call.branches} == set(run.geometry.branches)


def captured(
    model: VideoDiT, source: Any, captures: Sequence[Capture], run_arguments: Mapping[str, Any]
) -> tuple[Run, dict[str, dict[Site, Tensor]]]:
    """A run, and what captures of the same sites keep of it: by name and site.

    Inputs are run up to the last site, with nothing recorded. The steps of a recorded run are done again.

    Parameters
    ----------
    source, run_arguments
        As in `Recorded.of`.
    captures : list of Capture
        With names of their own and the same sites.
    """
    if isinstance(source, Run):
        recorded = Recorded.of(model, source, captures[0].sites, run_arguments)
        found: dict[str, dict[Site, Tensor]] = {capture.name: {} for capture in captures}
        for step in recorded.steps(captures[0].sites):
            replay = recorded.replay(model, step, [replace(c, sites=c.sites.at(steps=step)) for c in captures])
            for capture in captures:
                found[capture.name] |= replay.captures[capture.name]
        return source, found
    seed, interventions, others = arguments_of(run_arguments)
    run = model.run(
        source, seed, interventions=[*interventions, *captures], decode=False, stop_after="last site", **others
    )
    # What is reduced from them need not stay in memory beside them.
    return run, {capture.name: run.captures.pop(capture.name) for capture in captures}
