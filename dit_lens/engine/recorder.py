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
        if _on_its_way(tensor):
            self._pinned.append((site, tensor))
        else:
            self.require_finite(tensor, site)
        store = self.captures.setdefault(name, {})
        if site in store:
            raise InputError(f"{site} is captured twice under the name {name!r}; give one of the captures another name")
        store[site] = tensor
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
        values = tensor.detach()
        total = values.sum(dtype=torch.float32) if tensor.dtype in _NARROW else values.sum()
        if total.device.type != "cpu":
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


def _on_its_way(tensor: Tensor) -> bool:
    """Whether a copy from an accelerator into this memory may still be under way."""
    return torch.cuda.is_initialized() and tensor.is_pinned()


@dataclass
class Visitor:
    """Hands activations to interventions and checks what comes back."""

    architecture: Architecture
    context: Context
    recorder: Recorder

    def deliver(self, planned: Planned, site: Site, activation: Tensor, **met: Any) -> Tensor | None:
        """Apply one intervention to the activation of one branch and stream; the replacement, or None."""
        context = self.context
        tokens = planned.intervention.sites.tokens
        if not tokens.is_all:
            tokens = tokens.resolve(context.geometry, site.stream, site.component)
        valid = met.get("text_valid")
        if valid is not None and site.branch is not None and site.branch not in self.recorder.text_valid:
            self.recorder.text_valid[site.branch] = valid.clone()  # it may be the model's own mask
        if site.stream != "video":
            tokens = tokens.among(valid, site)
            met["text_valid"] = tokens.valid(valid)
        part = tokens.take(activation, site.component)
        planned.visited += 1
        self.recorder.visited[site] = None

        def keep(name: str, tensor: Tensor) -> None:
            shared = tensor.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
            self.recorder.keep(site, name, tensor.clone() if shared else tensor)

        name, given_tensors = type(planned.intervention).__name__, [part, *(t for t in met.values() if t is not None)]
        unchanged = [_Unchanged(t) for t in given_tensors if isinstance(t, Tensor)]
        new = planned.intervention(part, At(site, context.rows, keep, context.geometry, context.schedule, **met))
        if not all(unchanged):
            what = "the activation" if not unchanged[0] else "what `at` carries"
            raise InputError(
                f"{name} changed {what} at {site} in place, which does something else at every site; return a new "
                "tensor (x = x * 2, not x *= 2)"
            )
        if new is None:
            return None
        given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        if given != tuple(part.shape):
            raise DonorError(f"{name} returned {given} at {site}; expected shape {tuple(part.shape)}")
        if not new.is_floating_point():
            raise DonorError(f"{name} returned {new.dtype} at {site}; need floating point, best {part.dtype}")
        new = new.to(part.device, part.dtype)
        self.recorder.require_finite(new, site)
        return tokens.put(activation, new, site.component)


class _Unchanged:
    """Whether a tensor is what it was: by torch's count of its changes, where none is kept by its values."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._counts = tensor, not tensor.is_inference()
        self._before = tensor._version if self._counts else tensor.clone()

    def __bool__(self) -> bool:
        if self._counts:
            return self._tensor._version == self._before
        return torch.equal(self._tensor, self._before)  # type: ignore[arg-type]
