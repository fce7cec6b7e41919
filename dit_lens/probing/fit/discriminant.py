"""From least-squares columns to classes: discriminant analysis in the space of fitted values."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_lens.probing.fit.moments import Linear, Moments

#: Directions of the fitted values with less than this share of the largest variance are rounding.
RANK = 1e-9
#: Share of the total covariance in the within-class covariance, which is zero where training rows are told apart fully.
SHRINK = 1e-6


def discriminant(moments: Moments, linear: Linear, columns: slice) -> Linear:
    """Linear scores of k classes whose largest is the answer, from regressions to the k indicators of the classes.

    Indicator columns compared as they are favour frequent classes and can hide one class behind two others. Linear
    discriminant analysis of the fitted values with equal priors does neither, and equals that of the features (Hastie,
    Tibshirani and Buja 1994, "Flexible discriminant analysis by optimal scoring"). For two classes its boundary is the
    midpoint of the two classes' mean scores.

    Parameters
    ----------
    moments : Moments
        Of the training rows; targets ``columns`` are 0 and 1 and sum to 1 in every row.

    Returns
    -------
    Linear with coef (P, k, D) and intercept (P, k)
    """
    pattern = moments.patterns[columns.start]
    coef = linear.coef.flatten(0, -3)[:, columns]
    intercept = linear.intercept.flatten(0, -2)[:, columns]
    share, count = moments.target_mean[:, columns], moments.count[:, pattern, None]
    # Row j: the class's mean of the fitted values, less the mean of all rows, (P, k, k).
    means = (moments.cross[:, columns] / (count * share).clamp(min=1e-12)[..., None]) @ coef.mT
    total = coef @ moments.gram[:, pattern] @ coef.mT / count[..., None]
    inverse = _inverse_within(total, means, share)
    towards = means @ inverse
    centre = share  # least squares with an intercept: the mean of the fitted values is that of the targets
    offset = (towards @ (intercept - centre)[..., None])[..., 0] - (towards * means).sum(-1) / 2
    return Linear(towards @ coef, offset.masked_fill(share == 0, -torch.inf))  # a class never seen is never said


def _inverse_within(total: Tensor, means: Tensor, share: Tensor) -> Tensor:
    """Inverse of the within-class covariance of the fitted values on the directions in which they vary, (P, k, k)."""
    values, vectors = torch.linalg.eigh(total)
    kept = values > RANK * values[:, -1:]
    whiten = vectors * torch.where(kept, values.clamp(min=1e-300).rsqrt(), 0.0)[:, None, :]
    between = (whiten.mT @ (means.mT * share[:, None, :])) @ (means @ whiten)
    identity = torch.eye(total.shape[-1], dtype=total.dtype, device=total.device)
    within = (1 - SHRINK) * (identity - between) + SHRINK * identity
    inverse: Tensor = whiten @ torch.linalg.inv(within) @ whiten.mT
    return inverse
