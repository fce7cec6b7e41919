"""The unbiased estimator HSIC_1 of linear kernels, in the space of the features, and the CKA that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import EvidenceError, InputError, NotFinite
from dit_lens.results.arrays import Floats

#: Fewer leave the unbiased estimator without degrees of freedom.
FEWEST = 4


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two sets of features of the same n samples, with the unbiased estimator; see `cka`.

    Parameters
    ----------
    x : Tensor of shape (n, D)
    y : Tensor of shape (n, D'), of the same dtype

    Raises
    ------
    InputError
        Fewer than 4 samples, different numbers of them, or different dtypes.
    EvidenceError
        All samples of one are the same.
    NotFinite
        NaN or infinity.

    Examples
    --------
    >>> x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    >>> rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    >>> round(linear_cka(x, 3 * x @ rotation), 6)
    1.0
    """
    for name, features in (("x", x), ("y", y)):
        if not isinstance(features, Tensor) or features.ndim != 2:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(f"linear_cka: {name} must be a tensor of shape (samples, channels), got {got}")
    require_same_dtype(x, y)
    if len(x) != len(y):
        raise InputError(
            f"linear_cka: {len(x)} samples in x and {len(y)} in y; sample i of one belongs to i of the other"
        )
    require_enough(len(x), "samples")
    places = [Centred.of(features, [], name) for name, features in (("x", x), ("y", y))]
    return float(estimates(*places)[0])


@dataclass(frozen=True, eq=False)
class Centred:
    """Features (n, D) of one place, centred, and what HSIC_1 needs of them alone.

    HSIC_1 does not change when a constant is added to all samples; centring spares the sums their cancellation.
    """

    x: Tensor
    groups: Sequence[Tensor]
    name: str

    @classmethod
    def of(cls, features: Tensor, groups: Sequence[Tensor], name: str) -> Centred:
        if not torch.isfinite(features).all():
            raise NotFinite(f"{name}: {int((~torch.isfinite(features)).sum())} values are NaN or infinite")
        wide = features.to(torch.float64)
        centred = wide - wide.mean(dim=0)
        # Of samples that are all the same only the rounding of the mean is left, and that correlates with anything.
        if centred.square().sum() <= 1e-24 * wide.square().sum():
            raise EvidenceError(f"{name}: all samples are the same, which leaves CKA undefined")
        return cls(centred, groups, name)

    @cached_property
    def squares(self) -> Tensor:
        """Squared norms (n,): the diagonal of the Gram matrix."""
        return self.x.square().sum(dim=1)

    @cached_property
    def sums(self) -> Tensor:
        """Row sums of the Gram matrix without its diagonal, over all samples and without each group: (n, 1 + G)."""
        # The samples are centred, so that those which are left without a group sum to minus that group's sum.
        sums = [torch.zeros_like(self.x[0]), *(-self.x[group].sum(dim=0) for group in self.groups)]
        return self.x @ torch.stack(sums).T - self.squares[:, None]

    @cached_property
    def own(self) -> Tensor:
        """HSIC_1 with itself, over all samples and without each group: (1 + G,)."""
        return hsic(self, self)


def hsic(one: Centred, other: Centred) -> Tensor:
    """HSIC_1 of all samples, then without each group: (1 + G,).

    With Gram matrices K and L whose diagonals are set to zero, n (n - 3) HSIC_1 is
    tr(K L) + (1'K1)(1'L1) / ((n - 1)(n - 2)) - 2 (1'K L1) / (n - 2). For linear kernels none of the three needs a
    matrix of n x n: tr(K L) is the squared norm of X'Y less the product of the diagonals, K1 are the row sums x_i . s
    less the diagonal.
    """
    keep = _keeps(one)
    n = keep.sum(dim=0)
    traces = _traces(one, other) - keep.T @ (one.squares * other.squares)
    totals = (one.sums * keep).sum(dim=0) * (other.sums * keep).sum(dim=0)
    products = (one.sums * other.sums * keep).sum(dim=0)
    return (traces + totals / ((n - 1) * (n - 2)) - 2 * products / (n - 2)) / (n * (n - 3))


def _keeps(place: Centred) -> Tensor:
    """1 for the samples that are left, all of them and then without each group: (n, 1 + G)."""
    keep = torch.ones(len(place.x), 1 + len(place.groups), dtype=place.x.dtype, device=place.x.device)
    for g, group in enumerate(place.groups, start=1):
        keep[group, g] = 0
    return keep


def _traces(one: Centred, other: Centred) -> Tensor:
    """|X'Y|^2 of all samples, and without each group: (1 + G,)."""
    x, y = one.x, other.x
    # |M - M_g|^2 = |M|^2 - 2 <M, M_g> + |M_g|^2 with M = X'Y, and <M, M_g> a sum over the samples of the group.
    samples = _paired(x, y)
    whole = samples.sum()
    without = [whole - 2 * samples[g].sum() + _paired(x[g], y[g]).sum() for g in one.groups]
    return torch.stack([whole, *without])


def _paired(x: Tensor, y: Tensor) -> Tensor:
    """x_i' X'Y y_i for each sample: (n,); they sum to |X'Y|^2. By the smaller of D x D' and n x n."""
    if len(x) < min(x.shape[1], y.shape[1]):
        return ((x @ x.T) * (y @ y.T)).sum(dim=1)
    return ((x @ (x.T @ y)) * y).sum(dim=1)


def estimates(one: Centred, other: Centred) -> Floats:
    """CKA of all samples, and without each group: float (1 + G,)."""
    scale = (one.own * other.own).sqrt()
    if not bool(one.own[0] > 0) or not bool(other.own[0] > 0):
        raise EvidenceError(f"{one.name} against {other.name}: no variance that does not come from single samples")
    return np.asarray((hsic(one, other) / scale).cpu().numpy())


def require_same_dtype(x: Tensor, y: Tensor) -> None:
    for features in (x, y):
        if not features.is_floating_point():
            raise InputError(f"cka: features must be real floating-point numbers, got {features.dtype}")
    if x.dtype != y.dtype:
        raise InputError(f"cka: one has dtype {x.dtype}, the other {y.dtype}; convert one with .to({x.dtype})")


def require_enough(count: int, what: str) -> None:
    if count < FEWEST:
        raise InputError(f"cka: {count} {what}; the unbiased estimator needs at least {FEWEST} samples")
