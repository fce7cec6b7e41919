"""Sets of tokens: the source, where the inputs of a pair differ; the target, where their answers do; all others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import EvidenceError
from dit_lens.results.arrays import Bools, Floats
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.tokens import Tokens

#: The source holds so much of the squared difference of the two embeddings.
HELD = 0.999
#: A latent cell is of the target where the answers differ by more than this share of the most that they do.
APART = 0.2
#: Inputs that differ in more of the tokens outside the target differ everywhere.
EVERYWHERE = 0.9


@dataclass(frozen=True, eq=False)
class TokenSets:
    """The sets of P pairs, which both sides of each share.

    Attributes
    ----------
    source, target : bool array of shape (P, F, H, W)
        Tokens of the video; no token is in both.
    words : tuple of P tuples of int
        Positions of the text stream that belong to the source, where the model has such a stream.
    readable : tuple of P tuples of int
        Positions of that stream that blocks may attend to on either side; empty where there is no such stream.
    """

    source: Bools
    target: Bools
    words: tuple[tuple[int, ...], ...]
    readable: tuple[tuple[int, ...], ...] = ()

    @property
    def others(self) -> Bools:
        """Tokens of neither."""
        return ~(self.source | self.target)

    @property
    def other_words(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the text that are read and are not of the source."""
        pairs = zip(self.words, self.readable, strict=True) if self.readable else ()
        return tuple(tuple(sorted(set(read) - set(own))) for own, read in pairs)

    @property
    def have_source(self) -> Bools:
        """Pairs that have a source in some stream, bool (P,)."""
        return np.asarray(self.source.any(axis=(1, 2, 3)) | np.array([len(own) > 0 for own in self.words], dtype=bool))

    @cached_property
    def cells(self) -> dict[str, Bools]:
        """Video tokens by the name of a set: "A", "B", "A+B" and "M"."""
        return {"A": self.source, "B": self.target, "A+B": self.source | self.target, "M": self.others}

    def only(self, pairs: Iterable[int]) -> TokenSets:
        """The sets of some pairs."""
        chosen = list(pairs)
        words = tuple(self.words[i] for i in chosen)
        readable = tuple(self.readable[i] for i in chosen) if self.readable else ()
        return TokenSets(self.source[chosen], self.target[chosen], words, readable)


def require_apart(source: Bools, target: Bools, who: str) -> None:
    """Refuse a named source (F, H, W) that meets the targets (P, F, H, W).

    Raises
    ------
    EvidenceError
    """
    meeting = int((source & target).any(axis=(1, 2, 3)).sum())
    if meeting:
        raise EvidenceError(
            f"{who}: the named source meets the target in {meeting} of {len(target)} pairs: name other tokens, for "
            "what stands in both has nowhere to go"
        )


def require_some_alike(sets: TokenSets) -> None:
    """Refuse pairs whose inputs differ nearly everywhere: all of the video is then the source.

    Raises
    ------
    EvidenceError
    """
    outside = (~sets.target).sum(axis=(1, 2, 3))
    shares = sets.source.sum(axis=(1, 2, 3)) / np.maximum(outside, 1)
    if len(shares) and shares.min() > EVERYWHERE:
        raise EvidenceError(
            f"the inputs of every pair differ in more than {EVERYWHERE:.0%} of the tokens outside the target, so there "
            "is no place that the difference could leave: give pairs that differ in one thing, or name the source"
        )


def require_one_road(have_source: Bools) -> None:
    """Refuse pairs (n,) of which some enter by their tokens and some by doors alone: one mean would be neither's.

    Raises
    ------
    EvidenceError
    """
    if have_source.any() and not have_source.all():
        raise EvidenceError(
            f"{int((~have_source).sum())} of {len(have_source)} pairs have no source, because their difference enters "
            "by what blocks are told alone, and the others have one: give the two kinds of pairs apart"
        )


def require_difference(source: Bools, embedded: Floats) -> None:
    """Refuse a named source (P, F, H, W) that holds next to nothing of the squared difference of the embeddings.

    Raises
    ------
    EvidenceError
    """
    held = (source * embedded).sum(axis=(1, 2, 3)) / np.maximum(embedded.sum(axis=(1, 2, 3)), 1e-30)
    if held.max() < 1 - HELD:
        raise EvidenceError(
            f"the named source holds {held.max():.2%} of the difference of the embeddings at most, which is nothing: "
            "name tokens where the inputs differ"
        )


def of_both_sides(mask: Bools) -> Tokens | None:
    """Masks of P pairs as tokens of their 2 P rows; None where they are all empty."""
    return Tokens(mask=mask.repeat(2, axis=0)) if mask.any() else None


def words_of_both_sides(words: tuple[tuple[int, ...], ...]) -> Tokens | None:
    """Positions of P pairs as tokens of their 2 P rows; None where there are none."""
    rows: Any = [own for own in words for _ in range(2)]
    return Tokens(positions=rows) if any(rows) else None


def positions_in(chosen: Bools) -> tuple[tuple[int, ...], ...]:
    """The positions that hold in each row of (P, N)."""
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in chosen)


def smallest_source(embedded: Floats) -> Bools:
    """The fewest tokens that hold `HELD` of the squared difference of two embeddings (P, F, H, W); none of none."""
    flat = embedded.reshape(len(embedded), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    sums = np.take_along_axis(flat, order, axis=1).cumsum(axis=1)
    enough = np.zeros(flat.shape, dtype=bool)
    # A token is needed where those before it do not hold enough.
    before = np.concatenate([np.zeros((len(flat), 1)), sums[:, :-1]], axis=1)
    needed = (before < HELD * sums[:, -1:]) & (sums[:, -1:] > 0)
    np.put_along_axis(enough, order, needed, axis=1)
    return enough.reshape(embedded.shape)


def tokens_of_cells(cells: Bools, geometry: Geometry) -> Bools:
    """Tokens (P, F, H, W) that hold some of the latent cells (P, F', H', W')."""
    sizes = [c // t for c, t in zip(geometry.latent_grid, geometry.grid, strict=True)]
    (f, h, w), (df, dh, dw) = geometry.grid, sizes
    return np.asarray(cells.reshape(len(cells), f, df, h, dh, w, dw).any(axis=(2, 4, 6)))


def cells_of_tokens(tokens: Bools, geometry: Geometry) -> Bools:
    """The latent cells (P, F', H', W') of tokens (P, F, H, W)."""
    sizes = [c // t for c, t in zip(geometry.latent_grid, geometry.grid, strict=True)]
    for axis, size in enumerate(sizes, start=1):
        tokens = tokens.repeat(size, axis=axis)
    return tokens


def target_from_answers(way: Tensor, *, given: bool) -> Bools:
    """Latent cells (P, F, H, W) at which the answers of pairs differ: where their difference (P, C, F, H, W) is large.

    Parameters
    ----------
    given : bool
        Whether the first frame is given to the model: then without the first latent frame, and without places at which
        the first frames themselves differ.
    """
    size = way.double().norm(dim=1)
    least = APART * size.flatten(1).amax(dim=1)[:, None, None, None]
    found = size > least
    if given and size.shape[1] > 1:
        found &= ~found[:, :1]
        found[:, 0] = False
    return np.asarray(found.cpu())


def named(tokens: Any, what: str, geometry: Geometry) -> Bools:
    """The tokens (F, H, W) that a user names.

    Raises
    ------
    EvidenceError
        What is no `Tokens` of the video, the same for all pairs.
    SiteError
        Tokens that the grid does not have.
    """
    if not isinstance(tokens, Tokens) or tokens.rows_named is not None:
        raise EvidenceError(
            f"{what}={tokens!r:.80}: need a Tokens that is the same for all pairs, such as Tokens(frames=0)"
        )
    none = torch.zeros(1, *geometry.grid, 1)
    chosen = tokens.resolve(geometry)
    found = chosen.put(none, torch.ones_like(chosen.take(none)))[0, ..., 0]
    return np.asarray(found.bool())
