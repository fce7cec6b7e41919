"""How a tuned lens is fitted: all that its record keeps of it besides the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from dit_lens.errors import InputError
from dit_lens.lens.tuned.bands import check_bands
from dit_lens.runs.seeds import derive, row_seeds

#: Penalties to choose from, relative to the mean variance of a channel.
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
OBJECTIVES = ("residual", "velocity")
STARTS = ("identity", "residual")


@dataclass(frozen=True)
class TunedLensRecipe:
    """How a tuned lens is fitted.

    Parameters
    ----------
    objective : "residual" or "velocity"
        The last residual stream: least squares with a ridge penalty towards the identity, in closed form from sums in
        float64. Or the model's velocity through its own head: gradient steps (Adam).
    bands : int or tuple of float
        So many bands of noise levels for each expert, or the noise levels at which to divide.
    penalties : tuple of float
        To choose from on the validation runs, relative to the mean variance of a channel.
    batch : int
        Rows that are run at once, and of "velocity" the rows of a gradient step.
    passes, rate, start
        Of "velocity": passes over the training instances, each with noise of its own; step size (it falls linearly to
        0); and where to start, at the "identity" or at the closed form of "residual".

    Raises
    ------
    InputError
        Unknown objective or start, or bands, penalties, a batch, passes or a rate that are none.

    Examples
    --------
    >>> TunedLensRecipe(bands=[0.9, 0.5]).bands
    (0.9, 0.5)
    """

    objective: str = "residual"
    bands: int | tuple[float, ...] = 3
    penalties: tuple[float, ...] = PENALTIES
    batch: int = 16
    passes: int = 2
    rate: float = 1e-3
    start: str = "identity"

    def __post_init__(self) -> None:
        for name in ("bands", "penalties"):
            if isinstance(given := getattr(self, name), Iterable):
                object.__setattr__(self, name, tuple(given))
        for name, choices in (("objective", OBJECTIVES), ("start", STARTS)):
            if getattr(self, name) not in choices:
                raise InputError(f"unknown {name} {getattr(self, name)!r}; one of {', '.join(choices)}")
        check_bands(self.bands)
        if not self.penalties or not all(_is_positive(p) for p in self.penalties):
            raise InputError(f"penalties={self.penalties!r}: need finite numbers above 0")
        for name in ("batch", "passes"):
            given = getattr(self, name)
            if not isinstance(given, int) or isinstance(given, bool) or given < 1:
                raise InputError(f"{name}={given!r}: need a whole number of at least 1")
        if not _is_positive(self.rate):
            raise InputError(f"rate={self.rate!r}: need a finite number above 0")

    def train_seeds(self, seed: int, count: int) -> list[list[int]]:
        """Seeds of the ``count`` training runs, pass after pass: each pass has noise of its own."""
        passes = self.passes if self.objective == "velocity" else 1
        seeds = row_seeds(derive(seed, "train"), count * passes)
        return [seeds[i * count : (i + 1) * count] for i in range(passes)]

    def validation_seeds(self, seed: int, count: int) -> list[int]:
        """Seeds of the ``count`` validation runs."""
        return row_seeds(derive(seed, "validation"), count)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0
