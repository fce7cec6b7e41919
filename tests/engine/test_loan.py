"""A pipeline does one run at a time, and is afterwards what it was before, whatever ended the run and whenever."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from nnsight.intervention.source import STATE
from nnsight.tracing import tracer as nnsight_tracer
from torch import Tensor

import dit_lens as dl
from dit_lens.engine.loan import _HELD, BORROWED
from dit_lens.errors import NotFinite, PipelineBusy
from dit_lens.families.tiny.pipelines import TINY
from tests.subjects import Edit, Subject

FAMILIES = ["wan2.1-t2v", "hunyuanvideo", "cogvideox-1.5", "ltx-2"]
DELTA = dl.Sites("delta", layers=1)


@cache
def subject_of(name: str) -> Subject:
    tiny = TINY[name]
    model = dl.VideoDiT(tiny.build(), defaults=tiny.settings)
    model.pipeline.set_progress_bar_config(disable=True)
    return Subject(name, model, tiny.inputs(), (3, 4))


def run(subject: Subject, *interventions: Any, **more: Any) -> dl.Run:
    return subject.model.run(subject.inputs[0], 3, decode=False, interventions=interventions, **more)


def standing(pipeline: Any) -> list[Any]:
    """Everything that a run changes and has to give back."""
    depth = getattr(nnsight_tracer._local, "depth", 0)
    found: list[Any] = [torch.is_grad_enabled(), sys.gettrace(), depth, dict(_HELD)]
    found += [signal.getsignal(signal.SIGINT), type(pipeline.scheduler)]
    found += [name for thing in (pipeline, pipeline.scheduler) for name in BORROWED if name in vars(thing)]
    for expert in (pipeline.transformer, getattr(pipeline, "transformer_2", None)):
        for path, module in expert.named_modules() if expert is not None else ():
            kept = module.__dict__
            own = [name for name in ("forward", STATE) if name in kept]
            found.append((path, own, len(module._forward_hooks), len(module._forward_pre_hooks)))
            found.append([p.requires_grad for p in module.parameters(recurse=False)])
    return found


@contextmanager
def left_as_it_was(subject: Subject) -> Iterator[None]:
    before, latents = standing(subject.pipeline), run(subject).latents
    yield
    assert standing(subject.pipeline) == before
    assert torch.equal(run(subject, dl.Capture(DELTA)).latents, latents)
    assert standing(subject.pipeline) == before


# -- a run inside a run


def inside(subject: Subject, record: dl.Run, what: str) -> Callable[[], object]:
    model = subject.model
    return {
        "run": lambda: run(subject),
        "replay": lambda: model.replay(record, 0),
        "gradients": lambda: model.gradients(record, 0, lambda r: r.x0hat.sum(), DELTA),
        "pipeline": lambda: subject.plain(),
        "another VideoDiT of it": lambda: dl.VideoDiT(subject.pipeline, defaults=model.defaults).run(
            subject.inputs[0], 1, decode=False
        ),
    }[what]


@pytest.mark.parametrize("what", ["run", "replay", "gradients", "pipeline", "another VideoDiT of it"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_inside_a_run_is_refused(name: str, what: str) -> None:
    subject = subject_of(name)
    record = run(subject, record=True)
    nested = inside(subject, record, what)

    def intervene(x: Tensor, at: dl.At) -> None:
        nested()

    def body(call: Any, dit: Any) -> None:
        nested()

    places = [
        lambda: run(subject, Edit(DELTA, intervene)),
        lambda: run(subject, Edit(dl.Sites("latents", steps=1), intervene)),
        lambda: run(subject, body=body),
        lambda: run(subject, dl.Capture(DELTA, reduce=lambda x: nested())),  # type: ignore[arg-type, return-value]
    ]
    if what != "pipeline":  # a pipeline called by hand during a replay is a plain one
        places.append(lambda: subject.model.replay(record, 1, [Edit(DELTA, intervene)]))
    refusal = r"in a run or replay already|was called while a run of it is active"
    for place in places:
        with left_as_it_was(subject), pytest.raises(PipelineBusy, match=refusal):
            place()


def test_the_transformer_called_by_hand_inside_a_run_is_refused() -> None:
    subject = subject_of("wan2.1-t2v")
    given: list[Any] = []

    def intervene(x: Tensor, at: dl.At) -> None:
        subject.pipeline.transformer(*given[0].args, **given[0].kwargs)

    given += run(subject, record=True).calls
    with left_as_it_was(subject), pytest.raises(PipelineBusy, match="was called while a run of it is active"):
        run(subject, Edit(DELTA, intervene))


def test_a_run_of_another_model_inside_a_run_is_what_it_is_alone() -> None:
    tiny = TINY["wan2.1-t2v"]
    one, two = (
        Subject(str(i), dl.VideoDiT(tiny.build(), defaults=tiny.settings), tiny.inputs(), (3, 4)) for i in range(2)
    )
    keep = dl.Capture(dl.Sites("resid"))
    alone, other = run(one, keep), run(two, dl.Capture(DELTA))
    found: list[dl.Run] = []

    def intervene(x: Tensor, at: dl.At) -> None:
        found.append(run(two, dl.Capture(DELTA)))

    outer = run(one, Edit(dl.Sites("delta", layers=0), intervene), keep)
    assert torch.equal(outer.latents, alone.latents)
    assert all(map(torch.equal, outer.captures[""].values(), alone.captures[""].values()))
    assert len(found) == outer.geometry.steps * len(outer.geometry.branches)
    assert all(torch.equal(inner.latents, other.latents) for inner in found)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_second_thread_is_refused(by_hand: bool) -> None:
    subject = subject_of("wan2.1-t2v")
    expected, waiting, go_on = run(subject).latents, threading.Event(), threading.Event()
    done: list[Any] = []

    def wait(x: Tensor, at: dl.At) -> None:
        waiting.set()
        go_on.wait(30)

    def work() -> None:
        try:
            done.append(run(subject, Edit(dl.Sites("latents", steps=1), wait)).latents)
        except PipelineBusy as error:
            done.append(error)

    first = threading.Thread(target=work, name="the first")
    with left_as_it_was(subject):
        first.start()
        waiting.wait(30)
        try:
            if by_hand:
                with pytest.raises(PipelineBusy, match="WanPipeline was called while a run of it is active"):
                    subject.plain()
            else:
                with pytest.raises(PipelineBusy, match=r"is in a run or replay already \(in thread the first\)"):
                    run(subject)
        finally:
            go_on.set()
            first.join()
        # A pipeline called by hand has set the scheduler's timesteps anew: then the run must not go on either.
        assert isinstance(done[0], PipelineBusy) if by_hand else torch.equal(done[0], expected)


def test_many_threads_leave_nothing_behind() -> None:
    subject = subject_of("wan2.1-t2v")
    expected = run(subject).latents
    results: list[Any] = []

    def work() -> None:
        for _ in range(4):
            try:
                results.append(run(subject, dl.Capture(DELTA)).latents)
            except PipelineBusy as error:
                results.append(error)

    with left_as_it_was(subject):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 16
    assert all(isinstance(r, PipelineBusy) or torch.equal(r, expected) for r in results)
    assert any(isinstance(r, Tensor) for r in results)


# -- whatever ends it


def test_errors_of_every_kind_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of("wan2.2-a14b")

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no more")

    endings: list[tuple[type[BaseException], Callable[[], object]]] = [
        (MemoryError, lambda: run(subject, Edit(DELTA, fail))),
        (MemoryError, lambda: run(subject, body=fail)),
        (NotFinite, lambda: run(subject, Edit(DELTA, lambda x, at: x * float("nan")))),
        (SystemExit, lambda: run(subject, Edit(dl.Sites("latents", steps=1), lambda x, at: sys.exit(1)))),
    ]
    for kind, ending in endings:
        with left_as_it_was(subject), pytest.raises(kind):
            ending()
    for owner, name in ((subject.pipeline.scheduler, "step"), (subject.pipeline, "encode_prompt")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(MemoryError):
                run(subject, dl.Capture(DELTA))
            assert vars(owner)[name] is fail  # what the user put there stands there still
        with left_as_it_was(subject):
            pass


class Timer:
    """Ctrl-C after some seconds, as the kernel sends it."""

    def __enter__(self) -> Timer:
        self._before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        return self

    def after(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


def interrupted(subject: Subject, times: int, seed: int = 0) -> int:
    """Interrupt runs, replays and gradients at random moments; how many of them it ended."""
    chance, ended = random.Random(seed), 0
    record, expected = run(subject, record=True), run(subject).latents
    within = dl.Capture(dl.Sites(("delta", "attn", "resid")))
    everything = dl.Capture(dl.Sites(("delta", "attn", "resid", "latents")))
    kinds: list[tuple[Callable[[], object], float]] = [
        (lambda: run(subject, everything), 0.06),
        (lambda: subject.model.replay(record, 1, [within]), 0.03),
        (lambda: subject.model.gradients(record, 1, lambda r: r.x0hat.sum(), DELTA), 0.03),
    ]
    with Timer() as timer:
        before = standing(subject.pipeline)
        for number in range(times):
            work, longest = kinds[number % 3]
            try:
                timer.after(chance.uniform(1e-4, longest))
                work()
                timer.after(0)
            except KeyboardInterrupt:
                ended += 1
            timer.after(0)
            assert standing(subject.pipeline) == before, number
    assert torch.equal(run(subject, everything).latents, expected)
    assert torch.equal(run(subject).latents, expected)
    return ended


@pytest.mark.filterwarnings("ignore:An intervention block raised:UserWarning")
# Python drops what is raised in a destructor.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["wan2.1-t2v", "hunyuanvideo-1.5"])
def test_ctrl_c_at_random_moments_leaves_nothing_behind(name: str) -> None:
    assert interrupted(subject_of(name), 150) > 50


def test_ctrl_c_reaches_a_handler_of_ones_own() -> None:
    subject, caught = subject_of("wan2.1-t2v"), []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        edit = Edit(DELTA, lambda x, at: signal.raise_signal(signal.SIGINT))
        found = run(subject, edit)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(caught) == found.geometry.steps * len(found.geometry.branches)
    assert torch.equal(found.latents, run(subject).latents)
