"""The walk through one denoiser call: every wanted site is met once, in the model's own order of execution."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dit_lens.engine.envoys import Ask, Asking
from dit_lens.engine.layout import as_before, packed, per_row, shaped, token_sigma
from dit_lens.engine.plan import Planned, bypass_in
from dit_lens.engine.recorder import Visitor
from dit_lens.engine.values import added, output_of, recorded, replaced
from dit_lens.families.base import Block, Met, Reader, Term, all_valid, bind
from dit_lens.interventions.shapes import wide
from dit_lens.runs.call import Call, Context
from dit_lens.runs.replay import Resume
from dit_lens.sites.site import TERM_COMPONENTS, TEXTS, TOLD_COMPONENTS, Site

_MODEL_INPUT, _EMBED, _HEAD_MODULATION, _VELOCITY = (
    frozenset({component}) for component in ("model_input", "embed", "head_modulation", "velocity")
)
_TOLD = frozenset(TOLD_COMPONENTS)
_TERMS = frozenset({"head", *TERM_COMPONENTS})
#: Components of a block for which its inputs must be met, and its output.
_OF_INPUTS, _OF_OUTPUT = _TOLD | _TERMS | {"delta"}, frozenset({"delta", "resid"})

#: What `Ask` calls the end of a module that an event names.
_END = {"input": "inputs", "output": "output"}

#: Where an activation can be met within a call: layer, component, stream, head.
SiteInCall = tuple[int | None, str, str, int | None]


class Enough(Exception):
    """Raised inside a call when the last wanted site of a run has been met and nothing more is needed."""


@dataclass
class Walk:
    """One denoiser call with what is to be done in it.

    Parameters
    ----------
    call : Call
    module : nn.Module
        The transformer, for its block lists.
    visits : list of (Planned, its sites in this call)
        In the order of the run's list of interventions.
    visitor : Visitor
    resume : Resume, optional
        Whose residuals answer the first blocks of this call.
    last : bool
        Raise `Enough` after the last site.
    """

    call: Call
    module: nn.Module
    visits: Sequence[tuple[Planned, list[Site]]]
    visitor: Visitor
    resume: Resume | None = None
    last: bool = False

    def __post_init__(self) -> None:
        self.context: Context = self.visitor.context
        self.architecture = self.visitor.architecture
        self.layers = self.architecture.layers(self.module)
        self.blocks_run = len(self.layers)
        self._at: dict[int | None, dict[SiteInCall, list[tuple[Planned, Site]]]] = {}
        self._components: dict[int | None, set[str]] = {}
        self._left = 0
        for planned, sites in self.visits:
            for site in sites:
                place = (site.layer, site.component, site.stream, site.head)
                self._at.setdefault(site.layer, {}).setdefault(place, []).append((planned, site))
                self._components.setdefault(site.layer, set()).add(site.component)
                self._left += 1
        #: The first block that is computed.
        self._first = self.resume.layer if self.resume is not None else 0
        self._embedded = self._wanted(None, _EMBED)
        #: The blocks at which there is anything to do, and those of which the inputs must be met.
        busy = {*range(self._first), *(k for k in self._at if k is not None), *((0,) if self._embedded else ())}
        self._route = [(k, *self.layers[k]) for k in sorted(busy)]
        self._opened = {k for k, _, _, block in self._route if k >= self._first and self._needs_inputs(k, block)}
        #: Whether nothing of the call is replaced or left out, so that nothing has to wait for the walk.
        self.reads_only = not self._first and all(planned.reads_only for planned, _ in self.visits)
        self._bypassing = any(planned.skips for planned, _ in self.visits)
        self._met: dict[str, Any] = {"model": self.module, "token_sigma": token_sigma(self.call)}
        self._valid: Tensor | None = None
        self._rows = len(self.context.rows) * len(self.call.branches)

    def _wanted(self, layer: int | None, components: frozenset[str]) -> bool:
        return not components.isdisjoint(self._components.get(layer, ()))

    def _wants(self, layer: int | None, *components: str) -> list[SiteInCall]:
        return [place for place in self._at.get(layer, ()) if place[1] in components]

    def _visits(self, place: SiteInCall) -> list[tuple[Planned, Site]]:
        return self._at.get(place[0], {}).get(place, [])

    def stops(self) -> tuple[tuple[str, str], ...]:
        """Path and end ("inputs", "output", "skip") of all that the walk may ask for, edits of it left out."""
        stops = [("", "inputs"), ("", "output")]
        if self._wanted(None, _HEAD_MODULATION):
            stops.append((self.architecture.head_told.path, self.architecture.head_told.end))
        for k, path, _, block in self._route:
            if k < self._first:
                stops.append((path, "skip"))
                continue
            if k in self._opened:
                stops.append((path, "inputs"))
                stops += [(f"{path}.{module}", _END[end]) for module, _, end in map(_split, self._events(k, block))]
            stops.append((path, "output"))
        return tuple(stops)

    def _terms(self, layer: int, block: Block) -> list[Term]:
        """The terms of a block that are wanted, whole or by head."""
        if not self._wanted(layer, _TERMS):
            return []
        wanted = {("attn" if c == "head" else c, s) for _, c, s, _ in self._wants(layer, "head", *TERM_COMPONENTS)}
        return [t for t in block.terms if (t.component, t.stream) in wanted]

    def _events(self, layer: int, block: Block) -> list[str]:
        """The events of a block that must be met: what the wanted terms need, and the readers of what they may edit."""
        terms, needed = self._terms(layer, block), set[str]()
        if not terms:
            return []
        for term in terms:
            needed |= self._needs(term, layer)
        places = self._wants(layer, *TERM_COMPONENTS, "head")
        if any(not p.reads_only for place in places for p, _ in self._visits(place)):
            edited = {t.stream for t in terms}
            needed |= {r.event for r in block.readers if r.stream in edited}
        return [e for e in block.events if e in needed]

    def _needs(self, term: Term, layer: int) -> set[str]:
        """The events that a wanted term waits for, those of its heads included where they are wanted."""
        by_head = term.component == "attn" and any(s == term.stream for _, _, s, _ in self._wants(layer, "head"))
        return {*term.needs, *(term.head_needs if by_head else ())}

    def __call__(self) -> Asking:
        """Meet all sites: asks for one value of the call after the other, and is sent it."""
        if self._at:
            yield from self._offer_input()
            yield from self._offer_head_modulation("output")
        for layer, path, module, block in self._route:
            if self.resume is not None and layer < self._first:
                yield Ask(path, "skip", recorded(self.resume, self.call, block))
                self.blocks_run -= 1
            else:
                yield from self._block(path, module, block, layer)
        if self._at:
            yield from self._offer_head_modulation("inputs")
            yield from self._offer_output()

    def _offer_input(self) -> Asking:
        if self._wanted(None, _MODEL_INPUT):
            args, kwargs = yield Ask("", "inputs")
            changed = self._offer((None, "model_input", "video", None), kwargs["hidden_states"])
            if changed is not None:
                yield Ask("", "inputs", (args, {**kwargs, "hidden_states": changed}))

    def _offer_head_modulation(self, end: str) -> Asking:
        """Offer what only the output head is told, at the end of the module where the family has it."""
        told = self.architecture.head_told
        if told.end != end or not self._wanted(None, _HEAD_MODULATION):
            return
        module, value = self.module.get_submodule(told.path), (yield Ask(told.path, end))
        before = told.take(module, value)
        changed = self._offer((None, "head_modulation", "video", None), per_row(before, self._rows))
        if changed is not None:
            yield Ask(told.path, end, told.put(module, value, as_before(changed, before)))

    def _offer_output(self) -> Asking:
        if self._wanted(None, _VELOCITY):
            output = yield Ask("", "output")
            changed = self._offer((None, "velocity", "video", None), output[0])
            if changed is not None:
                yield Ask("", "output", (changed, *output[1:]))

    def _block(self, path: str, module: nn.Module, block: Block, layer: int) -> Asking:
        """Meet a block's sites: embed, what it is told, terms and heads as they are made, delta, resid."""
        met: Met | None = None
        if layer in self._opened:
            args, kwargs = yield Ask(path, "inputs")
            met = Met(module, bind(module, args, kwargs), math.prod(self.context.geometry.grid))
            self._know_valid(block, met)
            yield from self._offer_inputs(path, block, layer, met, args, kwargs)
            if self._bypassed(layer):
                yield Ask(path, "skip", self._left_out(block, layer, met))
                return
        pending: dict[str, Tensor] = {}
        if met is not None and self._wanted(layer, _TERMS):
            yield from self._offer_terms(block, layer, met, pending)
        if pending or self._wanted(layer, _OF_OUTPUT):
            yield from self._offer_block_output(path, block, layer, met, pending)

    def _needs_inputs(self, layer: int, block: Block) -> bool:
        if (layer == 0 and self._embedded) or self._wanted(layer, _OF_INPUTS):
            return True
        # Of a text stream, which of its positions attention reads.
        return block.text_valid is not all_valid and any(place[2] != "video" for place in self._at.get(layer, ()))

    def _know_valid(self, block: Block, met: Met) -> None:
        if block.text_valid is not all_valid:
            self._valid = block.text_valid(met)

    def _offer_inputs(
        self, path: str, block: Block, layer: int, met: Met, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Asking:
        """Offer what a block is given and told; edits go to the block and to what is met of it."""
        changes: dict[str, Any] = {}
        if layer == 0 and self._embedded:
            changes |= self._offer_embed(block, met)
        if self._wanted(layer, _TOLD):
            changes |= self._offer_told(block, layer, met)
        for name, value in changes.items():
            args, kwargs = replaced(args, kwargs, list(met.arguments).index(name) - 1, name, value)
        if changes:
            yield Ask(path, "inputs", (args, kwargs))
            self._know_valid(block, met)

    def _offer_embed(self, block: Block, met: Met) -> dict[str, Any]:
        """Offer the streams as they enter the first block; the call arguments that edits change."""
        changes: dict[str, Any] = {}
        for stream in block.streams:
            changed = self._offer((None, "embed", stream.name, None), met.arguments[stream.argument])
            if changed is not None:
                changes[stream.argument] = met.arguments[stream.argument] = changed
        return changes

    def _offer_told(self, block: Block, layer: int, met: Met) -> dict[str, Any]:
        """Offer what a block is told besides its streams; the call arguments that edits change."""
        changes: dict[str, Any] = {}
        for told in block.told:
            place = (layer, told.component, told.stream, None)
            given = told.take(met) if self._visits(place) else None
            if given is None:
                continue
            changed = self._offer(place, per_row(given, self._rows))
            if changed is not None:
                made = told.put(met, as_before(changed, given))
                changes |= made
                met.arguments.update(made)
        return changes

    def _bypassed(self, layer: int) -> bool:
        """Whether a whole block can be left out: its update is bypassed in all streams, and nobody wants its parts."""
        block = self.layers[layer][2]
        if self._terms(layer, block):
            return False
        # What stands before a bypass in the list sees the update that it takes away.
        return all(place == 0 for stream in block.streams for place in self._bypasses(layer, stream.name))

    def _bypasses(self, layer: int, stream: str) -> list[int | None]:
        """For each branch the place, in the list of interventions, of what takes a block's whole update away."""
        if not self._bypassing:
            return [None]
        visits = self._visits((layer, "delta", stream, None))
        return [bypass_in([p for p, site in visits if site.branch == branch]) for branch in self.call.branches]

    def _left_out(self, block: Block, layer: int, met: Met) -> Any:
        """What a bypassed block gives back: its own input."""
        self.blocks_run -= 1
        streams = {}
        for stream in block.streams:
            before = met.arguments[stream.argument]
            self._offer((layer, "delta", stream.name, None), torch.zeros_like(before))
            changed = self._offer((layer, "resid", stream.name, None), before)
            streams[stream.name] = before if changed is None else changed
        streams |= {stream.name: met.arguments[stream.argument] for stream in block.carried}
        return output_of(None, block, streams)

    def _offer_terms(self, block: Block, layer: int, met: Met, pending: dict[str, Tensor]) -> Asking:
        """Meet the block's terms; what their edits add to each stream waits in ``pending`` for the block's output."""
        terms = self._terms(layer, block)
        for term in (t for t in terms if not t.needs):
            self._offer_term(term, layer, met, pending)
        absent = block.absent(met.arguments)
        events = [e for e in self._events(layer, block) if e not in absent]
        for event in events:
            path, _, end = _split(f"{self.layers[layer][0]}.{event}")
            if end == "input":
                readers = [r for r in block.readers if r.event == event]
                met.see(event, (yield from self._read(path, readers, pending, met)))
            else:
                met.see(event, (yield Ask(path, "output")))
            for term in (t for t in terms if self._complete(t, layer, event, events)):
                self._offer_term(term, layer, met, pending)

    def _complete(self, term: Term, layer: int, event: str, events: Sequence[str]) -> bool:
        """Whether ``event`` is the last one that a term waits for, of those that come."""
        return event == max(self._needs(term, layer).intersection(events), key=events.index, default=None)

    def _read(
        self, path: str, readers: Sequence[Reader], pending: Mapping[str, Tensor], met: Met
    ) -> Generator[Ask, Any, Any]:
        """A module's first argument, after what earlier edits add to the streams that it reads."""
        args, kwargs = yield Ask(path, "inputs")
        for reader in (r for r in readers if r.stream in pending):
            given = args[reader.argument] if isinstance(reader.argument, int) else kwargs[reader.argument]
            part = reader.part(met.video_tokens)
            changed = given.clone()
            changed[:, part] = added(given[:, part], pending[reader.stream])
            args, kwargs = replaced(args, kwargs, reader.argument, reader.argument, changed)
            yield Ask(path, "inputs", (args, kwargs))
        return args[0] if args else next(iter(kwargs.values()))

    def _offer_term(self, term: Term, layer: int, met: Met, pending: dict[str, Tensor]) -> None:
        stream = term.stream
        before = met.arguments[self.layers[layer][2].stream(stream).argument]
        heads = self._wants(layer, "head") if term.component == "attn" else []
        heads = sorted((p for p in heads if p[2] == stream), key=lambda p: p[3] or 0)
        for place in heads if term.heads is not None else ():
            assert term.heads is not None
            self._offer_addend(place, term.heads(met, place[3] or 0).to(before.dtype), pending)
        place = (layer, term.component, stream, None)
        if self._visits(place):
            whole = term.value(met).expand_as(before)
            own = added(whole, pending[stream]) if heads and stream in pending else whole.to(before.dtype)
            self._offer_addend(place, own, pending)

    def _offer_addend(self, place: SiteInCall, own: Tensor, pending: dict[str, Tensor]) -> None:
        """Offer what is added to a stream; the difference that an edit makes waits for the stream's next reader."""
        changed = self._offer(place, own)
        if changed is not None:
            difference = wide(changed) - wide(own)
            pending[place[2]] = pending[place[2]] + difference if place[2] in pending else difference

    def _offer_block_output(
        self, path: str, block: Block, layer: int, met: Met | None, pending: Mapping[str, Tensor]
    ) -> Asking:
        output, streams, changed_any = (yield Ask(path, "output")), {}, False
        if self.reads_only:
            self._show_block_output(output, block, layer, met)
            return
        bypassed = {stream.name: None not in self._bypasses(layer, stream.name) for stream in block.streams}
        for stream in block.streams:
            after = given = output if stream.element is None else output[stream.element]
            if stream.name in pending:
                after = added(after, pending[stream.name])
            if met is not None and self._visits((layer, "delta", stream.name, None)):
                own = after - met.arguments[stream.argument]
                changed = self._offer((layer, "delta", stream.name, None), own)
                if bypassed[stream.name]:
                    after = met.arguments[stream.argument]
                elif changed is not None:
                    # Adding the difference keeps patching with one's own update the identity, bit for bit.
                    after = added(after, wide(changed) - wide(own))
            changed = self._offer((layer, "resid", stream.name, None), after)
            streams[stream.name] = after if changed is None else changed
            changed_any |= streams[stream.name] is not given
        if all(bypassed.values()):
            assert met is not None
            streams |= {stream.name: met.arguments[stream.argument] for stream in block.carried}
        if changed_any:
            yield Ask(path, "output", output_of(output, block, streams))

    def _show_block_output(self, output: Any, block: Block, layer: int, met: Met | None) -> None:
        for stream in block.streams:
            after = output if stream.element is None else output[stream.element]
            if met is not None and self._visits(delta := (layer, "delta", stream.name, None)):
                self._offer(delta, after - met.arguments[stream.argument])
            self._offer((layer, "resid", stream.name, None), after)

    def _offer(self, place: SiteInCall, tensor: Tensor) -> Tensor | None:
        """Show a tensor of all the call's rows to the interventions at a place; the changed one, or None."""
        visits, branches = self._visits(place), self.call.branches
        whole, edited = tensor, False
        for planned, site in visits:
            # A call of one branch need not be cut.
            rows = slice(None) if len(branches) == 1 else self.call.rows(site.branch or "")
            part = shaped(whole if len(branches) == 1 else whole[rows], site, self.architecture, self.context)
            valid = {"text_valid": self._valid[rows]} if place[2] in TEXTS and self._valid is not None else {}
            new = self.visitor.deliver(planned, site, part, **self._met, **valid)
            self._left -= 1
            if new is not None:
                flat = packed(new, site, self.architecture, self.context)
                if len(branches) == 1:
                    whole = flat
                else:
                    whole = whole if edited else whole.clone()
                    whole[rows] = flat
                edited = True
        if self.last and not self._left and visits:
            self._stop_counting(place)
            raise Enough
        return whole if edited else None

    def _stop_counting(self, place: SiteInCall) -> None:
        """Count only the blocks that ran before the last site."""
        layer, component, *_ = place
        skipped = len(self.layers) - self.blocks_run
        after, all_of_them = self.architecture.head_told.end == "inputs", len(self.layers)
        around = {"model_input": 0, "embed": 0, "head_modulation": after * all_of_them, "velocity": all_of_them}
        entered = around.get(component, (layer or 0) + 1)
        self.blocks_run = max(0, entered - skipped)


def _split(event: str) -> tuple[str, str, str]:
    """Path of the module, a dot, and "input" or "output"."""
    return event.rpartition(".")
