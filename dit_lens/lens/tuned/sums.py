"""Sufficient statistics of a linear regression, gathered while runs go by, and its solution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class ResidualSums:
    """Sums over tokens of residuals x and of what they lack d = y - x, in float64; y is the last residual.

    The squared error of every affine map x -> x + x W + b on the tokens seen follows from them, so that nothing else
    need be kept of the runs.

    Parameters
    ----------
    width : int
        Channels D.

    Attributes
    ----------
    n : int
        Tokens.
    x, d : Tensor of shape (D,)
    xx, xd : Tensor of shape (D, D)
    dd : float
    """

    def __init__(self, width: int) -> None:
        self.n = 0
        self.x, self.d = torch.zeros(2, width, dtype=torch.float64)
        self.xx, self.xd = torch.zeros(2, width, width, dtype=torch.float64)
        self.dd = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add tokens, both of shape (..., D)."""
        x = x.flatten(0, -2).double()
        d = y.flatten(0, -2).double() - x
        self.n += len(x)
        self.x += x.sum(dim=0).cpu()
        self.d += d.sum(dim=0).cpu()
        self.xx += (x.T @ x).cpu()
        self.xd += (x.T @ d).cpu()
        self.dd += float(d.square().sum())

    @property
    def power(self) -> float:
        """Mean squared norm of the last residual."""
        return float(self.xx.trace() + 2 * self.xd.trace() + self.dd) / self.n

    def error(self, matrix: Tensor | None = None, bias: Tensor | None = None) -> float:
        """Mean squared error of x + x W + b, by default of x itself, relative to the last residual's mean square."""
        total = self.dd
        if matrix is not None and bias is not None:
            w, b = matrix.double(), bias.double()
            total += float(
                (w * (self.xx @ w)).sum()
                - 2 * (w * self.xd).sum()
                + 2 * (self.x @ w) @ b
                - 2 * self.d @ b
                + self.n * b @ b
            )
        return total / self.n / self.power

    def solutions(self, penalties: Sequence[float]) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Ridge regressions of d on x: (penalty, W (D, D), b (D,)), shrunk towards W = 0, which is the identity.

        A penalty is relative to the mean variance of a channel; the bias is not penalised.
        """
        mean_x, mean_d = self.x / self.n, self.d / self.n
        covariance = self.xx / self.n - torch.outer(mean_x, mean_x)
        cross = self.xd / self.n - torch.outer(mean_x, mean_d)
        # One decomposition serves all penalties.
        values, vectors = torch.linalg.eigh(covariance)
        rotated, scale = vectors.T @ cross, covariance.trace() / len(mean_x)
        for penalty in penalties:
            matrix = vectors @ (rotated / (values.clamp(min=0) + penalty * scale)[:, None])
            yield penalty, matrix, mean_d - mean_x @ matrix
