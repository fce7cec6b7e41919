"""Sufficient statistics of many ridge probes at once, so that no activation has to be kept.

A ridge regression needs of its rows only their number, means, and second moments about the means. These add up over
batches, and the moments of the training rows of a fold are the sum of those of the other folds. Nothing is ever taken
away: a feature that varies in one fold and hardly in the others would lose all its digits. Means and moments about them
are merged by the pairwise formula of Chan, Golub and LeVeque (1979), and features with a large mean lose no digits;
everything is kept in float64, whatever the features are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, cast

import torch
from torch import Tensor

from dit_lens.errors import EvidenceError

#: A standard deviation below this share of the size of what was added is rounding: the feature is constant.
CONSTANT = 1e-12
#: Where less than this share of a sum of squares is about the mean, the mean is taken off before multiplying.
CANCELS = 0.1
#: Bytes of Gram matrices that are factorised at once.
AT_ONCE = 2**28


@dataclass(frozen=True)
class Linear:
    """Linear maps, one for each place and target, in units of the raw features.

    Attributes
    ----------
    coef : float64 tensor of shape (*places, K, D)
    intercept : float64 tensor of shape (*places, K)
    """

    coef: Tensor
    intercept: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Scores ``(*places, n, K)`` of features ``(*places, n, D)``, in the features' dtype."""
        coef, intercept = self.coef.to(features), self.intercept.to(features)
        return features @ coef.mT + intercept.unsqueeze(-2)


@dataclass
class Moments:
    """Counts, means and second moments about the means of P places' features with K targets.

    A target that is NaN in a row is not labelled there: the row counts for the other targets and not for this one, as
    if a probe of this target alone had been fitted to its labelled rows. Targets that always miss the same rows share
    one Gram matrix; the first batch in which two targets differ gives each its own from there on, so that memory is
    P x M x D x D for M patterns of missing rows.

    Attributes
    ----------
    count : float64 tensor of shape (P, M)
        Rows.
    mean : (P, M, D)
    gram : (P, M, D, D)
        Sums of products of centred features.
    size : (P, M, D)
        How large the features were that were added: the largest root mean square of a batch. Rounding is told from
        variation by it.
    target_mean : (P, K)
    cross : (P, K, D)
        Sums of products of centred targets and features.
    patterns : tuple of K ints below M
        Which count, mean and Gram matrix belong to each target.
    places : tuple of ints
        What the P places are, such as (steps, layers); P is their product.
    product : torch.dtype
        In which products of rows are made. float32 halves the time; sums are float64 all the same.
    """

    count: Tensor
    mean: Tensor
    gram: Tensor
    size: Tensor
    target_mean: Tensor
    cross: Tensor
    patterns: tuple[int, ...]
    places: tuple[int, ...]
    product: torch.dtype = torch.float64

    @classmethod
    def zeros(
        cls,
        places: int | Sequence[int],
        width: int,
        targets: int,
        device: torch.device | str = "cpu",
        product: torch.dtype = torch.float64,
    ) -> Moments:
        """Moments of no rows."""
        shape = (places,) if isinstance(places, int) else tuple(places)
        p, options = prod(shape), {"dtype": torch.float64, "device": device}
        made = [
            torch.zeros(size, **cast(Any, options))
            for size in ((p, 1), (p, 1, width), (p, 1, width, width), (p, 1, width), (p, targets), (p, targets, width))
        ]
        return cls._of(made, (0,) * targets, shape, product)

    def add(self, features: Tensor, targets: Tensor, *, taken_off: Tensor | None = None) -> Moments:
        """Add n rows, in place.

        Parameters
        ----------
        features : tensor of shape (*places, n, D), any floating dtype
        targets : tensor of shape (n, K), the same at every place, or (*places, n, K)
            NaN where a row is not labelled.
        taken_off : tensor of shape (*places, D), optional
            Values near the means that the features come without. They do not become part of the moments; they say how
            large the features were, and that a pass over the rows may be saved.

        Raises
        ------
        EvidenceError
            Shapes that do not fit, or NaN or infinite features in labelled rows.
        """
        x, y = self._fitted(features.detach(), targets)
        off = None if taken_off is None else taken_off.to(self.mean).flatten(0, -2)
        self._refine(_meet(self.patterns, _missing_patterns(y)))
        for p in range(len(x)):
            part = self._of_rows(x[p], y[p if len(y) > 1 else 0], None if off is None else off[p])
            if not torch.isfinite(part.mean).all():
                bad = int((~torch.isfinite(x[p])).sum())
                raise EvidenceError(f"{bad} NaN or infinite features at place {self._name(p)}")
            here = self._at(p)
            if self.count[p].any():
                here._merge(part)
            else:
                for old, new in zip(here._tensors, part._tensors, strict=True):
                    old.copy_(new)
        return self

    def __add__(self, other: Moments) -> Moments:
        """Moments of the rows of both."""
        patterns = self._patterns_of_both(other)
        result = self._of([x.clone() for x in self._tensors], self.patterns, self.places, self.product)
        result._refine(patterns)
        result._merge(other._refined(patterns))
        return result

    def __iadd__(self, other: Moments) -> Moments:
        """Add the rows of another, in place."""
        patterns = self._patterns_of_both(other)
        self._refine(patterns)
        self._merge(other._refined(patterns))
        return self

    def solve(self, alpha: float, standardize: bool = True) -> Linear:
        """Ridge regression of every target at every place; the intercept is not penalised.

        Parameters
        ----------
        alpha : float
            Penalty in units of the number of rows: ``alpha * count`` is added to the Gram matrix's diagonal.
        standardize : bool
            Penalise coefficients of features divided by their standard deviations, rather than of the raw ones.

        Raises
        ------
        EvidenceError
            An alpha below 0, or a Gram matrix that cannot be factorised: more features than rows, and ``alpha`` too
            small.
        """
        if not 0 <= alpha < inf:
            raise EvidenceError(f"alpha must be a number from 0 on, got {alpha}")
        at_once = max(1, AT_ONCE // (8 * self.mean.shape[-1] ** 2))
        coef = torch.empty_like(self.cross)
        for m in range(self.count.shape[1]):
            columns = self._columns(m)
            for start in range(0, len(self.count), at_once):
                here = slice(start, start + at_once)
                coef[here, columns] = self._solve(here, m, columns, alpha, standardize)
        intercept = self.target_mean - (coef * self.mean[:, list(self.patterns)]).sum(-1)
        return Linear(coef.unflatten(0, self.places), intercept.unflatten(0, self.places))

    def midpoints(self, linear: Linear) -> Tensor:
        """Halfway between the mean scores of the rows with target 0 and target 1: shape ``(*places, K)``.

        Means nothing for targets with other values.
        """
        share = self.target_mean
        count = self.count[:, list(self.patterns)]
        coef = linear.coef.flatten(0, -3)
        spread = (coef * self.cross).sum(-1) / count
        # The classes' mean scores are the overall mean plus spread / share and less spread / (1 - share).
        middle = share + spread * (1 / share - 1 / (1 - share)) / 2
        return cast(Tensor, middle.unflatten(0, self.places))

    # -- how it is done

    @classmethod
    def _of(
        cls, tensors: Sequence[Tensor], patterns: tuple[int, ...], places: tuple[int, ...], product: torch.dtype
    ) -> Moments:
        count, mean, gram, size, target_mean, cross = tensors
        return cls(count, mean, gram, size, target_mean, cross, patterns, places, product)

    @property
    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in _TENSORS]

    def _name(self, place: int) -> str:
        index = torch.unravel_index(torch.tensor(place), self.places)
        return ", ".join(str(int(i)) for i in index)

    def _columns(self, pattern: int) -> list[int]:
        return [k for k, m in enumerate(self.patterns) if m == pattern]

    def _fitted(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Features (P, n, D) and targets (1 or P, n, K) in float64, on this device."""
        n, width, targets = x.shape[-2], self.mean.shape[-1], self.cross.shape[1]
        shared = y.ndim == 2
        expected = (n, targets) if shared else (*self.places, n, targets)
        if x.shape != (*self.places, n, width) or y.shape != expected:
            raise EvidenceError(
                f"features {tuple(x.shape)}, targets {tuple(y.shape)}; expected {(*self.places, 'n', width)}, and "
                f"(n, {targets}) or {(*self.places, 'n', targets)}"
            )
        y = y.to(self.mean.device, torch.float64)
        return x.to(self.mean.device).flatten(0, -3), y[None] if shared else y.flatten(0, -3)

    def _of_rows(self, x: Tensor, y: Tensor, taken_off: Tensor | None) -> Moments:
        """Moments of rows (n, D) with targets (n, K) at one place."""
        part = Moments.zeros(1, x.shape[1], y.shape[1], x.device, self.product)
        part._refine(self.patterns)
        for m in range(part.count.shape[1]):
            columns = self._columns(m)
            kept = ~y[:, columns[0]].isnan()
            rows, wanted = (x, y[:, columns]) if bool(kept.all()) else (x[kept], y[kept][:, columns])
            if len(rows):
                part._set(m, columns, rows, wanted, centre=taken_off is None)
                if taken_off is not None:
                    part.size[0, m] += taken_off.abs()
        return part

    def _set(self, m: int, columns: list[int], x: Tensor, y: Tensor, centre: bool) -> None:
        """Fill in one pattern of a single place, from its labelled rows."""
        near = (x.mean(0, dtype=torch.float64)).to(self.product) if centre else None
        rows = x.to(self.product) if near is None else x.to(self.product) - near
        target_mean = y.mean(0)
        # The last column sums the rows up: what is left of their mean.
        targets = torch.cat([y - target_mean, y.new_ones(len(y), 1)], dim=1)
        sums = products(targets.to(self.product), rows)
        rest = sums[-1] / len(x)
        about_zero = products(rows, rows)
        gram = torch.addr(about_zero, rest, rest, alpha=-len(x))
        squares = gram.diagonal()
        if not centre and (squares < CANCELS * about_zero.diagonal()).any():
            self._set(m, columns, x, y, centre=True)
            return
        self.count[0, m], self.target_mean[0, columns] = len(x), target_mean
        self.mean[0, m] = mean = rest if near is None else rest + near
        self.gram[0, m], self.cross[0, columns] = gram, sums[:-1]
        self.size[0, m] = (mean.square() + squares.clamp(min=0) / len(x)).sqrt()

    def _at(self, p: int) -> Moments:
        """One place, as views of the same memory."""
        return self._of([x[p : p + 1] for x in self._tensors], self.patterns, (1,), self.product)

    def _refine(self, patterns: tuple[int, ...]) -> None:
        """Give targets that were together until now patterns of their own: what was seen so far is the same for all."""
        if patterns == self.patterns:
            return
        came_from = [self.patterns[patterns.index(m)] for m in range(max(patterns) + 1)]
        of_patterns = self.count, self.mean, self.gram, self.size
        self.count, self.mean, self.gram, self.size = (x[:, came_from] for x in of_patterns)
        self.patterns = patterns

    def _patterns_of_both(self, other: Moments) -> tuple[int, ...]:
        if self.places != other.places or self.cross.shape != other.cross.shape:
            raise EvidenceError(
                f"moments of places {self.places} with targets and width {tuple(self.cross.shape[1:])} and of places "
                f"{other.places} with {tuple(other.cross.shape[1:])} do not go together"
            )
        return _meet(self.patterns, other.patterns)

    def _refined(self, patterns: tuple[int, ...]) -> Moments:
        """The same with finer patterns; where they are the same, with the same memory."""
        same = self._of(self._tensors, self.patterns, self.places, self.product)
        same._refine(patterns)
        return same

    def _merge(self, part: Moments) -> None:
        """Add another's rows, in place; both have the same patterns."""
        of = list(self.patterns)
        count = self.count + part.count
        share = part.count / count.clamp(min=1)
        both = self.count * share
        dx, dy = part.mean - self.mean, part.target_mean - self.target_mean
        self.gram.add_(part.gram).addcmul_(both[..., None, None] * dx[..., None], dx[..., None, :])
        self.cross.add_(part.cross).addcmul_((both[:, of] * dy)[..., None], dx[:, of])
        self.mean.add_(share[..., None] * dx)
        self.target_mean.add_(share[:, of] * dy)
        self.count.copy_(count)
        torch.maximum(self.size, part.size, out=self.size)

    def _solve(self, here: slice, m: int, columns: list[int], alpha: float, standardize: bool) -> Tensor:
        """Coefficients (places, columns, D) of the targets of one pattern at some places."""
        gram, count = self.gram[here, m], self.count[here, m, None]
        scale, constant = _scale(gram, self.size[here, m], count)
        scale = scale if standardize else torch.ones_like(scale)
        system = (gram / scale[..., None]).div_(scale[..., None, :])
        if constant.any():
            system.masked_fill_(constant[..., None] | constant[..., None, :], 0.0)
        # Only zeros in the row of a constant feature: 1 on the diagonal gives it the coefficient 0 at alpha 0 too.
        system.diagonal(dim1=-2, dim2=-1).add_(alpha * count).masked_fill_(constant, 1.0)
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed.any():
            place = self._name((here.start or 0) + int(failed.nonzero()[0]))
            raise EvidenceError(
                f"the features at place {place} are linearly dependent: {system.shape[-1]} of them on "
                f"{self.count[here, m].min():.0f} rows with alpha {alpha}; raise alpha"
            )
        wanted = self.cross[here][:, columns] / scale[:, None]
        solution = torch.cholesky_solve(wanted.mT, factor).mT / scale[:, None]
        return solution.masked_fill(constant[:, None], 0.0)


_TENSORS = ("count", "mean", "gram", "size", "target_mean", "cross")


def complements(parts: Sequence[Moments]) -> Iterator[Moments]:
    """For each of two or more parts, in order, the moments of all the others together.

    Sums alone, and about log2 of them a part: the halves take turns, each with all that lies outside of it. What is
    given may be one of the parts itself, which must not be changed.
    """
    return _outside(parts, ())


def _outside(parts: Sequence[Moments], others: Sequence[Moments]) -> Iterator[Moments]:
    """The complements of some parts; ``others`` are none, or one with the sum of everything else."""
    if len(parts) == 1:
        yield from others
        return
    half = len(parts) // 2
    first, second = parts[:half], parts[half:]
    yield from _outside(first, [_total([*others, *second])])
    yield from _outside(second, [_total([*others, *first])])


def _total(parts: Sequence[Moments]) -> Moments:
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total


def _scale(gram: Tensor, size: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations (P, D), 1 for constant features, and which those are."""
    deviation = (gram.diagonal(dim1=-2, dim2=-1).clamp(min=0) / count).sqrt()
    constant = deviation <= CONSTANT * size
    return torch.where(constant, 1.0, deviation), constant


def _missing_patterns(y: Tensor) -> tuple[int, ...]:
    """Targets (P, n, K) to K ints, equal for targets that miss the same rows at every place."""
    missing = y.isnan()
    if not missing.any():
        return (0,) * y.shape[-1]
    kinds = torch.unique(missing.flatten(0, 1), dim=1, return_inverse=True)[1]
    return _numbered([int(k) for k in kinds])


def _meet(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Targets stay together that are together in both."""
    return one if one == other else _numbered(list(zip(one, other, strict=True)))


def _numbered(names: Sequence[Any]) -> tuple[int, ...]:
    """Numbers from 0 in order of first appearance."""
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return tuple(order[name] for name in names)


#: Rows that float32 products sum up before they are added in float64.
ROWS = 1024


def products(a: Tensor, b: Tensor) -> Tensor:
    """Transposed a times b, (n, i) and (n, j) to (i, j), summed in float64."""
    if a.dtype == torch.float64 or len(a) <= ROWS:
        return _transposed_times(a, b).to(torch.float64)
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
    for i in range(0, len(a), ROWS):
        total += _transposed_times(a[i : i + ROWS], b[i : i + ROWS])
    return total


def _transposed_times(a: Tensor, b: Tensor) -> Tensor:
    # numpy knows a matrix times its own transpose and does half of the work; torch does not.
    if a.device.type == "cpu":
        return torch.from_numpy(a.numpy().T @ b.numpy())
    return a.mT @ b
