"""Synthetic runs: dictionaries of tensors that depend on their number alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_lens.runs.inputs import Row
from dit_lens.store.store import Store

RESID = "s03/cond/L05/resid/video"
TEXT = "s03/cond/L05/resid/text"
GUIDED = "s03/-/-/guided/video"
MODEL = "0123456789ab"


def tensors(number: int, rows: int = 2) -> dict[str, Tensor]:
    """Three sites of three dtypes."""
    generator = torch.Generator().manual_seed(number)
    return {
        RESID: torch.randn(rows, 2, 3, 3, 4, generator=generator),
        TEXT: torch.randn(rows, 5, 3, generator=generator).to(torch.bfloat16),
        GUIDED: torch.randn(rows, 3, 2, 3, 3, generator=generator).to(torch.float16),
    }


def rows_of(number: int, rows: int = 2) -> tuple[Row, ...]:
    return tuple(Row(f"maze-{number}", seed) for seed in range(rows))


def add(store: Store, number: int, **more: Any) -> None:
    settings = {"key": f"run-{number}", "rows": rows_of(number), "model_id": MODEL, **more}
    store.add(tensors(number), **settings)


def filled(folder: Any, runs: int = 3) -> Store:
    """A finished store of some runs, opened for reading."""
    with Store(folder) as store:
        for number in range(runs):
            add(store, number)
    return Store(folder)


def whole(site: str, runs: int = 3) -> Tensor:
    """What a site of `filled` holds."""
    return torch.cat([tensors(number)[site] for number in range(runs)])
