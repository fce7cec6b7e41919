"""Sums of products over rows."""

from __future__ import annotations

import torch
from torch import Tensor

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
