"""The attention lens: what chosen queries attend to, recomputed from q and k and reduced at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_lens.engine.attention_calls import AttentionCall, attention_modules, watched
from dit_lens.engine.loan import undisturbed
from dit_lens.errors import InputError, NotFinite, SiteError, UnsupportedModel
from dit_lens.interventions.base import Intervention
from dit_lens.lens.attention.layout import Queries, cross_softmaxes, named, others_of_self, self_softmaxes
from dit_lens.lens.attention.measure import Axis, Sums
from dit_lens.lens.attention.result import Attention
from dit_lens.model import VideoDiT
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select, indices
from dit_lens.sites.tokens import Tokens

KINDS = ("self", "cross", "image")


@torch.no_grad()
def attention(
    model: VideoDiT,
    run: Run,
    step: int,
    *,
    layers: Select = "all",
    heads: Select = "all",
    queries: Tokens = Tokens(),  # noqa: B008 - it is frozen
    kind: str = "self",
    region: Tokens | None = None,
    branch: str = "cond",
    interventions: Sequence[Intervention] = (),
    keep_maps: bool = False,
    budget: int = 2**28,
) -> Attention:
    """Recompute the attention of one step for chosen queries, and reduce it while it is computed.

    The step is done again as it was (`VideoDiT.replay`), and each attention module's queries and keys are taken as they
    go into ``scaled_dot_product_attention``: after norms and rotary positions, with the mask and scale that the model
    itself uses. The whole N x N matrix never exists unless it fits into ``budget``.

    Parameters
    ----------
    run : Run made with ``record=True`` by this model
    step : int
    layers, heads : Select
    queries : Tokens
        Of the video.
    kind : "self", "cross" or "image"
        From the video to itself (and to the text, in families of joint attention); by a cross-attention to the text, or
        to the tokens of an image encoder.
    region : Tokens, optional
        Keys whose mass is wanted: of the video for "self", else positions.
    branch : str
    interventions : list of Intervention
        Read the step under these; those of the run itself are not done again.
    keep_maps : bool
        Keep the attention of each query to each key.
    budget : int
        Bytes that the scores of one chunk of queries may take, temporaries included. With ``keep_maps`` also the maps
        must fit.

    Raises
    ------
    InputError
        The run was not recorded, the budget does not hold one query's scores or the maps, or an unknown kind.
    MadeForAnother
        The run is another model's.
    SiteError
        Layers, heads, tokens or a branch that the run does not have.
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
    model.require_own(run)  # before this model's modules are looked up with the run's layers
    calls = run.recorded(step)
    call = next((c for c in calls if branch in c.branches), None)
    if call is None:
        raise SiteError(f"no branch {branch!r}; this run has {', '.join(run.geometry.branches)}")
    chosen = indices(layers, run.geometry.layers, "layer")
    stacked = model.architecture.layers(model.experts[call.expert])
    sought = "self" if kind == "self" else "cross"
    modules = attention_modules(stacked, chosen, sought, model.architecture.family)
    batch = range(len(run.rows) * len(call.branches))
    asked = Queries(run.geometry.grid, places_of(queries, run), batch[call.rows(branch)], len(batch))
    reading = _Reading(run, kind, heads, asked, region, keep_maps, budget, len(chosen))
    reading.check_region()
    nth = [c.nth for c in calls if c.expert == call.expert].index(call.nth)

    def work() -> None:
        with watched(modules, nth, reading.see):
            model.replay(run, step, interventions)

    undisturbed([model.experts[call.expert]], work)
    return Attention(
        step=step,
        sigma=call.sigma,
        expert=call.expert,
        branch=branch,
        kind=kind,
        layers=tuple(chosen),
        heads=reading.heads,
        rows=run.rows,
        grid=run.geometry.grid,
        queries=asked.queries,
        **reading.tensors(),
    )


def places_of(tokens: Tokens, run: Run) -> Tensor:
    """Selected tokens of the video as numbers 0..F H W - 1, in order."""
    grid = run.geometry.grid
    numbers = torch.arange(math.prod(grid)).view(1, *grid, 1)
    return tokens.resolve(run.geometry).take(numbers).flatten().sort().values


@dataclass
class _Reading:
    """The sums of every layer as they come in, in the order in which the layers run."""

    run: Run
    kind: str
    wanted: Select
    asked: Queries
    region: Tokens | None
    keep_maps: bool
    budget: int
    layers: int
    heads: tuple[int, ...] = ()
    sums: list[list[Sums]] = field(default_factory=list)

    def check_region(self) -> None:
        """Before anything runs."""
        if self.region is not None:
            self.region.resolve(self.run.geometry, "video" if self.kind == "self" else "text")

    def see(self, call: AttentionCall) -> None:
        axis, softmaxes = self._axis(call), self_softmaxes(call, self.asked)
        if self.kind != "self":
            softmaxes = cross_softmaxes(call, self.asked, self.kind)
        query = call.given[0].query
        chosen = indices(self.wanted, query.shape[1], "head")
        if not self.sums:
            self.heads = tuple(chosen)
            self._check_maps(axis)
        device, count = query.device, len(self.asked.queries)
        sums = [Sums(len(chosen), axis, count, self.keep_maps, device) for _ in self.asked.rows]
        for row, softmax in softmaxes:
            sums[row].add(softmax, torch.tensor(chosen, device=device), self.budget)
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
            return places_of(self.region, self.run)
        if self.region.mask is not None and self.region.mask.shape != (others,):
            raise SiteError(f"the region's mask has shape {self.region.mask.shape}, there are {others} positions")
        return self.region.take(torch.arange(others).view(1, others, 1)).flatten()

    def _check_maps(self, axis: Axis) -> None:
        keys, asked, rows = axis.video + axis.others, len(self.asked.queries), len(self.asked.rows)
        size = 4 * self.layers * rows * len(self.heads) * asked * keys
        if self.keep_maps and size > self.budget:
            raise InputError(
                f"maps of {self.layers} layers x {rows} rows x {len(self.heads)} heads x {asked} queries x {keys} keys "
                f"take {size:,} bytes, the budget is {self.budget:,}; choose fewer queries, heads or layers"
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
            "maps": self._maps() if self.keep_maps else None,
        }

    def _maps(self) -> Tensor:
        return torch.stack([torch.stack([s.maps for s in layer if s.maps is not None]) for layer in self.sums])
