"""One run at a time on a pipeline, and nothing of it left behind, whatever ends it and whenever."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, TypeVar

import torch
from nnsight.intervention.source import STATE
from nnsight.tracing import tracer as nnsight_tracer
from torch import nn

from dit_lens.engine.envoys import Tree
from dit_lens.errors import DitLensError, PipelineBusy
from dit_lens.runs.weights import submodules

T = TypeVar("T")
#: Puts back what was taken; given what ended the work, None where it ended as it should.
GiveBack = Callable[[BaseException | None], None]

#: Seconds for which one Ctrl-C that was let through holds back the next.
MOMENT = 1.0

#: What active runs and replays hold, by identity, and the thread of each.
_HELD: dict[int, threading.Thread] = {}
_GUARD = threading.Lock()

#: Instance attributes of the pipeline and of its scheduler that a run replaces.
BORROWED = ("prepare_latents", "encode_image", "_progress_bar_config", "step")


def on_loan(
    pipeline: Any, trees: Iterable[Tree], work: Callable[[], T], *, sampling: bool = False, parameters: bool = False
) -> T:
    """Do the work of a run while it alone holds the transformers; whatever ends it, they are then as they were.

    Ctrl-C reaches the work at once; while things are taken and put back it waits. What the work left on an accelerator
    goes back as at the end of the pipeline.

    Parameters
    ----------
    pipeline : the diffusers pipeline
    trees : of its transformers
    work : callable
    sampling : bool
        Whether the work drives the pipeline and its scheduler, and not the transformers alone.
    parameters : bool
        Whether it changes which parameters take gradients.

    Raises
    ------
    PipelineBusy
        A run or replay holds one of them.
    """
    trees, others = list(trees), (pipeline, pipeline.scheduler) if sampling else ()
    experts = [tree.transformer for tree in trees]

    def take() -> GiveBack:
        standing, held = Standing(experts, others, parameters=parameters), (*experts, *others)
        _claim(held)

        def give_back(error: BaseException | None) -> None:
            try:
                if error is not None:
                    standing.restore()
                if error is not None and not isinstance(error, DitLensError):
                    for tree in trees:
                        tree.forget()
                if getattr(pipeline, "_all_hooks", None):  # asking the pipeline itself takes half a millisecond
                    pipeline.maybe_free_model_hooks()
            finally:
                _release(held)

        return give_back

    return _shielded(take, work)


def holding(experts: Sequence[nn.Module], work: Callable[[], T]) -> T:
    """Do work that brings the weights of transformers and takes them away.

    Raises
    ------
    PipelineBusy
        A run or replay holds one of them, and would lack its weights.
    """

    def take() -> GiveBack:
        _claim(experts)
        return lambda error: _release(experts)

    return _shielded(take, work)


def undisturbed(experts: Sequence[nn.Module], work: Callable[[], T]) -> T:
    """Do work around a replay that puts hooks on modules; whatever ends it, the modules are then as they were."""

    def take() -> GiveBack:
        standing = Standing(experts)
        return lambda error: None if error is None else standing.restore()

    return _shielded(take, work)


def _shielded(take: Callable[[], GiveBack], work: Callable[[], T]) -> T:
    interrupts = _Interrupts()
    interrupts.start()
    try:
        give_back = take()
        try:
            try:
                interrupts.allow()
                done = work()
            finally:
                interrupts.hold()
        except BaseException as error:
            give_back(error)
            raise
        give_back(None)
        return done
    finally:
        interrupts.stop()


def _claim(things: Sequence[Any]) -> None:
    own = threading.current_thread()
    with _GUARD:
        for thing in things:
            if (thread := _HELD.get(id(thing))) is not None:
                where = "this run is made inside of it" if thread is own else f"in thread {thread.name}"
                raise PipelineBusy(
                    f"the {type(thing).__name__} is in a run or replay already ({where}), and a pipeline does one at a "
                    "time: make this one before or after, or with a pipeline of its own (copy.deepcopy(model))"
                )
        _HELD.update(dict.fromkeys(map(id, things), own))


def _release(things: Sequence[Any]) -> None:
    with _GUARD:
        for thing in things:
            _HELD.pop(id(thing), None)


class Standing:
    """What stands in the modules, the pipeline and torch before a run.

    Parameters
    ----------
    experts : transformers
    others : the pipeline and its scheduler
    parameters : bool
        Whether the work changes which parameters take gradients.
    """

    def __init__(self, experts: Sequence[nn.Module], others: Sequence[Any] = (), *, parameters: bool = False) -> None:
        self._experts = experts
        self._modules = {id(m): _of_module(m) for expert in experts for _, m in submodules(expert) if _is_dressed(m)}
        trained = [p for expert in experts if parameters for p in expert.parameters()]
        self._trained = [parameter for parameter in trained if parameter.requires_grad]
        self._others = [(x, type(x), {n: vars(x)[n] for n in BORROWED if n in vars(x)}) for x in others]
        self._gradients = torch.is_grad_enabled()
        self._tracing = sys.gettrace()
        self._depth = getattr(nnsight_tracer._local, "depth", 0)

    def restore(self) -> None:
        """Put it all back; done twice where an exception of another thread's making comes in between."""
        try:
            self._restore()
        except BaseException:
            self._restore()
            raise

    def _restore(self) -> None:
        for module in (module for expert in self._experts for _, module in submodules(expert)):
            kept = module.__dict__
            own, hooks = self._modules.get(id(module), ({}, frozenset()))
            for name in ("forward", STATE):
                kept.pop(name, None)
            kept.update(own)
            for name in _HOOKS:
                for handle in [handle for handle in kept[name] if handle not in hooks]:
                    kept[name].pop(handle, None)
        for parameter in self._trained:
            parameter.requires_grad_(True)
        for thing, kind, borrowed in self._others:
            thing.__class__ = kind
            for name in BORROWED:
                vars(thing).pop(name, None)
            vars(thing).update(borrowed)
        torch.set_grad_enabled(self._gradients)
        if sys.gettrace() is not self._tracing:  # nnsight's, between the capture of a block and its run
            sys.settrace(self._tracing)
        nnsight_tracer._local.depth = self._depth


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _is_dressed(module: nn.Module) -> bool:
    kept = module.__dict__
    return bool("forward" in kept or STATE in kept or kept["_forward_hooks"] or kept["_forward_pre_hooks"])


def _of_module(module: nn.Module) -> tuple[dict[str, Any], frozenset[int]]:
    """What stands in a module in the place of its class's forward, and the handles of its hooks."""
    kept = module.__dict__
    own = {name: kept[name] for name in ("forward", STATE) if name in kept}
    return own, frozenset(handle for name in _HOOKS for handle in kept[name])


class _Interrupts:
    """Ctrl-C, let through once it is allowed and held back before and after.

    As the handler lets one through it holds the next ones back, so that none can come between what that one ended and
    what puts it right. Python drops exceptions in some places (the destructor of an object), so only for a moment.
    """

    def __init__(self) -> None:
        self._allowed, self._through = False, -math.inf
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._before: Callable[[int, FrameType | None], Any] | None = None

    def start(self) -> None:
        before = signal.getsignal(signal.SIGINT)
        # Python runs handlers in its main thread alone, and a handler of another kind raises nothing.
        if threading.current_thread() is threading.main_thread() and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._handle)

    def allow(self) -> None:
        self._allowed = True
        self._deliver()

    def hold(self) -> None:
        self._allowed = False

    def stop(self) -> None:
        """Give the handler back, then let those through that waited."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._deliver()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._waiting.append((number, frame))
        if self._allowed and time.monotonic() - self._through > MOMENT:
            self._deliver()

    def _deliver(self) -> None:
        while self._waiting and self._before is not None:
            self._through, given = time.monotonic(), self._waiting.pop()
            self._before(*given)
            self._through = -math.inf  # a handler of the user's own, which raised nothing
