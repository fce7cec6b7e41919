"""Direct contributions: what each block, or a part of it, adds to the velocity past all later blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dit_lens.errors import InputError, SiteError, UnsupportedModel
from dit_lens.interventions.capture import Capture
from dit_lens.lens.reading import Reading, reading_of, tidy
from dit_lens.lens.source import Recorded, at_branch, require_sites
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import over_instances
from dit_lens.results.plots import curves
from dit_lens.results.result import Result
from dit_lens.runs.call import Call
from dit_lens.sites.select import indices
from dit_lens.sites.site import TERM_COMPONENTS
from dit_lens.sites.sites import Sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What can be asked for: the terms of a block, and their sum.
PARTS = (*TERM_COMPONENTS, "delta")
MEASURES = ("share", "cosine", "norm")
#: By how much of its norm a frozen head may be off, however coarse the dtype. Affine heads are off by .003 in bfloat16.
_LARGEST_ERROR = 0.01


@dataclass(frozen=True, repr=False)
class Contributions(Result):
    """What the parts of the residual stream add to the velocity, the final norm's scale frozen at the whole stream.

    ``embed`` + ``constant`` + the contributions of every layer's ``delta`` are the velocity, and those of a block's
    terms are its delta's, to rounding.

    Attributes
    ----------
    reading : Reading
        Steps S, layers L and rows B; its component "resid" is what all parts add up to.
    values : dict from component to Tensor of shape (S, L, B, C, F, H, W)
        Zero in layers whose block has no such component.
    present : dict from component to the layers that have it
    embed, constant, velocity : Tensor of shape (S, B, C, F, H, W)
        Of the tokens before block 0; of the head's own shift and bias; and their sum with all deltas, the model's own
        prediction of this branch.
    """

    reading: Reading
    values: Mapping[str, Tensor]
    present: Mapping[str, tuple[int, ...]]
    embed: Tensor
    constant: Tensor
    velocity: Tensor

    @cached_property
    def samples(self) -> pd.DataFrame:
        """How much of each row's velocity every part explains.

        Returns
        -------
        DataFrame with columns step, sigma, expert, branch, layer, kind, component, stream, instance, seed, measure,
        value; measures are "share" (the projection on the velocity over its squared norm; the shares of embed, constant
        and all deltas sum to 1), "cosine" to the velocity, and "norm" relative to it. The components "embed" and
        "constant" have no layer.
        """
        own, places = self.velocity, self.reading.table.astype({"layer": object})
        parts = []
        for component, values in self.values.items():
            found = _explained(values, own[:, None]).reshape(3, -1, values.shape[2])
            has = places["layer"].isin(self.present[component]).to_numpy()
            parts.append(self._tidy(places[has].assign(component=component), found[:, has]))
        whole = self.reading.of_steps.assign(layer=None, kind=None, stream=self.reading.stream)
        for component, value in (("embed", self.embed), ("constant", self.constant)):
            parts.append(self._tidy(whole.assign(component=component)[places.columns], _explained(value, own)))
        return pd.concat(parts, ignore_index=True)

    def _tidy(self, places: pd.DataFrame, found: Floats) -> pd.DataFrame:
        return tidy(places, self.reading.rows, dict(zip(MEASURES, found, strict=True)))

    @cached_property
    def table(self) -> pd.DataFrame:
        """`samples`, the mean over instances with its 95 % bootstrap interval."""
        return over_instances(self.samples)

    def plot(self, axis: Axes | None = None, *, measure: str = "share", step: int | None = None) -> Axes:
        """One curve over the layers for each component: means over instances with 95 % bootstrap intervals.

        Parameters
        ----------
        measure : "share", "cosine" or "norm"
        step : int, optional
            By default the first that was read.
        """
        if measure not in MEASURES:
            raise InputError(f"unknown measure {measure!r}; one of {', '.join(MEASURES)}")
        place = 0 if step is None else self.reading.index_of("step", step)
        step, sigma = self.reading.steps[place], self.reading.sigmas[place]
        table = self.table[(self.table["measure"] == measure) & (self.table["step"] == step)]
        axis = curves(table.dropna(subset=["layer"]).astype({"layer": int}), "layer", "value", "component", axis)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_ylabel(measure)
        axis.set_title(f"direct contributions, step {step}, sigma {sigma:.2f}, {self.reading.branch}", fontsize=9)
        return axis


@torch.no_grad()
def contributions(
    model: VideoDiT,
    source: Any,
    *,
    sites: Sites = Sites(),  # noqa: B008 - it is frozen
    branch: str = "cond",
    **run_arguments: Any,
) -> Contributions:
    """Attribute one branch's velocity to what the blocks wrote into the residual stream.

    The head's norm divides by the spread of the whole residual. With that scale held fixed the head is affine in the
    residual, so that each part of it has a contribution of its own: frozen head (part) - frozen head (0). The mean over
    channels, which a layer norm takes away, is linear and is taken from each part itself.

    Parameters
    ----------
    source : Run made with ``record=True``, or inputs as in `VideoDiT.run`
    sites : Sites
        Steps, layers and components: "attn", "cross_attn", "ffn", a family's further terms ("pos", "a2v", "bias"), and
        "delta"; "resid" stands for all terms that the blocks have. Layers without a named component are left out of
        the table.
    branch : str
    **run_arguments
        Of inputs ``seed``, ``interventions`` and the others of `VideoDiT.run`; of a run only ``interventions``, under
        which its steps are read: a run that was made under some needs them, or [] for none.

    Raises
    ------
    InputError
        The run was not made with ``record=True``, or arguments beside it.
    SiteError
        A step, component, layer or branch that the run does not have.
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
    require_sites("contributions", sites, ["resid", *PARTS])
    whole = at_branch(sites, branch).at(component="resid")
    recorded = Recorded.of(model, source, whole, run_arguments)
    geometry = recorded.run.geometry
    chosen = indices(sites.layers, geometry.layers, "layer")
    present = _present(sites.components, chosen, [geometry.layer(k).components["video"] for k in chosen])
    steps = recorded.steps(sites)
    found = [_at_step(model, recorded, whole.at(steps=step), present) for step in steps]
    calls = [recorded.call(step, branch) for step in steps]
    levels = {call.step: (call.sigma, call.expert) for call in calls}
    return Contributions(
        reading=reading_of(recorded.run, levels, chosen, "resid", "video", branch),
        values={part: torch.stack([_of_layers(of_step, part, chosen) for of_step in found]) for part in present},
        present=present,
        embed=torch.stack([of_step.parts[None, "embed"] for of_step in found]),
        constant=torch.stack([of_step.constant for of_step in found]),
        velocity=torch.stack([of_step.velocity for of_step in found]),
    )


@dataclass(frozen=True)
class _Step:
    """Contributions of one step by (layer, component), the head's constant and the model's own velocity."""

    parts: Mapping[tuple[int | None, str], Tensor]
    constant: Tensor
    velocity: Tensor


def _at_step(model: VideoDiT, recorded: Recorded, sites: Sites, present: Mapping[str, tuple[int, ...]]) -> _Step:
    assert isinstance(sites.steps, int)
    assert isinstance(sites.branches, str)
    last = recorded.run.geometry.layers - 1
    of_parts = [sites.at(component=part, layers=list(layers)) for part, layers in present.items()]
    captures = [Capture(at, name="lens.parts") for at in (*of_parts, sites.at(component="embed"))]
    replay = recorded.replay(model, sites.steps, [*captures, Capture(sites.at(layers=last), name="lens.whole")])
    residual = next(iter(replay.captures["lens.whole"].values()))
    call = recorded.call(sites.steps, sites.branches)
    head = FrozenHead(model, call, residual, replay.conditioning[sites.branches])
    parts = {(s.layer, s.component): head.linear(x) for s, x in replay.captures["lens.parts"].items()}
    return _Step(parts, head.constant, replay.velocities[sites.branches])


def _of_layers(of_step: _Step, part: str, layers: Sequence[int]) -> Tensor:
    """One component's contributions (L, B, C, F, H, W), zeros where a layer has none."""
    none = torch.zeros_like(of_step.constant)
    return torch.stack([of_step.parts.get((layer, part), none) for layer in layers])


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
    components: Sequence[str], layers: Sequence[int], has: Sequence[Sequence[str]]
) -> dict[str, tuple[int, ...]]:
    """The layers that have each of the asked components."""
    own = [part for part in PARTS if any(part in parts for parts in has)]
    terms = [part for part in own if part != "delta"] if "resid" in components else []
    asked = list(dict.fromkeys([*terms, *(part for part in components if part != "resid")]))
    if not asked:
        raise SiteError(f"no components; the blocks of these layers have {', '.join(own)}")
    if wrong := [part for part in asked if part not in own]:
        raise SiteError(f"no contribution of {wrong[0]!r}; the blocks of these layers have {', '.join(own)}")
    return {part: tuple(k for k, parts in zip(layers, has, strict=True) if part in parts) for part in asked}


def _explained(value: Tensor, velocity: Tensor) -> Floats:
    """Share, cosine and relative norm of every row: (..., B, C, F, H, W) to float (3, ..., B)."""
    a, v = (x.flatten(-4).double() for x in (value, velocity))
    along, norm_a, norm_v = (a * v).sum(dim=-1), a.norm(dim=-1), v.norm(dim=-1)
    cosine = along / (norm_a * norm_v).clamp(min=1e-300)
    return np.asarray(torch.stack([along / norm_v.square(), cosine, norm_a / norm_v]).cpu().numpy(), dtype=np.float64)
