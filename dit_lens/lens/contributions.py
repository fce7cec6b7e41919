"""Direct contributions: what each block, or a part of it, adds to the velocity past all later blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dit_lens.errors import InputError, SiteError, UnsupportedModel
from dit_lens.interventions.capture import Capture
from dit_lens.model import VideoDiT
from dit_lens.results.intervals import means_over_instances
from dit_lens.results.plots import curves
from dit_lens.runs.call import Call
from dit_lens.runs.inputs import Row
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select, indices
from dit_lens.sites.site import TERM_COMPONENTS
from dit_lens.sites.sites import Sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What can be asked for: the terms of a block, and their sum.
PARTS = (*TERM_COMPONENTS, "delta")
MEASURES = ("share", "cosine", "norm")
#: By how much of its norm a frozen head may be off, however coarse the dtype. Affine heads are off by .003 in bfloat16.
_LARGEST_ERROR = 0.01


@dataclass(frozen=True)
class Contributions:
    """What the parts of the residual stream add to the velocity, the final norm's scale frozen at the whole stream.

    ``embed`` + ``constant`` + the contributions of every layer's ``delta`` are the velocity, and those of a block's
    terms are its delta's, to rounding.

    Attributes
    ----------
    step, sigma, expert, branch : int, float, str or None, str
    layers, kinds : tuple of int, tuple of str
    rows : tuple of Row, B of them
    values : dict from component to Tensor of shape (layers, B, C, F, H, W)
        Zero in layers whose block has no such component.
    present : dict from component to the layers that have it
    embed, constant, velocity : Tensor of shape (B, C, F, H, W)
        Of the tokens before block 0; of the head's own shift and bias; and their sum with all deltas, the model's own
        prediction of this branch.
    """

    step: int
    sigma: float
    expert: str | None
    branch: str
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    rows: tuple[Row, ...]
    values: Mapping[str, Tensor]
    present: Mapping[str, tuple[int, ...]]
    embed: Tensor
    constant: Tensor
    velocity: Tensor

    def frame(self) -> pd.DataFrame:
        """How much of each row's velocity every part explains.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, layer, kind, component, instance, seed, ``share`` (the
        projection on the velocity over its squared norm; the shares of embed, constant and all deltas sum to 1),
        ``cosine`` to the velocity, and ``norm`` relative to it. The components "embed" and "constant" have no layer.
        """
        found: list[tuple[Any, Any, str, Tensor]] = [
            (layer, kind, component, values[i])
            for component, values in self.values.items()
            for i, (layer, kind) in enumerate(zip(self.layers, self.kinds, strict=True))
            if layer in self.present[component]
        ]
        found += [(None, None, "embed", self.embed), (None, None, "constant", self.constant)]
        rows = []
        for layer, kind, component, value in found:
            for row, numbers in zip(self.rows, _explained(value, self.velocity), strict=True):
                where = (self.step, self.sigma, self.expert, self.branch, layer, kind, component)
                rows.append((*where, row.instance, row.seed, *numbers))
        names = ["step", "sigma", "expert", "branch", "layer", "kind", "component", "instance", "seed", *MEASURES]
        return pd.DataFrame(rows, columns=names).astype({"layer": "Int64"})

    def plot(self, axis: Axes | None = None, measure: str = "share") -> Axes:
        """One curve over the layers for each component: means over instances with 95 % bootstrap intervals.

        Parameters
        ----------
        measure : "share", "cosine" or "norm"
        """
        if measure not in MEASURES:
            raise InputError(f"unknown measure {measure!r}; one of {', '.join(MEASURES)}")
        table = self.frame().dropna(subset=["layer"]).astype({"layer": int})
        means = means_over_instances(table, ["component", "layer"], measure)
        axis = curves(means, "layer", measure, "component", axis)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_title(f"direct contributions, step {self.step}, sigma {self.sigma:.2f}, {self.branch}", fontsize=9)
        return axis


@torch.no_grad()
def contributions(
    model: VideoDiT,
    run: Run,
    step: int,
    components: Sequence[str] | str | None = None,
    layers: Select = "all",
    branch: str = "cond",
) -> Contributions:
    """Attribute one branch's velocity at one step to what the blocks wrote into the residual stream.

    The head's norm divides by the spread of the whole residual. With that scale held fixed the head is affine in the
    residual, so that each part of it has a contribution of its own: frozen head (part) - frozen head (0). The mean over
    channels, which a layer norm takes away, is linear and is taken from each part itself.

    Parameters
    ----------
    run : Run made with ``record=True``
    components : list of str, optional
        Of "attn", "cross_attn", "ffn", a family's further terms ("pos", "a2v", "bias"), and "delta"; by default all
        terms that the blocks have. Layers without a named component are left out of the table.
    layers : Select
    branch : str

    Raises
    ------
    SiteError
        A component, layer or branch that the run does not have.
    MadeForAnother
        The run is of another model.
    UnsupportedModel
        The head is not affine in the residual when the scale of its norms is fixed.

    Notes
    -----
    Direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits") with the adaptive
    output norm of a DiT. It says what a part writes where the head reads it, not what later blocks make of it.

    The head is evaluated in the model's dtype. A bfloat16 model rounds each contribution to about .004 of the head's
    constant, so that those of single layers are known to 1 or 2 % only; load it in float32 for finer ones.
    """
    model.require_own(run)
    geometry = run.geometry
    chosen = indices(layers, geometry.layers, "layer")
    kinds = [geometry.layer(k) for k in chosen]
    present = _present(components, chosen, [kind.components["video"] for kind in kinds])
    at: dict[str, Any] = {"steps": step, "branches": branch}
    captures = [Capture(Sites(part, layers=list(found), **at)) for part, found in present.items()]
    whole = Capture(Sites("resid", layers=geometry.layers - 1, **at), name="whole")
    replay = model.replay(run, step, [*captures, Capture(Sites("embed", **at)), whole])
    call = next(c for c in run.recorded(step) if branch in c.branches)
    residual = next(iter(replay.captures["whole"].values()))
    head = FrozenHead(model, call, residual, replay.conditioning[branch])
    parts = {(s.layer, s.component): head.linear(x) for s, x in replay.captures[""].items()}
    none = torch.zeros_like(head.constant)
    values = {part: torch.stack([parts.get((layer, part), none) for layer in chosen]) for part in present}
    return Contributions(
        step=step,
        sigma=call.sigma,
        expert=call.expert,
        branch=branch,
        layers=tuple(chosen),
        kinds=tuple(kind.kind for kind in kinds),
        rows=run.rows,
        values=values,
        present=present,
        embed=parts[None, "embed"],
        constant=head.constant,
        velocity=replay.velocities[branch],
    )


class FrozenHead:
    """A model's output head whose norms keep the scale that they have at one residual stream.

    Parameters
    ----------
    residual : Tensor of shape (B, F, H, W, D)
    conditioning : mapping
        What the head needs besides, from `Replay.conditioning`.

    Attributes
    ----------
    constant : Tensor of shape (B, C, F, H, W)
        What it gives for a residual of zeros.

    Raises
    ------
    UnsupportedModel
        It is not affine in the residual.
    """

    def __init__(self, model: VideoDiT, call: Call, residual: Tensor, conditioning: Mapping[str, Any]) -> None:
        self._read: Callable[[Tensor], Tensor] = lambda x: model.read_out(call, x, conditioning)
        with _Recording() as recording:
            self.velocity = self._read(residual)
        self._scales = recording.scales
        self.constant = self(torch.zeros_like(residual))
        self._check(residual, model.architecture.family)

    def __call__(self, residual: Tensor) -> Tensor:
        """Velocity (B, C, F, H, W) of a residual stream (B, F, H, W, D), the scales kept."""
        with _Replaying(self._scales):
            return self._read(residual)

    def linear(self, part: Tensor) -> Tensor:
        """Contribution (B, C, F, H, W) of a part (B, F, H, W, D) of the residual stream."""
        return self(part) - self.constant

    def _check(self, residual: Tensor, family: str) -> None:
        """At the residual itself it is the model's head, and halfway to zero halfway to the constant."""
        whole, half = self(residual), self(residual / 2)
        scale = max(float(x.double().norm()) for x in (self.velocity, self.constant))
        allowed = min(32 * torch.finfo(self.velocity.dtype).eps, _LARGEST_ERROR)
        for what, a, b in (
            ("differs from the model's own", whole, self.velocity),
            ("is not affine in the residual", half, (whole + self.constant) / 2),
        ):
            if (off := float((a - b).double().norm()) / scale) > allowed:
                raise UnsupportedModel(
                    f"contributions: with the scale of its {len(self._scales)} norms fixed, the output head of "
                    f"{family} {what} (by {off:.1e} of its norm); parts of the residual have no share of their own"
                )


class _Recording(TorchFunctionMode):
    """Keeps the factor by which every norm that is met scales its input, each computed as always."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in (torch.rsqrt, Tensor.rsqrt):  # an RMS norm that is written out
            self.scales.append(output)
        elif func in _NORMS:
            self.scales.append(_Norm(func, args, kwargs).scale)
        return output


class _Replaying(TorchFunctionMode):
    """Norms with the scales that were kept, in the order in which they are met."""

    def __init__(self, scales: Iterable[Tensor]) -> None:
        super().__init__()
        self.scales = iter(scales)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rsqrt, Tensor.rsqrt):
            return next(self.scales)
        if func in _NORMS:
            return _Norm(func, args, kwargs).scaled(next(self.scales))
        return func(*args, **kwargs)


_CENTRED = (F.layer_norm, torch.layer_norm)
_NORMS = (*_CENTRED, F.rms_norm, torch.rms_norm)


class _Norm:
    """One call of a layer norm or an RMS norm over the last axes, as torch is asked for it."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        names = ["input", "normalized_shape", "weight", *(["bias"] if func in _CENTRED else []), "eps"]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        self.input: Tensor = given["input"]
        self.axes = tuple(range(-len(given["normalized_shape"]), 0))
        self.weight, self.bias, self.centred = given.get("weight"), given.get("bias"), func in _CENTRED
        default = 1e-5 if self.centred else torch.finfo(self.input.dtype).eps
        self.eps = default if given.get("eps") is None else given["eps"]

    @property
    def _moved(self) -> Tensor:
        x = self.input.to(torch.promote_types(self.input.dtype, torch.float32))
        return x - x.mean(dim=self.axes, keepdim=True) if self.centred else x

    @property
    def scale(self) -> Tensor:
        """One over the spread of the input: (..., 1), in float32 at least."""
        return (self._moved.square().mean(dim=self.axes, keepdim=True) + self.eps).rsqrt()

    def scaled(self, scale: Tensor) -> Tensor:
        """The norm's output were this its scale."""
        output = self._moved * scale
        output = output if self.weight is None else output * self.weight
        return (output if self.bias is None else output + self.bias).to(self.input.dtype)


def _present(
    components: Sequence[str] | str | None, layers: Sequence[int], has: Sequence[Sequence[str]]
) -> dict[str, tuple[int, ...]]:
    """The layers that have each of the asked components."""
    own = [part for part in PARTS if any(part in parts for parts in has)]
    given = [components] if isinstance(components, str) else components
    asked = [part for part in own if part != "delta"] if given is None else list(dict.fromkeys(given))
    if not asked:
        raise SiteError(f"no components; the blocks of these layers have {', '.join(own)}")
    if wrong := [part for part in asked if part not in own]:
        raise SiteError(f"no contribution of {wrong[0]!r}; the blocks of these layers have {', '.join(own)}")
    return {part: tuple(k for k, parts in zip(layers, has, strict=True) if part in parts) for part in asked}


def _explained(value: Tensor, velocity: Tensor) -> np.ndarray[Any, Any]:
    """Share, cosine and relative norm of every row: float (B, 3)."""
    a, v = (x.flatten(1).double() for x in (value, velocity))
    along, norm_a, norm_v = (a * v).sum(dim=1), a.norm(dim=1), v.norm(dim=1)
    cosine = along / (norm_a * norm_v).clamp(min=1e-300)
    return torch.stack([along / norm_v.square(), cosine, norm_a / norm_v], dim=1).cpu().numpy()
