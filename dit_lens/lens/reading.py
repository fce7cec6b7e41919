"""Where a lens read: the steps and layers of one component, and the tidy tables that begin with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dit_lens.display.short import short_repr
from dit_lens.errors import SiteError
from dit_lens.results.arrays import Floats
from dit_lens.runs.inputs import Row
from dit_lens.runs.run import Run
from dit_lens.sites.select import Select, indices, is_all

#: Noise level and expert of a step.
Level = tuple[float, str | None]


@dataclass(frozen=True)
class Reading:
    """Where something was read: steps x layers of one model, component, stream and branch, for B rows.

    Of a text stream whose padding attention does not read, the N positions are those that hold a word in every row.

    Attributes
    ----------
    model_id : str
    component, stream, branch : str
    steps, sigmas, experts : tuples, one entry per step
    layers, kinds : tuples, one entry per layer
    rows : tuple of Row, B of them
    grid : (F, H, W), the token grid; also of a run whose text stream was read
    """

    model_id: str
    component: str
    stream: str
    branch: str
    steps: tuple[int, ...]
    sigmas: tuple[float, ...]
    experts: tuple[str | None, ...]
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    rows: tuple[Row, ...]
    grid: tuple[int, int, int]

    __repr__ = short_repr

    @property
    def instances(self) -> list[str]:
        """Names of the task instances, each once, in the order of the rows."""
        return list(dict.fromkeys(row.instance for row in self.rows))

    @property
    def table(self) -> pd.DataFrame:
        """One row per step and layer, layers the faster.

        Columns step, sigma, expert, branch, layer, kind, component, stream.
        """
        layers = pd.DataFrame({"layer": self.layers, "kind": self.kinds})
        table = self.of_steps.merge(layers, how="cross")
        return table.assign(component=self.component, stream=self.stream)

    @property
    def of_steps(self) -> pd.DataFrame:
        """One row per step: columns step, sigma, expert, branch."""
        levels = zip(self.steps, self.sigmas, self.experts, strict=True)
        return pd.DataFrame(levels, columns=["step", "sigma", "expert"]).assign(branch=self.branch)

    @property
    def title(self) -> str:
        """The steps and the branch in a few words, for pictures."""
        if len(self.steps) > 1:
            return f"{len(self.steps)} steps, {self.branch}"
        return f"step {self.steps[0]}, sigma {self.sigmas[0]:.2f}, {self.branch}"

    def index_of(self, what: str, number: int) -> int:
        """Place of a step or layer among those that were read.

        Raises
        ------
        SiteError
            It was not read.
        """
        numbers = self.steps if what == "step" else self.layers
        if number not in numbers:
            raise SiteError(f"{what} {number} was not read; there are {what}s {', '.join(map(str, numbers))}")
        return numbers.index(number)

    def row_index(self, row: int) -> int:
        """A row's number, from the end where negative; the same error as for a step or layer."""
        if not -len(self.rows) <= row < len(self.rows):
            raise SiteError(f"row {row} was not read; there are rows 0..{len(self.rows) - 1}")
        return row % len(self.rows)


def among(what: str, read: Sequence[int], wanted: Select) -> list[int]:
    """Places of selected steps or layers among those that were read; "all" are all of these.

    A negative number counts from the last that was read.

    Raises
    ------
    SiteError
        One that was not read.
    """
    if is_all(wanted):
        return list(range(len(read)))
    chosen = indices(wanted, read[-1] + 1, what)
    if missing := [number for number in chosen if number not in read]:
        raise SiteError(f"{what} {missing[0]} was not read; there are {what}s {', '.join(map(str, read))}")
    return [list(read).index(number) for number in chosen]


def reading_of(
    run: Run, levels: Mapping[int, Level], layers: Sequence[int], component: str, stream: str, branch: str
) -> Reading:
    """Where something was read in a run, at the steps of ``levels``."""
    sigmas, experts = zip(*levels.values(), strict=True)
    return Reading(
        model_id=run.model_id,
        component=component,
        stream=stream,
        branch=branch,
        steps=tuple(levels),
        sigmas=sigmas,
        experts=experts,
        layers=tuple(layers),
        kinds=tuple(run.geometry.layer(k).kind for k in layers),
        rows=run.rows,
        grid=run.geometry.grid,
    )


def tidy(
    places: pd.DataFrame,
    rows: Sequence[Row],
    measures: Mapping[str, Floats],
    own: Mapping[str, Sequence[int]] | None = None,
) -> pd.DataFrame:
    """A tidy table of single rows: every place x row of the batch x coordinate, for every measure.

    Parameters
    ----------
    places : DataFrame of P rows
    rows : B of them
    measures : dict from name to float array of shape (P, B, *own)
    own : dict from name to the values of a further coordinate

    Returns
    -------
    DataFrame with the columns of ``places``, those of ``own``, instance, seed, measure, value
    """
    table = places.merge(pd.DataFrame([(r.instance, r.seed) for r in rows], columns=["instance", "seed"]), how="cross")
    for name, values in (own or {}).items():
        table = table.merge(pd.DataFrame({name: values}), how="cross")
    parts = [table.assign(measure=name, value=of_name.reshape(-1)) for name, of_name in measures.items()]
    order = [*places.columns, *(own or {}), "instance", "seed", "measure", "value"]
    return pd.concat(parts, ignore_index=True)[order]
