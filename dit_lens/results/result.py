"""What every lens, probe table and analysis returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd

from dit_lens.display.short import short_repr
from dit_lens.files import saved
from dit_lens.results.page import png_bytes, web_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Columns that say where a number belongs, in the order in which a table has those that apply.
SITE_COLUMNS = ("step", "sigma", "expert", "branch", "layer", "kind", "component", "stream", "head")
#: Columns at the end of every table: what was measured, its value with the ends of the 95 % interval, and how many
#: instances (or pairs, or videos) it is of.
VALUE_COLUMNS = ("measure", "value", "low", "high", "n")


class Result(ABC):
    """What an analysis found: a tidy table, a picture, and files of it.

    Subclasses are frozen dataclasses (``repr=False``) whose fields are plain data: no model, no run, nothing that
    computes.
    """

    #: Of `to_json` and of the files of `save`; it grows when the fields of a result change their meaning.
    schema: ClassVar[int] = 1

    @cached_property
    @abstractmethod
    def table(self) -> pd.DataFrame:
        """Every number: the columns of `SITE_COLUMNS` that apply, coordinates of its own, then `VALUE_COLUMNS`."""

    @abstractmethod
    def plot(self, axis: Axes | None = None) -> Axes:
        """The picture of it, into the given Axes or those of a new figure."""

    def __repr__(self) -> str:
        return short_repr(self)

    def to_json(self) -> dict[str, Any]:
        """Kind, schema and table as JSON types; a number that is none, or infinite, is null."""
        rows = self.table.to_dict(orient="records")
        table = [{str(name): json_value(value) for name, value in row.items()} for row in rows]
        return {"kind": type(self).__name__, "schema": self.schema, "table": table}

    def save(self, folder: str | Path) -> Path:
        """Write the result into a folder of its own: JSON and safetensors, whole or not at all.

        Raises
        ------
        StoreError
            The folder holds something else, or cannot be written.
        """
        return saved.save(self, folder, kind=type(self).__name__, schema=self.schema)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote; nothing in the files is executed.

        Raises
        ------
        StoreError
            No such folder, or files that are damaged, changed or of another kind or schema; names the file and field.
        """
        return saved.load(cls, folder, kind=cls.__name__, schema=cls.schema)

    def _repr_html_(self) -> str:
        """The picture and the head of the table, for notebooks."""
        axis = self.plot()
        assert axis.figure is not None
        picture = web_image(png_bytes(axis.figure.get_figure(root=True)), alt=type(self).__name__)
        return picture + self.table.head(20).to_html(index=False, float_format="{:.3g}".format)


def json_value(value: Any) -> Any:
    """A value of a table as JSON has it: a number that is none, or infinite, is null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
