"""One flow at one step, on the pairs that are kept: every cell, and what they come to together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_lens.analysis.flow.cells import EMBED, Cells, Made, coarse, name_of
from dit_lens.analysis.flow.looks import Door
from dit_lens.analysis.flow.measure import Effects, carried_out, curves_at, halves, levels_of, plan_of, total
from dit_lens.analysis.flow.pairs import Prepared
from dit_lens.analysis.flow.result import CURVES, InformationFlow, Shown
from dit_lens.analysis.flow.sets import TokenSets
from dit_lens.analysis.flow.steps import Seen
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.tokens import Tokens
from dit_lens.sweeps.plan import Forecast
from dit_lens.tasks.base import Task

#: The door of words that the user names.
_NAMED = "named words"
#: Coarse groups of tokens of each latent frame, down and across, for the animation.
GROUPS = (3, 3)


def once(cells: Cells, parts: Sequence[str]) -> Made:
    """What is measured once, not after every layer: doors by themselves, and blocks."""
    yield from cells.each_door()
    if "blocks" in parts:
        yield from cells.blocks(range(cells.geometry.layers))


@dataclass(frozen=True, eq=False)
class Measuring:
    """One flow at work.

    Attributes
    ----------
    task : Task
    of : Prepared
    seen : Seen
    sets : TokenSets
        Of all pairs of ``of``.
    kept : list of int
        The pairs that are measured.
    branches : str
    parts : tuple of str
    words : Tokens or None
        Positions of the text that are exchanged by themselves, of both rows of all pairs.
    folder : Path or None
    """

    task: Task
    of: Prepared
    seen: Seen
    sets: TokenSets
    kept: list[int]
    branches: str
    parts: tuple[str, ...]
    words: Tokens | None
    folder: Path | None

    def _cells(self, pairs: Sequence[int]) -> Cells:
        return Cells(self.of.geometry, self.seen.step, self.branches, self.sets.only(pairs), self.seen.doors)

    @property
    def cells(self) -> Cells:
        return self._cells(self.kept)

    def _carried(self, made: Made, title: str, chosen: Sequence[int] | None = None) -> Effects:
        """Cells over all pairs that are kept, or over some of these."""
        chosen = self.kept if chosen is None else chosen
        ways = replace(self.of.ways, ways=self.of.ways.ways[rows_of(chosen)])
        folder = None if self.folder is None else self.folder / f"step {self.seen.step}, {title}"
        plan = plan_of(self.task, self.of.pairs.only(chosen), ways, self._cells(chosen), made)
        return carried_out(plan, folder, f"information flow: {title}")

    def fill(self, nothing: InformationFlow) -> InformationFlow:
        """A flow without numbers, with them."""
        sweeps, levels, curves = self._curves()
        single = self._carried(made, "doors and blocks") if (made := list(self._of_once())) else None
        first = self.kept[:1]
        known = self._carried(self._cells(first).identities(levels), "identities", first)
        shown = self._shown(levels) if "groups" in self.parts else None
        every = [*sweeps, known, *(effects for effects in (single, shown and shown[1]) if effects is not None)]
        return replace(
            nothing,
            layers=tuple(levels),
            effects=curves,
            updates=self._updates(single) if single is not None and "blocks" in self.parts else {},
            doors=self._doors(single, curves),
            worst=max(_worst(known, levels, curves), *(effects.sweep.identity for effects in every)),
            shown=shown and shown[0],
            planned=total([effects.sweep.planned for effects in every]),
            forwards=sum(effects.sweep.forwards for effects in every),
        )

    def _curves(self) -> tuple[list[Effects], list[int], dict[str, Floats]]:
        """All curves; of a deep model first the ends of windows, then halves of those in which something changes."""
        found: dict[int, Effects] = {}
        levels, new, curves = list[int](), levels_of(self.of.geometry.layers), dict[str, Floats]()
        while new:
            title = f"after layers {new[0]} to {new[-1]}, {len(new)} of them"
            found |= dict.fromkeys(new, self._carried(self.cells.curves(new), title))
            levels = sorted({*levels, *new})
            curves = curves_at(levels, found, len(self.kept))
            new = halves(levels, {name: curves[name].mean(axis=1) for name in ("A", "B", "all")})
        return list(dict.fromkeys(found.values())), levels, curves

    def _of_once(self) -> Made:
        yield from once(self.cells, self.parts)
        if self.words is not None:
            yield _NAMED, EMBED, self.cells.words_through(self.words.of_rows(rows_of(self.kept)))

    def _updates(self, found: Effects) -> dict[str, Floats]:
        layers = range(self.of.geometry.layers)
        return {name: np.stack([found[f"delta {name}", k] for k in layers]) for name in ("whole", "direct")}

    def _doors(self, found: Effects | None, curves: dict[str, Floats]) -> dict[str, Floats]:
        if not self.seen.doors:
            return {}
        whole, names = 1 - curves["all"][0], list[Door | str]([*self.seen.doors, _NAMED])
        doors = {} if found is None else found.doors(names)
        if len(self.seen.doors) == 1:  # it is all of them, and was measured with the curves
            doors = {name_of(self.seen.doors[0]): whole} | doors
        return doors | {"all doors": whole}

    def _shown(self, levels: Sequence[int]) -> tuple[Shown, Effects]:
        first, groups = self.kept[0], coarse(self.of.geometry.grid, *GROUPS)
        both = {name: Tokens(mask=mask) for name, mask in groups.items()}
        found = self._carried(self._cells([first]).groups(levels, both), "groups of tokens", [first])
        shares = np.array([[float(found[name, level][0]) for name in groups] for level in levels])
        frames = self.of.frames_of(first)
        shown = Shown(
            frames=frames,
            source=self.sets.source[first],
            target=self.sets.target[first],
            groups=np.stack([np.asarray(mask) for mask in groups.values()]),
            shares=shares,
            latent_of=_latent_of(self.of.geometry, frames.shape[1]),
        )
        return shown, found


def rows_of(pairs: Iterable[int]) -> list[int]:
    """Both rows of each pair."""
    return [row for number in pairs for row in (2 * number, 2 * number + 1)]


def _latent_of(geometry: Geometry, frames: int) -> Any:
    """The latent frame on the token grid that holds each pixel frame."""
    if geometry.pixels is None:
        return np.linspace(0, geometry.grid[0] - 1, frames).round().astype(np.int64)
    each = geometry.latent_grid[0] // geometry.grid[0]
    return np.array([geometry.pixels.latent_frame(t) // each for t in range(frames)])


def _worst(known: Effects, levels: Sequence[int], curves: dict[str, Floats]) -> float:
    """The largest error of what must hold.

    All streams with the doors behind are the donor. A set and what is left out of it are 1 together. After the last
    block nothing is left at the source or between, and doors apart, all of it is at the target.
    """
    errors = [abs(known["all", level] - 1) for level in levels]
    direct = {i: known.get("M", level) for i, level in enumerate(levels)}
    errors += [abs(others - curves["M"][i, :1]) for i, others in direct.items() if others is not None]
    errors += [np.nan_to_num(abs(curves["A"][-1])), abs(curves["M"][-1]), abs(curves["B"][-1] - curves["all"][-1])]
    return float(max(error.max() for error in errors))


def _exact_to(model: VideoDiT) -> float:
    """How large an error of an identity may be: 1e-3, or where the streams are coarser, two of their last places."""
    return max(1e-3, *(2 * torch.finfo(expert.dtype).eps for expert in model.experts.values()))


def blank(
    model: str,
    task: str,
    kind: str,
    branches: str,
    of: Prepared,
    seen: Seen,
    expert: str | None,
    dropped: dict[str, int],
) -> InformationFlow:
    """A flow with its gates and without numbers."""
    return InformationFlow(
        model=model,
        task=task,
        kind=kind,
        step=seen.step,
        sigma=seen.sigma,
        expert=expert,
        branch=branches,
        layers=(),
        gate=seen.gate(of),
        effects=dict.fromkeys(CURVES, np.zeros((0, 0))),
        updates={},
        doors={},
        dropped=dropped,
        worst=0.0,
        exact_to=_exact_to(of.pairs.model),
        truth=of.truth,
        shown=None,
        experts={},
        planned=Forecast(0, 0, None, 0),
        forwards=0.0,
        seconds=0.0,
    )
