"""Scenes: the latent variables of B problems of a puzzle, a dict of arrays whose first axis is B."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.results.arrays import Bools, Ints

Scenes = dict[str, NDArray[Any]]


def length(scenes: Scenes) -> int:
    """Number B of scenes."""
    return len(next(iter(scenes.values())))


def take(scenes: Scenes, which: slice | Ints | Bools) -> Scenes:
    """Some of the scenes."""
    return {name: values[which] for name, values in scenes.items()}


def concatenate(parts: Sequence[Scenes]) -> Scenes:
    """Join scenes."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rows(scenes: Scenes) -> Iterator[dict[str, Any]]:
    """The variables of one scene after the other."""
    for b in range(length(scenes)):
        yield {name: values[b] for name, values in scenes.items()}


def in_order(scenes: Scenes, by: str, *names: str) -> Scenes:
    """The variables ``by`` and ``names``, (B, K), with their K entries in ascending order of ``by``."""
    order = scenes[by].argsort(axis=1)
    return {name: np.take_along_axis(scenes[name], order, axis=1) for name in (by, *names)}


def distinct(rng: np.random.Generator, count: int, among: int, chosen: int) -> Ints:
    """``chosen`` different numbers of 0 .. among - 1 in random order: int (count, chosen)."""
    return rng.random((count, among)).argsort(axis=1)[:, :chosen]


def hash_rows(scenes: Scenes) -> NDArray[np.uint64]:
    """A 64-bit hash of each scene (a random linear form, then the splitmix64 finaliser)."""
    flat = np.concatenate([x.reshape(length(scenes), -1).astype(np.int64) for x in scenes.values()], axis=1)
    weights = np.random.default_rng(flat.shape[1]).integers(0, 2**64, flat.shape[1], dtype=np.uint64)
    x = ((flat + 1).astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
