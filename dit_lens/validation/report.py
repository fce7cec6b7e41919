"""The outcome of checking a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dit_lens.display.short import short_repr
from dit_lens.errors import CheckFailed

#: The versions whose internals the families' files were written against and have been checked with.
CHECKED_WITH = {"diffusers": "0.42.1", "nnsight": "0.8.1"}


@dataclass(frozen=True)
class CheckResult:
    """One check: whether it held, and the numbers.

    Attributes
    ----------
    passed : bool
    detail : str
        What was compared and what came out; of a failure the first site where it went wrong.
    """

    passed: bool
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes
    ----------
    name, family, pipeline : str
    layers : str
        Blocks by kind.
    grid : (F, H, W), tokens of the run that was checked
    branches : tuple of str
    checks : dict from name to CheckResult
    seconds : float
    """

    name: str
    family: str
    pipeline: str
    layers: str
    grid: tuple[int, int, int]
    branches: tuple[str, ...]
    checks: Mapping[str, CheckResult]
    seconds: float

    __repr__ = short_repr

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.checks.values())

    def __str__(self) -> str:
        """A table with one line per check."""
        head = (
            f"{self.name}: {self.pipeline}, {self.layers}, tokens {' x '.join(map(str, self.grid))}, "
            f"branches {', '.join(self.branches)}, {self.seconds:.1f} s"
        )
        width = max(map(len, self.checks))
        lines = [
            f"  {'ok  ' if result.passed else 'FAIL'}  {name:<{width}}  {result.detail}"
            for name, result in self.checks.items()
        ]
        return "\n".join([head, *lines])

    def require(self) -> CheckReport:
        """Raise for the first check that did not hold.

        Raises
        ------
        CheckFailed
            Names the family, the check, the site and the numbers.
        """
        for name, result in self.checks.items():
            if not result.passed:
                raise CheckFailed(f"{self.name} ({self.family}), {name}: {result.detail}")
        return self

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "family": self.family,
            "pipeline": self.pipeline,
            "layers": self.layers,
            "grid": list(self.grid),
            "branches": list(self.branches),
            "passed": self.passed,
            "seconds": round(self.seconds, 2),
            "checks": {name: {"passed": r.passed, "detail": r.detail} for name, r in self.checks.items()},
        }
