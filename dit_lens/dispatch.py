"""The dispatcher: while a run is active it sits in the denoiser's forward and makes every call one nnsight trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dit_lens.architectures import Architecture
from dit_lens.bridge import Tree
from dit_lens.errors import DidNotFire, DonorError, InputError, NotFinite
from dit_lens.interventions.base import At, Intervention
from dit_lens.run import Call, Ledger, Row, name_some
from dit_lens.sites import Geometry, Site

Body = Callable[[Call, Any], None]


@dataclass
class Planned:
    """An intervention, the sites it resolved to, and those that it visited so far."""

    intervention: Intervention
    sites: tuple[Site, ...]
    visited: int = 0

    def at_call(self, call: Call) -> list[Site]:
        return [s for s in self.sites if (s.step, s.branch) == (call.step, call.branch)]

    def at_step(self, step: int, component: str) -> list[Site]:
        return [s for s in self.sites if (s.step, s.component) == (step, component)]


@dataclass
class Recorder:
    """Everything that a run collects as it goes."""

    captures: dict[str, dict[Site, Tensor]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    visited: dict[Site, None] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    def keep(self, site: Site, name: str, tensor: Tensor) -> None:
        """Store one capture.

        Raises
        ------
        NotFinite, InputError
        """
        self.require_finite(tensor, site)
        store = self.captures.setdefault(name, {})
        if site in store:
            raise InputError(f"{site} is captured twice under the name {name!r}; give one of the captures another name")
        store[site] = tensor
        self.ledger.captured_bytes += tensor.numel() * tensor.element_size()

    def require_finite(self, tensor: Tensor, site: Site) -> None:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise NotFinite(f"{bad} of {tensor.numel()} values are NaN or infinite at {site}; {self.where()}")

    def where(self) -> str:
        """The sites visited so far, in words."""
        return (
            name_some(self.visited)
            .replace("there are", "visited so far:")
            .replace("no site was", "no site visited yet")
        )


@dataclass
class Visitor:
    """Hands activations to interventions and checks what comes back."""

    rows: tuple[Row, ...]
    recorder: Recorder

    def deliver(self, planned: Planned, site: Site, activation: Tensor) -> Tensor | None:
        """Apply one intervention to one activation (B, F, H, W, D) or (B, C, F, H, W); the replacement, or None."""
        tokens = planned.intervention.sites.tokens
        part = tokens.take(activation)
        planned.visited += 1
        self.recorder.visited[site] = None
        new = planned.intervention(part, At(site, self.rows, partial(self.recorder.keep, site)))
        if new is None:
            return None
        given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        if given != tuple(part.shape):
            name = type(planned.intervention).__name__
            raise DonorError(f"{name} returned {given} at {site}; expected shape {tuple(part.shape)}")
        self.recorder.require_finite(new, site)
        return tokens.put(activation, new)


@dataclass
class Dispatcher:
    """One active run: knows which step, branch and expert a denoiser call is, and what is to happen in it.

    Parameters
    ----------
    pipeline : the diffusers pipeline, or None when a recorded call is replayed
    trees : dict from expert name (None in models of one) to Tree
    guidance : dict from expert name to guidance scale
    """

    pipeline: Any
    architecture: Architecture
    trees: Mapping[str | None, Tree]
    geometry: Geometry
    rows: tuple[Row, ...]
    plan: Sequence[Planned]
    guidance: Mapping[str | None, float] = field(default_factory=dict)
    body: Body | None = None
    record: bool = False
    stop_after: int | None = None
    recorder: Recorder = field(default_factory=Recorder)
    step: int = -1
    latents: Tensor | None = None
    _timestep: Any = None
    _nth: int = 0
    _velocities: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.visitor = Visitor(self.rows, self.recorder)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Sit in the forward of every expert; taken out again whatever happens."""
        with ExitStack() as stack:
            for expert, tree in self.trees.items():
                module = tree.modules[""]
                before = {"forward": module.__dict__["forward"]} if "forward" in module.__dict__ else {}
                stack.callback(module.__dict__.update, before)
                stack.callback(module.__dict__.pop, "forward")
                module.__dict__["forward"] = partial(self._forward, expert, module.forward)
            yield

    def _forward(self, expert: str | None, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = self._next_call(expert, args, kwargs)
        output = self.run_call(call, forward, args, kwargs)
        self._velocities[call.branch] = output[0]
        return output

    def _next_call(self, expert: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Name the call. Pipelines set ``_current_timestep`` to a new object once a step, whatever calls they make."""
        if self.pipeline._current_timestep is not self._timestep:
            self._timestep = self.pipeline._current_timestep
            self.step, self._nth, self._velocities = self.step + 1, 0, {}
        branch = self.geometry.branches[self._nth]
        recorded: dict[str, Any] = {"args": args, "kwargs": dict(kwargs)} if self.record else {}
        sigma, timestep = self.sigma(self.step), float(self._timestep)
        call = Call(self.step, self._nth, branch, expert, sigma, timestep, self.guidance[expert], **recorded)
        self._nth += 1
        self.recorder.calls.append(call)
        return call

    def sigma(self, step: int) -> float:
        return float(self.pipeline.scheduler.sigmas[step])

    def run_call(
        self, call: Call, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """One denoiser call, plain where nothing is to happen in it and as one trace otherwise."""
        tree = self.trees[call.expert]
        self._count()
        visits = [(p, sites) for p in self.plan if (sites := p.at_call(call))]
        if not visits and self.body is None:
            return forward(*args, **kwargs)
        workers = [partial(self._visit, planned, self._dress(sites, call), tree) for planned, sites in visits]
        if self.body is not None:
            workers.append(partial(self.body, call, tree.envoy))
        with tree.attached(None if self.body else self._touched(visits, tree)):
            output = tree.trace(partial(tree.modules[""].forward, *args, **kwargs), workers)
        self.recorder.require_finite(output[0], Site(call.step, call.branch, None, "velocity"))
        return output

    def _touched(self, visits: list[tuple[Planned, list[Site]]], tree: Tree) -> list[str]:
        """Paths of the modules that the visits read or edit."""
        paths = self.architecture.block_paths(tree.modules[""])
        return [paths[k] for k in sorted({s.layer or 0 for _, sites in visits for s in sites})]

    def _count(self) -> None:
        ledger, rows = self.recorder.ledger, len(self.rows)
        ledger.calls += 1
        ledger.denoiser_forwards += rows
        ledger.block_forwards += rows * self.geometry.layers

    def _dress(self, sites: list[Site], call: Call) -> list[Site]:
        return [replace(s, sigma=call.sigma, expert=call.expert) for s in sites]

    def _visit(self, planned: Planned, sites: list[Site], tree: Tree) -> None:
        """Worker of one intervention in one call; sites come in execution order."""
        paths = self.architecture.block_paths(tree.modules[""])
        for site in sites:
            deliver = partial(self.visitor.deliver, planned, site)
            place = tree.envoy if site.component in ("model_input", "velocity") else tree.at(paths[site.layer or 0])
            VISITS[site.component](place, deliver, self.geometry.grid)

    def prepared(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """``pipeline.prepare_latents`` whose first result, the state at step 0, is shown to ``latents`` sites."""

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            result = prepare(*args, **kwargs)
            state, *rest = result if isinstance(result, tuple) else (result,)
            state = self._enter_step(0, state)
            return (state, *rest) if isinstance(result, tuple) else state

        return prepare_latents

    def on_step_end(self, pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's ``callback_on_step_end``: what happens around the denoiser."""
        if any(p.at_step(step, "guided") for p in self.plan):
            guided = self.architecture.guide(self._velocities, self.recorder.calls[-1].guidance_scale)
            self._visit_around(step, "guided", guided)
        latents = kwargs["latents"]
        if step + 1 < self.geometry.steps and step != self.stop_after:
            latents = self._enter_step(step + 1, latents)
        self.latents = latents
        if step == self.stop_after:
            pipeline._interrupt = True
        return {"latents": latents}

    def _enter_step(self, step: int, state: Tensor) -> Tensor:
        state = self._visit_around(step, "latents", state)
        if self.record:
            self.recorder.states.append(state)
        return state

    def _visit_around(self, step: int, component: str, tensor: Tensor) -> Tensor:
        """Show a tensor that lives between calls to the interventions at its site, in the order of the list."""
        for planned in self.plan:
            for site in planned.at_step(step, component):
                # At step 0 the first sigma is known already: the pipeline sets its timesteps before its latents.
                changed = self.visitor.deliver(planned, replace(site, sigma=self.sigma(step)), tensor)
                tensor = tensor if changed is None else changed
        return tensor

    def require_fired(self) -> None:
        """Raise `DidNotFire` for the first intervention that no call reached."""
        for planned in self.plan:
            if not planned.visited:
                name, sites = type(planned.intervention).__name__, planned.intervention.sites
                raise DidNotFire(f"{name} at [{sites}] never fired; {self.recorder.where()}")


def _visit_model_input(root: Any, deliver: Callable[[Tensor], Tensor | None], grid: tuple[int, ...]) -> None:
    args, kwargs = root.inputs
    changed = deliver(kwargs["hidden_states"])
    if changed is not None:
        root.inputs = (args, {**kwargs, "hidden_states": changed})


def _visit_velocity(root: Any, deliver: Callable[[Tensor], Tensor | None], grid: tuple[int, ...]) -> None:
    output = root.output
    changed = deliver(output[0])
    if changed is not None:
        root.output = (changed, *output[1:])


def _visit_embed(block: Any, deliver: Callable[[Tensor], Tensor | None], grid: tuple[int, ...]) -> None:
    changed = deliver(block.input.unflatten(1, grid))
    if changed is not None:
        block.input = changed.flatten(1, 3)


def _visit_resid(block: Any, deliver: Callable[[Tensor], Tensor | None], grid: tuple[int, ...]) -> None:
    changed = deliver(block.output.unflatten(1, grid))
    if changed is not None:
        block.output = changed.flatten(1, 3)


def _visit_delta(block: Any, deliver: Callable[[Tensor], Tensor | None], grid: tuple[int, ...]) -> None:
    before = block.input
    after = block.output
    own = (after - before).unflatten(1, grid)
    changed = deliver(own)
    if changed is not None:
        # Adding the difference keeps patching with one's own update the identity, bit for bit.
        block.output = after + (changed - own).flatten(1, 3)


VISITS = {
    "model_input": _visit_model_input,
    "embed": _visit_embed,
    "delta": _visit_delta,
    "resid": _visit_resid,
    "velocity": _visit_velocity,
}
