"""What every task has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Label:
    """One thing a probe may be asked about every latent cell.

    Attributes
    ----------
    role : "perception" or "reasoning"
    values : array of shape (B, F, n, n)
        Boolean for classification, float for regression.
    """

    name: str
    role: str
    values: NDArray[Any]

    @property
    def is_regression(self) -> bool:
        return self.values.dtype != np.bool_


@runtime_checkable
class Instance(Protocol):
    """One problem: what `VideoDiT.run` needs of it."""

    @property
    def id(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def image(self) -> Image.Image: ...


class Scores(Protocol):
    """Scores of B videos."""

    @property
    def total(self) -> NDArray[np.float64]: ...

    @property
    def strict(self) -> NDArray[np.bool_]: ...


class Task(Protocol):
    """What an analysis needs of a task. A grid task of n x n cells draws one cell on one latent position."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def sample(self, count: int, seed: int = 0, split: Any = "test") -> list[Any]: ...

    def pairs(self, count: int, seed: int = 0, kind: str = "goal", split: Any = "test") -> list[tuple[Any, Any]]: ...

    def labels(self, instances: Sequence[Any], latent_frames: int) -> dict[str, Label]: ...

    def score(self, frames: NDArray[np.uint8], instances: Any) -> Scores: ...

    def floors(self, count: int = 100, seed: int = 0) -> pd.DataFrame: ...
