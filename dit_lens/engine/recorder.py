"""What a run has met: everything it collects, and the hand-over of activations to interventions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from dit_lens.engine.plan import Planned
from dit_lens.errors import DonorError, InputError, NotFinite
from dit_lens.families.base import Architecture
from dit_lens.interventions.base import At
from dit_lens.interventions.shapes import channel_axis, shares_memory
from dit_lens.runs.call import Call, Context, Prepared
from dit_lens.runs.ledger import Ledger
from dit_lens.runs.nest import mapped
from dit_lens.sites.site import Site, some

#: Sums of these overflow long before their values do.
_NARROW = (torch.float16, torch.bfloat16)


@dataclass
class Recorder:
    """Everything that a run collects as it goes."""

    captures: dict[str, dict[Site, Tensor]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    prepared: Prepared | None = None
    active: bool = False
    visited: dict[Site, None] = field(default_factory=dict)
    text_valid: dict[str, Tensor] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    _unread: list[tuple[Site, Tensor]] = field(default_factory=list)
    _pinned: list[tuple[Site, Tensor]] = field(default_factory=list)
    _versions: list[tuple[Site, Tensor, int]] = field(default_factory=list)

    def keep(self, site: Site, name: str, tensor: Tensor) -> None:
        """Store one capture.

        Raises
        ------
        NotFinite, InputError
        """
        # A copy from an accelerator into this memory may still be on its way.
        if torch.cuda.is_initialized() and tensor.is_pinned():
            self._pinned.append((site, tensor))
        else:
            self.require_finite(tensor, site)
        store = self.captures.setdefault(name, {})
        known = len(store)
        store.setdefault(site, tensor)  # a site's hash is dear: one for asking and storing
        if len(store) == known:
            raise InputError(f"{site} is captured twice under the name {name!r}; give one of the captures another name")
        if not tensor.is_inference():
            self._versions.append((site, tensor, tensor._version))
        self.ledger.captured_bytes += tensor.numel() * tensor.element_size()

    def require_finite(self, tensor: Tensor, site: Site) -> None:
        """Raise `NotFinite` for NaN or infinity; on an accelerator at the next `settle`, for asking waits for it."""
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        if not tensor.is_floating_point():
            return
        # One sum answers for all values: it is finite only where they are, unless it overflows itself.
        values = tensor.detach() if tensor.requires_grad else tensor
        total = values.sum(dtype=torch.float32) if tensor.dtype in _NARROW else values.sum()
        if not total.is_cpu:
            self._unread.append((site, total))
        elif not math.isfinite(total):
            self._refuse(site, int((~torch.isfinite(tensor)).sum()))

    def settle(self) -> None:
        """Read the answers that were left on the device."""
        unread, self._unread = self._unread, []
        if unread:
            for (site, _), total in zip(unread, torch.stack([t.float() for _, t in unread]).tolist(), strict=True):
                if not math.isfinite(total):
                    self._refuse(site, None)

    def finish(self) -> None:
        """Wait for what is still on its way: answers on the device, and copies into pinned memory."""
        self.settle()
        for site, tensor, version in self._versions:
            if tensor._version != version:
                raise InputError(
                    f"what was kept at {site} was changed in place afterwards: a reduction that fills the same tensor "
                    "again and again must return a copy (x.clone())"
                )
        if self._pinned:
            torch.cuda.synchronize()
        for site, tensor in self._pinned:
            self.require_finite(tensor, site)

    def _refuse(self, site: Site, bad: int | None) -> None:
        if bad != 0:
            raise NotFinite(f"{'some' if bad is None else bad} values are NaN or infinite at {site}; {self.where()}")

    def where(self) -> str:
        """The sites visited so far, in words."""
        return f"visited so far: {some(self.visited)}" if self.visited else "no site visited yet"


@dataclass(frozen=True, repr=False)
class ActiveCall(Call):
    """A call as the body of a run is given it, while the run is active.

    Attributes
    ----------
    recorder : Recorder of the run
    """

    recorder: Recorder | None = None


class Copies:
    """Copies of the tensors in a nest of mappings, lists and tuples.

    A tensor that comes again unchanged, as the text does at every call, is copied once.
    """

    def __init__(self) -> None:
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __call__(self, nest: Any) -> Any:
        return mapped(nest, self._copy)

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.is_inference():  # its changes are not counted
            return tensor.clone()
        version, copy = self._made.get(tensor, (-1, tensor))
        if version != tensor._version:
            copy = tensor.clone()
            self._made[tensor] = (tensor._version, copy)
        made: Tensor = copy
        return made


@dataclass
class Visitor:
    """Hands activations to interventions and checks what comes back."""

    architecture: Architecture
    context: Context
    recorder: Recorder

    def deliver(self, planned: Planned, site: Site, activation: Tensor, **met: Any) -> Tensor | None:
        """Apply one intervention to the activation of one branch and stream; the replacement, or None.

        Raises
        ------
        InputError, DonorError, NotFinite
            It changed what it was given, gave what does not fit, or only reads and gave a replacement all the same.
        """
        intervention, context = planned.intervention, self.context
        tokens = intervention.sites.tokens
        if not tokens.is_all:
            tokens = tokens.resolve(context.geometry, site.stream, site.component)
        valid = met.get("text_valid")
        if valid is not None and site.branch is not None and site.branch not in self.recorder.text_valid:
            self.recorder.text_valid[site.branch] = valid.clone()  # it may be the model's own mask
        if site.stream != "video":
            tokens = tokens.among(valid, site)
            met["text_valid"] = tokens.valid(valid)
        if tokens.rows_named is not None:
            met["own"] = tokens.own(_tokens_of(activation, site))
        part = activation if tokens.is_all else tokens.take(activation, site.component)
        planned.visited += 1
        self.recorder.visited[site] = None

        def keep(name: str, tensor: Tensor) -> None:
            self.recorder.keep(site, name, tensor.clone() if shares_memory(tensor, part) else tensor)

        before, carried = _state(part), []
        for tensor in met.values():
            if isinstance(tensor, Tensor):
                carried.append((tensor, _state(tensor)))
        at: At = object.__new__(At)  # as by its constructor, in half the time: there is one for each value
        at.__dict__.update(
            site=site, rows=context.rows, keep=keep, geometry=context.geometry, schedule=context.schedule, **met
        )
        new = intervention(part, at)
        if _changed(part, before):
            self._refuse_change(planned, site, "the activation")
        for tensor, state in carried:
            if _changed(tensor, state):
                self._refuse_change(planned, site, "what `at` carries")
        if new is None:
            return None
        return tokens.put(activation, self._replacement(planned, site, part, new), site.component)

    def _refuse_change(self, planned: Planned, site: Site, what: str) -> None:
        raise InputError(
            f"{type(planned.intervention).__name__} changed {what} at {site} in place, which does something else at "
            "every site; return a new tensor (x = x * 2, not x *= 2)"
        )

    def _replacement(self, planned: Planned, site: Site, part: Tensor, new: Any) -> Tensor:
        """What an intervention returned, in the activation's own dtype and place."""
        name, given = type(planned.intervention).__name__, tuple(part.shape)
        if planned.reads_only:
            raise InputError(
                f"{name} says that it only reads and returned a replacement at {site}; return None, or leave "
                "reads_only out"
            )
        shape = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        if shape != given:
            raise DonorError(f"{name} returned {shape} at {site}; expected shape {given}")
        if not new.is_floating_point():
            raise DonorError(f"{name} returned {new.dtype} at {site}; need floating point, best {part.dtype}")
        replacement: Tensor = new.to(part.device, part.dtype)
        self.recorder.require_finite(replacement, site)
        return replacement


def _tokens_of(activation: Tensor, site: Site) -> int:
    """How many tokens, cells or positions an activation has."""
    axes = activation.shape[2:] if channel_axis(site) == 1 else activation.shape[1:-1]
    return math.prod(axes)


def _state(tensor: Tensor) -> int | Tensor:
    """What tells whether a tensor is changed: torch's count of its changes, where none is kept its values."""
    return tensor.clone() if tensor.is_inference() else tensor._version


def _changed(tensor: Tensor, state: int | Tensor) -> bool:
    return not torch.equal(tensor, state) if isinstance(state, Tensor) else tensor._version != state
