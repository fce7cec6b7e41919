"""The dispatcher: while a run is active it sits in the denoiser's forward and makes every call one nnsight trace."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dit_lens.engine.envoys import ACTIVE, CalledInside, Tree, follow
from dit_lens.engine.plan import Planned, dressed
from dit_lens.engine.recorder import ActiveCall, Copies, Recorder, Visitor
from dit_lens.engine.sampler import Sampler
from dit_lens.engine.traversal import Enough, Walk
from dit_lens.errors import DidNotFire, InputError, PipelineBusy
from dit_lens.families.base import Architecture
from dit_lens.families.registry import family_named
from dit_lens.runs.call import Call, Context, Prepared
from dit_lens.runs.nest import moved
from dit_lens.runs.replay import Resume
from dit_lens.runs.schedule import Schedule
from dit_lens.sites.site import Site, some

Body = Callable[[Call, Any], None]


@dataclass
class Dispatcher:
    """One active run: knows which step, branch and expert a denoiser call is, and what is to happen in it.

    Parameters
    ----------
    pipeline : the diffusers pipeline, or None when a recorded call is replayed
    architecture : Architecture
    context : Context
    trees : dict from expert name (None in models of one) to Tree
    plan : list of Planned
    calls : the branches of each call of a step
    scales : dict from expert name to the numbers that combine the branches
    stop_after : int, or "last site", or None
    sampler : Sampler or None
        What the scheduler remembers, to be forgotten where the state is edited; None where a call is replayed.
    """

    pipeline: Any
    architecture: Architecture
    context: Context
    trees: Mapping[str | None, Tree]
    plan: Sequence[Planned]
    calls: tuple[tuple[str, ...], ...] = ()
    scales: Mapping[str | None, Mapping[str, float]] = field(default_factory=dict)
    body: Body | None = None
    record: bool = False
    stop_after: int | str | None = None
    resume: Resume | None = None
    sampler: Sampler | None = None
    step: int = -1
    latents: Tensor | None = None
    _nth: int = 0
    _timestep: Any = None
    _velocities: dict[str, Tensor] = field(default_factory=dict)
    _calling: bool = False
    _prepared: bool = False
    _disturbed: bool = False
    _called_at: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.recorder = Recorder()
        self.visitor = Visitor(self.architecture, self.context, self.recorder)
        self.steps = self.context.geometry.steps
        around = any(site.component in ("latents", "guided", "velocity") for p in self.plan for site in p.sites)
        #: Whether states and predictions are of use after the scheduler's step, which may write to them.
        self._looks_back = self.record or around
        self._copies, self._thread = Copies(), threading.get_ident()

    def active(self) -> ExitStack:
        """Sits in ``forward`` of every expert, until the stack is closed."""
        with ExitStack() as stack:
            for tree in self.trees.values():
                tree.refresh()
            self.recorder.active = True
            stack.callback(setattr, self.recorder, "active", False)
            for expert, tree in self.trees.items():
                module = tree.modules[""]
                before = {"forward": module.__dict__["forward"]} if "forward" in module.__dict__ else {}
                stack.callback(module.__dict__.update, before)
                stack.callback(module.__dict__.pop, "forward", None)
                module.__dict__["forward"] = self._dispatching(expert, module.forward)
            return stack.pop_all()

    def _dispatching(self, expert: str | None, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def dispatching(*args: Any, **kwargs: Any) -> Any:
            return self._forward(expert, forward, args, kwargs)

        setattr(dispatching, ACTIVE, True)
        return dispatching

    def _forward(
        self, expert: str | None, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._refuse(self._calling)
        self._calling = True
        try:
            return self._called(expert, forward, args, kwargs)
        finally:
            self._calling = False

    def _called(
        self, expert: str | None, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        call = self._next_call(expert, args, kwargs)
        kwargs = self.architecture.call_arguments(kwargs, len(self.context.rows) * len(call.branches))
        if self.resume is not None and call.step < self.resume.step:
            device = (kwargs.get("hidden_states", *args[:1])).device
            output = moved(self.resume.run.recorded(call.step)[call.nth].output, device)
        else:
            output = self.run_call(call, forward, args, kwargs)
        call = replace(call, kwargs={})
        if self.record:
            call = replace(call, args=self._copies(args), kwargs=self._copies(dict(kwargs)), output=output)
        self.recorder.calls.append(call)
        self._velocities |= velocities(call, output)
        # A scheduler may write to what it is given: not to what is kept here, nor to a record's or a donor's tensors.
        return Copies()(output) if self._looks_back or self.resume is not None else output

    def _refuse(self, again: bool) -> None:
        """Refuse calls that are not this run's: of the pipeline or its transformer by hand, while the run is active."""
        # What is called in between changes the pipeline and its scheduler: neither that nor the run can go on.
        self._disturbed |= again or threading.get_ident() != self._thread
        if self._disturbed:
            raise PipelineBusy(
                f"{type(self.pipeline).__name__} was called while a run of it is active, inside of it or in another "
                "thread: call it before or after, or a copy of it"
            )

    def _next_call(self, expert: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Name the call. Pipelines set ``_current_timestep`` to a new object once a step, whatever calls they make."""
        if self.pipeline._current_timestep is not self._timestep:
            self._timestep = self.pipeline._current_timestep
            self.step, self._nth, self._velocities = self.step + 1, 0, {}
            self._know_schedule()
        call = Call(
            step=self.step,
            nth=self._nth,
            branches=self.calls[self._nth],
            expert=expert,
            sigma=self.sigma(self.step),
            alpha=self.alpha(self.step),
            timestep=float(self._timestep),
            scales=self.scales[expert],
            kwargs=kwargs,
            context=self.context,
        )
        self._nth += 1
        return call

    def _know_schedule(self) -> None:
        if self.context.schedule is None:
            schedule = Schedule.of(self.pipeline.scheduler)
            if schedule.steps != self.steps:
                name = type(self.pipeline.scheduler).__name__
                raise InputError(
                    f"{name} makes {schedule.steps} steps where {self.steps} were asked for: ask for those"
                )
            self.context.schedule = schedule

    def sigma(self, step: int) -> float:
        """Before the pipeline has set its timesteps the state is pure noise."""
        return self.context.schedule.sigma(step) if self.context.schedule is not None else 1.0

    def alpha(self, step: int) -> float:
        return self.context.schedule.alpha(step) if self.context.schedule is not None else 0.0

    def run_call(
        self, call: Call, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """One denoiser call, plain where nothing is to happen in it and as one trace otherwise."""
        tree = self.trees[call.expert]
        self._called_at.add(call.step)
        visits = [
            (p, sites) for p in self.plan if (sites := [s for b in call.branches for s in p.at_call(call.step, b)])
        ]
        resume = (
            self.resume if self.resume is not None and self.resume.step == call.step and self.resume.layer else None
        )
        if not visits and resume is None and self.body is None:
            self._count(call, self.context.geometry.layers)
            return self._finite(call, forward(*args, **kwargs))
        visits = [(p, dressed(sites, call)) for p, sites in visits]
        walk = Walk(call, tree.modules[""], visits, self.visitor, resume, self._ends_at(call.step, call.nth))
        try:
            output = self._traced(tree, walk, call, args, kwargs)
        except CalledInside:
            self._refuse(again=True)
            raise
        finally:
            self._count(call, walk.blocks_run)
        return self._finite(call, output)

    def _traced(self, tree: Tree, walk: Walk, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A call as one trace: of the walk, and of the body in an invoke of its own."""
        stops = walk.stops()
        with tree.attached(None if self.body is not None else dict.fromkeys(path for path, _ in stops)):
            run = partial(tree.modules[""].forward, *args, **kwargs)
            if self.body is None and walk.reads_only:
                return tree.look(run, walk(), stops)
            workers = [partial(follow, walk(), tree.at)]
            if self.body is not None:
                workers.append(partial(self.body, self._shown(call, args), tree.envoy))
            return tree.trace(run, workers)

    def _shown(self, call: Call, args: tuple[Any, ...]) -> ActiveCall:
        """A call for the body, which may apply interventions in it."""
        return ActiveCall(**{**vars(call), "args": args}, recorder=self.recorder)

    def _finite(self, call: Call, output: Any) -> Any:
        for branch, velocity in velocities(call, output).items():
            self.recorder.require_finite(velocity, Site(call.step, branch, None, "velocity"))
        return output

    def _ends_at(self, step: int, moment: int) -> bool:
        """Whether the run is to stop after a moment of a step, because none of its sites lies behind it."""
        if self.stop_after != "last site":
            return False
        return all((s.step, self._moment(s)) <= (step, moment) for p in self.plan for s in p.sites)

    def _moment(self, site: Site) -> int:
        """When a site is met within its step: -1 the state, then each call by its number, last what they combine to."""
        around = {"latents": -1, "guided": len(self.calls)}
        if site.component in around:
            return around[site.component]
        return next(nth for nth, branches in enumerate(self.calls) if site.branch in branches)

    def _comes_to(self, site: Site) -> bool:
        """Whether what has been done should have met a site: a replay does the calls of one step alone."""
        if self.pipeline is None:
            return site.step in self._called_at and site.branch is not None
        return self.stop_after is None

    def _count(self, call: Call, blocks: int) -> None:
        ledger, rows = self.recorder.ledger, len(self.context.rows) * len(call.branches)
        ledger.calls += 1
        ledger.denoiser_forwards += rows
        ledger.block_forwards += rows * blocks

    def prepared(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """``pipeline.prepare_latents`` whose first result, the state at step 0, is shown to ``latents`` sites."""

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            self._refuse(self._prepared)
            self._prepared = True
            before = None if self.resume is None else self.resume.run.prepared
            made = prepare(*args, **kwargs) if before is None else self._prepared_again(before)
            state, *rest = made if isinstance(made, tuple) else (made,)
            if self.record and self.sampler is not None:
                drawn = torch.stack([generator.get_state() for generator in self.sampler.generators])
                self.recorder.prepared = Prepared(tuple(self._copies(rest)), drawn)
            self.context.fixed = self.architecture.fixed(self.pipeline, tuple(rest))
            if not self.architecture.late_timesteps:
                self._know_schedule()
            state = self._enter_step(0, state)
            return (state, *rest) if rest else state

        return prepare_latents

    def _prepared_again(self, before: Prepared) -> tuple[Any, ...]:
        """What ``prepare_latents`` returned in the run that this one resumes: its pictures are not encoded again."""
        assert self.resume is not None
        assert self.sampler is not None
        device = self.pipeline._execution_device
        for generator, state in zip(self.sampler.generators, before.generators, strict=True):
            generator.set_state(state.cpu().clone())  # torch reads from the start of a view's memory
        first = self.architecture.pack(self.resume.run.states[0].to(device, copy=True), self.context.latent)
        return (first, *moved(Copies()(before.rest), device))

    def stepped(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """``scheduler.step`` that shows the next state, for pipelines without a callback at the end of a step."""

        @functools.wraps(step)
        def step_and_show(*args: Any, **kwargs: Any) -> Any:
            state, *rest = step(*args, **kwargs)
            return (self.on_step_end(self.pipeline, self.step, None, {"latents": state})["latents"], *rest)

        return step_and_show

    def on_step_end(self, pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's ``callback_on_step_end``: what happens around the denoiser."""
        self._refuse(again=False)
        self.recorder.settle()
        if any(p.at_step(step, "guided") for p in self.plan):
            self._visit_around(step, "guided", self._guided())
        state = kwargs["latents"]
        self.recorder.require_finite(state, Site(step + 1, None, None, "latents"))
        if step + 1 < self.steps and step != self.stop_after:
            return {"latents": self._enter_step(step + 1, state)}
        self.latents = self.architecture.unpack(state, self.context.latent)
        if step + 1 == self.steps:
            self.latents = self.context.finished(self.latents)
        if step == self.stop_after:
            pipeline._interrupt = True
            if self.record and step + 1 < self.steps:  # from where a run can go on
                self.recorder.states.append(self.latents)
        return {"latents": state}

    def _guided(self) -> Tensor:
        assert self.latents is not None
        return self.architecture.guide(
            self._velocities, self.recorder.calls[-1].scales, self.latents, self.sigma(self.step)
        )

    def _enter_step(self, step: int, packed: Tensor) -> Tensor:
        """Show the state before a step to the interventions at ``latents``, in the pipeline's own layout."""
        made = state = self.architecture.unpack(packed, self.context.latent)
        if self.resume is not None and step <= self.resume.step:
            state = self.resume.run.states[step].to(packed, copy=True)
        changed = self._visit_around(step, "latents", state)
        self.latents = changed.clone() if self._looks_back else changed
        if self.record:
            self.recorder.states.append(self.latents)
        if changed is made:
            return packed
        if step and self.sampler is not None:
            self.sampler.restart((changed != made).flatten(1).any(dim=1).nonzero().flatten().tolist())
        return self.architecture.pack(changed.clone(), self.context.latent)

    def _visit_around(self, step: int, component: str, tensor: Tensor) -> Tensor:
        """Show a tensor that lives between calls to the interventions at its site, in the order of the list."""
        visits = [(p, site) for p in self.plan for site in p.at_step(step, component)]
        x0hat = self._x0hat(step - 1) if visits and component == "latents" and step > 0 else None
        for planned, site in visits:
            site = replace(site, sigma=self.sigma(step), alpha=self.alpha(step))
            changed = self.visitor.deliver(planned, site, tensor, x0hat=x0hat)
            tensor = tensor if changed is None else changed
        if visits and self._ends_at(step, self._moment(visits[0][1])):
            self.latents = tensor if component == "latents" else self.latents
            raise Enough
        return tensor

    def _x0hat(self, step: int) -> Tensor:
        """The clean estimate of the step that has just been done."""
        assert self.latents is not None
        return self.context.clean(step, self.latents, self._guided())

    def require_fired(self) -> None:
        """Raise `DidNotFire` for the first intervention that no call reached."""
        self.recorder.finish()
        for planned in self.plan:
            name, sites = type(planned.intervention).__name__, planned.intervention.sites
            if not planned.visited:
                raise DidNotFire(f"{name} at [{sites}] never fired; {self.recorder.where()}")
            left = [site for site in planned.sites if site not in self.recorder.visited and self._comes_to(site)]
            if left:
                raise DidNotFire(f"{name} at [{sites}] did not fire at {some(left)}")


def velocities(call: Call, output: Any) -> dict[str, Tensor]:
    """What a denoiser call predicted, by branch: Tensor of shape (B, C, F, H, W)."""
    unpack, latent = family_named(call.context.family).unpack, call.context.latent
    return {branch: unpack(output[0][call.rows(branch)], latent) for branch in call.branches}
