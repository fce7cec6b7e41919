# mypy: disable-error-code="no-untyped-call, no-any-return, attr-defined, assignment, misc"
"""The one boundary to nnsight: a tree of envoys that costs nothing while no run is active.

nnsight replaces the ``forward`` of every module by a controller. A `Tree` takes those controllers off again as soon as
they are made and puts them back only while a run traces, and then only on the modules that the run reads or edits: on a
transformer of 12 blocks all controllers together cost 0.7 ms a call, the ones on its blocks a tenth of that.

While a controller is on, it runs what stood in ``forward`` before: diffusers and accelerate keep the hooks there that
load, move and cast weights.

A walk through a call says what it waits for (`Ask`) and is given it in one of two ways. Where it may change the call
(`Tree.trace`, `follow`) it is one of nnsight's workers: the model stands still at each value until the worker has seen
it, and each value costs two switches of stacks. Where it only reads (`Tree.look`) the model waits for nothing: the walk
stands where nnsight's own cache stands, among what is called with a value as the model makes it. So a call costs no
switch at all, and still no value outlives the moment in which it is met.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

from nnsight import NNsight
from nnsight.intervention.interleaver import Mediator, OutOfOrderError
from nnsight.intervention.source import STATE, Controller
from torch import nn

Worker = Callable[[], None]

#: Marks the ``forward`` that the active run puts on a transformer, above what stood there.
ACTIVE = "_dit_lens_active"


class Ask(NamedTuple):
    """What a walk waits for.

    Attributes
    ----------
    path : str
        Of a module below the transformer; "" is the transformer.
    end : "inputs", "output" or "skip"
    value : Any
        What to put there, where it is not to be read; of "skip", what the module gives back instead of running.
    """

    path: str
    end: str
    value: Any = None


#: A walk through one call, which is sent each value that it asks to read.
Asking = Generator[Ask, Any, None]


class CalledInside(Exception):
    """A module that a trace reads was called by what reads it."""


class Tree:
    """The envoys of one transformer.

    It is made by `refresh`, inside the first run.

    Parameters
    ----------
    transformer : nn.Module
        Left as it was found: also an nnsight wrapping of the user's own is untouched outside a run.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self._whole = False

    def _build(self) -> None:
        self._whole = False
        self.modules = dict(self.transformer.named_modules())
        self._children = [(module, tuple(module._modules.values())) for module in self.modules.values()]
        before = {path: _take_off(module) for path, module in self.modules.items()}
        self.envoy: Any = NNsight(self.transformer)
        self._envoys: dict[str, Any] = {}
        self._named: dict[tuple[tuple[str, str], ...], dict[str, tuple[str, str]]] = {}
        self._controllers = {path: _take_off(module) for path, module in self.modules.items()}
        for path, module in self.modules.items():
            module.__dict__.update(before[path])
        self._whole = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Tree:
        """Of the copied transformer: controllers that are off while it is copied would run the original's weights."""
        return Tree(deepcopy(self.transformer, memo))

    def refresh(self) -> None:
        """Make the envoys, or make them anew where modules were put in or replaced (an adapter was loaded)."""
        if not self._whole or any(tuple(module._modules.values()) != children for module, children in self._children):
            self._build()

    def forget(self) -> None:
        """Make the envoys anew in the next run: something broke off in the middle of this one's."""
        self._whole = False

    def at(self, path: str) -> Any:
        """The envoy of the module at a dotted path; nnsight's own way there costs some microseconds a step."""
        if path not in self._envoys:
            self._envoys[path] = at(self.envoy, path)
        return self._envoys[path]

    @contextmanager
    def attached(self, paths: Iterable[str] | None) -> Iterator[None]:
        """Controllers on the modules at ``paths`` (None: on all), until the context is left."""
        undo: list[Callable[[], object]] = []
        try:
            for path in self.modules if paths is None else paths:
                self._attach(self.modules[path], self._controllers[path], undo)
            yield
        finally:
            _undo_all(undo)

    def _attach(self, module: nn.Module, controller: Mapping[str, Any], undo: list[Callable[[], object]]) -> None:
        own = module.__dict__
        before = {key: own[key] for key in ("forward", STATE) if key in own}
        if before:  # what is to be put back is known before it is taken: a Ctrl-C may come in between
            undo.append(partial(own.update, before))
        undo += [partial(own.pop, key, None) for key in controller]
        for key in before:
            del own[key]
        own.update(controller)
        beneath = _beneath(module, before["forward"]) if "forward" in before else None
        if beneath is not None:
            undo.append(_run_body(controller[STATE], beneath))

    def trace(self, call: Callable[[], Any], workers: Sequence[Worker]) -> Any:
        """Run ``call`` as one nnsight trace, every worker in an invoke of its own; returns what it returned."""
        returned: list[Any] = []

        def run() -> None:
            returned.append(call())

        try:
            with self.envoy.trace(fn=run) as tracer:
                for worker in workers:
                    with tracer.invoke():
                        worker()
        except TypeError as error:
            # nnsight fails to shorten the traceback of a Ctrl-C that came where Python counts no line.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise
        except ValueError as error:
            if "cyclic parent chain" in str(error):  # greenlet's: a module called by the worker that waits for it
                raise CalledInside from error
            raise
        return returned[0]

    def look(self, call: Callable[[], Any], asking: Asking, stops: tuple[tuple[str, str], ...]) -> Any:
        """As `trace`, of a walk that only reads: it is told of each value where the model makes it.

        Parameters
        ----------
        call : callable () -> output
        asking : the walk
        stops : path and end of all that it may ask for
        """
        onlooker, interleaver = _Onlooker(asking, self._names(stops)), self.envoy.interleaver
        interleaver.mediators.append(onlooker)
        try:
            with interleaver:  # all that a trace does once it has taken its ``with`` block apart, which here is none
                output = call()
        finally:
            interleaver.cancel()
        onlooker.require_end()
        return output

    def _names(self, stops: tuple[tuple[str, str], ...]) -> dict[str, tuple[str, str]]:
        """Stops by nnsight's names for them."""
        if stops not in self._named:
            named = {f"{self.at(path).path}.{end.removesuffix('s')}": (path, end) for path, end in stops}
            self._named[stops] = named
        return self._named[stops]


class _Onlooker(Mediator):
    """A worker that never waits: it stands among nnsight's caches, which are called after all interventions.

    Parameters
    ----------
    asking : the walk
    stops : dict from nnsight's names of what the walk may ask for to (path, end)
    """

    def __init__(self, asking: Asking, stops: dict[str, tuple[str, str]]) -> None:
        super().__init__(None, {}, {})
        self._asking, self._stops = asking, stops
        self._ask: Ask | None = None
        self._telling = False

    def start(self, interleaver: Any = None) -> None:
        self.interleaver, self.caches = interleaver, [self]
        self._ask = _told(self._asking, None)

    def subscriptions(self) -> dict[str, tuple[str, str]]:
        return self._stops

    def observe_selected(self, stop: tuple[str, str], value: Any) -> None:
        if self._telling:
            raise CalledInside
        ask = self._ask
        if ask is not None and ask.path == stop[0] and ask.end == stop[1]:
            self._telling = True
            self._ask = _told(self._asking, value)
            self._telling = False

    def require_end(self) -> None:
        if self._ask is not None:
            raise OutOfOrderError(f"the model never came to the {self._ask.end} of {self._ask.path or 'it'}")


def follow(asking: Asking, find: Callable[[str], Any]) -> None:
    """Give a walk what it asks for, in a worker, which is parked until the model comes to it.

    Parameters
    ----------
    asking : the walk
    find : callable (path) -> envoy
    """
    ask = _told(asking, None)
    while ask is not None:
        envoy, answer = find(ask.path), None
        if ask.end == "skip":
            envoy.skip(ask.value)
        elif ask.value is not None:
            setattr(envoy, ask.end, ask.value)
        else:
            answer = getattr(envoy, ask.end)
        ask = _told(asking, answer)


def _told(asking: Asking, value: Any) -> Ask | None:
    """Send a walk what it asked for; what it asks for next, None at its end."""
    try:
        return asking.send(value)
    except StopIteration:
        return None


def module_of(envoy: Any) -> nn.Module:
    """The module that an envoy stands for."""
    return envoy._module


def at(envoy: Any, path: str) -> Any:
    """The envoy at a dotted path below another, which is itself at the path ""."""
    for part in path.split(".") if path else ():
        envoy = envoy[int(part)] if part.isdigit() else getattr(envoy, part)
    return envoy


def _undo_all(undo: list[Callable[[], object]]) -> None:
    """Undo every step, the last first, also where a Ctrl-C comes in between: one may be done twice, none is left."""
    try:
        while undo:
            undo[-1]()
            undo.pop()
    except BaseException:
        _undo_all(undo)
        raise


def _take_off(module: nn.Module) -> dict[str, Any]:
    """Take ``forward`` and nnsight's state off a module and return them."""
    return {key: module.__dict__.pop(key) for key in ("forward", STATE) if key in module.__dict__}


def _beneath(module: nn.Module, forward: Any) -> Callable[..., Any] | None:
    """What a controller has to run in the place of the class's own forward; None where it is just that."""
    own = type(module).forward
    if getattr(forward, ACTIVE, False):
        forward = forward.__wrapped__  # the dispatcher of the active run, which is what called
    if "_hf_hook" in module.__dict__:
        forward = module.__dict__.get("_old_forward")  # nnsight runs accelerate's hook itself, around this
    if isinstance(forward, Controller) and forward.state.original is own:
        return None  # a wrapping of the user's own, idle during ours
    return None if forward is None or (inspect.ismethod(forward) and forward.__func__ is own) else forward


def _run_body(state: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Let the controller of a state run ``forward``; returns what undoes it."""
    names = ("body", "original", "sourced", "compiled")
    before = {name: getattr(state, name) for name in names}

    def set_all(values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(state, name, value)

    def bound(_module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    set_all({"body": bound, "original": bound, "sourced": False, "compiled": None})
    return lambda: set_all(before)
