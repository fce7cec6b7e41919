"""Any list of interventions, in any order of sites, does what the equivalent torch hooks do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import dit_lens as dl
from tests.subjects import STEPS, Edit, capture, forward_hooks, subject_of

LAYERS = 4


@dataclass(frozen=True)
class Change:
    """Multiply and shift one component of one layer, at one step or all, in one branch or both."""

    component: str
    layer: int
    factor: float
    shift: float
    step: int | None = None
    branch: str = "all"

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift

    @property
    def intervention(self) -> Edit:
        steps = "all" if self.step is None else self.step
        sites = dl.Sites(self.component, layers=self.layer, steps=steps, branches=self.branch)
        return Edit(sites, lambda x, at: self(x))


changes = st.builds(
    Change,
    st.sampled_from(["embed", "attn", "cross_attn", "ffn", "delta", "resid", "velocity", "model_input"]),
    st.integers(0, LAYERS - 1), st.sampled_from([0.0, 0.5, 1.0, -1.0]), st.sampled_from([0.0, 0.25, -0.5]),
    st.none() | st.integers(0, STEPS - 1), st.sampled_from(["all", "cond", "uncond"]),
)  # fmt: skip


class Hooks:
    """The same changes by torch hooks: written against Wan's own forward, not against dit_lens.

    What a part adds to the stream is changed where it is added: the block's later parts are given the changed stream by
    hooks on the norms that read it, and its output is changed by as much.
    """

    def __init__(self, chosen: list[Change], transformer: Any, guided: bool) -> None:
        self.chosen, self.transformer, self.guided, self.calls = chosen, transformer, guided, -1
        self.moved: dict[int, Tensor | float] = {}

    def here(self, component: str, layer: int) -> list[Change]:
        step, nth = divmod(self.calls, 2 if self.guided else 1)
        branch = ("cond", "uncond")[nth]
        return [c for c in self.chosen if c.component == component and (c.layer == layer or component in CALL_WIDE)
                and c.step in (None, step) and c.branch in ("all", branch)]  # fmt: skip

    def start(self, _module: Any, args: Any, kwargs: Any) -> Any:
        self.calls += 1
        x = kwargs["hidden_states"]
        for change in self.here("model_input", 0):
            x = change(x)
        return args, {**kwargs, "hidden_states": x}

    def end(self, _module: Any, _args: Any, _kwargs: Any, output: tuple[Tensor]) -> tuple[Tensor]:
        velocity = output[0]
        for change in self.here("velocity", 0):
            velocity = change(velocity)
        return (velocity,)

    def enter(self, layer: int) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Tensor, ...], kwargs: Any) -> Any:
            self.moved[layer] = 0.0
            x = args[0]
            for change in self.here("embed", 0) if layer == 0 else []:
                x = change(x)
            self.before = x
            return (x, *args[1:]), kwargs

        return hook

    def part(self, layer: int, component: str, gate: int | None) -> Callable[..., None]:
        """Works out by how much the changes move the stream; the module's own output stays."""

        def hook(_module: Any, _args: Any, _kwargs: Any, output: Tensor) -> None:
            table = self.transformer.blocks[layer].scale_shift_table
            added = output if gate is None else output * (table + self.temb).chunk(6, dim=1)[gate]
            changed = added
            for change in self.here(component, layer):
                changed = change(changed)
            self.moved[layer] = self.moved[layer] + (changed - added)

        return hook

    def read(self, layer: int) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Tensor, ...], kwargs: Any) -> Any:
            return (args[0] + self.moved[layer], *args[1:]), kwargs

        return hook

    def leave(self, layer: int) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Tensor, ...], _kwargs: Any, output: Tensor) -> Tensor:
            delta = output + self.moved[layer] - args[0]
            for change in self.here("delta", layer):
                delta = change(delta)
            resid = args[0] + delta
            for change in self.here("resid", layer):
                resid = change(resid)
            return resid

        return hook

    def keep_time(self, _module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        self.temb = output[1].unflatten(1, (6, -1)).float()

    def attach(self, stack: ExitStack) -> None:
        def add(module: Any, hook: Callable[..., Any], *, before: bool = False) -> None:
            stack.enter_context(forward_hooks(module, hook, before=before))

        add(self.transformer, self.start, before=True)
        add(self.transformer, self.end)
        add(self.transformer.condition_embedder, self.keep_time)
        for k, block in enumerate(self.transformer.blocks):
            add(block, self.enter(k), before=True)
            add(block.attn1, self.part(k, "attn", 2))
            add(block.norm2, self.read(k), before=True)
            add(block.attn2, self.part(k, "cross_attn", None))
            add(block.norm3, self.read(k), before=True)
            add(block.ffn, self.part(k, "ffn", 5))
            add(block, self.leave(k))


CALL_WIDE = ("embed", "velocity", "model_input")


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(chosen=st.lists(changes, min_size=1, max_size=6), guided=st.booleans())
def test_any_list_of_edits_is_what_torch_hooks_make_of_it(chosen: list[Change], guided: bool) -> None:
    subject, guidance = subject_of("text_to_video"), 2.0 if guided else 1.0
    if not guided:
        chosen = [c for c in chosen if c.branch != "uncond"] or [Change("resid", 0, 0.5, 0.0)]
    run = subject.run(guidance=guidance, interventions=[c.intervention for c in chosen])
    with ExitStack() as stack:
        Hooks(chosen, subject.pipeline.transformer, guided).attach(stack)
        expected = subject.plain(guidance=guidance)
    scale = float(expected.abs().max())
    torch.testing.assert_close(run.latents, expected, rtol=0, atol=2e-5 * max(scale, 1.0))


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(chosen=st.lists(changes, min_size=2, max_size=6, unique_by=lambda c: (c.component, c.layer)), data=st.data())
def test_the_order_of_the_list_does_not_matter_across_sites(chosen: list[Change], data: st.DataObject) -> None:
    subject = subject_of("text_to_video")
    chosen = [c for c in chosen if c.branch != "uncond"] or [Change("resid", 0, 0.5, 0.0)]
    wide = [c for c in chosen if c.component in CALL_WIDE]
    chosen = [c for c in chosen if c.component not in CALL_WIDE] + wide[:1]
    shuffled = data.draw(st.permutations(chosen))
    one = subject.run(interventions=[c.intervention for c in chosen])
    other = subject.run(interventions=[c.intervention for c in shuffled])
    assert torch.equal(one.latents, other.latents)


def test_at_one_site_the_order_of_the_list_rules() -> None:
    subject = subject_of("text_to_video")
    double, shift = (Edit(dl.Sites("attn", layers=1), f) for f in (lambda x, at: x * 2, lambda x, at: x + 1))
    seen = [capture("attn", layers=1)]
    plain = subject.run(interventions=seen)["s00/cond/L01/attn/video"]
    for edits, expected in (((double, shift), plain * 2 + 1), ((shift, double), (plain + 1) * 2)):
        torch.testing.assert_close(subject.run(interventions=[*edits, *seen])["s00/cond/L01/attn/video"], expected)


@pytest.mark.parametrize("component", ["attn", "cross_attn", "ffn", "delta", "resid"])
def test_a_capture_sees_an_edit_that_executes_before_it_wherever_it_stands_in_the_list(component: str) -> None:
    subject = subject_of("text_to_video")
    after = {"attn": "cross_attn", "cross_attn": "ffn", "ffn": "delta", "delta": "resid", "resid": "delta"}[component]
    layer = 2 if component == "resid" else 1
    edit = Edit(dl.Sites(component, layers=1), lambda x, at: x + 1)
    see = capture(after, layers=layer)
    site = dl.Site(0, "cond", layer, after)
    first, last = (subject.run(interventions=order)[site] for order in ([see, edit], [edit, see]))
    assert torch.equal(first, last)
    assert not torch.equal(first, subject.run(interventions=[see])[site])


def test_heads_are_edited_as_the_columns_of_the_output_projection() -> None:
    subject = subject_of("text_to_video")
    width = 16

    def drop_second(_module: Any, args: tuple[Tensor, ...], kwargs: Any) -> Any:
        z = args[0].clone()
        z[..., width:] = 0
        return (z,), kwargs

    run = subject.run(interventions=[Edit(dl.Sites("head", layers=2, heads=1), lambda x, at: torch.zeros_like(x))])
    with forward_hooks(subject.pipeline.transformer.blocks[2].attn1.to_out[0], drop_second, before=True):
        expected = subject.plain()
    assert not torch.equal(expected, subject.plain())
    torch.testing.assert_close(run.latents, expected, rtol=1e-4, atol=1e-5)
