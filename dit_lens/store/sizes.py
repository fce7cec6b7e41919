"""What a store takes on the disk, and what runs that are not made yet would take."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import InputError, StoreError
from dit_lens.interventions.base import At
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.reduce import is_of_this_module
from dit_lens.interventions.shapes import one_of_each, part_shape
from dit_lens.runs.inputs import Row
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site
from dit_lens.store import shard
from dit_lens.store.layout import Layout
from dit_lens.store.manifest import Manifest

#: One dtype for all components, or a dict from component to dtype; those that it leaves out are float32.
Dtypes = torch.dtype | Mapping[str, torch.dtype]


@dataclass(frozen=True)
class Forecast:
    """What runs that are not made yet will take on the disk.

    Attributes
    ----------
    folder : Path
    runs, sites : int
    size : int
        Bytes of all their shards, headers included. The manifest comes on top, a few hundred bytes a run.
    free : int
        Bytes that are free where the folder is.
    """

    folder: Path
    runs: int
    sites: int
    size: int
    free: int

    def __str__(self) -> str:
        counted = f"{self.runs:,} runs, {self.sites:,} sites each"
        return f"{counted}: this will write {readable(self.size)} to {self.folder}; {readable(self.free)} free"

    def require(self) -> Forecast:
        """Refuse what does not fit.

        Raises
        ------
        StoreError
        """
        if self.size > self.free:
            raise StoreError(f"{self}; capture less (Capture(reduce=...), fewer sites), or free {self._lacking}")
        return self

    @property
    def _lacking(self) -> str:
        return readable(self.size - self.free)


@dataclass(frozen=True)
class Summary:
    """What is in a store: prints as a short table, as `du` does.

    Attributes
    ----------
    runs, rows, instances, sites : int
    size : int
        Bytes of all shards.
    free : int
        Bytes that are free where the folder is.
    components : DataFrame with columns component, stream, sites, bytes
    """

    folder: Path
    runs: int
    rows: int
    instances: int
    sites: int
    size: int
    free: int
    components: pd.DataFrame

    __repr__ = short_repr

    def __str__(self) -> str:
        lines = [
            f"{readable(self.size):>9}  {self.folder}: {self.runs:,} runs, {self.rows:,} rows of "
            f"{self.instances:,} instances, {self.sites:,} sites; {readable(self.free)} free"
        ]
        for part in self.components.itertuples():
            lines.append(f"{readable(int(str(part.bytes))):>9}  {part.component}/{part.stream}, {part.sites} sites")
        return "\n".join(lines)


def readable(size: int) -> str:
    """Bytes in decimal units."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 99.95 else f"{value:.1f} {units[0]}"


def free(folder: Path) -> int:
    """Bytes that are free where a folder is or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def forecast(folder: Path, runs: int, rows: int, layout: Layout) -> Forecast:
    shapes = {name: (part.dtype, (rows, *part.shape)) for name, part in layout.by_name.items()}
    return Forecast(folder, runs, len(shapes), runs * shard.size(shapes), free(folder))


def expected(captures: Iterable[Capture], geometry: Geometry, rows: int, dtypes: Dtypes) -> Layout:
    """What captures would keep of a run, found without making one.

    Raises
    ------
    SiteError, InputError
        Sites that the run would not have, or whose size is known only in a run.
    """
    shapes: dict[Site, Tensor] = {}
    for capture in captures:
        sites = capture.sites.resolve(geometry)
        kinds = {(s.component, s.stream): _kept(capture, s, geometry, rows, dtypes) for s in one_of_each(sites)}
        found = {site: kinds[site.component, site.stream] for site in sites}
        if twice := shapes.keys() & found.keys():
            raise InputError(f"{min(twice)} is captured twice; a store keeps one capture of a site")
        shapes |= found
    return Layout.of(None, shapes)


def _kept(capture: Capture, site: Site, geometry: Geometry, rows: int, dtypes: Dtypes) -> Tensor:
    """What a capture makes of one activation, without data where its reduction is known not to look at them."""
    shape = part_shape(capture.sites, site, geometry)
    if shape is None:
        raise InputError(f"the size of {site} is known only in a run; make one and forecast from it")
    dtype = dtypes if isinstance(dtypes, torch.dtype) else dtypes.get(site.component, torch.float32)
    known = capture.reduce is None or isinstance(capture.reduce, str) or is_of_this_module(capture.reduce)
    activation = torch.zeros(rows, *shape, dtype=dtype, device="meta" if known else "cpu")
    kept: list[Tensor] = []
    at = At(site, _names(rows), lambda _name, tensor: kept.append(tensor), geometry)
    replace(capture, to=None)(activation, at)
    return kept[0]


def _names(rows: int) -> tuple[Row, ...]:
    return tuple(Row("forecast", seed) for seed in range(rows))


def summary(folder: Path, manifest: Manifest) -> Summary:
    rows = [row for entry in manifest.entries for row in entry.rows]
    table = frame(manifest)
    parts = table.groupby(["component", "stream"], sort=False).agg(sites=("site", "size"), bytes=("bytes", "sum"))
    return Summary(
        folder=folder,
        runs=len(manifest.entries),
        rows=len(rows),
        instances=len({row.instance for row in rows}),
        sites=len(table),
        size=sum(entry.size for entry in manifest.entries),
        free=free(folder),
        components=parts.reset_index(),
    )


COLUMNS: Sequence[str] = (
    "site",
    "step",
    "sigma",
    "alpha",
    "expert",
    "branch",
    "layer",
    "component",
    "stream",
    "head",
    "dtype",
    "shape",
    "rows",
    "bytes",
)


ROW_COLUMNS = ("key", "run", "instance", "seed")


def frame(manifest: Manifest) -> pd.DataFrame:
    """One row a site."""
    rows = sum(len(entry.rows) for entry in manifest.entries)
    parts = manifest.layout.parts if manifest.layout else ()
    table = [
        (
            str(p.site),
            p.site.step,
            p.site.sigma,
            p.site.alpha,
            p.site.expert,
            p.site.branch,
            p.site.layer,
            p.site.component,
            p.site.stream,
            p.site.head,
            p.dtype,
            p.shape,
            rows,
            rows * p.row_bytes,
        )
        for p in parts
    ]
    return pd.DataFrame(table, columns=list(COLUMNS)).astype({"layer": "Int64", "head": "Int64"})


def rows_frame(manifest: Manifest) -> pd.DataFrame:
    """One row a row of the views, with the settings of its run; a setting of a column's own name is left out."""
    table = []
    for entry in manifest.entries:
        others = {name: value for name, value in entry.settings.items() if name not in ROW_COLUMNS}
        for row in entry.rows:
            own = (entry.key, entry.run_id, row.instance, row.seed)
            table.append({**dict(zip(ROW_COLUMNS, own, strict=True)), **others})
    return pd.DataFrame(table, columns=None if table else list(ROW_COLUMNS))
