"""One site of a store as an array that reads only what is asked for."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from dit_lens.errors import InputError
from dit_lens.results.arrays import Ints
from dit_lens.runs.inputs import Row
from dit_lens.sites.site import Site
from dit_lens.store.layout import DTYPES, Layout
from dit_lens.store.manifest import Entry
from dit_lens.store.shards import Shards

#: numpy has no such numbers; they are given as float32, which holds every value of theirs.
_WIDENED = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class View:
    """The activations at one site, the rows of all runs one after the other in the order of the manifest.

    ``view[10:20]``, ``view[rows]`` with whole numbers or booleans, and ``view[10:20, 0, :, 3]`` give numpy arrays, and
    ``np.asarray(view)`` the whole; `tensor` gives the same as a torch tensor in the dtype that was stored. Nothing is
    read before, and only from the shards that hold the rows.

    Attributes
    ----------
    site : Site
    shape : tuple of int
        Rows first.
    dtype : np.dtype
        float32 for bfloat16 and float8, which numpy does not have.
    torch_dtype : torch.dtype
    rows : list of Row
    groups : array of str, one a row
        The task instances, which a split must not share.
    """

    site: Site
    _entries: tuple[Entry, ...]
    _layout: Layout
    _shards: Shards

    @cached_property
    def rows(self) -> list[Row]:
        return [row for entry in self._entries for row in entry.rows]

    @property
    def groups(self) -> NDArray[np.str_]:
        return np.array([row.instance for row in self.rows], dtype=str)

    @cached_property
    def _ends(self) -> Ints:
        """Where each shard's rows end."""
        return np.cumsum([len(entry.rows) for entry in self._entries], dtype=np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._layout.by_name[str(self.site)].shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self._layout.by_name[str(self.site)].dtype]

    @property
    def dtype(self) -> np.dtype[Any]:
        return _to_numpy(torch.empty(0, dtype=self.torch_dtype)).dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._entries else 0

    def __repr__(self) -> str:
        return f"View({self.site}, shape={self.shape}, {str(self.torch_dtype).removeprefix('torch.')})"

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return _to_numpy(self.tensor(index))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self.site} lies on disk and cannot be had without a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def tensor(self, index: Any = slice(None)) -> Tensor:
        """A part as a tensor in the dtype that was stored, with memory of its own.

        Parameters
        ----------
        index : int, slice, sequence of int or bool, or a tuple of one of these and ints and slices for the other axes

        Raises
        ------
        IndexError
        StoreError
            A shard is damaged.
        """
        first, *inner = index if isinstance(index, tuple) else (index,)
        if len(inner) > self.ndim - 1:
            raise IndexError(f"{len(inner) + 1} indices for {self}")
        rows = self._row_numbers(first)
        read, then = _pushed_down(inner)
        found = self._read(np.atleast_1d(rows), read)[(slice(None), *then)]
        return found if rows.ndim else found[0]

    def _row_numbers(self, index: Any) -> Ints:
        """Rows that an index of the first axis picks, each in 0..rows-1."""
        if index is Ellipsis:
            index = slice(None)
        try:
            picked = np.arange(len(self))[_plain(index)]
        except IndexError as error:
            raise IndexError(f"{self}: {error}") from error
        if picked.ndim > 1:
            raise IndexError(f"{self}: rows are picked by a number, a slice or one axis of numbers")
        return np.asarray(picked)

    def _read(self, rows: Ints, inner: tuple[Any, ...]) -> Tensor:
        """Rows in the order asked for, read in as few pieces as they lie in."""
        if not len(rows):
            shape = [0, *torch.empty(self.shape[1:], dtype=self.torch_dtype, device="meta")[inner].shape]
            return torch.empty(shape, dtype=self.torch_dtype)
        unique, back = np.unique(rows, return_inverse=True)
        shards = np.searchsorted(self._ends, unique, side="right")
        breaks = np.flatnonzero((np.diff(unique) != 1) | (np.diff(shards) != 0)) + 1
        parts = [
            self._piece(int(shards_[0]), piece, inner)
            for piece, shards_ in zip(np.split(unique, breaks), np.split(shards, breaks), strict=True)
        ]
        whole = torch.cat(parts)
        return whole if np.array_equal(rows, unique) else whole[torch.from_numpy(back.reshape(-1))]

    def _piece(self, shard: int, rows: Ints, inner: tuple[Any, ...]) -> Tensor:
        entry = self._entries[shard]
        start = int(self._ends[shard]) - len(entry.rows)
        where = (slice(int(rows[0]) - start, int(rows[-1]) - start + 1), *inner)
        return self._shards.read(entry, self._layout, str(self.site), where)


def _plain(index: Any) -> Any:
    """An index that numpy takes."""
    if isinstance(index, Tensor):
        return index.cpu().numpy()
    if isinstance(index, slice | np.ndarray):
        return index
    if isinstance(index, Sequence) and not isinstance(index, str):
        return np.asarray(index) if len(index) else np.zeros(0, dtype=np.int64)
    try:
        return operator.index(index)
    except TypeError as error:
        raise IndexError(f"{index!r} is no index of rows") from error


def _pushed_down(inner: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The indices of the other axes that the file can answer, and those that are left for afterwards: all or none."""
    for index in inner:
        if index is not Ellipsis and not isinstance(index, slice) and not hasattr(index, "__index__"):
            raise IndexError(f"{index!r}: axes after the rows take whole numbers and slices")
    simple = all(isinstance(i, slice) and i.step in (None, 1) for i in inner)
    return (tuple(inner), ()) if simple else ((), tuple(inner))


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = (tensor.float() if tensor.dtype in _WIDENED else tensor).numpy()
    return array


def require_int(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r}: need a whole number of at least 1")
    return value
