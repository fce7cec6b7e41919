"""The attention lens: what chosen queries attend to, recomputed from q and k and reduced at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_lens.engine.attention_calls import AttentionCall, attention_modules, watched
from dit_lens.engine.loan import undisturbed
from dit_lens.errors import InputError, NotFinite, SiteError, UnsupportedModel
from dit_lens.lens.attention.layout import Queries, cross_softmaxes, named, others_of_self, self_softmaxes
from dit_lens.lens.attention.measure import Axis, Sums
from dit_lens.lens.attention.result import Attention
from dit_lens.lens.reading import reading_of
from dit_lens.lens.source import Recorded, at_branch, require_sites
from dit_lens.model import VideoDiT
from dit_lens.runs.run import Run
from dit_lens.sites.select import indices
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens

KINDS = ("self", "cross", "image")


@torch.no_grad()
def attention(
    model: VideoDiT,
    source: Any,
    *,
    sites: Sites = Sites("head"),  # noqa: B008 - it is frozen
    branch: str = "cond",
    kind: str = "self",
    region: Tokens | None = None,
    keep_maps: bool = False,
    budget: int = 2**28,
    **run_arguments: Any,
) -> Attention:
    """Recompute the attention of chosen queries, and reduce it while it is computed.

    Each step is done again as it was (`VideoDiT.replay`), and each attention module's queries and keys are taken as
    they go into ``scaled_dot_product_attention``: after norms and rotary positions, with the mask and scale that the
    model itself uses. The whole N x N matrix never exists unless it fits into ``budget``.

    Parameters
    ----------
    source : Run made with ``record=True``, or inputs as in `VideoDiT.run`
    sites : Sites
        Steps, layers and heads of the component "head", and the tokens of the video whose queries are asked for.
    branch : str
    kind : "self", "cross" or "image"
        From the video to itself (and to the text, in families of joint attention); by a cross-attention to the text, or
        to the tokens of an image encoder.
    region : Tokens, optional
        Keys whose mass is wanted: of the video for "self", else positions.
    keep_maps : bool
        Keep the attention of each query to each key.
    budget : int
        Bytes that the scores of one chunk of queries may take, temporaries included. With ``keep_maps`` also the maps
        of all steps must fit.
    **run_arguments
        Of inputs ``seed``, ``interventions`` and the others of `VideoDiT.run`; of a run only ``interventions``, under
        which its steps are read. A run that was made under some needs them, or [] for none (see `Run.edited`).

    Raises
    ------
    InputError
        The run was not recorded, arguments beside it, a budget that does not hold one query's scores or the maps, or an
        unknown kind.
    MadeForAnother
        The run is another model's.
    SiteError
        Steps, layers, heads, tokens or a branch that the run does not have, or another component.
    NotFinite
        NaN or infinity in queries or keys.
    UnsupportedModel
        No attention of this kind, or one that cannot be seen or understood; the message says why.

    Notes
    -----
    Maps of chosen queries between frames follow DiffTrack (arXiv 2506.17220) and IMAP (arXiv 2603.02919). Attention
    mass says where a head looks, not what changes if it looks elsewhere.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r} of attention; one of {', '.join(KINDS)}")
    require_sites("attention", sites, ["head"], tokens=True, heads=True)
    sites = at_branch(sites, branch)
    # Heads of a family in which they do not sum to the attention cannot be addressed, but their masses can be read.
    recorded = Recorded.of(model, source, sites.at(component="resid"), run_arguments)
    steps, layers = recorded.steps(sites), indices(sites.layers, recorded.run.geometry.layers, "layer")
    calls = [recorded.call(step, branch) for step in steps]
    wanted = _Wanted(recorded, sites, kind, region, keep_maps, budget, len(steps) * len(layers))
    readings = [_at_step(model, wanted, step, branch, layers) for step in steps]
    levels = {call.step: (call.sigma, call.expert) for call in calls}
    return Attention(
        reading=reading_of(recorded.run, levels, layers, "head", "video", branch),
        kind=kind,
        heads=readings[0].heads,
        queries=readings[0].asked.queries,
        **_joined([reading.tensors() for reading in readings]),
    )


@dataclass(frozen=True)
class _Wanted:
    """What is asked of every step; ``places`` are the steps and layers together."""

    recorded: Recorded
    sites: Sites
    kind: str
    region: Tokens | None
    keep_maps: bool
    budget: int
    places: int


def _at_step(model: VideoDiT, wanted: _Wanted, step: int, branch: str, layers: list[int]) -> _Reading:
    """One step, done again under the eyes of the lens."""
    recorded, run, call = wanted.recorded, wanted.recorded.run, wanted.recorded.call(step, branch)
    expert = model.experts[call.expert]
    sought = "self" if wanted.kind == "self" else "cross"
    modules = attention_modules(model.architecture.layers(expert), layers, sought, model.architecture.family)
    batch = range(len(run.rows) * len(call.branches))
    asked = Queries(run.geometry.grid, places_of(wanted.sites.tokens, run), batch[call.rows(branch)], len(batch))
    reading = _Reading(wanted, asked)
    reading.check_region()
    nth = [c.nth for c in run.recorded(step) if c.expert == call.expert].index(call.nth)

    def work() -> None:
        with watched(modules, nth, reading.see):
            recorded.replay(model, step)

    undisturbed([expert], work)
    return reading


def _joined(of_steps: list[dict[str, Any]]) -> dict[str, Any]:
    """The tensors of `Attention` by name, steps first; which queries are asked for is the same at every step."""
    found: dict[str, Any] = {"counts": of_steps[0]["counts"]}
    for name in of_steps[0].keys() - found.keys():
        tensors = [of_step[name] for of_step in of_steps]
        found[name] = None if tensors[0] is None else torch.stack(tensors)
    return found


def places_of(tokens: Tokens, run: Run) -> Tensor:
    """Selected tokens of the video as numbers 0..F H W - 1, in order."""
    grid = run.geometry.grid
    numbers = torch.arange(math.prod(grid)).view(1, *grid, 1)
    return tokens.resolve(run.geometry).take(numbers).flatten().sort().values


@dataclass
class _Reading:
    """The sums of every layer as they come in, in the order in which the layers run."""

    wanted: _Wanted
    asked: Queries
    heads: tuple[int, ...] = ()
    sums: list[list[Sums]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.wanted.kind

    @property
    def region(self) -> Tokens | None:
        return self.wanted.region

    def check_region(self) -> None:
        """Before anything runs."""
        if self.region is not None:
            self.region.resolve(self.wanted.recorded.run.geometry, "video" if self.kind == "self" else "text")

    def see(self, call: AttentionCall) -> None:
        axis, softmaxes = self._axis(call), self_softmaxes(call, self.asked)
        if self.kind != "self":
            softmaxes = cross_softmaxes(call, self.asked, self.kind)
        query = call.given[0].query
        chosen = indices(self.wanted.sites.heads, query.shape[1], "head")
        if not self.sums:
            self.heads = tuple(chosen)
            self._check_maps(axis)
        device, count = query.device, len(self.asked.queries)
        sums = [Sums(len(chosen), axis, count, self.wanted.keep_maps, device) for _ in self.asked.rows]
        for row, softmax in softmaxes:
            sums[row].add(softmax, torch.tensor(chosen, device=device), self.wanted.budget)
        if not all(s.entropy.isfinite().all() for s in sums):
            raise NotFinite(f"{self.kind}-attention of layer {call.layer} is not finite; its queries or keys are not")
        self.sums.append([s.cpu() for s in sums])

    def _axis(self, call: AttentionCall) -> Axis:
        grid, device = self.asked.grid, call.given[0].key.device
        if self.kind == "self":
            video, others, of = self.asked.tokens, others_of_self(call, self.asked), None
        else:
            of = named(call).get("text" if self.kind == "cross" else "image")
            if of is None:
                reads = " and ".join(named(call))
                raise UnsupportedModel(f"layer {call.layer}: this model's cross-attention reads {reads} and no image")
            video, others = 0, of.key.shape[2]
        if self.region is None:
            return Axis(grid, video, others)
        region = torch.zeros(video + others, dtype=torch.bool, device=device)
        region[self._region(others).to(device)] = True
        return Axis(grid, video, others, region)

    def _region(self, others: int) -> Tensor:
        assert self.region is not None
        if self.kind == "self":
            return places_of(self.region, self.wanted.recorded.run)
        if self.region.mask is not None and self.region.mask.shape != (others,):
            raise SiteError(f"the region's mask has shape {self.region.mask.shape}, there are {others} positions")
        return self.region.take(torch.arange(others).view(1, others, 1)).flatten()

    def _check_maps(self, axis: Axis) -> None:
        keys, asked, rows = axis.video + axis.others, len(self.asked.queries), len(self.asked.rows)
        size = 4 * self.wanted.places * rows * len(self.heads) * asked * keys
        if self.wanted.keep_maps and size > self.wanted.budget:
            raise InputError(
                f"maps of {self.wanted.places} steps and layers x {rows} rows x {len(self.heads)} heads x {asked} "
                f"queries x {keys} keys take {size:,} bytes, the budget is {self.wanted.budget:,}; choose fewer"
            )

    def tensors(self) -> dict[str, Any]:
        """What `Attention` holds, by name: means over the queries of each frame."""
        grid, frames = self.asked.grid, self.asked.queries // (self.asked.tokens // self.asked.grid[0])
        counts = torch.bincount(frames, minlength=grid[0])

        def means(of: Callable[[Sums], Tensor], trailing: int) -> Tensor:
            sums = torch.stack([torch.stack([of(s) for s in layer]) for layer in self.sums])
            # 0 / 0: a frame of which no query was asked has no mean.
            return (sums / counts.view(-1, *(1,) * trailing)).float()

        first = self.sums[0][0]
        others = means(lambda s: s.others, 1) if first.axis.others else None
        return {
            "counts": counts,
            "frames": means(lambda s: s.frames, 1) if first.axis.video else None,
            "uniform": means(lambda s: s.uniform, 1) if first.axis.video else None,
            "text": None if self.kind == "image" else others,
            "image": others if self.kind == "image" else None,
            "region": None if self.region is None else means(lambda s: s.region, 0),
            "entropy": means(lambda s: s.entropy, 0),
            "entropy_share": means(lambda s: s.share, 0),
            "maps": self._maps() if self.wanted.keep_maps else None,
        }

    def _maps(self) -> Tensor:
        return torch.stack([torch.stack([s.maps for s in layer if s.maps is not None]) for layer in self.sums])
