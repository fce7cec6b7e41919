"""The cells of a flow: which sets of tokens, which doors and which blocks are exchanged, as cells of one sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_lens.analysis.flow.looks import HEAD, Door
from dit_lens.analysis.flow.sets import TokenSets, of_both_sides, words_of_both_sides
from dit_lens.display.short import short_repr
from dit_lens.interventions.base import At, Intervention
from dit_lens.interventions.patch import Patch
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import CARRIED, Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
from dit_lens.sweeps.axes import Cell, Together
from dit_lens.sweeps.rows import Identity

#: Cells to be made: the name of a set, a layer, interventions.
Made = Iterable[tuple[str, int, Sequence[Any]]]
#: The layer that stands for the embedding.
EMBED = -1


@dataclass(frozen=True, eq=False)
class AddUpdate:
    """Add a donor's update of one block, less the row's own, to the residual stream after the last block.

    What a block does for the answer by itself, through no later block (direct effect: Wang et al. 2022, arXiv
    2211.00593).

    Attributes
    ----------
    sites : Sites
        Of "resid" after the last block, at some tokens.
    layer : int
    """

    sites: Sites
    layer: int
    of_pairs = True

    __repr__ = short_repr

    @property
    def needs(self) -> Sites:
        return self.sites.at(component="delta", layers=self.layer)

    def bound_to(self, own: Mapping[Site, Tensor], donated: Mapping[Site, Tensor]) -> Intervention:
        moves = {(s.branch, s.stream): donated[s] - own[s] for s in own}
        return Added(self.sites, moves)


@dataclass(frozen=True, eq=False)
class Added:
    """Add tensors to activations, by branch and stream."""

    sites: Sites
    moves: Mapping[tuple[str | None, str], Tensor]

    __repr__ = short_repr

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        return activation + self.moves[at.site.branch, at.site.stream].to(activation)


@dataclass(frozen=True, eq=False)
class Cells:
    """Makes the cells of a flow at one step.

    Attributes
    ----------
    geometry : Geometry
    step : int
    branches : str
        In which activations are exchanged: "cond", or "all".
    sets : TokenSets
    doors : tuple of Door
        Those at which some pair is told different things.
    """

    geometry: Geometry
    step: int
    branches: str
    sets: TokenSets
    doors: tuple[Door, ...]

    @property
    def last(self) -> int:
        return self.geometry.layers - 1

    def reference(self, kinds: Sequence[str] = ("baseline", "donor")) -> list[Cell]:
        """With nothing done, with the other side of each pair, and with all put back."""
        whole = self._after(0, None)
        found: list[tuple[str, Any]] = [*((kind, None) for kind in kinds), ("identity", Identity(whole))]
        return [Cell(number, kind, self.step, made, {}) for number, (kind, made) in enumerate(found)]

    def numbered(self, made: Sequence[tuple[str, int, Sequence[Any]]]) -> tuple[Cell, ...]:
        """References, then cells of a set, a layer and interventions."""
        cells = self.reference()
        for name, layer, parts in made:
            cells.append(Cell(len(cells), "swept", self.step, Together(tuple(parts)), {"set": name, "layers": layer}))
        return tuple(cells)

    def curves(self, layers: Sequence[int]) -> Made:
        """At every layer the source, the target, both with the doors behind it, and these doors alone.

        What is left out of a cell is what the opposite direction exchanges: E(S) + E(all but S, with the doors behind)
        is 1 over both directions, so that "A+B" with the doors gives the others, M, and the doors alone give all
        streams.
        """
        for layer in layers:
            for name in ("A", "B", "A+B"):
                doors = self.behind(layer) if name == "A+B" else []
                if parts := [*self._set(name, layer), *doors]:
                    yield name, layer, parts
            if doors := self.behind(layer):
                yield "doors", layer, doors

    def each_door(self) -> Made:
        """Every door by itself, in all blocks."""
        if len(self.doors) > 1:
            yield from ((name_of(door), EMBED, self._through([door], EMBED)) for door in self.doors)

    def blocks(self, layers: Sequence[int], component: str = "delta") -> Made:
        """The whole effect of each block's update, and its direct one."""
        last = self._after(self.last, self._tokens("B"))
        for layer in layers:
            yield f"{component} whole", layer, [self._patch(self._whole(component, layer))]
            yield f"{component} direct", layer, [AddUpdate(last, layer)]

    def identities(self, layers: Sequence[int]) -> Made:
        """Cells whose values are known: the others by themselves, and all streams with the doors behind."""
        for layer in layers:
            if others := self._set("M", layer):
                yield "M", layer, others
            yield "all", layer, [self._patch(self._whole(_component(layer), layer)), *self.behind(layer)]

    def groups(self, layers: Sequence[int], groups: Mapping[str, Tokens]) -> Made:
        """Some tokens of the video by themselves."""
        for layer in layers:
            for name, tokens in groups.items():
                yield name, layer, [self._patch(self._after(layer, tokens))]

    def words_through(self, tokens: Tokens) -> list[Any]:
        """Some positions of the text that cross-attention reads, in all blocks."""
        sites = Sites("context", steps=self.step, branches=self.branches, stream="text", tokens=tokens)
        return [self._patch(sites)]

    def behind(self, layer: int) -> list[Any]:
        """All doors of the blocks behind a layer and of the head."""
        return self._through(self.doors, layer)

    def _through(self, doors: Sequence[Door], layer: int) -> list[Any]:
        found = []
        for door in doors:
            component, stream = door
            at = Sites(component, steps=self.step, branches=self.branches, stream=stream)
            if door == HEAD:
                found.append(self._patch(at))
            elif has := self._told_behind(door, layer):
                found.append(self._patch(at.at(layers=has)))
        return found

    def _told_behind(self, door: Door, layer: int) -> list[int]:
        """The blocks behind a layer that have a door; of a stream that they carry on, the first of them."""
        component, stream = door
        later = range(layer + 1, self.geometry.layers)
        has = [k for k in later if component in self.geometry.layer(k).components.get(stream, ())]
        return has[:1] if component == "context" and stream in CARRIED else has

    def _set(self, name: str, layer: int) -> list[Any]:
        """A set's tokens of the video, and where it has any, its words of the text."""
        found = [] if (tokens := self._tokens(name)) is None else [self._patch(self._after(layer, tokens))]
        words = {"A": self.sets.words, "A+B": self.sets.words, "M": self.sets.other_words}.get(name, ())
        if "text" in self.geometry.streams and (chosen := words_of_both_sides(words)) is not None:
            found.append(self._patch(self._after(layer, chosen, "text")))
        return found

    def _tokens(self, name: str) -> Tokens | None:
        return of_both_sides(self.sets.cells[name])

    def _after(self, layer: int, tokens: Tokens | None, stream: str = "video") -> Sites:
        sites = Sites(_component(layer), steps=self.step, branches=self.branches, stream=stream)
        sites = sites if layer == EMBED else sites.at(layers=layer)
        return sites if tokens is None else sites.at(tokens=tokens)

    def _whole(self, component: str, layer: int) -> Sites:
        sites = Sites(component, steps=self.step, branches=self.branches, stream="all")
        return sites if layer == EMBED else sites.at(layers=layer)

    def _patch(self, sites: Sites) -> Patch:
        return Patch("pair", sites)


def _component(layer: int) -> str:
    return "embed" if layer == EMBED else "resid"


def name_of(door: Door) -> str:
    """A door as tables have it."""
    component, stream = door
    return (
        component if door == HEAD or (component == "modulation" and stream == "video") else f"{component} of {stream}"
    )


def coarse(grid: Sequence[int], high: int, wide: int) -> dict[str, Tensor]:
    """Groups of tokens: every latent frame in ``high`` x ``wide`` parts, bool (F, H, W) by name."""
    frames, rows, columns = grid
    found = {}
    for f in range(frames):
        for r, part in enumerate(torch.arange(rows).tensor_split(min(high, rows))):
            for c, across in enumerate(torch.arange(columns).tensor_split(min(wide, columns))):
                mask = torch.zeros(frames, rows, columns, dtype=torch.bool)
                mask[f, part[0] : part[-1] + 1, across[0] : across[-1] + 1] = True
                found[f"frame {f}, part {r},{c}"] = mask
    return found
