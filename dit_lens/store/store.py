"""`Store`: activations of many runs in one folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import InputError, SiteError, StoreError
from dit_lens.interventions.capture import Capture
from dit_lens.runs.identity import of_latents
from dit_lens.runs.inputs import Row
from dit_lens.runs.run import Run
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site, some
from dit_lens.store import manifest as manifests
from dit_lens.store import sizes
from dit_lens.store.dataset import ActivationDataset
from dit_lens.store.job import captures_of, job_of, rows_of
from dit_lens.store.layout import Layout, Part
from dit_lens.store.shards import Shards
from dit_lens.store.sizes import Dtypes, Forecast, Summary
from dit_lens.store.view import View, require_int
from dit_lens.store.writer import Writer

#: What a site's part may be compared with: a value, several, or a predicate.
Wanted = Any


class Store:
    """Activations of many runs of one model in one folder.

    A table on disk: its columns are sites, the same for all runs, and its rows are the rows of the runs, in the order
    in which these were added. Nothing is created before the first `add`, and reading never changes anything.

    Parameters
    ----------
    folder : str or Path
    verify : bool
        Check every tensor's SHA-256 when it is first read. Headers, shapes and dtypes are always checked.
    waiting : int
        Runs that may wait for the thread that writes them; the memory they take is bounded by this many, the one that
        is being written and the one that is being added.

    Raises
    ------
    StoreError
        The manifest is damaged; the message names the line.

    Examples
    --------
    ::

        with Store("activations") as store:
            store.require(model)
            for maze in mazes:
                if dl.Row(maze.id, 0) not in store:
                    store.add(model.run(maze, seed=0, interventions=[capture], decode=False))
        store["s03/cond/L05/resid/video"][10:20]

    A row says nothing of interventions: runs that were steered belong into a store of their own, or under a ``key``.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True, waiting: int = 2) -> None:
        self.folder = Path(folder)
        self._waiting = require_int(waiting, "waiting")
        self._manifest = manifests.read(self.folder)
        self._shards = Shards(self.folder, verify)
        self._writer: Writer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writer": None}

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, runs={len(self.keys)}, sites={len(self._parts)})"

    # Reading

    @property
    def model_id(self) -> str | None:
        """Of the model whose activations these are; None while there are none, and where no model was named."""
        return self._manifest.layout.model_id if self._manifest.layout else None

    @property
    def keys(self) -> list[str]:
        """Of the finished runs, in the order of their rows."""
        return [entry.key for entry in self._manifest.entries]

    @property
    def rows(self) -> list[Row]:
        return [row for entry in self._manifest.entries for row in entry.rows]

    @property
    def groups(self) -> NDArray[np.str_]:
        """The task instance of every row, which a split must not share."""
        return np.array([row.instance for row in self.rows], dtype=str)

    def __len__(self) -> int:
        """Number of rows."""
        return sum(len(entry.rows) for entry in self._manifest.entries)

    def __contains__(self, key: object) -> bool:
        """Whether a run is finished: by its key, or by one row (instance, seed)."""
        return key in (self._manifest.rows if isinstance(key, Row) else self._manifest.keys)

    def sites(
        self,
        component: Wanted = None,
        *,
        step: Wanted = None,
        layer: Wanted = None,
        branch: Wanted = None,
        stream: Wanted = None,
        head: Wanted = None,
    ) -> list[Site]:
        """The sites of all runs, or those that are wanted, each with its sigma, alpha and expert.

        Parameters
        ----------
        component, step, layer, branch, stream, head
            None for any; a value, several of them, or a predicate.
        """
        wanted = {
            "component": component,
            "step": step,
            "layer": layer,
            "branch": branch,
            "stream": stream,
            "head": head,
        }
        asked = {name: want for name, want in wanted.items() if want is not None}
        sites = [part.site for part in self._parts]
        return [s for s in sites if all(_matches(getattr(s, name), want) for name, want in asked.items())]

    def __getitem__(self, site: Site | str) -> View:
        """The activations at a site, all rows: an array that reads only what is asked for.

        Raises
        ------
        SiteError
            The store has no such site; the message names some that it has.
        """
        layout = self._manifest.layout
        if layout is None:
            raise StoreError(f"{self.folder} has no activations yet")
        if (part := layout.by_name.get(str(site))) is None:
            raise SiteError(f"{site} is not in {self.folder}; there are {some(p.site for p in layout.parts)}")
        return View(part.site, tuple(self._manifest.entries), layout, self._shards)

    def dataset(self, sites: Site | str | Iterable[Site | str] | None = None) -> ActivationDataset:
        """A torch dataset of the rows: dictionaries of "activation", "instance" and "seed".

        Parameters
        ----------
        sites : site, or several
            The activation is a tensor for one, a dict from canonical string to tensor for several; by default all.
        """
        single = isinstance(sites, Site | str)
        chosen = [sites] if isinstance(sites, Site | str) else self.sites() if sites is None else list(sites)
        if not chosen:
            raise SiteError(f"no sites were chosen of {self.folder}")
        return ActivationDataset({str(site): self[site] for site in chosen}, single)

    def require(self, model: Any) -> None:
        """Refuse another model than the one whose activations these are, or the same with another scheduler or encoder.

        Raises
        ------
        MadeForAnother
            Names what differs.
        """
        if (layout := self._manifest.layout) is not None:
            layout.require_model(model.id, of_latents(model.setup, pictures="vae" in (layout.setup or {})))

    def frame(self, of: str = "sites") -> pd.DataFrame:
        """A tidy table of what is in the store.

        Parameters
        ----------
        of : "sites" or "rows"
            One row a site: site, step, sigma, alpha, expert, branch, layer, component, stream, head, dtype, shape (rows
            left out), rows, bytes. Or one row a row of the views: key, run, instance, seed and the run's settings, but
            for those of the same names.
        """
        if of not in ("sites", "rows"):
            raise InputError(f"frame(of={of!r}): 'sites' or 'rows'")
        return sizes.frame(self._manifest) if of == "sites" else sizes.rows_frame(self._manifest)

    def summary(self) -> Summary:
        """What is in the store and what it takes, as `du` would print it."""
        return sizes.summary(self.folder, self._manifest)

    def verify(self) -> None:
        """Check every byte of every shard.

        Raises
        ------
        StoreError
            Names the first file that is damaged and what is wrong.
        """
        for entry in self._manifest.entries:
            assert self._manifest.layout is not None
            self._shards.check(entry, self._manifest.layout)

    # Writing

    def add(
        self,
        run: Run | Mapping[Any, Tensor],
        key: str | None = None,
        *,
        name: str | None = None,
        rows: Sequence[Row] = (),
        model_id: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Queue the captures of a run to be written in the background.

        The run is finished, and survives whatever happens to this process, when it is `in` the store; `flush` and
        `close` wait for that. Its captures are not copied and must not be changed in place before. That is noticed
        where torch counts changes: not through a numpy array of the same memory or ``.data``, nor in inference mode.

        Parameters
        ----------
        run : Run, or dict from site to Tensor of shape (B, ...)
        key : str, optional
            Under which the run is found; the run's id unless given.
        name : str, optional
            Of the captures that are kept; all of them unless given.
        rows, model_id, settings
            Of a dict; a run knows its own. A dict without ``model_id`` goes with others of no named model.

        Raises
        ------
        StoreError
            The folder cannot be written to, or an earlier run could not be written.
        MadeForAnother
            The store has activations of another model or setup, or of other sites, shapes, noise levels, numbers of
            steps or scales of guidance.
        InputError, NotFinite
            Another dtype, no captures, a key that is there already, NaN or infinity. Without ``key``, also a row that
            is there already: the runs then differ in their interventions or settings.
        """
        job = job_of(run, key, name, rows, model_id, settings)
        if self._writer is None:
            self._writer = Writer(self.folder, self._waiting)
            self._manifest = self._writer.manifest
        self._writer.put(job)

    def forecast(
        self,
        what: Run | Mapping[Any, Tensor] | Capture | Iterable[Capture],
        runs: int,
        *,
        name: str | None = None,
        geometry: Geometry | None = None,
        rows: int = 1,
        dtype: Dtypes = torch.float32,
    ) -> Forecast:
        """What so many runs will take on the disk, to the byte; ``.require()`` refuses what does not fit.

        Parameters
        ----------
        what : Run, dict from site to Tensor of shape (B, ...), or list of Capture
            One example of what will be added, or captures of runs that are not made yet.
        runs : int
        name : str, optional
            Of the captures of a run that will be kept, as for `add`.
        geometry : Geometry
            Of the runs, for captures: ``model.geometry(task_instance)``.
        rows : int
            Of each run, for captures.
        dtype : torch.dtype, or dict from component to torch.dtype
            Of the activations, for captures: the transformer's, but for the sampler's ``latents``, which many families
            keep in float32. A finished run knows.

        Raises
        ------
        SiteError, InputError
            Sites that the runs would not have, or whose size is known only in a run.
        """
        require_int(runs, "runs")
        if isinstance(what, Run | Mapping):
            captures = captures_of(what, name)
            rows = rows_of(captures)
            return sizes.forecast(self.folder, runs, rows, Layout.of(None, captures))
        if geometry is None:
            raise InputError("to forecast captures, give geometry=model.geometry(task_instance)")
        planned = [what] if isinstance(what, Capture) else list(what)
        layout = sizes.expected(planned, geometry, require_int(rows, "rows"), dtype)
        return sizes.forecast(self.folder, runs, rows, layout)

    def flush(self) -> None:
        """Wait until every run that was added is on the disk.

        Raises
        ------
        StoreError
            One could not be written.
        """
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is queued and let others write; reading goes on.

        Raises
        ------
        StoreError
            A run could not be written.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    @property
    def _parts(self) -> tuple[Part, ...]:
        return self._manifest.layout.parts if self._manifest.layout else ()


def _matches(value: Any, wanted: Wanted) -> bool:
    if callable(wanted):
        return bool(wanted(value))
    if isinstance(wanted, Iterable) and not isinstance(wanted, str):
        return value in wanted
    return bool(value == wanted)
